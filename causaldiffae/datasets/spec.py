"""The description of a data set that is stored in every checkpoint.

Labels are in label units, unless `DatasetSpec.normalise` has mapped them to (label - shift) / scale. Interventions are
validated once, at the public interface: `DatasetSpec.check_do` converts them to a `CheckedDo`.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, TypeVar

import numpy as np
import torch

from causaldiffae.datasets.variables import category_label, check_kinds, is_integer, is_number
from causaldiffae.errors import DataError, InputError
from causaldiffae.graphs import CausalGraph

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")  # used in file names
_LARGEST: Final = {"image_size": 4096, "channels": 64, "num_classes": 10_000}
_LARGEST_NUMBER: Final = float(np.finfo(np.float64).max)
RESIZE_RULES: Final = ("crop", "area", "pad")
SPLIT_SHARES: Final = (0.8, 0.1, 0.1)
_ADDED: Final = (
    *("kinds", "categories", "resize", "split_seed", "split_shares", "class_name", "group", "value_range", "missing"),
)
"""Fields that old checkpoints lack."""

Labels = TypeVar("Labels", np.ndarray, torch.Tensor)


class CheckedDo(dict[str, Any]):
    """An intervention that `DatasetSpec.check_do` has validated: variable -> value in label units.

    A value is a float, or (B,) float64 with one value per image.
    """

    def rows(self, rows: slice) -> CheckedDo:
        """The intervention on a slice of the images."""
        return CheckedDo({name: value[rows] if np.ndim(value) else value for name, value in self.items()})


@dataclass(frozen=True)
class DatasetSpec:
    """The description of a data set that is stored in every checkpoint.

    Attributes:
        name: key in `DATASETS`.
        image_size, channels: size in pixels and number of channels of the network input.
        graph: the causal graph; its names are those of the label columns.
        shift, scale: normalised label = (label - shift) / scale, one entry per variable.
        low, high: range of the training labels, in label units.
        num_classes: number of classes, or None for a data set without class labels.
        units: the label units, for display.
        kinds, categories: per variable, see variables.py; empty if all variables are continuous.
        resize, split_seed, split_shares, group: settings of an image folder, see folder/description.py.
        missing: per variable, marks of missing labels in the table of a folder; empty if there are none.
        value_range: values of images with more than 8 bits that become black and white, see folder/value_range.py;
            empty if there are no such images, or for 0..65535.
        class_name: name of the class in an intervention; empty without classes.

    Raises:
        DataError: for a field of invalid type, length or range.
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
    class_name: str = "class"
    group: str = ""
    value_range: tuple[float, ...] = ()
    missing: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise DataError(f"data set: name: expected up to 64 letters, digits, - and _, got {self.name!r:.80}")
        where = f"data set {self.name}"
        if not isinstance(self.graph, CausalGraph):
            raise DataError(f"{where}: graph: expected a CausalGraph, got {self.graph!r}")
        for key, largest in _LARGEST.items():
            value = getattr(self, key)
            if not (is_integer(value) and 0 < value <= largest) and not (key == "num_classes" and value is None):
                raise DataError(f"{where}: {key}: expected an integer in 1..{largest}, got {value!r}")
        n = len(self.graph)
        for key in ("shift", "scale", "low", "high"):
            self._check_numbers(key, n, where)
        self._check_numbers("split_shares", 3, where)
        if not all(value > 0 for value in self.scale):
            raise DataError(f"{where}: scale: expected positive numbers, got {list(self.scale)}")
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise DataError(f"{where}: low: expected numbers below high {list(self.high)}, got {list(self.low)}")
        is_list = isinstance(self.units, list | tuple) and len(self.units) in (0, n)
        if not is_list or not all(isinstance(unit, str) for unit in self.units):
            raise DataError(f"{where}: units: expected one string per variable, or none, got {self.units!r}")
        check_kinds(self.kinds, self.categories, n, where)
        if self.resize not in RESIZE_RULES:
            raise DataError(f"{where}: resize: expected one of {', '.join(RESIZE_RULES)}, got {self.resize!r}")
        if not (is_integer(self.split_seed) and self.split_seed >= 0):
            raise DataError(f"{where}: split_seed: expected a non-negative integer, got {self.split_seed!r}")
        if min(self.split_shares) < 0 or not math.isclose(sum(self.split_shares), 1.0, abs_tol=1e-6):
            raise DataError(f"{where}: split_shares: expected fractions that sum to 1, got {list(self.split_shares)}")
        class_name = self.class_name or "class"
        if not isinstance(class_name, str) or (self.num_classes and class_name in self.graph.names):
            raise DataError(f"{where}: class_name: expected a name that no variable has, got {class_name!r}")
        if not isinstance(self.group, str):
            raise DataError(f"{where}: group: expected the name of a column, got {self.group!r:.80}")
        if not isinstance(self.value_range, list | tuple) or len(self.value_range):
            self._check_numbers("value_range", 2, where)
        if len(self.value_range) and not self.value_range[0] < self.value_range[1]:
            raise DataError(f"{where}: value_range: expected increasing numbers, got {list(self.value_range)}")
        is_list = isinstance(self.missing, list | tuple) and len(self.missing) in (0, n)
        if not is_list or not all(isinstance(marks, list | tuple) for marks in self.missing):
            raise DataError(f"{where}: missing: expected a list per variable, or none, got {self.missing!r:.80}")
        some_kinds = any(kind != "continuous" for kind in self.kinds)
        normal = {
            "units": tuple(self.units),
            "value_range": tuple(self.value_range),
            "missing": tuple(tuple(map(str, marks)) for marks in self.missing),
            "kinds": tuple(self.kinds) if some_kinds else (),
            "categories": tuple(map(tuple, self.categories)) if some_kinds and any(self.categories) else (),
            "class_name": class_name if self.num_classes else "",
        }
        for key, value in normal.items():
            object.__setattr__(self, key, value)

    def _check_numbers(self, key: str, count: int, where: str) -> None:
        values = getattr(self, key)
        is_list = isinstance(values, list | tuple) and len(values) == count
        if not is_list or not all(is_number(value) and math.isfinite(value) for value in values):
            raise DataError(f"{where}: {key}: expected a list of {count} finite numbers, got {values!r}")
        object.__setattr__(self, key, tuple(map(float, values)))

    def normalise(self, labels: Labels) -> Labels:
        """Maps labels (..., n) from label units to normalised units; a floating dtype is kept."""
        shift, scale = self._constants(labels)
        return (labels - shift) / scale

    def denormalise(self, labels: Labels) -> Labels:
        """Inverse of `normalise`."""
        shift, scale = self._constants(labels)
        return labels * scale + shift

    def _constants(self, labels: Labels) -> tuple[Labels, Labels]:
        if labels.shape[-1:] != (len(self.graph),):
            raise InputError(f"labels: expected shape (..., {len(self.graph)}), got {tuple(labels.shape)}")
        if isinstance(labels, torch.Tensor):
            dtype = labels.dtype if labels.is_floating_point() else torch.float32
            shift, scale = (torch.tensor(c, dtype=dtype, device=labels.device) for c in (self.shift, self.scale))
        else:
            dtype = labels.dtype if np.issubdtype(labels.dtype, np.floating) else np.float64
            shift, scale = np.asarray(self.shift, dtype), np.asarray(self.scale, dtype)
        return shift, scale

    def kind(self, i: int) -> str:
        """Kind of variable i."""
        return self.kinds[i] if self.kinds else "continuous"

    def category_names(self, i: int) -> tuple[str, ...]:
        """Names of the categories of variable i; empty for a numeric variable."""
        return self.categories[i] if self.categories else ()

    def names_of(self, do: Iterable[str]) -> list[str]:
        """The variables of the graph that an intervention sets: all of its names but that of the class."""
        return [name for name in do if name != self.class_name]

    def values_of(self, name: str) -> tuple[float, ...]:
        """`category_values` of a variable by name; for the class, all classes."""
        if name == self.class_name and self.num_classes:
            return tuple(map(float, range(self.num_classes)))
        return self.category_values(self.graph.index(name))

    def category_values(self, i: int) -> tuple[float, ...]:
        """All values, in label units, of a categorical or binary variable i; empty for a continuous one."""
        if self.kind(i) == "continuous":
            return ()
        return tuple(map(float, range(len(self.category_names(i))))) or (self.low[i], self.high[i])

    def all_category_values(self) -> list[tuple[float, ...]]:
        """`category_values` of every variable."""
        return [self.category_values(i) for i in range(len(self.graph))]

    def normalised_range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Lowest and highest training labels (n,) in normalised units."""
        return self.normalise(torch.tensor(self.low)), self.normalise(torch.tensor(self.high))

    def normalised_categories(self) -> dict[str, tuple[float, ...]]:
        """Discrete variable -> the values of its categories in normalised units."""
        return {
            name: tuple((value - self.shift[i]) / self.scale[i] for value in values)
            for i, (name, values) in enumerate(zip(self.graph.names, self.all_category_values(), strict=True))
            if values
        }

    def nearest_categories(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels (..., n) in label units with those of discrete variables replaced by the nearest value of a category.

        This removes the rounding of `denormalise`.
        """
        labels = labels.clone()
        for i in range(len(self.graph)):
            if self.category_values(i):
                values = labels.new_tensor(self.category_values(i))
                labels[..., i] = values[(labels[..., i, None] - values).abs().argmin(dim=-1)]
        return labels

    def format_value(self, name: str, value: float, digits: int = 3) -> str:
        """Formats a value: as category name, or with a number of significant digits."""
        names = () if name == self.class_name else self.category_names(self.graph.index(name))
        return names[int(value)] if value in range(len(names)) else f"{value:.{digits}g}"

    def check_do(self, do: Mapping[str, Any], count: int = 1, warn: bool = True) -> CheckedDo:
        """Validates an intervention in label units; a `CheckedDo` is returned unchanged.

        Args:
            do: variable -> a number, a category's name or number, or an array (count,) with one value per image; the
                class is set by its number under `class_name`.
            count: number of images.
            warn: warn about values outside the range of the training labels.

        Raises:
            InputError: for an unknown variable, a value that is not a finite number, an unknown category, or an array
                of another length.
        """
        if isinstance(do, CheckedDo):
            return do
        if not isinstance(do, Mapping):
            raise InputError(f"do: expected a mapping from variable to value, got {do!r}")
        checked = CheckedDo()
        for name, value in do.items():
            if name != self.class_name or not self.class_name:
                self.graph.index(name, "do")
            if isinstance(value, torch.Tensor):
                value = value.detach().cpu().numpy()
            elif getattr(value, "ndim", 0) and not isinstance(value, np.ndarray):
                value = list(value)  # a column of pandas, of any type
            if isinstance(value, list | tuple):
                value = np.fromiter(map(_plain, value), object, len(value))
            if getattr(value, "ndim", 0):
                checked[name] = self._check_values(name, value, count)
            else:
                checked[name] = self._check_value(name, _plain(value))
            if warn:
                self._warn_outside(name, checked[name])
        return checked

    def do_labels(self, do: Mapping[str, Any]) -> CheckedDo:
        """An intervention on labels, as in `ImageData.labels`, where a category is its number, whatever its name.

        Args:
            do: variable -> a label, or an array or tensor (count,) with one per image.
        """
        arrays = {
            name: value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
            for name, value in do.items()
        }
        return CheckedDo({name: each.astype(np.float64) if each.ndim else float(each) for name, each in arrays.items()})

    def _check_value(self, name: str, value: Any) -> float:
        """Converts one value of a variable to a label."""
        if name == self.class_name:
            assert self.num_classes is not None
            return category_label(name, value, [str(each) for each in range(self.num_classes)], 0, self.num_classes - 1)
        i = self.graph.index(name)
        if self.kind(i) != "continuous":
            return category_label(name, value, self.category_names(i), self.low[i], self.high[i])
        if not is_number(value) or not abs(value) <= _LARGEST_NUMBER:
            raise InputError(f"do: {name}: expected a finite number, got {value!r:.80}")
        return float(value)

    def _check_values(self, name: str, values: np.ndarray, count: int) -> np.ndarray:
        """Converts one value per image to labels, (count,) float64."""
        if values.shape != (count,):
            raise InputError(f"do: {name}: expected one number, or one per image ({count},), got shape {values.shape}")
        if np.issubdtype(values.dtype, np.number) and not np.isfinite(values).all():
            raise InputError(f"do: {name}: expected finite numbers, got NaN or infinity")
        if values.dtype == object:  # of types that may not be comparable
            return np.array([self._check_value(name, value) for value in values], np.float64)
        distinct, indices = np.unique(values, return_inverse=True)
        return np.array([self._check_value(name, _plain(value)) for value in distinct], np.float64)[indices.reshape(-1)]

    def _warn_outside(self, name: str, value: float | np.ndarray) -> None:
        if name == self.class_name:
            return
        i = self.graph.index(name)
        low, high = self.low[i], self.high[i]
        slack = 1e-6 * (high - low)  # for limits that were rounded to float32 or printed
        if not self.category_values(i) and not (np.min(value) >= low - slack and np.max(value) <= high + slack):
            extreme = np.min(value) if np.min(value) < low - slack else np.max(value)
            warnings.warn(
                f"do: {name}={extreme:g} is outside the range of the training labels, {low:g}..{high:g}; the "
                "counterfactual is an extrapolation",
                UserWarning,
                stacklevel=3,
            )

    def normalise_do(self, do: CheckedDo) -> dict[str, Any]:
        """Converts an intervention on the variables of the graph to normalised units; the class is left out."""
        index = {name: self.graph.index(name) for name in self.names_of(do)}
        return {name: (do[name] - self.shift[i]) / self.scale[i] for name, i in index.items()}

    def classes_of(self, do: CheckedDo, count: int) -> torch.Tensor | None:
        """The classes (count,) int64 that an intervention sets; None if it does not set the class."""
        if self.class_name not in do:
            return None
        return torch.as_tensor(do[self.class_name]).expand(count).long()

    def to_dict(self) -> dict[str, Any]:
        """The plain JSON form that `from_dict` reads."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**{key: _as_lists(value) for key, value in plain.items()}, "graph": self.graph.to_dict()}

    @classmethod
    def from_dict(cls, description: Any) -> DatasetSpec:
        """Inverse of `to_dict`; raises `DataError` for a missing or unknown key or an invalid value."""
        if not isinstance(description, dict):
            raise DataError(f"data set: expected a mapping, got {type(description).__name__}")
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(map(str, description)) - set(known))
        if unknown:
            raise DataError(f"data set: unknown key {unknown[0]!r}, expected {', '.join(known)}")
        missing = [key for key in known if key not in description and key not in _ADDED]
        if missing:
            raise DataError(f"data set: expected key {missing[0]!r}, got none")
        try:
            graph = CausalGraph.from_dict(description["graph"])
            if "class_name" not in description and description["num_classes"] and "digit" not in graph.names:
                description = {**description, "class_name": "digit"}  # the only classes of earlier checkpoints
        except (InputError, TypeError) as error:
            raise DataError(f"data set: {error}") from None
        return cls(**{**description, "graph": graph})


def _plain(value: Any) -> Any:
    """A NumPy scalar or a tensor with one element as a Python value; others are returned unchanged."""
    is_scalar = isinstance(value, np.generic) or (isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 0)
    return value.item() if is_scalar else value


def _as_lists(value: Any) -> Any:
    return [_as_lists(each) for each in value] if isinstance(value, tuple) else value
