#!/usr/bin/env bash
# Counterfactuals of the test images of Pendulum (angle, light -> shadow length, shadow position) by the label-conditional diffusion model (a baseline).
# launch.sh lists the environment variables (DATA_DIR, RUN_DIR, OUT_DIR, SIZE, DRY_RUN ...); arguments are passed to the script.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch test pendulum conditional "$@"
