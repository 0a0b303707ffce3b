#!/usr/bin/env bash
# Trains CausalDiffAE on Pendulum (angle, light -> shadow), and makes the data set first where it is missing.
# Example: NPROC=5 ./scripts/train_pendulum_causaldae.sh
# What else can be set (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...) is listed in launch.sh; arguments pass through.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch train pendulum causaldae "$@"
