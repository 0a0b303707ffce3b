#!/usr/bin/env bash
# Trains Diff-SCM on CausalCircuit (arm -> blue, green -> red): the anti-causal predictor on noised images (configs/noised_SIZE.yaml, into
# RUN_DIR/predictor), then the score network (configs/circuit_causaldae_SIZE.yaml with configs/baselines/diffscm.yaml over it).
# launch.sh lists the environment variables (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...); arguments are passed to the script.
set -euo pipefail
EXTRAS=${EXTRAS:+$EXTRAS,}circuit
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch train circuit diffscm "$@"
