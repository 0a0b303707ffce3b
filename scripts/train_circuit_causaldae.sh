#!/usr/bin/env bash
# Trains CausalDiffAE on CausalCircuit (arm -> blue, green, red; blue, green -> red). The published files belong into
# DATA_DIR; where there are none, a stand-in is drawn first (half an hour on two cores; MuJoCo and EGL are needed).
# Example: SIZE=mini ./scripts/train_circuit_causaldae.sh
# What else can be set (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...) is listed in launch.sh; arguments pass through.
set -euo pipefail
EXTRAS=${EXTRAS:+$EXTRAS,}circuit
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch train circuit causaldae "$@"
