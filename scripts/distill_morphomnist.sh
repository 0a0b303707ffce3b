#!/usr/bin/env bash
# Distils a trained CausalDiffAE of MorphoMNIST into one that takes a few steps: its run, or the shipped weights.
# Example: SIZE=mini ./scripts/distill_morphomnist.sh --few_steps 4 --minutes 60
# launch.sh lists the environment variables (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...); arguments are passed to the script.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch distill morphomnist causaldae "$@"
