#!/usr/bin/env bash
# Counterfactuals of the Pendulum model that train_pendulum_causaldae.sh trained.
# Example: SIZE=mini ./scripts/test_pendulum_causaldae.sh --do angle=20
# launch.sh lists the environment variables (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...); arguments are passed to the script.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch test pendulum causaldae "$@"
