#!/usr/bin/env bash
# Distils a trained CausalDiffAE of CausalCircuit into one that takes a few steps: its run, or the shipped weights.
# Example: SIZE=mini ./scripts/distill_circuit.sh --few_steps 4 --minutes 60
# launch.sh lists the environment variables (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...); arguments are passed to the script.
set -euo pipefail
EXTRAS=${EXTRAS:+$EXTRAS,}circuit
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch distill circuit causaldae "$@"
