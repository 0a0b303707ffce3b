"""What both predictors share: output heads, and model folders that are checked when they are opened."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from causaldiffae.checkpoints.checkpoint import CONFIG, Checkpoint, check_free, export_weights, load_checkpoint
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import read_json

ConfigT = TypeVar("ConfigT")


class Head(NamedTuple):
    """The outputs `start`, ..., `start + size - 1`, which belong to one variable.

    `values` holds the label of each category, or is empty for a continuous variable.
    """

    name: str
    start: int
    size: int
    values: tuple[float, ...]

    def outputs(self, outputs: Any) -> Any:
        """This variable's columns (B, size) of all outputs, tensor or array."""
        return outputs[:, self.start : self.start + self.size]

    def category(self, labels: Tensor) -> Tensor:
        """Index (B,) int64 of the value that is nearest to each label (B,)."""
        values = torch.tensor(self.values, dtype=labels.dtype, device=labels.device)
        return (labels[:, None] - values).abs().argmin(dim=1)


def make_heads(variables: Iterable[tuple[str, tuple[float, ...]]], continuous_size: int) -> list[Head]:
    """Heads in the order of the variables: one output per category, `continuous_size` for a continuous variable."""
    heads: list[Head] = []
    start = 0
    for name, values in variables:
        heads.append(Head(name, start, len(values) or continuous_size, values))
        start += heads[-1].size
    return heads


def check_output(out: str | Path, model_type: str) -> None:
    """Refuses an output folder before training, in which `save_folder` would fail or replace another type of model.

    Raises:
        InputError: for a file, or a folder with checkpoints or a model that is not of `model_type`.
    """
    folder = Path(out)
    if folder.is_file():
        raise InputError(f"out: expected a folder, got the file {folder}")
    check_free(folder)
    kind = read_json(folder / CONFIG).get("model_type") if (folder / CONFIG).is_file() else model_type
    if kind != model_type:
        raise InputError(f"out: expected a new folder or a model of type {model_type!r}, got {kind!r} in {folder}")


def save_folder(folder: str | Path, module: nn.Module, model_type: str, **described: Any) -> Path:
    """Writes a model folder: config.json, which holds `described`, and weights in half precision."""
    return export_weights(folder, module.state_dict(), {"model_type": model_type, **described}, torch.float16)


def open_folder(path: str | Path, model_type: str, trainer: str) -> tuple[Checkpoint, DatasetSpec]:
    """Opens a model folder and reads its data set.

    Raises:
        DataError: if there is none, it is damaged, or it is not of `model_type`; the message names its `trainer`.
    """
    found = load_checkpoint(path)
    kind = found.config.get("model_type")
    if kind != model_type:
        raise DataError(f"{path}: expected a model of type {model_type!r} ({trainer} trains it), got {kind!r}")
    return found, DatasetSpec.from_dict(found.config.get("dataset"))


def read_network(config_class: type[ConfigT], network: Any, where: str) -> ConfigT:
    """A network's configuration from config.json; `DataError` for other fields or types, or sizes outside 1..4096."""
    defaults = {field.name: field.default for field in fields(config_class)}  # type: ignore[arg-type]
    if not isinstance(network, dict) or set(network) != set(defaults):
        raise DataError(f"{where}: network: expected {', '.join(defaults)}, got {str(network)[:80]}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in network.items()}
    for name, default in defaults.items():
        value = values[name]
        sizes = value if isinstance(default, tuple) else (value,) if type(default) is int else ()
        if type(value) is not type(default) or not all(type(size) is int and 0 < size <= 4096 for size in sizes):
            expected = f"{type(default).__name__}, sizes in 1..4096"
            raise DataError(f"{where}: {name}: expected {expected}, got {str(value)[:80]}")
    return config_class(**values)


def check_same(theirs: DatasetSpec, ours: DatasetSpec, names: Iterable[str], where: str) -> None:
    """`InputError` where a predictor's data set differs from a model's in one of these fields, or in the variables."""
    for name in names:
        got, expected = getattr(theirs, name), getattr(ours, name)
        if got != expected:
            hint = f"; train it with --{name} {expected}" if name in ("image_size", "channels") else ""
            raise InputError(f"predictor: {where}: expected {name} {expected!r}, as the model, got {got!r}{hint}")
    if theirs.graph.names != ours.graph.names:
        got, expected = (", ".join(spec.graph.names) for spec in (theirs, ours))
        raise InputError(f"predictor: {where}: expected the variables {expected}, got {got}")
