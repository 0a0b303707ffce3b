"""Distributed training: rank and world size, device, process group, and collective operations.

Data-parallel training runs the same program in `world_size()` processes, each with its share of every batch. The
launcher sets the rank of each process in environment variables:

    torchrun            RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT
    mpiexec (MPICH)     PMI_RANK, PMI_SIZE, MPI_LOCALRANKID, MPI_LOCALNRANKS
    mpiexec (Open MPI)  OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK, _LOCAL_SIZE
    srun (Slurm)        SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID, SLURM_STEP_NODELIST
    none                a single process without a process group

mpiexec starts its processes through srun on a Slurm cluster, so both sets of variables may be present. Where they
disagree, those of MPI count. Where they agree, srun has started the processes itself, and Slurm gives the address.

The back end is NCCL if no two processes share a GPU, else gloo. The processes agree on it before they form the group.

mpi4py is required only for mpiexec without MASTER_ADDR and MASTER_PORT, to agree on an address. MPI is finalised
immediately afterwards, so that the failure of one process cannot block the others in MPI.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist

from causaldiffae.errors import InputError

T = TypeVar("T")


class ProcessInfo(NamedTuple):
    """Rank and world size of this process as set by the launcher; local values refer to this machine.

    Rank 0 listens at `address` and `port`. Values that the launcher does not set are None.
    """

    launcher: str = "none"
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int | None = None
    address: str | None = None
    port: int | None = None


# Rank, world size, local rank, local size. The first launcher with both rank and world size set is used.
_VARIABLES = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    # Variables set by srun only: python started directly in a batch script is a single process.
    "slurm": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),
    "mpi": tuple(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
    "mpi (PMI)": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}
# Messages of gloo and NCCL about a process that does not respond or has exited.
_LOST = re.compile(
    r"time[d ]*out|connection (closed|reset|refused)|broken pipe|failed to pass monitoredBarrier", re.IGNORECASE
)

_timeout = timedelta(minutes=30)
_device = ""


def read_environment(environment: Mapping[str, str] | None = None) -> ProcessInfo:
    """Reads the variables of torchrun, mpiexec or srun; raises `InputError` for an invalid value."""
    environment = os.environ if environment is None else environment

    def integer(name: str, low: int, high: int) -> int | None:
        text = environment.get(name)
        if text is None:
            return None
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise InputError(f"environment variable {name}: expected an integer in {low}..{high}, got {text!r}")
        return int(text)

    def processes(launcher: str) -> tuple[int, int] | None:
        rank_name, size_name, *_ = _VARIABLES[launcher]
        if rank_name not in environment or size_name not in environment:
            return None
        size = integer(size_name, 1, 10**6) or 1
        return integer(rank_name, 0, size - 1) or 0, size

    found = {launcher: place for launcher in _VARIABLES if (place := processes(launcher)) is not None}
    mpi = next((place for launcher, place in found.items() if launcher.startswith("mpi")), None)
    if "slurm" in found and (found["slurm"][1] == 1 or (mpi is not None and mpi != found["slurm"])):
        del found["slurm"]  # variables of the step in which mpiexec or a single process was started
    if not found:
        return ProcessInfo()
    launcher, (rank_here, size) = next(iter(found.items()))
    *_, local_rank_name, local_size_name = _VARIABLES[launcher]
    address, port = environment.get("MASTER_ADDR"), integer("MASTER_PORT", 1, 65535)
    if launcher == "slurm":
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")
        address = address or first_slurm_host(nodes)
        step = int(re.sub(r"\D", "", environment.get("SLURM_STEP_ID", "")) or 0)  # others may run at the same time
        port = port or 20000 + ((integer("SLURM_JOB_ID", 0, 10**9) or 0) + 1009 * step) % 20000
    local_rank, local_size = integer(local_rank_name, 0, 10**6) or 0, integer(local_size_name, 1, 10**6)
    return ProcessInfo(launcher.split()[0], rank_here, size, local_rank, local_size, address, port)


def first_slurm_host(nodes: str) -> str:
    """Returns the first host of a compressed Slurm list: `gpu[03-05,9],login1` -> `gpu03`."""
    match = re.match(r"([^,\[\]]+)(?:\[([0-9]+)[^\]]*\]([^,\[\]]*))?", nodes)
    if match is None:
        raise InputError(
            f"environment variable SLURM_STEP_NODELIST: expected host names, got {nodes!r}; set MASTER_ADDR"
        )
    return match[1] + (match[2] or "") + (match[3] or "")


def setup_dist(backend: str | None = None, timeout_minutes: float = 30.0) -> None:
    """Joins the process group; does nothing for a single process.

    Args:
        backend: "nccl" or "gloo"; default: see `agree_on_backend`.
        timeout_minutes: timeout of connecting and of every collective operation.

    Raises:
        TimeoutError: If the processes do not connect in time.
        InputError: If the environment is inconsistent, or mpi4py is required and missing.
    """
    global _timeout
    if dist.is_initialized():
        return
    info, _timeout = read_environment(), timedelta(minutes=timeout_minutes)
    if dev().type == "cuda":
        torch.cuda.set_device(dev())
    if info.world_size == 1:
        return
    address, port, me = info.address, info.port, f"rank {info.rank} of {info.world_size}"
    if not (address and port):
        if info.launcher != "mpi":
            raise InputError(f"environment: expected MASTER_ADDR and MASTER_PORT for {me} under {info.launcher}")
        address, port = _agree_by_mpi(info)
    # With env://, torchrun's own store is used, and its restarts do not see the keys of earlier ones.
    url = "env://" if info.launcher == "torchrun" else f"tcp://{address}:{port}"
    try:
        store, *_ = next(dist.rendezvous(url, info.rank, info.world_size, timeout=_timeout))
        store.set_timeout(_timeout)
        backend = backend or agree_on_backend(dist.PrefixStore("causaldiffae", store), info, own_gpu())
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("group", store),
            rank=info.rank,
            world_size=info.world_size,
            timeout=_timeout,
        )
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        raise TimeoutError(
            f"{me}: no connection to the other processes at {address}:{port} within {timeout_minutes:g} minutes: "
            f"{str(error).splitlines()[0]}"
        ) from error


def agree_on_backend(store: dist.Store, info: ProcessInfo, gpu: str) -> str:
    """Returns the back end of the group, the same in every process: "nccl" if each has its own GPU, else "gloo".

    Args:
        store: key-value store of the processes of `info`.
        gpu: `own_gpu` of this process.
    """
    store.set(str(info.rank), gpu or "none")
    gpus = [store.get(str(each)).decode() for each in range(info.world_size)]
    return "nccl" if "none" not in gpus and len({*gpus}) == len(gpus) else "gloo"


def machine() -> str:
    """Returns an identifier of this machine, which all containers on it share."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def own_gpu() -> str:
    """Returns an identifier of this process's GPU (machine and PCI address); empty without a GPU or NCCL.

    MIG instances of a GPU have its address: NCCL does not connect them.
    """
    if dev().type != "cuda" or not dist.is_nccl_available():
        return ""
    gpu: Any = torch.cuda.get_device_properties(dev())
    return f"{machine()} {gpu.pci_domain_id:04x}:{gpu.pci_bus_id:02x}:{gpu.pci_device_id:02x}"


def _agree_by_mpi(info: ProcessInfo) -> tuple[str, int]:
    """Returns the address and a free port of rank 0, broadcast by MPI."""
    try:
        import mpi4py

        mpi4py.rc.initialize = mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"mpi4py: required for the {info.world_size} processes of mpiexec, cannot be imported ({error}); "
            "install the extra `mpi`, or set MASTER_ADDR and MASTER_PORT"
        ) from error
    if ours := not MPI.Is_initialized():
        MPI.Init()
    world = MPI.COMM_WORLD
    if world.Get_size() != info.world_size:
        raise InputError(
            f"mpi4py: expected the {info.world_size} processes of mpiexec, got {world.Get_size()}; use the mpiexec of "
            "the same MPI installation, or set MASTER_ADDR and MASTER_PORT"
        )
    hosts = world.allgather(socket.gethostname())
    address = info.address or ("127.0.0.1" if len(set(hosts)) == 1 else hosts[0])
    with socket.socket() as free:
        free.bind(("", 0))
        address, port = world.bcast((address, info.port or free.getsockname()[1]), root=0)
    if ours:
        MPI.Finalize()
    return address, port


def rank() -> int:
    """Rank of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0, which writes files and logs."""
    return rank() == 0


def dev() -> torch.device:
    """Device of this process: that of `set_device`, by default that of `find_device`."""
    if _device in ("", "auto"):
        return find_device("auto")
    chosen = torch.device(_device)
    if chosen.type != "cuda":
        return chosen
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if chosen.index is not None:
        return chosen
    return torch.device("cuda", read_environment().local_rank % torch.cuda.device_count())


def find_device(name: torch.device | str) -> torch.device:
    """Returns a device by name; for "auto" this process's own CUDA GPU, else Apple's MPS, else the CPU."""
    if name != "auto":
        try:
            device = torch.device(name)
        except RuntimeError:
            raise InputError(f"device: expected auto, cpu, mps, cuda or cuda:N, got {name!r}") from None
        if device.type == "cuda" and not torch.cuda.is_available():
            raise InputError(f"device: expected auto or cpu, got {name}, and PyTorch finds no NVIDIA GPU")
        return device
    environment = read_environment()
    if torch.cuda.is_available():
        return torch.device("cuda", environment.local_rank % torch.cuda.device_count())
    is_alone = environment.world_size == 1  # gloo has no collective operations on MPS
    return torch.device("mps" if is_alone and torch.backends.mps.is_available() else "cpu")


def set_device(name: str) -> None:
    """Sets the device of this process: "cpu", "mps", "cuda", "cuda:N" or "auto"; see `training.devices`."""
    global _device
    _device = name


def barrier() -> None:
    """Waits for all processes; with gloo, a timeout error names the missing rank."""
    if not dist.is_initialized():
        return
    with peer_errors("barrier"):
        if dist.get_backend() == "gloo":
            dist.monitored_barrier(timeout=_timeout)
        else:
            dist.barrier(device_ids=[torch.cuda.current_device()])


@contextlib.contextmanager
def peer_errors(operation: str) -> Iterator[None]:
    """Converts backend errors about a missing process into a `TimeoutError` that names the rank and the operation."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not dist.is_initialized() or not _LOST.search(text):
            raise
        raise TimeoutError(
            f"rank {rank()} of {world_size()}: {operation}: another process has exited or did not respond within "
            f"{_timeout.total_seconds() / 60:g} minutes: {text.splitlines()[0]}"
        ) from error


@torch.no_grad()
def all_reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """Averages a floating-point tensor over all processes in place, and returns it."""
    if not tensor.is_floating_point():
        raise InputError(f"all_reduce_mean: expected a floating-point tensor, got {tensor.dtype}")
    if dist.is_initialized():
        with peer_errors("all_reduce_mean"):
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
        tensor.div_(dist.get_world_size())
    return tensor


@torch.no_grad()
def all_gather(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Returns the tensors of all processes, ordered by rank; all must have the same shape and dtype."""
    if not dist.is_initialized():
        return [tensor]
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    with peer_errors("all_gather"):
        dist.all_gather(gathered, tensor.contiguous())
    return gathered


def any_of(condition: bool) -> bool:
    """Whether the condition is true in any process."""
    return bool(all_reduce_mean(torch.tensor(float(condition), device=dev())) > 0)


def from_main(action: Callable[[], T]) -> T:
    """Runs `action` on rank 0 and returns its result (plain types or paths) in every process.

    If it raises an exception, rank 0 raises it, and the other processes exit silently with the same exit code.
    """
    return _shared(action, lambda: "one for all")


def once_per_machine(action: Callable[[], T]) -> T:
    """Runs `action` in the first process of every machine and returns its result in the processes of that machine.

    Processes on one machine have the same host name and so the same files; containers on a machine may differ in both.
    If the action raises an exception on any machine, the processes that ran it there raise it, and all others exit
    silently with the same exit code.
    """
    return _shared(action, lambda: f"{socket.gethostname()} {machine()}")


def from_all(action: Callable[[], T]) -> list[T]:
    """Runs `action` in every process and returns all results, by rank; errors as in `once_per_machine`."""
    return _outcomes(action, lambda: f"rank {rank()}")[0]


def _shared(action: Callable[[], T], group: Callable[[], str]) -> T:
    results, first = _outcomes(action, group)
    return results[first]


def _outcomes(action: Callable[[], T], group: Callable[[], str]) -> tuple[list[T], int]:
    """Results by rank, None of processes that are not the first of their group, and the first rank of this group."""
    if not dist.is_initialized():
        return [action()], 0
    place, code, result, failure = group(), 0, None, None
    with peer_errors("gathering the machines"):
        first = _gather_objects(place).index(place)
    if rank() == first:
        try:
            result = action()
        except Exception as error:
            failure, code = error, 2 if isinstance(error, InputError) else 1
    with peer_errors("sharing a result"):
        outcomes = _gather_objects((result, code))
    if failure is not None:
        raise failure
    if code := max(code for _, code in outcomes):
        raise SystemExit(code)
    return [cast(T, result) for result, _ in outcomes], first


def _gather_objects(value: Any) -> list[Any]:
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


@torch.no_grad()
def sync_params(params: Iterable[torch.Tensor]) -> None:
    """Overwrites parameters and buffers with those of rank 0."""
    if dist.is_initialized():
        for param in params:
            dist.broadcast(param.detach(), 0)


def cleanup(failed: bool = False) -> None:
    """Leaves the process group; first waits for the other processes unless this one has failed."""
    if not dist.is_initialized():
        return
    if not failed:
        barrier()
    with contextlib.suppress(RuntimeError):  # after a failure elsewhere the group may already be broken
        dist.destroy_process_group()
