#!/usr/bin/env bash
# Trains DiffAE on Pendulum (angle, light -> shadow length, shadow position): a diffusion autoencoder without a graph, a baseline of CausalDiffAE.
# Its configuration is configs/pendulum_causaldae_SIZE.yaml with configs/baselines/diffae.yaml over it.
# Aligned variant: RUN_DIR=DIR ... --config configs/baselines/diffae_aligned.yaml
# launch.sh lists the environment variables (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...); arguments are passed to the script.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch train pendulum diffae "$@"
