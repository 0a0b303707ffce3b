#!/usr/bin/env bash
# Counterfactuals of the Pendulum model that train_pendulum_causaldae.sh made.
# Example: SIZE=mini ./scripts/test_pendulum_causaldae.sh --do angle=20
# What else can be set (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...) is listed in launch.sh; arguments pass through.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch test pendulum causaldae "$@"
