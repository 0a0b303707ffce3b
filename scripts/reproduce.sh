#!/usr/bin/env bash
# Trains and evaluates every model of the comparison, and writes its tables: ./scripts/reproduce.sh [DATASET] [SIZE] [flags]
# Example: ./scripts/reproduce.sh morphomnist mini --dry_run True; the flags are those of scripts/reproduce.py.
set -euo pipefail
case ${1:-all} in all | circuit) EXTRAS=${EXTRAS:+$EXTRAS,}circuit ;; esac
. "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
exec "$PYTHON" "$REPO_DIR/scripts/reproduce.py" "$@"
