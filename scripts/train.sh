#!/usr/bin/env bash
# Trains a model on your own images: a folder with labels.csv and a causal graph (see the README).
# Example: SIZE=mini ./scripts/train.sh --data_dir my_images --graph my_graph.yaml
# What else can be set (MODEL, RUN_DIR, SIZE, NPROC, DRY_RUN ...) is listed in launch.sh; arguments pass through.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch train folder "${MODEL:-causaldae}" "$@"
