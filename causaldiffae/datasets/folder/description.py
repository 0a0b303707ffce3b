"""The description of an image folder in a YAML or JSON graph file.

edges: [[age, grey_hair], [smile, teeth]]
variables:                                  # optional, like all keys below
  age: {unit: years, low: 18, high: 90}     # low, high, shift, scale: by default computed from the training labels
  smile: {kind: binary, categories: [no, yes]}
  hat: {kind: categorical}                  # the categories are the values in the column
  dose: {missing: [-1]}                     # further marks of missing labels
image_size: 64                              # this and the keys below show their defaults
channels: 3
resize: crop                                # as in guided-diffusion; area: as in the built-in data sets
split_seed: 0                               # for a table without a column `split`
split_shares: [0.8, 0.1, 0.1]               # train, val, test
ignore: [photographer, "note_*"]            # columns that are not variables; * stands for any text
missing: [-999, unknown]                    # marks of missing labels, besides empty cells, NA, NaN, None, null and ?
group: patient                              # a column; images with the same value are in one split
value_range: [0, 4095]                      # black and white of images with more than 8 bits; by default measured
name: folder                                # or the built-in data set of the images
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from causaldiffae.datasets.dataset import DATASETS, check_form
from causaldiffae.datasets.folder.graph_files import GRAPH_KEYS, parse_graph
from causaldiffae.datasets.folder.image_files import CHANNELS, MODES
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.datasets.spec import RESIZE_RULES, SPLIT_SHARES
from causaldiffae.datasets.variables import KINDS
from causaldiffae.errors import DataError
from causaldiffae.graphs import CausalGraph

RESERVED: Final = ("file", "filename", "split")


@dataclass(frozen=True)
class Variable:
    """Declared properties of a variable; None or empty if not declared.

    `missing` includes the marks of missing labels that are declared for all variables.
    """

    kind: str | None = None
    unit: str = ""
    categories: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    shift: float | None = None
    scale: float | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class FolderDescription:
    """A graph and the declared properties of the data; see the module docstring.

    `has_keys` is false for the formats of other tools, which hold nothing but a graph.
    """

    graph: CausalGraph
    variables: Mapping[str, Variable] = field(default_factory=dict)
    name: str = "folder"
    image_size: int = 64
    channels: int = 3
    resize: str = "crop"
    split_seed: int = 0
    split_shares: tuple[float, ...] = SPLIT_SHARES
    ignore: tuple[str, ...] = ()
    group: str = ""
    value_range: tuple[float, ...] = ()
    has_keys: bool = True

    def variable(self, name: str) -> Variable:
        """The declared properties of a variable."""
        return self.variables.get(name, Variable())


def parse_description(
    content: bytes, where: str, columns: Sequence[str] = (), problems: Problems | None = None
) -> FolderDescription:
    """Parses a graph file with its description.

    Args:
        problems: gets what is wrong with single edges, variables and keys, which are left out; by default the first of
            them is an error. Other arguments and errors as for `parse_graph`.
    """
    found = Problems() if problems is None else problems
    graph, found_keys = parse_graph(content, where, columns, problems, _KEYS)
    keys = found_keys or {}
    for name in graph.names:
        if name in RESERVED:
            raise DataError(f"{where}: expected a variable name other than {', '.join(RESERVED)}, got {name!r}")
        if name != " ".join(name.split()):
            raise DataError(f"{where}: variable {name!r}: expected a name with single spaces between words only")
    declared = _variables(keys.pop("variables", {}), graph, where, found)
    given: dict[str, Any] = {}
    for key, value in keys.items():
        with found.collect():
            given |= _convert({key: value}, _KEYS, where, (*GRAPH_KEYS, "variables"))
    if marks := given.pop("missing", ()):
        all_variables = {name: declared.get(name, Variable()) for name in graph.names}
        declared = {name: replace(each, missing=(*each.missing, *marks)) for name, each in all_variables.items()}
    if given.get("group") in graph.names:
        found.add(f"{where}: group: expected a column that is no variable, got {given.pop('group')!r:.80}")
    if "name" in given and given["name"] not in DATASETS:
        found.add(f"{where}: name: expected one of {', '.join(DATASETS)}, got {given.pop('name')!r}")
    form: dict[str, Any] = {key: given.pop(key) for key in ("image_size", "channels") if key in given}
    with found.collect():
        check_form(form.get("image_size", 64), form.get("channels", 3), tuple(MODES), CHANNELS, f"{where}: ")
        given |= form
    if problems is None:
        found.raise_first()
    return FolderDescription(graph, declared, has_keys=found_keys is not None, **given)


def _variables(given: Any, graph: CausalGraph, where: str, problems: Problems) -> dict[str, Variable]:
    if not isinstance(given, dict):
        problems.add(f"{where}: variables: expected a mapping from variable to its keys, got {str(given)!r:.80}")
        return {}
    declared = {}
    for name, entry in given.items():
        if name not in graph.names:
            problems.add(f"{where}: variables: expected names among {', '.join(graph.names)}, got {name!r}")
            continue
        with problems.collect():
            declared[name] = _variable(entry, f"{where}: variables: {name}")
    return declared


def _variable(entry: Any, where: str) -> Variable:
    if entry in ("", None):  # `age:` without a value
        return Variable()
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected a mapping, like {{kind: binary}}, got {str(entry)!r:.80}")
    given = _convert(entry, _VARIABLE_KEYS, where)
    if "categories" in given:
        count = len(given["categories"])
        kind = given.setdefault("kind", "binary" if count == 2 else "categorical")
        if kind == "continuous" or count < 2 or not all(given["categories"]):
            given_names = ", ".join(given["categories"])
            raise DataError(f"{where}: categories: expected two or more names, got {given_names!r:.80} for kind {kind}")
        if kind == "binary" and count != 2:
            raise DataError(f"{where}: categories: expected 2 for a binary variable, got {count}")
    if given.get("scale", 1.0) <= 0:
        raise DataError(f"{where}: scale: expected a positive number, got {given['scale']:g}")
    if given.get("low", -math.inf) >= given.get("high", math.inf):
        raise DataError(f"{where}: low: expected a number below high {given['high']:g}, got {given['low']:g}")
    if given.get("kind", "continuous") != "continuous" and ("low" in given or "high" in given):
        raise DataError(f"{where}: low, high: expected none for a {given['kind']} variable, got a range")
    return Variable(**given)


def _convert(
    given: Mapping[str, Any], converters: Mapping[str, _Converter], where: str, others: Sequence[str] = ()
) -> dict[str, Any]:
    """Converts each value; a converter raises any of three errors for a value other than its text describes.

    Args:
        others: further keys, which messages list.
    """
    converted = {}
    for key, value in given.items():
        if key not in converters:
            known = [*others, *converters]
            nearest = difflib.get_close_matches(str(key)[:80], known, 1)
            meant = f"; did you mean `{nearest[0]}`?" if nearest else ""
            raise DataError(f"{where}: unknown key {str(key)!r:.80}, expected one of {', '.join(known)}{meant}")
        convert, expected = converters[key]
        try:
            converted[key] = convert(value)
        except (ValueError, TypeError, KeyError, OverflowError):
            raise DataError(f"{where}: {key}: expected {expected}, got {str(value)!r:.80}") from None
    return converted


def _number(value: Any) -> float:
    number = math.nan if isinstance(value, bool | list | dict) else float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _integer(value: Any) -> int:
    number = _number(value)
    if number != int(number) or not 0 <= number < 2**63:
        raise ValueError
    return int(number)


def _strings(values: Any) -> tuple[str, ...]:
    words = tuple(map(_string, values if isinstance(values, list) else [None]))
    if len(set(words)) != len(words):
        raise ValueError
    return words


def _string(value: Any) -> str:
    if not isinstance(value, str | int | float):
        raise ValueError
    return str(value)


def _shares(values: Any) -> tuple[float, ...]:
    train, val, test = map(_number, values)
    if min(train, val, test) < 0 or not math.isclose(train + val + test, 1.0, abs_tol=1e-6):
        raise ValueError
    return train, val, test


def _range(values: Any) -> tuple[float, ...]:
    low, high = map(_number, values if isinstance(values, list) else ())
    if low >= high:
        raise ValueError
    return low, high


_Converter = tuple[Callable[[Any], Any], str]
_INTEGER: Final[_Converter] = (_integer, "a non-negative integer")
_STRINGS: Final[_Converter] = (_strings, "a list of distinct strings")
_NUMBER: Final[_Converter] = (_number, "a finite number")
_KEYS: Final[dict[str, _Converter]] = {
    "name": (_string, "a string"),
    "image_size": _INTEGER,
    "channels": _INTEGER,
    "resize": ({rule: rule for rule in RESIZE_RULES}.__getitem__, f"one of {', '.join(RESIZE_RULES)}"),
    "split_seed": _INTEGER,
    "split_shares": (_shares, "three non-negative fractions (train, val, test) that sum to 1"),
    "ignore": _STRINGS,
    "missing": _STRINGS,
    "group": (_string, "the name of a column"),
    "value_range": (_range, "two increasing numbers, like [0, 4095]"),
}
_VARIABLE_KEYS: Final[dict[str, _Converter]] = {
    "kind": ({kind: kind for kind in KINDS}.__getitem__, f"one of {', '.join(KINDS)}"),
    "unit": (_string, "a string"),
    "categories": _STRINGS,
    **dict.fromkeys(("low", "high", "shift", "scale"), _NUMBER),
    "missing": _STRINGS,
}
