#!/usr/bin/env bash
# Trains CausalDiffAE on MorphoMNIST (thickness -> intensity), and makes the data set first where it is missing.
# Example: MNIST=~/mnist SIZE=mini ./scripts/train_morphomnist_causaldae.sh --batch_size 32
# What else can be set (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...) is listed in launch.sh; arguments pass through.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch train morphomnist causaldae "$@"
