#!/usr/bin/env bash
# Trains CausalDiffAE on MorphoMNIST (thickness -> intensity); makes the data set first if it is missing.
# Example: MNIST=~/mnist SIZE=mini ./scripts/train_morphomnist_causaldae.sh --batch_size 32
# launch.sh lists the environment variables (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...); arguments are passed to the script.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch train morphomnist causaldae "$@"
