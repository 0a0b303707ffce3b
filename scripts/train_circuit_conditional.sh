#!/usr/bin/env bash
# Trains the label-conditional diffusion model on CausalCircuit (arm -> lights; blue, green -> red), a baseline of CausalDiffAE.
# Its configuration is configs/circuit_causaldae_SIZE.yaml with configs/baselines/conditional.yaml over it.
# launch.sh lists the environment variables (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...); arguments are passed to the script.
set -euo pipefail
EXTRAS=${EXTRAS:+$EXTRAS,}circuit
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch train circuit conditional "$@"
