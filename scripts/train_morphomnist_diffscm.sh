#!/usr/bin/env bash
# Trains Diff-SCM on MorphoMNIST (thickness -> intensity): the anti-causal predictor on noised images (configs/noised_SIZE.yaml, into
# RUN_DIR/predictor), then the score network (configs/morphomnist_causaldae_SIZE.yaml with configs/baselines/diffscm.yaml over it).
# What can be set (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...) is listed in launch.sh; arguments pass through to the latter.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch train morphomnist diffscm "$@"
