#!/usr/bin/env bash
# Train gmsa-mini by its bundled recipe, stage by stage; a stage that was interrupted goes on where it stopped.
#
#     bash gmsa_rag/training/launch/gmsa-mini.sh DATA OUT [prune] [pretrain] [autoencode] [keft] [export]
#
# BASE names a pretrained model, a GGUF file among others, from which the stage prune cuts what pretrain goes on from;
# without it, and without a pruned one in OUT, pretrain starts from random weights. Without names of stages all run.
# STEPS=3 rehearses: each stage ends after so many steps. PYTHON names the interpreter, DEVICE the device, RECIPE another
# recipe. The export is OUT/gmsa-mini, in bfloat16 files of less than 16 MB.
set -euo pipefail

data=${1:?usage: gmsa-mini.sh DATA OUT [stages]} out=${2:?usage: gmsa-mini.sh DATA OUT [stages]}
shift 2
stages=("$@")
((${#stages[@]})) || stages=(${BASE:+prune} pretrain autoencode keft export)
train() { "${PYTHON:-python3}" -m gmsa_rag.cli train "$@"; }
recipe=(--recipe "${RECIPE:-gmsa-mini}" --data "$data")
common=("${recipe[@]}" --device "${DEVICE:-auto}" --steps "${STEPS:-0}")
from=()
[[ -n ${BASE:-} || -d $out/prune/base ]] && from=(--base "$out/prune/base")

for stage in "${stages[@]}"; do
    case $stage in
        prune) train prune "${recipe[@]}" --out "$out/prune" --base "${BASE:?prune: expected BASE, a pretrained model}" ;;
        pretrain) train pretrain "${common[@]}" --out "$out/pretrain" ${from[@]+"${from[@]}"} ;;
        autoencode) train autoencode "${common[@]}" --out "$out/ae" --base "$out/pretrain/base" ;;
        keft) train keft "${common[@]}" --out "$out/keft" --checkpoint "$out/ae/checkpoint" ;;
        export) train export --checkpoint "$out/keft/checkpoint" --out "$out/gmsa-mini" --shard-mb 15 ;;
        *) echo "gmsa-mini.sh: expected prune, pretrain, autoencode, keft or export, got $stage" >&2 && exit 2 ;;
    esac
done
