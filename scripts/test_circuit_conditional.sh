#!/usr/bin/env bash
# Counterfactuals of the test images of CausalCircuit (arm -> lights; blue, green -> red) by the label-conditional diffusion model.
# What can be set (DATA_DIR, RUN_DIR, OUT_DIR, SIZE, DRY_RUN ...) is listed in launch.sh; arguments pass through.
set -euo pipefail
EXTRAS=${EXTRAS:+$EXTRAS,}circuit
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch test circuit conditional "$@"
