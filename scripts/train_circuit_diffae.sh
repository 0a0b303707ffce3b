#!/usr/bin/env bash
# Trains DiffAE, a diffusion autoencoder without a graph, on CausalCircuit (arm -> lights; blue, green -> red), to compare CausalDiffAE with.
# It has CausalDiffAE's configuration (configs/circuit_causaldae_SIZE.yaml) with configs/baselines/diffae.yaml over it.
# For its aligned form: RUN_DIR=DIR ... --config configs/baselines/diffae_aligned.yaml
# What can be set (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...) is listed in launch.sh; arguments pass through.
set -euo pipefail
EXTRAS=${EXTRAS:+$EXTRAS,}circuit
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch train circuit diffae "$@"
