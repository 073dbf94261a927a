#!/usr/bin/env bash
# Every figure of docs/performance.md that needs a GPU, in the order of the page.
#
#     bash gmsa_rag/benchmark/launch/gpu.sh OUT [kernel] [compress] [answer] [store]
#
# Without names of parts all four run. Kernels and soft tokens are checked against their references before anything is
# timed. PYTHON names the interpreter, DEVICE the device, SHAPES the models' shapes, DTYPE what to compute in.
# REHEARSE=1 runs every command at its smallest, on any device, to see that it works.
set -euo pipefail

out=${1:?usage: gpu.sh OUT [parts]}
shift
parts=("$@")
((${#parts[@]})) || parts=(kernel compress answer store)
read -ra shapes <<<"${SHAPES:-llama-3.2-3b qwen3-4b}"
dtype=${DTYPE:-bfloat16}
bench() { "${PYTHON:-python3}" -m gmsa_rag.cli bench "$@" --device "${DEVICE:-cuda}" --out "$out"; }

rounds=10 states=65536 widths=1024,2048,3072,4096 ragged=256 longest=400
grown=1,4,16,64,256 totals=2048,8192,32768,131072 contexts=2600,13000 length=130 new=32 stored=1,20,100
if [[ -n ${REHEARSE:-} ]]; then
    rounds=1 states=512 widths=256 ragged=6 longest=60 grown=1,16 totals=512 contexts=64 length=16 new=2 stored=2
fi

for part in "${parts[@]}"; do
    case $part in
        kernel)
            bench kernel --widths "$widths" --tokens "$states" --rate 4 --dtype "$dtype" --repeats "$rounds"
            ;;
        compress)
            for shape in "${shapes[@]}"; do
                bench compress --shape "$shape" --dtype "$dtype" --passages "$ragged" --max-tokens "$longest" \
                    --repeats "$rounds"
                bench compress --growth --shape "$shape" --dtype "$dtype" --growth-passages "$grown" \
                    --growth-tokens "$totals" --max-tokens "$longest" --repeats 3
            done
            ;;
        answer)
            for shape in "${shapes[@]}"; do
                # First token from stored memories, and the whole with compression, by the length of the context.
                bench answer --shape "$shape" --dtype "$dtype" --context "$contexts" --tokens "$length" \
                    --rates 4,8,16 --new-tokens "$new" --repeats "$rounds"
                # Longer passages that touch, so that what stands between memories does not weigh.
                mkdir -p "$out/plain"
                out="$out/plain" bench answer --shape "$shape" --dtype "$dtype" --context "$contexts" --no-numbered \
                    --tokens $((length * 3)) --rates 16 --new-tokens "$new" --repeats "$rounds"
                # By the cache that grows, which may read a long context faster.
                mkdir -p "$out/dynamic"
                out="$out/dynamic" bench answer --shape "$shape" --dtype "$dtype" --context "$contexts" \
                    --tokens "$length" --rates 16 --new-tokens "$new" --cache dynamic --repeats "$rounds"
                # The same with half the encoder: the ceiling depends on its layers.
                mkdir -p "$out/4-layers"
                out="$out/4-layers" bench answer --shape "$shape" --dtype "$dtype" --context "${contexts%%,*}" \
                    --tokens "$length" --rates 4,8,16 --new-tokens "$new" --encoder-layers 4 --repeats "$rounds"
            done
            ;;
        store)
            for shape in "${shapes[@]}"; do
                bench store --shape "$shape" --dtype "$dtype" --memories "$stored" --tokens "$length" --repeats "$rounds"
            done
            ;;
        *) echo "gpu.sh: expected kernel, compress, answer or store, got $part" >&2 && exit 2 ;;
    esac
done
