"""Starts Python programs in several processes that form one process group."""

import contextlib
import os
import random
import re
import socket
import subprocess
import sys
from typing import NamedTuple

from paths import REPO, TESTS

LAUNCHER_VARIABLES = re.compile(r"^(OMPI_|PMI|PMIX|MPI_|HYDRA|SLURM_|MASTER_|(LOCAL_)?RANK$|(LOCAL_)?WORLD_SIZE$)")


class Ended(NamedTuple):
    """Exit code and output of a process."""

    code: int
    out: str
    err: str


def plain_environment(**more: str) -> dict[str, str]:
    """The environment without variables of launchers, for one CPU thread, with the repository and tests importable."""
    kept = {name: value for name, value in os.environ.items() if not LAUNCHER_VARIABLES.match(name)}
    path = f"{REPO}{os.pathsep}{TESTS}"
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | more


def free_port() -> str:
    """A port below those that the system gives to connections: it stays free until rank 0 listens there."""
    for port in random.SystemRandom().sample(range(12_000, 32_000), 100):  # other processes draw others
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return str(port)
    raise AssertionError("no port is free")


def start_group(code: str, *arguments: object, world: int = 2) -> "list[subprocess.Popen[str]]":
    """Starts `code` in `world` processes without a launcher, so that the end of one does not end the others."""
    group = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "GLOO_SOCKET_IFNAME": "lo"}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=plain_environment(**group, RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def ended(processes: "list[subprocess.Popen[str]]", timeout: float = 300) -> list[Ended]:
    """Waits for the processes."""
    outputs = [process.communicate(timeout=timeout) for process in processes]
    return [Ended(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def run_group(code: str, *arguments: object, world: int = 2) -> None:
    """Runs `code` in `world` processes, which must succeed."""
    for process in ended(start_group(code, *arguments, world=world)):
        assert process.code == 0, process.err
