#!/usr/bin/env bash
# Counterfactuals of the test images of CausalCircuit (arm -> lights; blue, green -> red) by the CausalVAE-style model (a baseline).
# launch.sh lists the environment variables (DATA_DIR, RUN_DIR, OUT_DIR, SIZE, DRY_RUN ...); arguments are passed to the script.
set -euo pipefail
EXTRAS=${EXTRAS:+$EXTRAS,}circuit
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch test circuit causalvae "$@"
