#!/usr/bin/env bash
# Counterfactuals of the CausalCircuit model that train_circuit_causaldae.sh trained.
# Example: SIZE=mini ./scripts/test_circuit_causaldae.sh --do arm=0.5
# launch.sh lists the environment variables (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...); arguments are passed to the script.
set -euo pipefail
EXTRAS=${EXTRAS:+$EXTRAS,}circuit
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch test circuit causaldae "$@"
