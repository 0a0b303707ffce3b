#!/usr/bin/env bash
# From a bare clone to a moving slider: ./scripts/explore.sh [arguments of explore.py], then open the address it prints
set -euo pipefail
EXTRAS=${EXTRAS:+$EXTRAS,}app
. "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
exec "$PYTHON" "$REPO_DIR/scripts/explore.py" "$@"
