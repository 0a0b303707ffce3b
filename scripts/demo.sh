#!/usr/bin/env bash
# From a bare clone to counterfactual images compared with the true ones: ./scripts/demo.sh [OUT] [arguments of demo.py]
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
out=demo_out
case ${1:-} in '' | -*) ;; *) out=$1 && shift ;; esac
exec "$PYTHON" "$REPO_DIR/scripts/demo.py" --out "$out" "$@"
