#!/usr/bin/env bash
# Trains the CausalVAE-style model on CausalCircuit (arm -> lights; blue, green -> red), to compare CausalDiffAE with.
# It has CausalDiffAE's configuration (configs/circuit_causaldae_SIZE.yaml) with configs/baselines/causalvae.yaml over it.
# What can be set (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...) is listed in launch.sh; arguments pass through.
set -euo pipefail
EXTRAS=${EXTRAS:+$EXTRAS,}circuit
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch train circuit causalvae "$@"
