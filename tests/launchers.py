"""Runs launchers in a copy of the repository, with stand-ins for Python, pip and the training script."""

import shlex
import subprocess
from pathlib import Path

from paths import REPO

SCRIPTS = sorted([*REPO.glob("scripts/*.sh"), REPO / ".ci" / "run"])
CONFIGS = sorted(REPO.glob("configs/*.yaml"))
TOOLS = ["bash", "cat", "cksum", "cp", "dirname", "flock", "ls", "mkdir", "rm", "tee"]
Result = subprocess.CompletedProcess[str]

# Stands in for an environment's python: what would install or check libraries is recorded instead.
STAND_IN = """\
#!/bin/sh
case "$*" in
*"-m pip install"*)
    echo "$*" >>"$RECORD"
    case "$*" in *"$FAIL_ON"*) [ -z "$FAIL_ON" ] || { echo "no space left"; exit 1; } ;; esac
    exit 0 ;;
"-m pip --version") exit 0 ;;
"-m pip uninstall"*) echo "$*" >>"$RECORD"; exit 0 ;;
*torchvision.ops.nms*) echo checked >>"$RECORD"; exit 0 ;;
*'device="cuda"'*) echo "GPU" >>"$RECORD"; exit ${GPU_CODE:-0} ;;
*"import ensurepip, venv"*) exit ${NO_ENSUREPIP:-0} ;;
"-m virtualenv"*) exit 1 ;;
"-m venv"*)
    echo "venv" >>"$RECORD"
    for last; do :; done
    mkdir -p "$last/bin" && cp "$0" "$last/bin/python"
    exit 0 ;;
esac
exec 'PYTHON' -S "$@"
"""


def environment(clone: Path, **variables: str) -> dict[str, str]:
    base = {"PATH": f"{clone.parent / 'bin'}:{clone.parent / 'tools'}", "FAIL_ON": ""}
    return {**base, "RECORD": str(clone.parent / "record"), "DATA_DIR": str(clone.parent / "my data"), **variables}


def launch(clone: Path, script: str, *arguments: str, **variables: str) -> Result:
    command = ["bash", str(clone / "scripts" / script), *arguments]
    elsewhere = clone.parent / "else where"
    env = environment(clone, **variables)
    return subprocess.run(command, cwd=elsewhere, env=env, capture_output=True, text=True, timeout=60, check=False)


def dry_run(clone: Path, script: str, *arguments: str, **variables: str) -> list[list[str]]:
    """The commands that a launcher would run, split as the shell would."""
    result = launch(clone, script, *arguments, DRY_RUN="1", **variables)
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines()]


def record(clone: Path) -> list[str]:
    path = clone.parent / "record"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


# Ends as the words of ENDINGS say, one for each start.
TRAINER = """\
import os, pathlib, signal, sys, time
run_dir = pathlib.Path(sys.argv[sys.argv.index("--run_dir") + 1])
run_dir.mkdir(parents=True, exist_ok=True)
lives = run_dir / "lives"
life = len(lives.read_text()) + 1 if lives.exists() else 1
lives.write_text("x" * life)
ending = os.environ["ENDINGS"].split()[life - 1]
if ending != "early":
    (run_dir / f"step_{life:07d}").mkdir()
if ending == "stopped":
    signal.signal(signal.SIGTERM, lambda number, _: os.kill(os.getpid(), signal.SIGKILL))
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)
if ending in ("killed", "early"):
    os.kill(os.getpid(), signal.SIGKILL)
if ending == "wait":
    def stop(number, _):
        os.write(1, f"stopped by {signal.Signals(number).name}\\n".encode())
        os._exit(0)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGUSR1, stop)
    os.write(1, b"waiting\\n")
    time.sleep(60)
    sys.exit(1)
sys.exit(int(ending))
"""
