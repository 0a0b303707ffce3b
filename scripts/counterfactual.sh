#!/usr/bin/env bash
# Counterfactuals of your own test images by the model that train.sh trained.
# Example: SIZE=mini ./scripts/counterfactual.sh --data_dir my_images --do age=60 --do hat=straw
# launch.sh lists the environment variables (MODEL, RUN_DIR, OUT_DIR, SIZE ...); arguments are passed to the script.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch test folder "${MODEL:-causaldae}" "$@"
