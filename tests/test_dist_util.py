"""Places that starters give, one process without a group, and real two-process runs under mpiexec and torchrun."""

import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time

import pytest
import torch
from paths import REPO

from causaldiffae import dist_util
from causaldiffae.dist_util import Place, first_slurm_host, read_environment
from causaldiffae.errors import InputError

STARTER_VARIABLES = re.compile(r"^(OMPI_|PMI|PMIX|MPI_|HYDRA|SLURM_|MASTER_|(LOCAL_)?RANK$|(LOCAL_)?WORLD_SIZE$)")
MPI = {"PMI_RANK": "1", "PMI_SIZE": "3", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "3"}
SLURM = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu[03-04]"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1234"}

WORKER = """
import sys
import torch
from causaldiffae import dist_util

dist_util.setup_dist(timeout_minutes=0.5)
rank, size = dist_util.rank(), dist_util.world_size()
mean = dist_util.all_reduce_mean(torch.tensor([float(rank), 10.0]))
layer = torch.nn.Linear(3, 2)
with torch.no_grad():
    layer.weight.fill_(rank + 5.0)
dist_util.sync_params([*layer.parameters(), *layer.buffers()])
if len(sys.argv) > 1 and rank == int(sys.argv[1]):
    raise SystemExit("this rank dies")
dist_util.barrier()
# One write, so that the lines of two processes cannot mix.
sys.stdout.write(f"rank {rank} of {size}: {mean.tolist()} {layer.weight[0, 0].item()} {'mpi4py' in sys.modules}\\n")
sys.stdout.flush()
dist_util.cleanup()
"""
BOTH = ["rank 0 of 2: [0.5, 10.0] 5.0", "rank 1 of 2: [0.5, 10.0] 5.0"]


def plain_environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not STARTER_VARIABLES.match(name)}
    return kept | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | more


def start(command: list[str], **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, env=plain_environment(**more), capture_output=True, text=True, timeout=120)


def clear_starter_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if STARTER_VARIABLES.match(name):
            monkeypatch.delenv(name)


@pytest.fixture
def mpiexec() -> str:
    pytest.importorskip("mpi4py", reason="mpi4py is not installed (extra mpi)")
    found = shutil.which("mpiexec", path=sysconfig.get_path("scripts")) or shutil.which("mpiexec")
    if found is None:
        pytest.skip("there is no mpiexec (extra mpi)")
    return found


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, Place()),
        (MPI, Place("mpi", 1, 3, 1, 3)),
        (OPEN_MPI, Place("mpi", 2, 4, 0, 2)),
        (TORCHRUN, Place("torchrun", 1, 2, 1, None, "a", 1234)),
        (SLURM, Place("slurm", 5, 8, 1, None, "gpu03", 20000)),
        (SLURM | {"SLURM_JOB_ID": "70001", "MASTER_ADDR": "b"}, Place("slurm", 5, 8, 1, None, "b", 30001)),
        # A batch script of eight tasks that starts python itself, without srun.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_NODELIST": "n1"}, Place()),
        # mpiexec within the single step that the scheduler made for the shell.
        (MPI | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, Place("mpi", 1, 3, 1, 3)),
        # torchrun within mpiexec: the inner starter counts.
        (MPI | TORCHRUN, Place("torchrun", 1, 2, 1, None, "a", 1234)),
    ],
)
def test_environment_is_mapped(environment: dict[str, str], place: Place) -> None:
    assert read_environment(environment) == place


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (MPI | {"PMI_RANK": "3"}, "PMI_RANK: '3' is given, 0 to 2 is allowed"),
        (MPI | {"PMI_SIZE": "two"}, "PMI_SIZE: 'two' is given"),
        (TORCHRUN | {"MASTER_PORT": "99999"}, "MASTER_PORT: '99999' is given, 1 to 65535 is allowed"),
        (SLURM | {"SLURM_STEP_NODELIST": ""}, "names no machine; set MASTER_ADDR"),
    ],
)
def test_nonsense_in_the_environment_names_the_variable(environment: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_environment(environment)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("n1", "n1"), ("n1,n2", "n1"), ("gpu[03-05,9],x", "gpu03"), ("a[1,3]-ib", "a1-ib"), ("r2-n[10]", "r2-n10")],
)
def test_first_slurm_host(nodes: str, host: str) -> None:
    assert first_slurm_host(nodes) == host


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_starter_variables(monkeypatch)
    monkeypatch.setitem(sys.modules, "mpi4py", None)  # a machine without MPI must not notice
    dist_util.setup_dist()
    assert not torch.distributed.is_initialized()
    assert (dist_util.rank(), dist_util.world_size(), dist_util.is_main()) == (0, 1, True)
    values = torch.tensor([1.0, 2.0])
    assert dist_util.all_reduce_mean(values) is values
    assert values.tolist() == [1.0, 2.0]
    dist_util.sync_params([values])
    dist_util.barrier()
    dist_util.cleanup()
    with pytest.raises(InputError, match=r"floating-point tensor is needed, got torch\.int64"):
        dist_util.all_reduce_mean(torch.tensor([1]))


def test_rank_without_an_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_starter_variables(monkeypatch)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="torchrun set rank 0 of 2, MASTER_ADDR and MASTER_PORT are needed too"):
        dist_util.setup_dist()


def test_missing_mpi4py_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_starter_variables(monkeypatch)
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(InputError, match="2 processes were started under MPI, and mpi4py cannot be imported") as caught:
        dist_util.setup_dist()
    assert "install the extra `mpi`, or set MASTER_ADDR and MASTER_PORT" in str(caught.value)


def test_mpiexec(mpiexec: str) -> None:
    result = start([mpiexec, "-n", "2", sys.executable, "-c", WORKER])
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == [f"{line} True" for line in BOTH]


@pytest.mark.slow
def test_mpiexec_with_a_given_address_needs_no_mpi4py(mpiexec: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = start([mpiexec, "-n", "2", sys.executable, "-c", WORKER], MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == [f"{line} False" for line in BOTH]


@pytest.mark.slow
def test_torchrun() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = start([*command, "--no_python", sys.executable, "-c", WORKER])
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == [f"{line} False" for line in BOTH]


def test_a_dying_rank_ends_the_job(mpiexec: str) -> None:
    begun = time.monotonic()
    result = start([mpiexec, "-n", "2", sys.executable, "-c", WORKER, "1"])
    assert result.returncode != 0
    assert "this rank dies" in result.stderr
    assert time.monotonic() - begun < 100


def test_missing_others_time_out_with_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_starter_variables(monkeypatch)
    given = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    message = "rank 1 of 2 found no connection to the others at 127.0.0.1:1 within 0.01 minutes"
    with pytest.raises(TimeoutError, match=message):
        dist_util.setup_dist(timeout_minutes=0.01)
    assert not torch.distributed.is_initialized()


AGREE = """
import sys, time
from causaldiffae import dist_util
from causaldiffae.errors import InputError
from causaldiffae.script_util import run_cli

def refuse():
    raise InputError("it is in use")

def main(argv):
    dist_util.setup_dist("gloo", timeout_minutes=0.2)
    rank = dist_util.rank()
    said = dist_util.from_main(lambda: ("a", rank))
    print(rank, said, dist_util.any_of(rank == 1), dist_util.any_of(False), flush=True)
    if argv[0] == "refuse":
        failed = True
        try:
            dist_util.from_main(refuse)
        finally:
            dist_util.cleanup(failed)
    if rank == 1:
        time.sleep(40)
    dist_util.any_of(True)

run_cli(main)
"""


def two(what: str) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of two processes without a starter, so that none ends the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    pair = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", AGREE, what],
            env=plain_environment(**pair, RANK=rank, LOCAL_RANK=rank),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=100) for process in both]
    return [(process.returncode, *words) for process, words in zip(both, said, strict=True)]


@pytest.mark.slow
def test_what_rank_0_refuses_ends_all_with_one_line() -> None:
    first, second = two("refuse")
    assert (first[0], second[0]) == (2, 2)
    assert first[1] == "0 ('a', 0) True False\n" and second[1] == "1 ('a', 0) True False\n"
    assert "error: it is in use" in first[2].splitlines()
    assert "error" not in second[2] and "Traceback" not in first[2] + second[2]


@pytest.mark.slow
def test_a_process_that_does_not_come_is_a_message_and_no_hang() -> None:
    begun = time.monotonic()
    first, _ = two("sleep")
    assert first[0] == 1
    message = "TimeoutError: rank 0 of 2 waited to average numbers, and another process is gone or did not come within"
    assert message in first[2]
    assert time.monotonic() - begun < 90


def test_errors_that_are_no_waiting_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), dist_util.waiting_for_others("in vain"):
        raise RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="^Timed out"), dist_util.waiting_for_others("alone, in vain"):
        raise RuntimeError("Timed out")
