"""What a model has to know about its data: `DatasetSpec`; it travels inside the checkpoint.

Labels speak in their own units everywhere; `DatasetSpec.normalise` maps them to (y - shift) / scale and nothing else
does. An intervention is validated once, where it enters: `DatasetSpec.check_do` makes a `CheckedDo` of it.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, TypeVar

import numpy as np
import torch

from causaldiffae.datasets.reading_rules import RESIZE_RULES, SPLIT_SHARES, check_shares, one_of, whole_number
from causaldiffae.datasets.variable_kinds import category_label, check_kinds, is_number
from causaldiffae.errors import DataError, InputError
from causaldiffae.graphs import CausalGraph

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")  # it ends in names of files and folders
_LARGEST: Final = {"image_size": 4096, "channels": 64, "num_classes": 10_000}

Labels = TypeVar("Labels", np.ndarray, torch.Tensor)


class CheckedDo(dict[str, Any]):
    """An intervention that `DatasetSpec.check_do` has validated: variable -> its value in label units.

    A value is a float, or (B,) float64 with one value per image. What takes a `CheckedDo` does not validate it again.
    """

    def rows(self, rows: slice) -> CheckedDo:
        """The intervention on some of the images."""
        return CheckedDo({name: value[rows] if np.ndim(value) else value for name, value in self.items()})


@dataclass(frozen=True)
class DatasetSpec:
    """What a model has to know about its data; it travels inside the checkpoint.

    Attributes:
        name: the data set's name, a key of `DATASETS`.
        image_size, channels: of the images as the network sees them.
        graph: the causal graph; its names are the label columns.
        shift, scale: normalised label = (label - shift) / scale, one entry for each variable.
        low, high: range of the training labels, in label units.
        num_classes: number of classes where images have one, else None.
        units: the label units, for display.
        kinds, categories: of each variable, see variable_kinds.py; empty where all are continuous.
        resize, split_seed, split_shares: how a folder with a table is read, see image_folder.py.
    """

    name: str
    image_size: int
    channels: int
    graph: CausalGraph
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    num_classes: int | None = None
    units: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    categories: tuple[tuple[str, ...], ...] = ()
    resize: str = "area"
    split_seed: int = 0
    split_shares: tuple[float, ...] = SPLIT_SHARES

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            shown = repr(self.name)[:80]
            raise DataError(f"data set: name is {shown}, up to 64 letters, digits, - and _ are needed")
        if not isinstance(self.graph, CausalGraph):
            raise DataError(f"data set {self.name}: graph is {self.graph!r}, a CausalGraph is needed")
        for key in ("image_size", "channels", "num_classes"):
            value = getattr(self, key)
            if not (is_whole(value) and value > 0) and not (key == "num_classes" and value is None):
                raise DataError(f"data set {self.name}: {key} is {value!r}, a whole number above 0 is needed")
            if value is not None and value > _LARGEST[key]:
                raise DataError(f"data set {self.name}: {key} is {value}, at most {_LARGEST[key]} is allowed")
        for key in ("shift", "scale", "low", "high"):
            object.__setattr__(self, key, self._check_numbers(key, getattr(self, key)))
        if not all(value > 0 for value in self.scale):
            raise DataError(f"data set {self.name}: scale is {list(self.scale)}, numbers above 0 are needed")
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise DataError(f"data set {self.name}: low {list(self.low)} is not below high {list(self.high)}")
        units = tuple(self.units)
        if isinstance(self.units, str) or len(units) not in (0, len(self.graph)):
            raise DataError(f"data set {self.name}: units is {self.units!r}, one for each variable or none is needed")
        if not all(isinstance(unit, str) for unit in units):
            raise DataError(f"data set {self.name}: units is {self.units!r}, strings are needed")
        object.__setattr__(self, "units", units)
        self._check_reading()

    def _check_reading(self) -> None:
        where = f"data set {self.name}"
        try:
            kinds, categories = check_kinds(self.kinds, self.categories, len(self.graph))
        except InputError as error:
            raise DataError(f"{where}: {error}") from None
        object.__setattr__(self, "kinds", kinds)
        object.__setattr__(self, "categories", categories)
        one_of(self.resize, f"{where}: resize", RESIZE_RULES)
        object.__setattr__(self, "split_seed", whole_number(self.split_seed, f"{where}: split_seed", 0))
        object.__setattr__(self, "split_shares", check_shares(self.split_shares, f"{where}: split_shares"))

    def _check_numbers(self, key: str, values: Any) -> tuple[float, ...]:
        where = f"data set {self.name}: {key} is {values!r}"
        if not isinstance(values, list | tuple) or len(values) != len(self.graph):
            raise DataError(f"{where}, a list of {len(self.graph)} numbers is needed")
        if not all(is_number(value) and math.isfinite(value) for value in values):
            raise DataError(f"{where}, finite numbers are needed")
        return tuple(float(value) for value in values)

    def normalise(self, labels: Labels) -> Labels:
        """Labels (..., n) in label units to normalised units; a floating dtype is kept."""
        shift, scale = self._constants(labels)
        return (labels - shift) / scale

    def denormalise(self, labels: Labels) -> Labels:
        """Inverse of `normalise`."""
        shift, scale = self._constants(labels)
        return labels * scale + shift

    def _constants(self, labels: Labels) -> tuple[Labels, Labels]:
        if labels.shape[-1:] != (len(self.graph),):
            raise InputError(f"labels: shape {tuple(labels.shape)} given, the last axis must be {len(self.graph)}")
        if isinstance(labels, torch.Tensor):
            dtype = labels.dtype if labels.is_floating_point() else torch.float32
            shift, scale = (torch.tensor(c, dtype=dtype, device=labels.device) for c in (self.shift, self.scale))
        else:
            dtype = labels.dtype if np.issubdtype(labels.dtype, np.floating) else np.float64
            shift, scale = np.asarray(self.shift, dtype), np.asarray(self.scale, dtype)
        return shift, scale

    def category_values(self, i: int) -> tuple[float, ...]:
        """The labels, in label units, that a categorical or binary variable i can have; none for a continuous one."""
        if not self.kinds or self.kinds[i] == "continuous":
            return ()
        names = self.categories[i] if self.categories else ()
        return tuple(float(place) for place in range(len(names))) or (self.low[i], self.high[i])

    def format_value(self, name: str, value: float) -> str:
        """A variable's value as people read it: the category's name, or three digits."""
        i = self.graph.index(name)
        names = self.categories[i] if self.categories else ()
        return names[int(value)] if names and value in range(len(names)) else f"{value:.3g}"

    def check_do(self, do: Mapping[str, Any], count: int = 1, warn: bool = True) -> CheckedDo:
        """Validates an intervention in label units; a `CheckedDo` is returned as it is.

        Args:
            do: variable -> a number, a category's name or number, or an array (count,) with one value per image.
            count: number of images.
            warn: warn about values outside the range of the training labels.

        Raises:
            InputError: for an unknown variable, a value that is not a finite number, an unknown category, or an array
                of another length.
        """
        if isinstance(do, CheckedDo):
            return do
        if not isinstance(do, Mapping):
            raise InputError(f"do: {do!r} given, a mapping from variable to value is needed")
        checked = CheckedDo()
        for name, value in do.items():
            if name not in self.graph.names:
                raise InputError(f"do: unknown variable {name!r}, known are {', '.join(self.graph.names)}")
            if isinstance(value, torch.Tensor):
                value = value.detach().cpu().numpy()
            if getattr(value, "ndim", 0):
                checked[name] = self._check_values(name, value, count)
            else:
                checked[name] = self._check_value(name, value.item() if isinstance(value, np.ndarray) else value)
            if warn:
                self._warn_outside(name, checked[name])
        return checked

    def _check_value(self, name: str, value: Any) -> float:
        """One value of a variable as its label."""
        i = self.graph.index(name)
        if self.kinds and self.kinds[i] != "continuous":
            return category_label(name, value, self.categories[i] if self.categories else (), self.low[i], self.high[i])
        if not is_number(value) or not math.isfinite(value):
            raise InputError(f"do: {name} is {value!r}, a finite number is needed")
        return float(value)

    def _check_values(self, name: str, values: np.ndarray, count: int) -> np.ndarray:
        """One value per image, (count,) float64."""
        if values.shape != (count,):
            raise InputError(
                f"do: {name} has shape {values.shape}, a number or one for each image, ({count},), is needed"
            )
        if np.issubdtype(values.dtype, np.number) and not np.isfinite(values).all():
            raise InputError(f"do: {name} holds NaN or infinity, finite numbers are needed")
        distinct, indices = np.unique(values, return_inverse=True)
        return np.array([self._check_value(name, value.item()) for value in distinct], np.float64)[indices.reshape(-1)]

    def _warn_outside(self, name: str, value: float | np.ndarray) -> None:
        i = self.graph.index(name)
        low, high = self.low[i], self.high[i]
        slack = 1e-6 * (high - low)  # the ends themselves, as float32 or printed
        if not self.category_values(i) and not (np.min(value) >= low - slack and np.max(value) <= high + slack):
            extreme = np.min(value) if np.min(value) < low - slack else np.max(value)
            warnings.warn(
                f"do: {name}={extreme:g} is outside the training labels' range {low:g}..{high:g}; the answer is "
                "extrapolated, a value inside is surer",
                UserWarning,
                stacklevel=3,
            )

    def normalise_do(self, do: CheckedDo) -> dict[str, Any]:
        """An intervention in normalised units."""
        index = self.graph.index
        return {name: (value - self.shift[index(name)]) / self.scale[index(name)] for name, value in do.items()}

    def to_dict(self) -> dict[str, Any]:
        """The plain JSON form that `from_dict` reads."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**{key: _as_lists(value) for key, value in plain.items()}, "graph": self.graph.to_dict()}

    @classmethod
    def from_dict(cls, description: Any) -> DatasetSpec:
        """Reads what `to_dict` wrote; anything missing, unknown or out of range is a `DataError`."""
        if not isinstance(description, dict):
            raise DataError(f"data set: a mapping is needed, got {type(description).__name__}")
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(map(str, description)) - set(known))
        if unknown:
            raise DataError(f"data set: unknown key {unknown[0]!r}, allowed are {', '.join(known)}")
        newer = ("kinds", "categories", "resize", "split_seed", "split_shares")  # checkpoints were written before them
        missing = [key for key in known if key not in description and key not in newer]
        if missing:
            raise DataError(f"data set: key {missing[0]!r} is missing")
        if not isinstance(description["units"], list | tuple):
            raise DataError(f"data set: units is {description['units']!r}, a list is needed")
        try:
            graph = CausalGraph.from_dict(description["graph"])
        except (InputError, TypeError) as error:
            raise DataError(f"data set: {error}") from None
        return cls(**{**description, "graph": graph})


def _as_lists(value: Any) -> Any:
    return [_as_lists(each) for each in value] if isinstance(value, tuple) else value


def is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_size(dataset: str, image_size: int, channels: int, allowed: tuple[int, ...]) -> None:
    """`InputError` for a size or a number of channels that a data set cannot be had in."""
    if not (is_whole(image_size) and 8 <= image_size <= 512):
        raise InputError(f"image_size: {image_size!r} given, data set {dataset} needs a whole number in 8..512")
    if channels not in allowed:
        raise InputError(f"channels: {channels!r} given, data set {dataset} has {' or '.join(map(str, allowed))}")
