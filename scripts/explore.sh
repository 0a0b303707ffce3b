#!/usr/bin/env bash
# Sets up the environment and starts the explorer: ./scripts/explore.sh [arguments of explore.py]; open the printed address
set -euo pipefail
EXTRAS=${EXTRAS:+$EXTRAS,}app
. "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
exec "$PYTHON" "$REPO_DIR/scripts/explore.py" "$@"
