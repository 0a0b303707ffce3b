"""Lossless conversion of nested states to named tensors and JSON.

Optimizers and random generators keep their state in nested dicts, lists and tuples of tensors, arrays and plain types.
Tensors are stored in a safetensors file, everything else in a JSON tree that refers to them by name. `torch.load` with
`weights_only=True` is not used: it rejects the NumPy scalars of a random state, and a crafted file can make it use
unbounded memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from causaldiffae.errors import DataError, InputError


def flatten_state(state: Any) -> tuple[dict[str, torch.Tensor], Any]:
    """Splits nested dicts, lists and tuples of tensors, arrays and plain types into named tensors and a JSON tree.

    `unflatten_state` restores types and values exactly, on the CPU. Values that JSON cannot represent (tuples, integer
    keys, tensors, NumPy arrays and scalars, non-finite floats) are written as `{"$kind": ...}`.

    Raises:
        InputError: For a value of an unsupported type; the message names its path.
    """
    tensors: dict[str, torch.Tensor] = {}
    return tensors, _flatten(state, "", tensors)


def _flatten(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if value is None or isinstance(value, bool | str) or type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$kind": "float", "value": str(value)}
    if isinstance(value, list) or type(value) is tuple:
        items = [_flatten(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$kind": "tuple", "items": items}
    if isinstance(value, dict):
        for key in value:
            if type(key) not in (str, int):
                raise InputError(f"training state: {_named(path)}: expected keys of type str or int, got {key!r}")
        inner = {key: _flatten(item, f"{path}.{key}", tensors) for key, item in value.items()}
        if all(type(key) is str for key in inner) and "$kind" not in inner:
            return inner
        return {"$kind": "dict", "items": [[key, item] for key, item in inner.items()]}
    if isinstance(value, torch.Tensor):
        return {"$kind": "tensor", "name": _add(value, path, tensors)}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        array = np.array(value, dtype=value.dtype.newbyteorder("="))
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return {"$kind": kind, "name": _add(torch.from_numpy(array), path, tensors)}
    raise InputError(
        f"training state: {_named(path)}: expected a tensor, number, string, None, or a dict, list or tuple of them, "
        f"got {type(value).__name__}"
    )


def _named(path: str) -> str:
    return path[1:] or "top level"


def _add(tensor: torch.Tensor, path: str, tensors: dict[str, torch.Tensor]) -> str:
    stem = name = path[1:] or "value"
    number = 1
    while name in tensors:  # {"a.b": x} and {"a": {"b": y}} have the same path
        number += 1
        name = f"{stem}#{number}"
    tensors[name] = tensor
    return name


def unflatten_state(tensors: Mapping[str, torch.Tensor], tree: Any, where: str = "training state") -> Any:
    """Inverse of `flatten_state`; raises a `DataError` prefixed by `where` for an invalid tree."""
    try:
        return _unflatten(tensors, tree)
    except RecursionError as error:
        raise DataError(f"{where}: nested too deeply") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: invalid entry ({type(error).__name__}: {str(error)[:80]})") from error


def _unflatten(tensors: Mapping[str, torch.Tensor], tree: Any) -> Any:
    if tree is None or isinstance(tree, bool | str | int | float):
        return tree
    if isinstance(tree, list):
        return [_unflatten(tensors, item) for item in tree]
    kind = tree.get("$kind")
    if kind is None:
        return {key: _unflatten(tensors, item) for key, item in tree.items()}
    if kind == "float" and tree["value"] in ("nan", "inf", "-inf"):
        return float(tree["value"])
    if kind in ("tensor", "array", "scalar"):
        tensor = tensors[tree["name"]]
        return tensor if kind == "tensor" else tensor.numpy() if kind == "array" else tensor.numpy()[()]
    if kind == "tuple" and isinstance(tree["items"], list):
        return tuple(_unflatten(tensors, item) for item in tree["items"])
    if kind == "dict" and isinstance(tree["items"], list):
        pairs = [(key, _unflatten(tensors, item)) for key, item in tree["items"]]
        if all(type(key) in (str, int) for key, _ in pairs):
            return dict(pairs)
    raise ValueError(f"unknown kind {kind!r}")
