#!/usr/bin/env bash
# Trains CausalDiffAE on CausalCircuit (arm -> blue, green, red; blue, green -> red). Put the published files into
# DATA_DIR; without them a stand-in is drawn first (half an hour on two cores; requires MuJoCo and EGL).
# Example: SIZE=mini ./scripts/train_circuit_causaldae.sh
# launch.sh lists the environment variables (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...); arguments are passed to the script.
set -euo pipefail
EXTRAS=${EXTRAS:+$EXTRAS,}circuit
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch train circuit causaldae "$@"
