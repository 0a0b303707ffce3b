#!/usr/bin/env bash
# Counterfactuals of the CausalCircuit model that train_circuit_causaldae.sh made.
# Example: SIZE=mini ./scripts/test_circuit_causaldae.sh --do arm=0.5
# What else can be set (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...) is listed in launch.sh; arguments pass through.
set -euo pipefail
EXTRAS=${EXTRAS:+$EXTRAS,}circuit
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch test circuit causaldae "$@"
