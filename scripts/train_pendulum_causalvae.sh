#!/usr/bin/env bash
# Trains the CausalVAE-style model on Pendulum (angle, light -> shadow length, shadow position), to compare CausalDiffAE with.
# It has CausalDiffAE's configuration (configs/pendulum_causaldae_SIZE.yaml) with configs/baselines/causalvae.yaml over it.
# What can be set (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...) is listed in launch.sh; arguments pass through.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch train pendulum causalvae "$@"
