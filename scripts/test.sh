#!/usr/bin/env bash
# Runs the tests: ./scripts/test.sh [pytest arguments]; paths are relative to the clone, `-m slow` runs the slow ones.
# Without arguments it runs the whole suite in WORKERS=2 processes of one thread each, for two cores.
set -euo pipefail
EXTRAS=${EXTRAS:+$EXTRAS,}dev,circuit,imagenet,app
. "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
cd -- "$REPO_DIR"
if [ $# -eq 0 ]; then
    set -- -q -n "${WORKERS:-2}" --dist loadgroup --durations 10
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
fi
exec "$PYTHON" -m pytest "$@"
