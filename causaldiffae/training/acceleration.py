"""Acceleration of networks: compilation, channels-last memory format, bfloat16 activations.

Networks are compiled by `nn.Module.compile`, which keeps the state-dict keys (`torch.compile(module)` renames them).
Options that the machine does not support are skipped with a warning.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from causaldiffae.config import Auto

COMPILERS = ("g++", "clang++", "c++")


def has_fast_bf16(device: torch.device | str) -> bool:
    """Whether the hardware supports bfloat16 arithmetic: most GPUs since 2020, CPUs with AVX-512 BF16 or AMX."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = torch.backends.cpu
    return kind == "cpu" and cpu.get_cpu_capability() == "AVX512" and bool(torch.cpu._is_avx512_bf16_supported())


def activation_dtype(use_bf16: Auto, device: torch.device | str) -> torch.dtype | None:
    """Returns the autocast dtype; None for float32, with a warning if bfloat16 is requested but not supported."""
    if not use_bf16:
        return None
    if has_fast_bf16(device):
        return torch.bfloat16
    if use_bf16 == "auto":
        return None
    kind = torch.device(device).type
    warnings.warn(f"use_bf16: this {kind} does not support bfloat16, using float32", stacklevel=2)
    return None


def has_compiler(device: torch.device | str) -> bool:
    """Whether torch.compile finds a C++ compiler, which it requires for the CPU; true for other devices."""
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else COMPILERS
    return torch.device(device).type != "cpu" or any(map(shutil.which, compilers))


def compile_network(network: nn.Module, device: torch.device | str) -> bool:
    """Compiles a network in place for static input shapes; warns and returns False if there is no C++ compiler."""
    if not has_compiler(device):
        warnings.warn("compile: no C++ compiler found (CXX, g++, clang++), not compiling", stacklevel=2)
        return False
    network.compile(dynamic=False)
    return True


def score_network(model: nn.Module) -> nn.Module | None:
    """Returns the score network of a model, or None if it has none."""
    network = getattr(model, "unet", None) or getattr(model, "network", None)
    return network if isinstance(network, nn.Module) else None


def undo_compile(network: nn.Module) -> None:
    """Inverse of `compile_network`, for which PyTorch has no public function."""
    network._compiled_call_impl = None


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Runs the score network of a model without compilation: every other shape of its inputs would be compiled."""
    network = score_network(model)
    if network is None:
        yield
        return
    compiled = network._compiled_call_impl
    undo_compile(network)
    try:
        yield
    finally:
        network._compiled_call_impl = compiled


def accelerate(
    model: nn.Module, device: torch.device | str, *, compiled: bool = False, channels_last: bool = False
) -> None:
    """Compiles the score network of a model and sets its memory format; warns if the model has no score network."""
    if not (compiled or channels_last):
        return
    network = score_network(model)
    if network is None:
        warnings.warn(f"compile, channels_last: no effect, {type(model).__name__} has no score network", stacklevel=2)
        return
    if channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled:
        compile_network(network, device)
