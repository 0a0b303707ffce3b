"""Nested states as named tensors plus JSON, and back, bit for bit.

Optimizers and random generators keep their state in nested dicts, lists and tuples of tensors, arrays and plain types.
Pickle could store them and would run whatever a stranger's file says; here the tensors go to a safetensors file and
the rest becomes a JSON tree that refers to them by name.
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

    `unflatten_state` restores the same types and the same bits; the device is the CPU. What JSON does not have (tuples,
    keys that are numbers, tensors, NumPy arrays and scalars, non-finite floats) stands as `{"$kind": ...}`.

    Raises:
        InputError: naming the place of a value of another type.
    """
    tensors: dict[str, torch.Tensor] = {}
    return tensors, _flatten(state, "", tensors)


def _flatten(value: Any, place: str, tensors: dict[str, torch.Tensor]) -> Any:
    if value is None or isinstance(value, bool | str) or type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$kind": "float", "value": str(value)}
    if isinstance(value, list):
        return [_flatten(item, f"{place}.{i}", tensors) for i, item in enumerate(value)]
    if type(value) is tuple:
        return {"$kind": "tuple", "items": [_flatten(item, f"{place}.{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, dict):
        for key in value:
            if type(key) not in (str, int):
                raise InputError(
                    f"training state: key {key!r} at {place[1:] or 'the top'} must be a string or an integer"
                )
        inner = {key: _flatten(item, f"{place}.{key}", tensors) for key, item in value.items()}
        if all(type(key) is str for key in inner) and "$kind" not in inner:
            return inner
        return {"$kind": "dict", "items": [[key, item] for key, item in inner.items()]}
    if isinstance(value, torch.Tensor):
        return {"$kind": "tensor", "name": _keep(value, place, tensors)}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        array = np.array(value, dtype=value.dtype.newbyteorder("="))
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return {"$kind": kind, "name": _keep(torch.from_numpy(array), place, tensors)}
    raise InputError(
        f"training state: {type(value).__name__} at {place[1:] or 'the top'} cannot be saved; "
        "tensors, numbers, strings, None and dicts, lists and tuples of them can"
    )


def _keep(tensor: torch.Tensor, place: str, tensors: dict[str, torch.Tensor]) -> str:
    stem = name = place[1:] or "value"
    number = 1
    while name in tensors:  # {"a.b": x} and {"a": {"b": y}} share a place's spelling
        number += 1
        name = f"{stem}#{number}"
    tensors[name] = tensor
    return name


def unflatten_state(tensors: Mapping[str, torch.Tensor], tree: Any, where: str = "training state") -> Any:
    """Puts together what `flatten_state` split; `where` names the file in the `DataError` of a tree that is wrong."""
    try:
        return _unflatten(tensors, tree, where)
    except RecursionError as error:
        raise DataError(f"{where}: it is nested too deeply") from error


def _unflatten(tensors: Mapping[str, torch.Tensor], tree: Any, where: str) -> Any:
    if tree is None or isinstance(tree, bool | str | int | float):
        return tree
    if isinstance(tree, list):
        return [_unflatten(tensors, item, where) for item in tree]
    kind = tree.get("$kind")
    if kind is None:
        return {key: _unflatten(tensors, item, where) for key, item in tree.items()}
    try:
        if kind == "float" and tree["value"] in ("nan", "inf", "-inf"):
            return float(tree["value"])
        if kind in ("tensor", "array", "scalar"):
            tensor = tensors[tree["name"]]
            return tensor if kind == "tensor" else tensor.numpy() if kind == "array" else tensor.numpy()[()]
        if kind == "tuple" and isinstance(tree["items"], list):
            return tuple(_unflatten(tensors, item, where) for item in tree["items"])
        if kind == "dict" and isinstance(tree["items"], list):
            pairs = [(key, _unflatten(tensors, item, where)) for key, item in tree["items"]]
            if all(type(key) in (str, int) for key, _ in pairs):
                return dict(pairs)
    except DataError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: an entry of kind {repr(kind)[:80]} is incomplete or names a tensor that is missing"
        ) from error
    raise DataError(f"{where}: an entry of unknown kind {repr(kind)[:80]}")
