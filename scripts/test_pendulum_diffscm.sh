#!/usr/bin/env bash
# Counterfactuals of the test images of Pendulum (angle, light -> shadow length, shadow position) by Diff-SCM.
# What can be set (DATA_DIR, RUN_DIR, OUT_DIR, SIZE, DRY_RUN ...) is listed in launch.sh; arguments pass through.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch test pendulum diffscm "$@"
