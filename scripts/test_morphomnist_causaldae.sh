#!/usr/bin/env bash
# Counterfactuals of the MorphoMNIST model that train_morphomnist_causaldae.sh made.
# Example: SIZE=mini ./scripts/test_morphomnist_causaldae.sh --do thickness=4.5
# What else can be set (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...) is listed in launch.sh; arguments pass through.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch test morphomnist causaldae "$@"
