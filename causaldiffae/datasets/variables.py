"""Kinds of variables, and the labels of categories.

Every variable has one label column. Labels of continuous variables, and of binary variables with two numeric values,
are numbers in label units. Labels of variables with named categories are category indices.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from causaldiffae.errors import DataError, InputError

KINDS: Final = ("continuous", "binary", "categorical")


def is_integer(value: Any) -> bool:
    """Whether a value is a Python or NumPy integer, and not a boolean."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a Python or NumPy real number, and not a boolean."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def check_kinds(kinds: Any, categories: Any, count: int, where: str) -> None:
    """Checks the fields `kinds` and `categories` of a `DatasetSpec` with `count` variables.

    Raises:
        DataError: starting with `where`, for invalid length or content.
    """
    if not isinstance(kinds, list | tuple) or len(kinds) not in (0, count) or not all(k in KINDS for k in kinds):
        raise DataError(f"{where}: kinds: expected one of {', '.join(KINDS)} per variable, or none, got {kinds!r}")
    if not isinstance(categories, list | tuple) or len(categories) not in (0, count):
        raise DataError(f"{where}: categories: expected a list per variable, or none, got {categories!r}")
    lengths = {"continuous": (0,), "binary": (0, 2), "categorical": range(2, 1 << 31)}
    for kind, names in zip(kinds or ["continuous"] * count, categories or [()] * count, strict=True):
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
            raise DataError(f"{where}: categories: expected lists of names, got {names!r}")
        if len(names) == 1 or len(set(names)) != len(names):
            raise DataError(f"{where}: categories: expected two or more distinct names, got {list(names)}")
        if len(names) not in lengths[kind]:
            raise DataError(f"{where}: categories: expected names that fit a {kind} variable, got {list(names)}")


def category_indices(names: Sequence[str]) -> dict[Any, int]:
    """Maps category names to indices; if all names are distinct numbers, maps the numbers too."""
    indices: dict[Any, int] = {name: i for i, name in enumerate(names)}
    try:
        numbers = {float(name): i for i, name in enumerate(names)}
    except ValueError:
        return indices
    return indices | numbers if len(numbers) == len(names) else indices


def category_label(variable: str, value: Any, names: Sequence[str], low: float, high: float) -> float:
    """Converts a category in an intervention to its label.

    Args:
        value: a category name or index; if the names are numbers, a number is looked up as a name. Names may differ in
            case or in the form of Unicode if they are clear. A binary variable without `names` takes `low` or `high`,
            which may come from float32. Of two categories, False is the first one and True the second one.

    Raises:
        InputError: for any other value.
    """
    if isinstance(value, bool | np.bool_) and len(names) in (0, 2):
        return float(value) if names else (low, high)[int(value)]
    if not names:
        near = [end for end in (low, high) if is_number(value) and math.isclose(value, end, rel_tol=1e-6)]
        if near:
            return near[0]
        raise InputError(f"do: {variable}: expected {low:g} or {high:g}, got {value!r}")
    indices = category_indices(names)
    are_numbers = len(indices) > len(names)
    if isinstance(value, str):
        value = unicodedata.normalize("NFC", value)
        alike = [name for name in names if name.casefold() == value.casefold()]
        if value not in indices and len(alike) == 1:
            value = alike[0]
        if value in indices:
            return float(indices[value])
    if is_number(value) and are_numbers and float(value) in indices:
        return float(indices[float(value)])
    if is_number(value) and not are_numbers and value in range(len(names)):
        return float(value)
    shown = ", ".join(names if are_numbers else (f"{name} ({i})" for i, name in enumerate(names)))
    raise InputError(f"do: {variable}: expected one of {shown}, got {value!r}")


def range_decimals(low: float, high: float) -> int:
    """Decimal places that resolve a hundredth of a range; negative for thousands and more."""
    return 2 - math.floor(math.log10(high - low)) if high > low else 2


def round_in_range(value: float, low: float, high: float) -> float:
    """Rounds a value to about a hundredth of a range, inside of it."""
    return float(min(max(round(float(value), range_decimals(low, high)), low), high))
