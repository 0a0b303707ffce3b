#!/usr/bin/env bash
# Trains CausalDiffAE on Pendulum (angle, light -> shadow); makes the data set first if it is missing.
# Example: NPROC=5 ./scripts/train_pendulum_causaldae.sh
# launch.sh lists the environment variables (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...); arguments are passed to the script.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch train pendulum causaldae "$@"
