"""The device of a run: selection, checks at the start, and description."""

from __future__ import annotations

import os
import re
import subprocess
import warnings
from argparse import ArgumentParser
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist

from causaldiffae import dist_util
from causaldiffae.config import DEVICE_HELP
from causaldiffae.errors import InputError

_NAMES: Final = re.compile(r"|auto|cpu|mps|cuda(:[0-9]{1,3})?")
CGROUP: Final = Path("/sys/fs/cgroup")


def add_device_flag(parser: ArgumentParser) -> None:
    """Adds `--device`, a name for `use_device`."""
    parser.add_argument("--device", default="auto", help=DEVICE_HELP)


def use_device(name: str = "auto", several_processes: bool = False) -> None:
    """Selects the device of this process, see `dist_util.dev`, and runs one operation on a GPU.

    Args:
        name: "cpu", "mps", "cuda", "cuda:N", or "auto" (or "") for this process's own GPU if there is one, else Apple's
            MPS, else the CPU.
        several_processes: whether the program shares its work between the processes of a launcher.

    Raises:
        InputError: If the device does not exist or cannot run this build of PyTorch; also if nothing is named and
            there is an NVIDIA GPU that a CUDA build of PyTorch cannot use, so that a run does not end up on the CPU;
            or if a launcher started several processes of a program in which each would do all the work.
    """
    launched = dist_util.read_environment()
    if launched.world_size > 1 and not several_processes:
        raise InputError(
            f"processes: expected one, got {launched.world_size} ({launched.launcher}); run this program in one process"
        )
    if not _NAMES.fullmatch(name):
        raise InputError(f"device: expected auto, cpu, mps, cuda or cuda:N, got {name!r}")
    name = "" if name == "auto" else name
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("device: expected cpu or cuda, got mps, and PyTorch finds no Apple GPU")
    problem, count = gpu_problem(), torch.cuda.device_count()
    if name.startswith("cuda") and problem:
        raise InputError(f"device: expected cpu, got {name}: {problem}")
    if ":" in name and int(name.partition(":")[2]) >= count:
        raise InputError(f"device: expected cpu or cuda:0..cuda:{count - 1}, got {name}")
    build = f"PyTorch {torch.__version__}"
    if not name and problem and is_gpu_installed():
        if torch.version.cuda:
            raise InputError(
                f"device: expected a GPU that {build} can use, got: {problem}; install another build with "
                "CAUSALDIFFAE_TORCH, or add --device cpu"
            )
        warnings.warn(f"device: there is a GPU, but {problem}; using the CPU", stacklevel=2)
    dist_util.set_device(name)
    device = dist_util.dev()
    if device.type == "cuda":
        try:
            torch.ones(1, device=device).add_(1).item()
        except RuntimeError as error:  # such as "no kernel image is available" for an older or newer GPU
            raise InputError(
                f"device: expected a GPU that {build} can use, got {device}: {str(error).splitlines()[0]}; install "
                "another build with CAUSALDIFFAE_TORCH, or add --device cpu"
            ) from error


def gpu_problem() -> str:
    """Returns the reason why PyTorch cannot use a GPU; empty if it can."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reason is returned
        if torch.cuda.is_available():
            return ""
    if not (torch.version.cuda or torch.version.hip):
        return f"PyTorch {torch.__version__} is built without CUDA"
    if _gpus_are_hidden():
        return "CUDA_VISIBLE_DEVICES hides all GPUs"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "PyTorch finds no GPU"


def is_gpu_installed() -> bool:
    """Whether nvidia-smi lists a GPU that CUDA_VISIBLE_DEVICES does not hide."""
    if _gpus_are_hidden():
        return False
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU " in listed.stdout


def _gpus_are_hidden() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")


def describe_device() -> str:
    """Describes the device of this process, and the number of processes and the back end of its group."""
    device = dist_util.dev()
    if device.type == "mps":
        text = "mps (Apple GPU)"
    elif device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        text = f"{device} ({gpu.name}, {gpu.total_memory / 2**30:.0f} GiB)"
    else:
        threads = torch.get_num_threads()
        text = f"cpu ({threads} thread{'s' if threads > 1 else ''})"
    return f"{text}, {dist.get_world_size()} processes, {dist.get_backend()}" if dist.is_initialized() else text


def free_memory(device: torch.device | str) -> int:
    """Returns the free memory of a device in bytes, 0 if it is unknown; on the CPU a limit of the container counts."""
    kind = torch.device(device).type
    if kind == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # PyTorch uses it again
        return torch.cuda.mem_get_info(device)[0] + cached
    if kind == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    found = [_read_number(Path("/proc/meminfo"), r"MemAvailable:\s+([0-9]+) kB") * 1024]
    limit = _read_number(CGROUP / "memory.max", r"([0-9]+)\s*")
    if limit:
        used = _read_number(CGROUP / "memory.current", r"([0-9]+)\s*")
        cached = _read_number(CGROUP / "memory.stat", r"(?:.*\n)*inactive_file ([0-9]+)\n")  # freed when it is needed
        found.append(max(0, limit - used + min(cached, used)))
    return min(found) if found[0] else 0


def _read_number(path: Path, pattern: str) -> int:
    """The number that a pattern finds in a file; 0 without it."""
    try:
        found = re.search(pattern, path.read_text(encoding="ascii"))
    except OSError:
        return 0
    return int(found[1]) if found else 0
