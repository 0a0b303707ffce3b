#!/usr/bin/env bash
# Counterfactuals of the test images of CausalCircuit (arm -> blue, green -> red) by Diff-SCM.
# launch.sh lists the environment variables (DATA_DIR, RUN_DIR, OUT_DIR, SIZE, DRY_RUN ...); arguments are passed to the script.
set -euo pipefail
EXTRAS=${EXTRAS:+$EXTRAS,}circuit
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch test circuit diffscm "$@"
