#!/usr/bin/env bash
# Train v2 on one GPU, for so many minutes: bash train/train_v2_gpu.sh DATASET OUTPUT_DIR MINUTES [OPTION ...]
#
# First the tests of what only a GPU shows. Then a larger net than a CPU's is trained for as many epochs as fit, by two
# views of every image, and by more of the mix, as these are more epochs. Where $OUT names a folder, the results are
# copied there, and the weights in parts of at most 15 MiB, which `cat $OUT/model.safetensors.* > model.safetensors`
# joins. A run that is stopped (SIGTERM, Ctrl-C) saves first, and leaves its checkpoint's weights there. Options are
# those of train_v2.py; a --recipe or --config among them takes the place of the whole one given here.
set -euo pipefail
dataset=$1 output=$2 minutes=$3
shift 3
cd "$(dirname "$0")/.."
if ! python3 -c "import nula" 2> /dev/null; then  # not installed: map the package onto this folder
    package=$(mktemp -d)
    ln -s "$PWD" "$package/nula"
    export PYTHONPATH="$package${PYTHONPATH:+:$PYTHONPATH}"
fi
python3 -c "import accelerate, datasets, torch, transformers"

bring_back() {
    if [ -z "${OUT:-}" ] || [ ! -e "$output" ]; then return; fi
    find "$output" -maxdepth 1 -name '*.json' -exec cp {} "$OUT" \;
    local weights="$output/model.safetensors" folder
    for folder in "$output/checkpoint" "$output/checkpoint.old"; do
        if [ ! -e "$weights" ] && [ -e "$folder/model.safetensors" ]; then
            weights=$(mktemp)  # with the names that the model itself gives, in place of a compiled one's
            python3 - "$folder/model.safetensors" "$weights" << 'END'
import sys
from safetensors.torch import load_file, save_file
tensors = load_file(sys.argv[1])
save_file({name.removeprefix("_orig_mod."): tensor for name, tensor in tensors.items()}, sys.argv[2])
END
        fi
    done
    if [ -e "$weights" ]; then split --bytes=15M --numeric-suffixes "$weights" "$OUT/model.safetensors."; fi
}

if [ "${SKIP_TESTS:-}" != 1 ]; then python3 -m pytest -q -m gpu tests/test_gpu.py; fi
python3 -m accelerate.commands.launch --num_machines 1 --num_processes 1 --mixed_precision bf16 \
    --dynamo_backend "${DYNAMO_BACKEND:-inductor}" \
    train/train_v2.py --dataset "$dataset" --output_dir "$output" --minutes "$minutes" --checkpoint_steps 2000 \
    --recipe batch_size=1024 views=2 consistency_weight=4 augmix_share=0.6 cutout_probability=0.5 \
    --config 'hidden_sizes=[192,288,304]' 'depths=[2,1,1]' "$@" &
training=$!
trap 'kill -TERM $training' TERM INT
status=0
while kill -0 $training 2> /dev/null; do wait $training && status=0 || status=$?; done  # a signal ends a wait
bring_back
exit $status
