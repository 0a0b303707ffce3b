#!/usr/bin/env bash
# Sets up the environment and checks a GPU beside the CPU: ./scripts/gpu_check.sh [arguments of gpu_check.py]
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
exec "$PYTHON" "$REPO_DIR/scripts/gpu_check.py" "$@"
