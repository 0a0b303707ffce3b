#!/usr/bin/env bash
# Trains Diff-SCM on MorphoMNIST (thickness -> intensity): the anti-causal predictor on noised images (configs/noised_SIZE.yaml, into
# RUN_DIR/predictor), then the score network (configs/morphomnist_causaldae_SIZE.yaml with configs/baselines/diffscm.yaml over it).
# launch.sh lists the environment variables (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...); arguments are passed to the script.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch train morphomnist diffscm "$@"
