"""scripts/slurm.sbatch without Slurm: a batch shell that alone is signalled, and stand-ins for srun and scontrol."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from launchers import dry_run, environment
from paths import REPO

SCRIPT = REPO / "scripts" / "slurm.sbatch"
LAUNCHER = "train_pendulum_causaldae.sh"

# Starts the tasks, passes signals on to them and returns their highest exit code, as srun does.
SRUN = """\
#!PYTHON
import os, signal, subprocess, sys, time

options = sys.argv[1 : sys.argv.index("-n")]
count, command = int(sys.argv[sys.argv.index("-n") + 1]), sys.argv[sys.argv.index("-n") + 2 :]
with open(os.environ["RECORD"], "a") as record:
    record.write(f"srun {' '.join(options)}\\n")
tasks, received = [], []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, _: received.append(number))
for task in range(count):
    variables = {"SLURM_PROCID": str(task), "SLURM_STEP_NUM_TASKS": str(count)}
    tasks.append(subprocess.Popen(command, env={**os.environ, **variables}))
while None in [task.poll() for task in tasks]:
    while received:  # not by the handler: a task that has already answered may not be in the list yet
        number = received.pop()
        for task in tasks:
            task.send_signal(number)
    time.sleep(0.01)
sys.exit(max(task.returncode for task in tasks))
"""
SCONTROL = '#!/bin/sh\necho "scontrol $*" >>"$RECORD"\n'
TRAINER = """\
import os, signal, sys, time
if "--dry_run" in sys.argv:
    sys.exit()
def say(text):
    os.write(1, f"task {os.environ['SLURM_PROCID']} {text}\\n".encode())
def stop(number, _):
    say(f"stopped by {signal.Signals(number).name}")
    os._exit(int(os.environ.get("STOPPED_CODE", 0)))
signal.signal(signal.SIGUSR1, stop)
say("runs")
if "FINISHED_CODE" in os.environ:
    os._exit(int(os.environ["FINISHED_CODE"]))
time.sleep(60)
"""


class Job(NamedTuple):
    """A job's exit code, lines of output, and what srun and scontrol were called with."""

    code: int
    lines: list[str]
    calls: list[str]


@pytest.fixture
def cluster(clone: Path) -> Path:
    """A clone with its environment, and a copy of the script in another folder, as Slurm makes one."""
    assert dry_run(clone, LAUNCHER)
    (clone.parent / "record").unlink()
    (clone / "scripts" / "image_train.py").write_text(TRAINER)
    shutil.copy2(SCRIPT, clone.parent / "slurm_script")
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        path = clone.parent / "bin" / name
        path.write_text(text.replace("PYTHON", str(shutil.which("python3"))))
        path.chmod(0o755)
    return clone


def submit(cluster: Path, *arguments: str, signals: int = 0, **variables: str) -> Job:
    """Runs the batch shell; `signals` times, SIGUSR1 reaches it, and it alone, once all tasks run."""
    job = {"SLURM_JOB_ID": "123", "SLURM_SUBMIT_DIR": str(cluster), "SLURM_NTASKS": "2", "SLURM_CPUS_PER_TASK": "8"}
    env = environment(cluster, **job, RUN_DIR=str(cluster.parent / "run"), RESTARTS="0", **variables)
    command = ["bash", str(cluster.parent / "slurm_script"), *arguments]
    lines: list[str] = []
    with subprocess.Popen(command, env=env, cwd="/", stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        while signals and sum(line.endswith("runs") for line in lines) < 2:
            line = shell.stdout.readline()
            assert line, "the job ended early"
            lines.append(line.rstrip())
        for _ in range(signals):
            shell.send_signal(signal.SIGUSR1)
        lines += shell.communicate(timeout=60)[0].splitlines()
    record = cluster.parent / "record"
    return Job(shell.returncode, sorted(lines), record.read_text().splitlines() if record.exists() else [])


@pytest.mark.parametrize("signals", [1, 2])
def test_the_signal_reaches_the_tasks_and_the_job_is_requeued(cluster: Path, signals: int) -> None:
    job = submit(cluster, LAUNCHER, "--lr", "1e-3", signals=signals)
    assert job.code == 0
    assert job.lines == [f"task {task} {text}" for task in (0, 1) for text in ("runs", "stopped by SIGUSR1")]
    assert job.calls == ["srun --kill-on-bad-exit=1 --cpus-per-task=8", "scontrol requeue 123"]


def test_a_job_that_is_signalled_before_training_is_requeued(cluster: Path) -> None:
    maker = 'import os, time\nfor task in (0, 1): os.write(1, b"runs\\n")\ntime.sleep(4)\n'
    (cluster / "scripts" / "make_dataset.py").write_text(maker)
    job = submit(cluster, LAUNCHER, signals=1, DATA_DIR=str(cluster.parent / "missing"))
    assert job.code == 138 and job.lines == ["runs", "runs"] and job.calls == ["scontrol requeue 123"]


@pytest.mark.parametrize("code", [0, 2, 1])
def test_a_finished_or_failed_run_is_not_requeued(cluster: Path, code: int) -> None:
    job = submit(cluster, f"scripts/{LAUNCHER}", FINISHED_CODE=str(code))
    assert job.code == code
    assert [call for call in job.calls if call.startswith("scontrol")] == []


def test_a_run_that_fails_to_save_is_not_requeued(cluster: Path) -> None:
    job = submit(cluster, LAUNCHER, signals=1, STOPPED_CODE="1")
    assert job.code == 1
    assert [call for call in job.calls if call.startswith("scontrol")] == []


def test_calls_without_a_launcher_or_outside_the_clone_are_refused(cluster: Path) -> None:
    assert submit(cluster).code == 2
    assert submit(cluster, "train_nothing.sh").code == 2
    assert submit(cluster, "../bin/srun").code == 2


def test_the_options_are_before_the_first_command() -> None:
    """Slurm reads no options after it, and signals the batch shell only with B:."""
    lines = SCRIPT.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", "\n".join(lines[:first]), re.MULTILINE))
    assert len(options) == sum(line.startswith("#SBATCH") for line in lines)
    assert options["signal"] == "B:USR1@300" and "requeue" in options and options["open-mode"] == "append"
    assert os.access(SCRIPT, os.X_OK)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(SCRIPT)], check=True)
