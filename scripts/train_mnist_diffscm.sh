#!/usr/bin/env bash
# Trains Diff-SCM on MNIST (digit): the anti-causal predictor on noised images (configs/noised_SIZE.yaml, into
# RUN_DIR/predictor), then the score network (configs/mnist_diffscm_SIZE.yaml).
# What can be set (DATA_DIR, RUN_DIR, SIZE, NPROC, DRY_RUN ...) is listed in launch.sh; arguments pass through to the latter.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch train mnist diffscm "$@"
