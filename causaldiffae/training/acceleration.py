"""What makes the same network faster without changing what it computes: compilation, memory layout, bfloat16.

`nn.Module.compile` compiles in place, so state-dict keys stay what they are (`torch.compile(module)` renames them).
Whatever a machine cannot do is said in one line, and the plain way is taken.
"""

from __future__ import annotations

import os
import shutil
import warnings

import torch
from torch import nn

COMPILERS = ("g++", "clang++", "c++")


def has_fast_bf16(device: torch.device | str) -> bool:
    """Whether bfloat16 arithmetic is in the hardware: most GPUs since 2020; processors with AVX-512 BF16 or AMX."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":
        cpu = torch.backends.cpu
        return cpu.get_cpu_capability() == "AVX512" and bool(torch.cpu._is_avx512_bf16_supported())
    return False


def activation_dtype(use_bf16: bool, device: torch.device | str) -> torch.dtype | None:
    """dtype for autocast where `use_bf16` asks for it and the device has it; None means float32, with a warning."""
    if not use_bf16:
        return None
    if has_fast_bf16(device):
        return torch.bfloat16
    warnings.warn(
        f"use_bf16: this {torch.device(device).type} has no bfloat16 arithmetic, float32 is used", stacklevel=2
    )
    return None


def compile_network(network: nn.Module, device: torch.device | str) -> bool:
    """Compiles a network in place for inputs of one shape; False, with a warning, where no compiler is at hand."""
    if torch.device(device).type == "cpu" and not _cpp_compiler():
        warnings.warn(
            "compile: no C++ compiler is on this machine (CXX, g++ or clang++), nothing is compiled", stacklevel=2
        )
        return False
    network.compile(dynamic=False)
    return True


def _cpp_compiler() -> str | None:
    named = os.environ.get("CXX")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, COMPILERS)), None)


def channels_last(network: nn.Module) -> nn.Module:
    """Convolutions' weights with the channels innermost, where they are read fastest; the function stays the same."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def accelerate(
    model: nn.Module, device: torch.device | str, *, compiled: bool = False, channels_innermost: bool = False
) -> None:
    """Makes a model's score network faster in place; of a model that has none, a warning says so.

    Args:
        compiled: see `compile_network`.
        channels_innermost: see `channels_last`.
    """
    if not (compiled or channels_innermost):
        return
    network = getattr(model, "unet", None) or getattr(model, "network", None)
    if not isinstance(network, nn.Module):
        kind = type(model).__name__
        warnings.warn(f"compile, channels_last: a {kind} has no score network, nothing is done", stacklevel=2)
        return
    if channels_innermost:
        channels_last(network)
    if compiled:
        compile_network(network, device)
