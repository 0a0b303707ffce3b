#!/usr/bin/env bash
# Sets up the environment and compares counterfactuals with the true images: ./scripts/demo.sh [OUT] [arguments of demo.py]
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
out=demo_out
case ${1:-} in '' | -*) ;; *) out=$1 && shift ;; esac
exec "$PYTHON" "$REPO_DIR/scripts/demo.py" --out "$out" "$@"
