#!/usr/bin/env bash
# Trains a model on your own images: a folder with labels.csv and a causal graph (see the README).
# Example: SIZE=mini ./scripts/train.sh --data_dir my_images --graph my_graph.yaml
# launch.sh lists the environment variables (MODEL, RUN_DIR, SIZE, NPROC, DRY_RUN ...); arguments are passed to the script.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch train folder "${MODEL:-causaldae}" "$@"
