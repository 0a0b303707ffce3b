"""Kinds of variables: continuous, binary and categorical, and how a value of each becomes a number.

Every variable has one label column. A continuous one and a binary one of two numbers hold their own numbers. A
variable of words, and any variable that is declared categorical, holds the place of its category in a list of names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from causaldiffae.errors import InputError

KINDS: Final = ("continuous", "binary", "categorical")

Kinds = tuple[str, ...]
Categories = tuple[tuple[str, ...], ...]


def check_kinds(kinds: Any, categories: Any, count: int) -> tuple[Kinds, Categories]:
    """The two fields of a `DatasetSpec`, checked; both are empty where every variable is continuous.

    Args:
        kinds: one of `KINDS` for each of the `count` variables, or nothing.
        categories: the names of the categories for each variable, an empty list where it holds its own numbers.

    Raises:
        InputError: for another length or content.
    """
    if not isinstance(kinds, list | tuple) or len(kinds) not in (0, count) or not all(k in KINDS for k in kinds):
        raise InputError(f"kinds is {kinds!r}, one of {', '.join(KINDS)} for each variable or none is needed")
    if not isinstance(categories, list | tuple) or len(categories) not in (0, count):
        raise InputError(f"categories is {categories!r}, a list for each variable or none is needed")
    for names in categories:
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
            raise InputError(f"categories holds {names!r}, a list of names is needed")
        if len(names) == 1 or len(set(names)) != len(names):
            raise InputError(f"categories holds {list(names)}, two or more different names are needed")
    names_of = [tuple(names) for names in categories] or [()] * count
    for kind, names in zip(kinds or ["continuous"] * count, names_of, strict=True):
        fits = {"continuous": not names, "binary": len(names) in (0, 2), "categorical": len(names) > 1}
        if not fits[kind]:
            raise InputError(f"categories holds {list(names)} for a {kind} variable")
    if not any(kind != "continuous" for kind in kinds):
        return (), ()
    return tuple(kinds), tuple(names_of) if any(names_of) else ()


def category_places(names: Sequence[str]) -> dict[Any, int]:
    """What stands for each category: its name and, where all names are numbers, the number."""
    places: dict[Any, int] = {name: i for i, name in enumerate(names)}
    try:
        numbers = [float(name) for name in names]
    except ValueError:
        return places
    if len(set(numbers)) == len(numbers):
        places.update({number: i for i, number in enumerate(numbers)})
    return places


def category_label(variable: str, value: Any, names: Sequence[str], low: float, high: float) -> float:
    """The label of a category in a do().

    A category is given by its name. A number means the name where the names are numbers, else the place in the list;
    a binary variable that holds its own two numbers (`names` is empty) takes these.

    Args:
        value: a name or a number.
        low, high: the two numbers of a binary variable.

    Raises:
        InputError: for anything else; the message lists what is allowed.
    """
    if not names:
        if is_number(value) and value in (low, high):
            return float(value)
        raise InputError(f"do: {variable} is {value!r}, allowed are {low:g} and {high:g}")
    places = category_places(names)
    are_numbers = len(places) > len(names)
    if isinstance(value, str) and value in places:
        return float(places[value])
    if is_number(value):
        if are_numbers and float(value) in places:
            return float(places[float(value)])
        if not are_numbers and value in range(len(names)):
            return float(value)
    shown = ", ".join(names if are_numbers else (f"{name} ({i})" for i, name in enumerate(names)))
    raise InputError(f"do: {variable} is {value!r}, allowed are {shown}")


def is_number(value: Any) -> bool:
    """Whether a value is a number, of Python or numpy; True and False are none."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
