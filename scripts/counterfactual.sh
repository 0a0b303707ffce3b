#!/usr/bin/env bash
# Counterfactuals of your own test images by the model that train.sh made.
# Example: SIZE=mini ./scripts/counterfactual.sh --data_dir my_images --do age=60 --do hat=straw
# What else can be set (MODEL, RUN_DIR, OUT_DIR, SIZE ...) is listed in launch.sh; arguments pass through.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch test folder "${MODEL:-causaldae}" "$@"
