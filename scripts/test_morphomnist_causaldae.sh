#!/usr/bin/env bash
# Counterfactuals of the MorphoMNIST model that train_morphomnist_causaldae.sh trained.
# Example: SIZE=mini ./scripts/test_morphomnist_causaldae.sh --do thickness=4.5
# launch.sh lists the environment variables (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...); arguments are passed to the script.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch test morphomnist causaldae "$@"
