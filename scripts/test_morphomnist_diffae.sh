#!/usr/bin/env bash
# Counterfactuals of the test images of MorphoMNIST (thickness -> intensity) by DiffAE (a baseline without a graph).
# launch.sh lists the environment variables (DATA_DIR, RUN_DIR, OUT_DIR, SIZE, DRY_RUN ...); arguments are passed to the script.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch test morphomnist diffae "$@"
