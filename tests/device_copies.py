"""Copies from the host to a device for which the host waits, found on the device `meta`, which every machine has."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

META = torch.device("meta")


class Copies(TorchFunctionMode):
    """Records the copies of CPU tensors and Python numbers to `meta`: names of functions, by whether the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[str] = []
        self.other: list[str] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result, name = func(*args, **kwargs), getattr(func, "__name__", "")
        if isinstance(result, torch.Tensor) and result.device == META:
            source = args[0] if args else None
            on_host = source.device != META if isinstance(source, torch.Tensor) else name in ("tensor", "as_tensor")
            if on_host:
                (self.other if kwargs.get("non_blocking") else self.waiting).append(name)
        return result
