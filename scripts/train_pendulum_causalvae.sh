#!/usr/bin/env bash
# Trains the CausalVAE-style model on Pendulum (angle, light -> shadow length, shadow position), a baseline of CausalDiffAE.
# Its configuration is configs/pendulum_causaldae_SIZE.yaml with configs/baselines/causalvae.yaml over it.
# launch.sh lists the environment variables (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...); arguments are passed to the script.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch train pendulum causalvae "$@"
