#!/usr/bin/env bash
# Trains the label-conditional diffusion model on MorphoMNIST (thickness -> intensity), a baseline of CausalDiffAE.
# Its configuration is configs/morphomnist_causaldae_SIZE.yaml with configs/baselines/conditional.yaml over it.
# launch.sh lists the environment variables (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...); arguments are passed to the script.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch train morphomnist conditional "$@"
