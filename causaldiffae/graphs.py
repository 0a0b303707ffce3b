"""Causal graphs: which variable is a direct cause of which.

A `CausalGraph` is a directed acyclic graph over named variables. There is one convention in this package:
`adjacency[i, j] == 1` means that variable `i` is a direct cause of variable `j` (`i -> j`), so column `j` lists the
parents of `j`. Code reads `graph.parents[name]`; the matrix serves input, display and tests.

Terms (Pearl, Causality, 2009): the *descendants* of a variable are what an intervention on it may change; everything
else must stay as it is.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import networkx as nx
import numpy as np

from causaldiffae.errors import InputError

MAX_VARIABLES, MAX_EDGES, MAX_NAME = 1000, 50_000, 200


def _check_name(name: Any) -> None:
    """A name ends in tables, pictures and on consoles: it is text that can be printed."""
    if not isinstance(name, str) or not name:
        raise InputError(f"graph: {str(name)[:MAX_NAME]!r} is no variable name; a non-empty string is needed")
    if len(name) > MAX_NAME or any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        shown = f"{name[:40]!r} of {len(name)} characters"
        raise InputError(f"graph: {shown} is no variable name; at most {MAX_NAME}, none for control, are allowed")


def _edge(given: Any) -> tuple[str, str]:
    """A pair of names out of what a user wrote."""
    if not isinstance(given, list | tuple) or len(given) != 2 or not all(isinstance(name, str) for name in given):
        raise InputError(f"graph: {repr(given)[:MAX_NAME]} is no edge; a pair [cause, effect] is needed")
    return given[0], given[1]


@dataclass(frozen=True)
class CausalGraph:
    """A directed acyclic graph over named variables.

    Attributes:
        names: the variables, in the order of the label columns and of the latent blocks.
        edges: pairs `(cause, effect)`; kept sorted by the variables' order.

    Raises:
        InputError: if a name is empty, repeated or unknown, or an edge is repeated, a self-loop or part of a cycle
            (the message spells the cycle).
    """

    names: tuple[str, ...]
    edges: tuple[tuple[str, str], ...] = field(default=())

    def __post_init__(self) -> None:
        names = tuple(self.names)
        if not names:
            raise InputError("graph: it has no variables; at least one is needed")
        if len(names) > MAX_VARIABLES or len(self.edges) > MAX_EDGES:
            given = f"{len(names)} variables and {len(self.edges)} edges"
            raise InputError(f"graph: it has {given}, {MAX_VARIABLES} and {MAX_EDGES} are allowed")
        for name in names:
            _check_name(name)
        repeated = sorted(name for name, count in Counter(names).items() if count > 1)
        if repeated:
            raise InputError(f"graph: variable {repeated[0]!r} is named more than once")
        position = {name: i for i, name in enumerate(names)}
        seen: set[tuple[str, str]] = set()
        for edge in self.edges:
            cause, effect = _edge(edge)
            for name in (cause, effect):
                if name not in position:
                    raise InputError(f"graph: edge {cause} -> {effect} names {name!r}, known are {', '.join(names)}")
            if cause == effect:
                raise InputError(f"graph: {cause} -> {effect} is a self-loop")
            if (cause, effect) in seen:
                raise InputError(f"graph: edge {cause} -> {effect} is given twice")
            seen.add((cause, effect))
        ordered = sorted(seen, key=lambda e: (position[e[0]], position[e[1]]))
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "edges", tuple(ordered))
        digraph = self.digraph
        if not nx.is_directed_acyclic_graph(digraph):
            cycle = [cause for cause, _ in nx.find_cycle(digraph)]
            raise InputError(f"graph: it has a cycle, {' -> '.join([*cycle, cycle[0]])}")

    @classmethod
    def from_adjacency(cls, names: Sequence[str], matrix: Iterable[Iterable[float]]) -> CausalGraph:
        """Builds a graph from a square 0/1 matrix with `matrix[i][j] = 1` for `i -> j`."""
        try:
            adjacency = np.asarray([list(row) for row in matrix], dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError("graph: the adjacency matrix is no table of numbers") from error
        n = len(names)
        if adjacency.shape != (n, n):
            raise InputError(f"graph: the adjacency matrix has shape {adjacency.shape}, {n} variables need {(n, n)}")
        if not np.isin(adjacency, (0.0, 1.0)).all():
            raise InputError("graph: the adjacency matrix may hold only 0 and 1")
        return cls(tuple(names), tuple((names[i], names[j]) for i, j in zip(*np.nonzero(adjacency), strict=True)))

    @classmethod
    def from_dict(cls, description: Any) -> CausalGraph:
        """Reads `{"names": [...], "edges": [[cause, effect], ...]}` or `{"names": [...], "adjacency": [[...]]}`."""
        if not isinstance(description, dict):
            raise InputError(f"graph: a mapping with names and edges is needed, got {type(description).__name__}")
        unknown = sorted(set(map(str, description)) - {"names", "edges", "adjacency"})
        if unknown:
            raise InputError(f"graph: unknown key {unknown[0]!r}, allowed are names, edges, adjacency")
        edges, adjacency = description.get("edges"), description.get("adjacency")
        if edges is not None and adjacency is not None:
            raise InputError("graph: both edges and adjacency are given, one is allowed")
        for key in ("names", "edges", "adjacency"):
            if not isinstance(description.get(key, []), list | tuple):
                raise InputError(f"graph: {key} must be a list, got {description[key]!r}")
        pairs = tuple(_edge(edge) for edge in edges or ())
        names = description.get("names")
        if names is None:
            names = list(dict.fromkeys(name for pair in pairs for name in pair))
        if adjacency is not None:
            return cls.from_adjacency(names, adjacency)
        return cls(tuple(names), pairs)

    def to_dict(self) -> dict[str, Any]:
        """The plain form that `from_dict` reads; it travels in configs and checkpoints."""
        return {"names": list(self.names), "edges": [list(edge) for edge in self.edges]}

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Position of a variable in `names`; an unknown name is an `InputError` that lists the known ones."""
        try:
            return self.names.index(name)
        except ValueError:
            raise InputError(f"unknown variable {name!r}, known are {', '.join(self.names)}") from None

    @cached_property
    def digraph(self) -> nx.DiGraph:
        """The same graph for networkx."""
        digraph = nx.DiGraph()
        digraph.add_nodes_from(self.names)
        digraph.add_edges_from(self.edges)
        return digraph

    @cached_property
    def parents(self) -> dict[str, tuple[str, ...]]:
        """Direct causes of every variable, in the variables' order."""
        found: dict[str, list[str]] = {name: [] for name in self.names}
        for cause, effect in self.edges:
            found[effect].append(cause)
        return {name: tuple(causes) for name, causes in found.items()}

    @cached_property
    def children(self) -> dict[str, tuple[str, ...]]:
        """Direct effects of every variable, in the variables' order."""
        found: dict[str, list[str]] = {name: [] for name in self.names}
        for cause, effect in self.edges:
            found[cause].append(effect)
        return {name: tuple(effects) for name, effects in found.items()}

    @cached_property
    def roots(self) -> tuple[str, ...]:
        """Variables without parents."""
        return tuple(name for name in self.names if not self.parents[name])

    @cached_property
    def topological_order(self) -> tuple[str, ...]:
        """Variables ordered so that causes come before effects; ties keep the variables' order."""
        return tuple(nx.lexicographical_topological_sort(self.digraph, key=self.names.index))

    @cached_property
    def adjacency(self) -> np.ndarray:
        """(n, n) float64 matrix, `adjacency[i, j] = 1` for `i -> j`."""
        matrix = np.zeros((len(self), len(self)))
        for cause, effect in self.edges:
            matrix[self.index(cause), self.index(effect)] = 1.0
        return matrix

    def descendants(self, *names: str) -> frozenset[str]:
        """Every variable that at least one of `names` causes, directly or not; `names` themselves are left out."""
        found: set[str] = set()
        for name in names:
            self.index(name)
            found |= nx.descendants(self.digraph, name)
        return frozenset(found - set(names))

    def ancestors(self, name: str) -> frozenset[str]:
        """Every direct or indirect cause of `name`."""
        self.index(name)
        return frozenset(nx.ancestors(self.digraph, name))
