#!/usr/bin/env bash
# Train v2 on one GPU, for so many minutes: bash train/train_v2_gpu.sh DATASET OUTPUT_DIR MINUTES [OPTION ...]
#
# First the tests of what only a GPU shows, then a larger net than a CPU's, by two views of every image, for as many
# epochs as fit. Where $OUT names a folder, the results are copied there, even if the run is stopped, and the weights
# in parts of at most 15 MiB, which `cat $OUT/model.safetensors.* > model.safetensors` joins; of a run that has not
# ended, those of its last checkpoint. Options are those of train_v2.py; a --recipe or --config among them takes the
# place of the whole one given here.
set -euo pipefail
dataset=$1 output=$2 minutes=$3
shift 3
cd "$(dirname "$0")/.."

bring_back() {
    if [ -z "${OUT:-}" ]; then return; fi
    local weights="$output/model.safetensors"
    if [ ! -e "$weights" ]; then weights="$output/checkpoint/model.safetensors"; fi
    if [ -e "$weights" ]; then split --bytes=15M --numeric-suffixes "$weights" "$OUT/model.safetensors."; fi
    if [ -e "$output" ]; then find "$output" -maxdepth 1 -name '*.json' -exec cp {} "$OUT" \;; fi
}
trap bring_back EXIT

if [ "${SKIP_TESTS:-}" != 1 ]; then python3 -m pytest -q -m gpu tests/test_gpu.py; fi
python3 -m accelerate.commands.launch --num_machines 1 --num_processes 1 --mixed_precision bf16 \
    --dynamo_backend "${DYNAMO_BACKEND:-inductor}" \
    train/train_v2.py --dataset "$dataset" --output_dir "$output" --minutes "$minutes" \
    --checkpoint_steps 2000 \
    --recipe batch_size=1024 views=2 consistency_weight=4 label_smoothing=0.1 \
    --config 'hidden_sizes=[192,288,304]' 'depths=[2,1,1]' "$@"
