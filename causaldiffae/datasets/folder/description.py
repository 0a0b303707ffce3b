"""What a graph file may say about a folder of images besides the graph.

    edges: [[age, grey_hair], [smile, teeth]]
    variables:                                  # none of it is needed
      age: {unit: years, low: 18, high: 90}     # low, high, shift, scale: in place of the training labels' own
      smile: {kind: binary, categories: [no, yes]}
      hat: {kind: categorical}                  # its categories are then the words in the column
    image_size: 64                              # the next are the defaults
    channels: 3
    resize: crop                                # as guided-diffusion does; area: as the built-in data sets
    split_seed: 0                               # where the table has no column `split`
    split_shares: [0.8, 0.1, 0.1]               # train, val, test
    ignore: [photographer]                      # columns that are no variables
    name: folder                                # of the built-in data set whose images these are, if they are

The file may be YAML or JSON; GML and DOT have the graph only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from causaldiffae.datasets.folder.graph_files import MAPPINGS, graph_of, parse_graph, parse_mapping
from causaldiffae.datasets.reading_rules import (
    RESIZE_RULES,
    SPLIT_SHARES,
    check_shares,
    finite_number,
    one_of,
    whole_number,
)
from causaldiffae.datasets.variable_kinds import KINDS
from causaldiffae.errors import DataError
from causaldiffae.graphs import CausalGraph

VARIABLE_KEYS: Final = ("kind", "unit", "categories", "low", "high", "shift", "scale")
RESERVED: Final = ("file", "filename", "split")


@dataclass(frozen=True)
class Variable:
    """What is declared of one variable; None and empty stand for nothing."""

    kind: str | None = None
    unit: str = ""
    categories: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    shift: float | None = None
    scale: float | None = None


@dataclass(frozen=True)
class FolderDescription:
    """A graph and what is declared beside it, see the module's text."""

    graph: CausalGraph
    variables: Mapping[str, Variable] = field(default_factory=dict)
    name: str = "folder"
    image_size: int = 64
    channels: int = 3
    resize: str = "crop"
    split_seed: int = 0
    split_shares: tuple[float, float, float] = SPLIT_SHARES
    ignore: tuple[str, ...] = ()

    def variable(self, name: str) -> Variable:
        """What is declared of a variable."""
        return self.variables.get(name, Variable())


def parse_description(content: bytes, where: str) -> FolderDescription:
    """Reads a graph file and what it says beside the graph; anything wrong is a `DataError` that names `where`."""
    if not where.lower().endswith(MAPPINGS):
        return FolderDescription(_check_names(parse_graph(content, where), where))
    mapping = parse_mapping(content, where)
    graph = _check_names(graph_of(mapping, where), where)
    given: dict[str, Any] = {"graph": graph, "variables": _variables(mapping.get("variables", {}), graph, where)}
    for key, lowest in (("image_size", 8), ("channels", 1), ("split_seed", 0)):
        if key in mapping:
            given[key] = whole_number(mapping[key], f"{where}: {key}", lowest)
    for key, allowed in (("resize", RESIZE_RULES), ("name", ())):
        if key in mapping:
            given[key] = one_of(mapping[key], f"{where}: {key}", allowed)
    if "split_shares" in mapping:
        given["split_shares"] = check_shares(mapping["split_shares"], f"{where}: split_shares")
    if "ignore" in mapping:
        given["ignore"] = _words(mapping["ignore"], f"{where}: ignore")
    return FolderDescription(**given)


def _check_names(graph: CausalGraph, where: str) -> CausalGraph:
    taken = [name for name in graph.names if name in RESERVED]
    if taken:
        raise DataError(f"{where}: a variable is named {taken[0]!r}; that column names the image or its split")
    untidy = [name for name in graph.names if name != " ".join(name.split())]
    if untidy:
        raise DataError(f"{where}: variable {untidy[0]!r} has spaces at its ends, twice in a row, or other white space")
    return graph


def _variables(given: Any, graph: CausalGraph, where: str) -> dict[str, Variable]:
    if not isinstance(given, dict):
        raise DataError(f"{where}: variables is {str(given)[:80]!r}, a mapping from variable to its keys is needed")
    variables = {}
    for name, entry in given.items():
        if name not in graph.names:
            raise DataError(f"{where}: variables: {name!r} is not in the graph, known are {', '.join(graph.names)}")
        variables[name] = _variable(entry, f"{where}: variables: {name}")
    return variables


def _variable(entry: Any, where: str) -> Variable:
    if entry in ("", None):  # `age:` with nothing behind it
        return Variable()
    if not isinstance(entry, dict):
        raise DataError(f"{where} is {str(entry)[:80]!r}, a mapping is needed, like {{kind: binary}}")
    unknown = [str(key) for key in entry if key not in VARIABLE_KEYS]
    if unknown:
        raise DataError(f"{where}: unknown key {unknown[0][:80]!r}, allowed are {', '.join(VARIABLE_KEYS)}")
    given: dict[str, Any] = {}
    if "kind" in entry:
        given["kind"] = one_of(entry["kind"], f"{where}: kind", KINDS)
    if "unit" in entry:
        given["unit"] = one_of(entry["unit"], f"{where}: unit", ())
    if "categories" in entry:
        given["categories"] = _words(entry["categories"], f"{where}: categories")
        given.setdefault("kind", "binary" if len(given["categories"]) == 2 else "categorical")
        if given["kind"] == "continuous" or len(given["categories"]) < 2 or not all(given["categories"]):
            raise DataError(f"{where}: two or more categories are for a binary or categorical variable")
        if given["kind"] == "binary" and len(given["categories"]) != 2:
            raise DataError(f"{where}: {len(given['categories'])} categories are given, a binary variable has 2")
    for key in ("low", "high", "shift", "scale"):
        if key in entry:
            given[key] = finite_number(entry[key], f"{where}: {key}")
    if given.get("scale", 1.0) <= 0:
        raise DataError(f"{where}: scale is {given['scale']:g}, a number above 0 is needed")
    if given.get("low", -math.inf) >= given.get("high", math.inf):
        raise DataError(f"{where}: low {given['low']:g} is not below high {given['high']:g}")
    if given.get("kind", "continuous") != "continuous" and ("low" in given or "high" in given):
        raise DataError(f"{where}: low and high are for a continuous variable")
    return Variable(**given)


def _words(values: Any, where: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(v, str | int | float) for v in values):
        raise DataError(f"{where} is {str(values)[:80]!r}, a list of words is needed")
    words = tuple(str(value) for value in values)
    if len(set(words)) != len(words):
        raise DataError(f"{where} is {list(words)}, one of them is given twice")
    return words
