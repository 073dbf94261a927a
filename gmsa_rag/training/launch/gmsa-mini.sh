#!/usr/bin/env bash
# Train gmsa-mini by its bundled recipe, stage by stage; a stage that was interrupted goes on where it stopped.
#
#     bash gmsa_rag/training/launch/gmsa-mini.sh DATA OUT [pretrain] [autoencode] [keft] [export]
#
# Without names of stages all four run. STEPS=3 rehearses: each stage ends after so many steps. PYTHON names the
# interpreter, DEVICE the device, RECIPE another recipe. The export is OUT/gmsa-mini, in bfloat16 files of less than 16 MB.
set -euo pipefail

data=${1:?usage: gmsa-mini.sh DATA OUT [stages]} out=${2:?usage: gmsa-mini.sh DATA OUT [stages]}
shift 2
stages=("$@")
((${#stages[@]})) || stages=(pretrain autoencode keft export)
train() { "${PYTHON:-python3}" -m gmsa_rag.cli train "$@"; }
common=(--recipe "${RECIPE:-gmsa-mini}" --data "$data" --device "${DEVICE:-auto}" --steps "${STEPS:-0}")

for stage in "${stages[@]}"; do
    case $stage in
        pretrain) train pretrain "${common[@]}" --out "$out/pretrain" ;;
        autoencode) train autoencode "${common[@]}" --out "$out/ae" --base "$out/pretrain/base" ;;
        keft) train keft "${common[@]}" --out "$out/keft" --checkpoint "$out/ae/checkpoint" ;;
        export) train export --checkpoint "$out/keft/checkpoint" --out "$out/gmsa-mini" --shard-mb 15 ;;
        *) echo "gmsa-mini.sh: expected pretrain, autoencode, keft or export, got $stage" >&2 && exit 2 ;;
    esac
done
