"""Many processes or one: who am I, who are the others, and how do we average.

Data-parallel training runs the same program in `world_size()` processes, each on its share of every batch; parameters
start equal (`sync_params`) and gradients are averaged (`all_reduce_mean`), so that P processes with batch B are one
process with batch P * B. A starter tells each process its place in environment variables; `read_environment` maps them:

    torchrun          RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT
    mpiexec (MPICH)   PMI_RANK, PMI_SIZE, MPI_LOCALRANKID, MPI_LOCALNRANKS
    mpiexec (Open MPI) OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK, _LOCAL_SIZE
    srun (Slurm)      SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID, SLURM_STEP_NODELIST
    none of them      one process, no process group

Under mpiexec the processes still have to agree on an address; only for this, and only if MASTER_ADDR and MASTER_PORT do
not say it, is mpi4py imported, and MPI is finalised at once: a process that dies later cannot leave others in MPI.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from causaldiffae.errors import InputError


@dataclass(frozen=True)
class Place:
    """What a starter's environment variables say about this process.

    Attributes:
        starter: "torchrun", "mpi", "slurm" or "none".
        rank, world_size: among all processes.
        local_rank, local_size: among the processes of this machine; `local_size` is `None` where it is not told.
        address, port: of rank 0, where they are told.
    """

    starter: str = "none"
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int | None = None
    address: str | None = None
    port: int | None = None


# starter: (rank, size, local rank, local size); the first starter whose rank and size are both set counts.
_VARIABLES = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    # SLURM_STEP_NUM_TASKS is set by srun alone: a plain python in a batch script of eight tasks is one process.
    "slurm": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),
    "mpi": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "mpi (PMI)": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}

# How gloo and NCCL speak of a process that is late or gone.
_LOST = re.compile(
    r"time[d ]*out|connection (closed|reset|refused)|broken pipe|failed to pass monitoredBarrier", re.IGNORECASE
)

T = TypeVar("T")

_place = Place()
_timeout = timedelta(minutes=30)


def _integer(environment: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    given = environment.get(name) if name else None
    if given is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", given) or not low <= int(given) <= high:
        raise InputError(f"environment variable {name}: {given!r} is given, {low} to {high} is allowed")
    return int(given)


def read_environment(environment: Mapping[str, str] | None = None) -> Place:
    """Maps the variables of torchrun, mpiexec and srun to one `Place`.

    Raises:
        InputError: naming the variable whose value is no number or out of range.
    """
    environment = os.environ if environment is None else environment
    for starter, (rank_name, size_name, local_rank_name, local_size_name) in _VARIABLES.items():
        if rank_name not in environment or size_name not in environment:
            continue
        size = _integer(environment, size_name, 1, 10**6) or 1
        # mpiexec inside one task of srun: the inner starter is the one that counts.
        if starter == "slurm" and size == 1:
            continue
        place_rank = _integer(environment, rank_name, 0, size - 1) or 0
        address, port = environment.get("MASTER_ADDR"), _integer(environment, "MASTER_PORT", 1, 65535)
        if starter == "slurm":
            nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")
            job = _integer(environment, "SLURM_JOB_ID", 0, 10**9) or 0
            address, port = address or first_slurm_host(nodes), port or 20000 + job % 20000
        return Place(
            starter=starter.split()[0],
            rank=place_rank,
            world_size=size,
            local_rank=_integer(environment, local_rank_name, 0, 10**6) or 0,
            local_size=_integer(environment, local_size_name, 1, 10**6),
            address=address,
            port=port,
        )
    return Place()


def first_slurm_host(nodes: str) -> str:
    """First machine of Slurm's short form: `gpu[03-05,9],login1` -> `gpu03`."""
    match = re.match(r"([^,\[\]]+)(?:\[([0-9]+)[^\]]*\]([^,\[\]]*))?", nodes)
    if match is None:
        raise InputError(f"environment variable SLURM_STEP_NODELIST: {nodes!r} names no machine; set MASTER_ADDR")
    return match[1] + (match[2] or "") + (match[3] or "")


def setup_dist(backend: str | None = None, timeout_minutes: float = 30.0) -> None:
    """Joins the process group; with one process there is none, and nothing happens.

    Args:
        backend: "nccl" or "gloo"; by default NCCL if every process of this machine has a GPU of its own, else gloo.
        timeout_minutes: how long any process waits for the others, here and in every later exchange.

    Raises:
        TimeoutError: if the others do not come in time; says who waited for whom and where.
        InputError: if the environment contradicts itself, or mpi4py is needed and missing.
    """
    global _place, _timeout
    if dist.is_initialized():
        return
    _place, _timeout = read_environment(), timedelta(minutes=timeout_minutes)
    if torch.cuda.is_available():
        torch.cuda.set_device(dev())
    if _place.world_size == 1:
        return
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if backend is None:
        backend = "nccl" if gpus and gpus >= (_place.local_size or _place.local_rank + 1) else "gloo"
    where = "the address that MPI agreed on"
    try:
        if _place.address and _place.port:
            where = f"{_place.address}:{_place.port}"
            dist.init_process_group(
                backend,
                init_method=None if _place.starter == "torchrun" else f"tcp://{where}",
                rank=_place.rank,
                world_size=_place.world_size,
                timeout=_timeout,
            )
        elif _place.starter == "mpi":
            store = _store_agreed_by_mpi(_place, _timeout)
            dist.init_process_group(
                backend, store=store, rank=_place.rank, world_size=_place.world_size, timeout=_timeout
            )
        else:
            raise InputError(
                f"environment: {_place.starter} set rank {_place.rank} of {_place.world_size}, "
                "MASTER_ADDR and MASTER_PORT are needed too"
            )
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        raise TimeoutError(
            f"rank {_place.rank} of {_place.world_size} found no connection to the others at {where} "
            f"within {timeout_minutes:g} minutes: {str(error).splitlines()[0]}"
        ) from error


def _store_agreed_by_mpi(place: Place, timeout: timedelta) -> Any:
    """A TCP store of rank 0, on a port that the system picked, whose address MPI has carried to everybody."""
    try:
        import mpi4py

        mpi4py.rc.initialize = mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"{place.world_size} processes were started under MPI, and mpi4py cannot be imported ({error}): "
            "install the extra `mpi`, or set MASTER_ADDR and MASTER_PORT"
        ) from error
    ours = not MPI.Is_initialized()
    if ours:
        MPI.Init()
    world = MPI.COMM_WORLD
    if world.Get_size() != place.world_size:
        raise InputError(
            f"mpi4py sees {world.Get_size()} processes, mpiexec started {place.world_size}: they belong to different "
            "MPI installations; use the mpiexec that mpi4py was made for, or set MASTER_ADDR and MASTER_PORT"
        )
    hosts = world.allgather(socket.gethostname())
    store: Any = None
    message: tuple[str, int | str] = ("", "")
    if place.rank == 0:
        address = place.address or ("127.0.0.1" if len(set(hosts)) == 1 else hosts[0])
        try:
            store = dist.TCPStore(
                address, place.port or 0, place.world_size, is_master=True, timeout=timeout, wait_for_workers=False
            )
            message = (address, store.port)
        except RuntimeError as error:  # the others must hear of it, or they would wait
            message = ("", str(error).splitlines()[0])
    address, port = world.bcast(message, root=0)
    if ours:
        MPI.Finalize()
    if not address:
        raise InputError(f"rank 0 cannot listen on {place.address or hosts[0]}: {port}")
    return store or dist.TCPStore(address, port, place.world_size, is_master=False, timeout=timeout)


def rank() -> int:
    """This process's number, 0 to `world_size() - 1`; 0 before `setup_dist` and in a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """True in the one process that writes files and talks."""
    return rank() == 0


def dev() -> torch.device:
    """This process's device: its own GPU among the visible ones, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", read_environment().local_rank % torch.cuda.device_count())


def barrier() -> None:
    """Waits until every process is here; on gloo a process that does not come in time is named in the error."""
    if not dist.is_initialized():
        return
    with waiting_for_others("at a barrier"):
        if dist.get_backend() == "gloo":
            dist.monitored_barrier(timeout=_timeout)
        else:
            dist.barrier(device_ids=[torch.cuda.current_device()])


@contextlib.contextmanager
def waiting_for_others(why: str) -> Iterator[None]:
    """Turns what a backend says when another process is late or gone into words.

    Raises:
        TimeoutError: says who waited and why.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not dist.is_initialized() or not _LOST.search(text):
            raise
        raise TimeoutError(
            f"rank {rank()} of {world_size()} waited {why}, and another process is gone or did not come within "
            f"{_timeout.total_seconds() / 60:g} minutes: {text.splitlines()[0]}"
        ) from error


@torch.no_grad()
def all_reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """Replaces a floating-point tensor by its mean over all processes (in place) and returns it."""
    if not tensor.is_floating_point():
        raise InputError(f"all_reduce_mean: a floating-point tensor is needed, got {tensor.dtype}")
    if dist.is_initialized():
        with waiting_for_others("to average numbers"):
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
        tensor.div_(dist.get_world_size())
    return tensor


@torch.no_grad()
def all_gather(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Every process's tensor, in the order of ranks; all must have the same shape and dtype."""
    if not dist.is_initialized():
        return [tensor]
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    with waiting_for_others("to gather numbers"):
        dist.all_gather(gathered, tensor.contiguous())
    return gathered


def any_of(condition: bool) -> bool:
    """Whether a condition holds in any process."""
    return bool(all_reduce_mean(torch.tensor(float(condition), device=dev())) > 0)


def from_main(action: Callable[[], T]) -> T:
    """Runs `action` in rank 0 and gives its result, plain types or paths, to every process.

    Raises:
        Exception: in rank 0, what `action` raises; the other processes then end too, without a word.
    """
    if not dist.is_initialized():
        return action()
    answer: list[Any] = [None, 0]
    error: Exception | None = None
    if is_main():
        try:
            answer[0] = action()
        except Exception as met:
            error, answer[1] = met, 2 if isinstance(met, InputError) else 1
    with waiting_for_others("to hear from rank 0"):
        dist.broadcast_object_list(answer, src=0, device=dev())
    if error is not None:
        raise error
    if answer[1]:
        raise SystemExit(answer[1])
    return cast(T, answer[0])


@torch.no_grad()
def sync_params(params: Iterable[torch.Tensor]) -> None:
    """Overwrites parameters (and buffers, if given) by those of rank 0."""
    if dist.is_initialized():
        for param in params:
            dist.broadcast(param.detach(), 0)


def cleanup(failed: bool = False) -> None:
    """Leaves the process group once everybody is done; without a group nothing happens.

    Args:
        failed: this process ends by an error, the others may never come: do not wait for them.
    """
    if not dist.is_initialized():
        return
    if not failed:
        barrier()
    # After a failure elsewhere the group may already be broken; what went wrong is known by then.
    with contextlib.suppress(RuntimeError):
        dist.destroy_process_group()
