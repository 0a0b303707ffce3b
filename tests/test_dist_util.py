"""Variables of launchers, a single process without a group, and process groups under mpiexec and torchrun."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from processes import LAUNCHER_VARIABLES, ended, free_port, plain_environment, start_group

from causaldiffae import dist_util
from causaldiffae.dist_util import ProcessInfo, first_slurm_host, read_environment
from causaldiffae.errors import InputError

MPI = {"PMI_RANK": "1", "PMI_SIZE": "3", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "3"}
SLURM = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu[03-04]"}
OPEN_MPI = {
    f"OMPI_COMM_WORLD_{name}": value
    for name, value in (("RANK", "2"), ("SIZE", "4"), ("LOCAL_RANK", "0"), ("LOCAL_SIZE", "2"))
}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1234"}


# ---------------------------------------------------------------------- environment


@pytest.mark.parametrize(
    ("environment", "info"),
    [
        ({}, ProcessInfo()),
        (MPI, ProcessInfo("mpi", 1, 3, 1, 3)),
        (OPEN_MPI, ProcessInfo("mpi", 2, 4, 0, 2)),
        (TORCHRUN, ProcessInfo("torchrun", 1, 2, 1, None, "a", 1234)),
        (SLURM, ProcessInfo("slurm", 5, 8, 1, None, "gpu03", 20000)),
        (SLURM | {"SLURM_JOB_ID": "70001", "MASTER_ADDR": "b"}, ProcessInfo("slurm", 5, 8, 1, None, "b", 30001)),
        # The third step of a job, whose port is not that of a step beside it.
        (SLURM | {"SLURM_JOB_ID": "70001", "SLURM_STEP_ID": "2"}, ProcessInfo("slurm", 5, 8, 1, None, "gpu03", 32019)),
        # A batch script of eight tasks that starts python itself, without srun.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_NODELIST": "n1"}, ProcessInfo()),
        # mpiexec within the single step that the scheduler made for the shell.
        (MPI | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, ProcessInfo("mpi", 1, 3, 1, 3)),
        # mpiexec that starts a proxy on each of two nodes by srun: its four processes inherit the proxy's variables.
        (OPEN_MPI | SLURM | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, ProcessInfo("mpi", 2, 4, 0, 2)),
        (MPI | SLURM | {"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "2"}, ProcessInfo("mpi", 1, 3, 1, 3)),
        # srun --mpi=pmi2 sets both.
        (SLURM | {"PMI_RANK": "5", "PMI_SIZE": "8"}, ProcessInfo("slurm", 5, 8, 1, None, "gpu03", 20000)),
        # torchrun within mpiexec: the inner launcher applies.
        (MPI | TORCHRUN, ProcessInfo("torchrun", 1, 2, 1, None, "a", 1234)),
    ],
)
def test_environment(environment: dict[str, str], info: ProcessInfo) -> None:
    assert read_environment(environment) == info


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (MPI | {"PMI_RANK": "3"}, "PMI_RANK: expected an integer in 0..2, got '3'"),
        (MPI | {"PMI_SIZE": "two"}, "PMI_SIZE: expected an integer in 1..1000000, got 'two'"),
        (TORCHRUN | {"MASTER_PORT": "99999"}, "MASTER_PORT: expected an integer in 1..65535, got '99999'"),
        (SLURM | {"SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST: expected host names, got ''; set MASTER_ADDR"),
    ],
)
def test_invalid_variables_are_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_environment(environment)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("n1", "n1"), ("n1,n2", "n1"), ("gpu[03-05,9],x", "gpu03"), ("a[1,3]-ib", "a1-ib"), ("r2-n[10]", "r2-n10")],
)
def test_first_slurm_host(nodes: str, host: str) -> None:
    assert first_slurm_host(nodes) == host


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process's environment, without variables of launchers."""
    for name in filter(LAUNCHER_VARIABLES.match, list(os.environ)):
        monkeypatch.delenv(name)
    return monkeypatch


def test_a_single_process_needs_no_group(environment: pytest.MonkeyPatch) -> None:
    environment.setitem(sys.modules, "mpi4py", None)  # not needed either
    dist_util.setup_dist()
    assert not torch.distributed.is_initialized()
    assert (dist_util.rank(), dist_util.world_size(), dist_util.is_main()) == (0, 1, True)
    values = torch.tensor([1.0, 2.0])
    assert dist_util.all_reduce_mean(values) is values and values.tolist() == [1.0, 2.0]
    dist_util.sync_params([values])
    dist_util.barrier()
    dist_util.cleanup()
    with pytest.raises(InputError, match=r"expected a floating-point tensor, got torch\.int64"):
        dist_util.all_reduce_mean(torch.tensor([1]))


def test_a_missing_address_is_refused(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("RANK", "0")
    environment.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="expected MASTER_ADDR and MASTER_PORT for rank 0 of 2 under torchrun"):
        dist_util.setup_dist()


def test_missing_mpi4py_is_refused(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("PMI_RANK", "0")
    environment.setenv("PMI_SIZE", "2")
    environment.setitem(sys.modules, "mpi4py", None)
    message = "mpi4py: required for the 2 processes of mpiexec, .* install the extra `mpi`, or set MASTER_ADDR"
    with pytest.raises(InputError, match=message):
        dist_util.setup_dist()


def test_missing_processes_time_out(environment: pytest.MonkeyPatch) -> None:
    for name, value in (TORCHRUN | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}).items():
        environment.setenv(name, value)
    message = "rank 1 of 2: no connection to the other processes at 127.0.0.1:1 within 0.01 minutes"
    with pytest.raises(TimeoutError, match=message):
        dist_util.setup_dist(timeout_minutes=0.01)
    assert not torch.distributed.is_initialized()


def test_other_errors_pass_through() -> None:
    for message in ("out of memory", "Timed out"):  # without a group, even a timeout is not about other processes
        with pytest.raises(RuntimeError, match=f"^{message}"), dist_util.peer_errors("test"):
            raise RuntimeError(message)


# ---------------------------------------------------------------------- device and back end


class Task(NamedTuple):
    """A process on a cluster: its node, its variables, and the indices of the GPUs of the node that it sees."""

    node: int
    variables: dict[str, str]
    visible: tuple[int, ...]


def variables(starter: str, node: int, nodes: int, local: int, size: int) -> dict[str, str]:
    """What a starter sets for process `local` of `size` on one of `nodes` nodes."""
    rank, world = str(node * size + local), str(nodes * size)
    proxy = {"SLURM_PROCID": str(node), "SLURM_STEP_NUM_TASKS": str(nodes), "SLURM_LOCALID": "0"}
    pmi = {"PMI_RANK": rank, "PMI_SIZE": world, "MPI_LOCALRANKID": str(local), "MPI_LOCALNRANKS": str(size)}
    srun = {"SLURM_PROCID": rank, "SLURM_STEP_NUM_TASKS": world, "SLURM_LOCALID": str(local)}
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    values = (rank, world, str(local), str(size))
    address = {"MASTER_ADDR": "node0", "MASTER_PORT": "1234"}
    return (
        address
        | {
            "torchrun": dict(zip(("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"), values, strict=True)),
            "MPICH": pmi,
            "MPICH on Slurm": pmi | proxy,
            "Open MPI": {f"OMPI_COMM_WORLD_{name}": value for name, value in zip(names, values, strict=True)},
            "srun": srun | {"SLURM_STEP_NODELIST": "node[0-1]"},
            "srun with PMI-2": srun | {"PMI_RANK": rank, "PMI_SIZE": world},
        }[starter]
    )


VISIBLE: dict[str, Callable[[int, int, int], tuple[int, ...]]] = {
    "all of the node": lambda node, local, size: tuple(range(size)),
    "its own": lambda node, local, size: (local,),
    "one for all": lambda node, local, size: (0,),
    "one too few": lambda node, local, size: tuple(range(size - 1)),
    "on the first node": lambda node, local, size: () if node else tuple(range(size)),
    "none": lambda node, local, size: (),
}
STARTERS = ["torchrun", "MPICH", "MPICH on Slurm", "Open MPI", "srun", "srun with PMI-2"]


def enter(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the environment, the machine and the GPUs of this process by those of a task."""
    monkeypatch.setattr(os, "environ", task.variables)
    monkeypatch.setattr(dist_util, "machine", lambda: f"node{task.node}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(task.visible))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(task.visible))

    def properties(device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(pci_domain_id=0, pci_bus_id=16 + task.visible[device.index or 0], pci_device_id=0)

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)


def agreed(tasks: list[Task], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The back end that each task chooses."""
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    found = []
    for task in tasks:
        with monkeypatch.context() as patch:
            enter(task, patch)
            found.append((read_environment(), dist_util.own_gpu()))
    store = torch.distributed.HashStore()
    with ThreadPoolExecutor(len(tasks)) as pool:  # reading waits for the others
        return list(pool.map(lambda task: dist_util.agree_on_backend(store, *task), found))


@pytest.mark.parametrize("starter", STARTERS)
@pytest.mark.parametrize("visible", VISIBLE)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_all_processes_choose_the_same_back_end(
    starter: str, visible: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, places = 2, range(size)
    tasks = [
        Task(node, variables(starter, node, nodes, local, size), VISIBLE[visible](node, local, size))
        for node in range(nodes)
        for local in places
    ]
    ranks = []
    for task in tasks:
        with monkeypatch.context() as patch:
            enter(task, patch)
            ranks.append(read_environment().rank)
            assert dist_util.dev().type == ("cuda" if task.visible else "cpu")
    assert ranks == list(range(nodes * size))
    own = {"all of the node", "its own"} | ({"one for all"} if size == 1 else set())
    assert agreed(tasks, monkeypatch) == ["nccl" if visible in own else "gloo"] * len(tasks)


def test_the_device_may_be_chosen(environment: pytest.MonkeyPatch) -> None:
    environment.setattr(dist_util, "_device", "")
    enter(Task(0, variables("srun", 0, 1, 3, 4), (0, 1)), environment)
    assert dist_util.dev() == torch.device("cuda:1")  # local rank 3 of two GPUs
    for name, device in (("cuda:0", "cuda:0"), ("cuda", "cuda:1"), ("cpu", "cpu")):
        dist_util.set_device(name)
        assert dist_util.dev() == torch.device(device)
    assert dist_util.own_gpu() == ""


# ---------------------------------------------------------------------- process groups

WORKER = """
import sys
import torch
from causaldiffae import dist_util

dist_util.setup_dist(timeout_minutes=1.5)
rank, size = dist_util.rank(), dist_util.world_size()
mean = dist_util.all_reduce_mean(torch.tensor([float(rank), 10.0]))
layer = torch.nn.Linear(3, 2)
with torch.no_grad():
    layer.weight.fill_(rank + 5.0)
dist_util.sync_params([*layer.parameters(), *layer.buffers()])
if len(sys.argv) > 1 and rank == int(sys.argv[1]):
    raise SystemExit("this rank dies")
dist_util.barrier()
# A single write, so that the lines of two processes cannot mix.
sys.stdout.write(f"rank {rank} of {size}: {mean.tolist()} {layer.weight[0, 0].item()} {'mpi4py' in sys.modules}\\n")
sys.stdout.flush()
dist_util.cleanup()
"""
EXPECTED = ["rank 0 of 2: [0.5, 10.0] 5.0", "rank 1 of 2: [0.5, 10.0] 5.0"]


def launch(*command: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command, which must end within two minutes."""
    return subprocess.run(command, env=plain_environment(**more), capture_output=True, text=True, timeout=120)


@pytest.fixture
def mpiexec() -> str:
    pytest.importorskip("mpi4py", reason="mpi4py is not installed (extra mpi)")
    found = shutil.which("mpiexec", path=sysconfig.get_path("scripts")) or shutil.which("mpiexec")
    if found is None:
        pytest.skip("there is no mpiexec (extra mpi)")
    return found


def assert_both_ran(result: "subprocess.CompletedProcess[str]", mpi4py: bool) -> None:
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == [f"{line} {mpi4py}" for line in EXPECTED]


def test_mpiexec(mpiexec: str) -> None:
    assert_both_ran(launch(mpiexec, "-n", "2", sys.executable, "-c", WORKER), mpi4py=True)


@pytest.mark.slow
def test_mpiexec_with_an_address_needs_no_mpi4py(mpiexec: str) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    assert_both_ran(launch(mpiexec, "-n", "2", sys.executable, "-c", WORKER, **address), mpi4py=False)


@pytest.mark.slow
def test_torchrun() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no_python"]
    assert_both_ran(launch(*command, sys.executable, "-c", WORKER), mpi4py=False)


def test_a_dying_rank_ends_the_job(mpiexec: str) -> None:
    result = launch(mpiexec, "-n", "2", sys.executable, "-c", WORKER, "1")
    assert result.returncode != 0 and "this rank dies" in result.stderr


AGREE = """
import sys, time
from causaldiffae import dist_util
from causaldiffae.errors import InputError
from causaldiffae.script_util import run_cli

def refuse():
    raise InputError("in use")

def main(argv):
    dist_util.setup_dist("gloo", timeout_minutes=0.2 if argv[0] == "sleep" else 3.0)
    rank = dist_util.rank()
    answer = dist_util.from_main(lambda: ("a", rank))
    print(rank, answer, dist_util.from_all(lambda: 2 * rank), dist_util.any_of(rank == 1), dist_util.any_of(False))
    sys.stdout.flush()
    if argv[0] == "refuse":
        try:
            dist_util.from_main(refuse)
        finally:
            dist_util.cleanup(failed=True)
    if rank == 1:
        time.sleep(40)
    dist_util.any_of(True)

run_cli(main)
"""


@pytest.mark.slow
def test_an_error_of_rank_0_ends_all_with_one_line() -> None:
    first, second = ended(start_group(AGREE, "refuse"))
    assert (first.code, second.code) == (2, 2)
    assert first.out == "0 ('a', 0) [0, 2] True False\n" and second.out == "1 ('a', 0) [0, 2] True False\n"
    assert "error: in use" in first.err.splitlines()
    assert "error" not in second.err and "Traceback" not in first.err + second.err


@pytest.mark.slow
def test_a_missing_process_is_a_timeout() -> None:
    first, _ = ended(start_group(AGREE, "sleep"), timeout=100)
    assert first.code == 1
    assert "TimeoutError: rank 0 of 2: all_reduce_mean: another process has exited or did" in first.err


ONCE = """
import os, sys
from pathlib import Path
from causaldiffae import dist_util
from causaldiffae.errors import InputError
from causaldiffae.script_util import run_cli

rank = int(os.environ["RANK"])
dist_util.machine = lambda: f"machine {rank // 2}"

def action():
    print("ran", flush=True)
    if rank == 2 and sys.argv[1] == "fails":
        raise InputError("no space left")
    return Path(f"of rank {rank}")

def main(argv):
    dist_util.setup_dist("gloo", timeout_minutes=3.0)
    failed = True
    try:
        print(dist_util.once_per_machine(action), flush=True)
        failed = False
    finally:
        dist_util.cleanup(failed)

run_cli(main)
"""


@pytest.mark.slow
def test_an_action_runs_once_on_every_machine() -> None:
    done = ended(start_group(ONCE, "works", world=4))
    assert [process.out.splitlines() for process in done] == [
        *(["ran", "of rank 0"], ["of rank 0"]),
        *(["ran", "of rank 2"], ["of rank 2"]),
    ]
    failed = ended(start_group(ONCE, "fails", world=4))
    assert [process.code for process in failed] == [2, 2, 2, 2]
    assert ["error: no space left" in process.err for process in failed] == [False, False, True, False]
