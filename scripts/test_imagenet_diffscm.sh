#!/usr/bin/env bash
# Counterfactuals of any image by Diff-SCM with published ImageNet networks (see docs/imagenet.md).
# Example: ./scripts/test_imagenet_diffscm.sh --model_path DiT-XL-2-256x256.pt --vae_path sd-vae-ft-mse --image cat.jpg --do tiger
# OUT_DIR is the output folder (default out/imagenet in the clone); DRY_RUN=1 prints the command; arguments are passed on.
set -euo pipefail
EXTRAS=${EXTRAS:+$EXTRAS,}imagenet
. "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
. "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"
launch_run exec "$PYTHON" "$REPO_DIR/scripts/imagenet_diffscm_test.py" --out_dir "${OUT_DIR:-$REPO_DIR/out/imagenet}" "$@"
