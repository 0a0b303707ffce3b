"""Causal graphs over named variables.

`adjacency[i, j] == 1` means that variable `i` is a direct cause of variable `j` (`i -> j`), so column `j` marks the
parents of `j`. Use `graph.parents[name]` in code; the matrix is for input, display and tests.

An intervention on a variable affects only its *descendants* (Pearl, Causality, 2009).
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import networkx as nx
import numpy as np

from causaldiffae.errors import InputError

MAX_VARIABLES, MAX_EDGES, MAX_NAME = 1000, 50_000, 200


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise InputError(f"graph: expected non-empty strings as variable names, got {str(name)!r:.200}")
    if len(name) > MAX_NAME or any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        given = f"{name[:40]!r} of {len(name)} characters"
        raise InputError(f"graph: expected names of at most {MAX_NAME} printable characters, got {given}")


def _edge(given: Any) -> tuple[str, str]:
    if not isinstance(given, list | tuple) or len(given) != 2 or not all(isinstance(name, str) for name in given):
        raise InputError(f"graph: expected an edge [cause, effect], got {given!r:.200}")
    return given[0], given[1]


@dataclass(frozen=True)
class CausalGraph:
    """A directed acyclic graph over named variables.

    Attributes:
        names: the variables, in the order of the label columns and of the latent blocks.
        edges: pairs `(cause, effect)`, sorted by the order of the variables.

    Raises:
        InputError: for an empty, repeated or unknown name, a repeated edge, a self-loop or a cycle.
    """

    names: tuple[str, ...]
    edges: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        names = tuple(self.names)
        if not 1 <= len(names) <= MAX_VARIABLES or len(self.edges) > MAX_EDGES:
            given = f"{len(names)} variables and {len(self.edges)} edges"
            raise InputError(f"graph: expected 1..{MAX_VARIABLES} variables and at most {MAX_EDGES} edges, got {given}")
        for name in names:
            _check_name(name)
        for name, count in Counter(names).items():
            if count > 1:
                raise InputError(f"graph: expected unique variable names, got {name!r} {count} times")
        position = {name: i for i, name in enumerate(names)}
        edges: set[tuple[str, str]] = set()
        for cause, effect in map(_edge, self.edges):
            for name in (cause, effect):
                if name not in position:
                    known = ", ".join(names)
                    raise InputError(f"graph: edge {cause} -> {effect}: expected variables among {known}, got {name!r}")
            if cause == effect:
                raise InputError(f"graph: expected no self-loops, got edge {cause} -> {effect}")
            if (cause, effect) in edges:
                raise InputError(f"graph: expected unique edges, got {cause} -> {effect} twice")
            edges.add((cause, effect))
        ordered = sorted(edges, key=lambda edge: (position[edge[0]], position[edge[1]]))
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "edges", tuple(ordered))
        if not nx.is_directed_acyclic_graph(self.digraph):
            cycle = [cause for cause, _ in nx.find_cycle(self.digraph)]
            raise InputError(f"graph: expected no cycles, got {' -> '.join([*cycle, cycle[0]])}")

    @classmethod
    def from_adjacency(cls, names: Sequence[str], matrix: Iterable[Iterable[float]]) -> CausalGraph:
        """Builds a graph from a square 0/1 matrix with `matrix[i][j] = 1` for `i -> j`."""
        try:
            adjacency = np.asarray([list(row) for row in matrix], dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError("graph: adjacency: expected a matrix of numbers, got other content") from error
        n = len(names)
        if adjacency.shape != (n, n):
            raise InputError(f"graph: adjacency: expected shape {(n, n)} for {n} variables, got {adjacency.shape}")
        if not np.isin(adjacency, (0.0, 1.0)).all():
            other = adjacency[~np.isin(adjacency, (0.0, 1.0))][0]
            raise InputError(
                f"graph: adjacency: expected a 0/1 matrix, got {other:g}; 1 in row i and column j means names[i] -> "
                "names[j], so convert weights and marks first"
            )
        return cls(tuple(names), tuple((names[i], names[j]) for i, j in zip(*np.nonzero(adjacency), strict=True)))

    @classmethod
    def from_dict(cls, description: Any) -> CausalGraph:
        """Builds a graph from `{"names": [...], "edges": [[cause, effect], ...]}` or with an `"adjacency"` matrix.

        Without names, variables have their order in the edges.
        """
        if not isinstance(description, dict):
            raise InputError(f"graph: expected a mapping with names and edges, got {type(description).__name__}")
        keys = ("names", "edges", "adjacency")
        unknown = sorted(set(map(str, description)) - set(keys))
        if unknown:
            raise InputError(f"graph: unknown key {unknown[0]!r}, expected names, edges or adjacency")
        for key in keys:
            if not isinstance(description.get(key, []), list | tuple):
                example = ', like [["age", "glasses"]]' if key == "edges" else ""
                raise InputError(f"graph: {key}: expected a list{example}, got {description[key]!r:.200}")
        edges, adjacency = description.get("edges"), description.get("adjacency")
        if edges is not None and adjacency is not None:
            raise InputError("graph: expected either edges or adjacency, got both")
        pairs = tuple(map(_edge, edges or ()))
        names = description.get("names")
        if names is None:
            names = list(dict.fromkeys(name for pair in pairs for name in pair))
        return cls(tuple(names), pairs) if adjacency is None else cls.from_adjacency(names, adjacency)

    def to_dict(self) -> dict[str, Any]:
        """Inverse of `from_dict`, for configurations and checkpoints."""
        return {"names": list(self.names), "edges": [list(edge) for edge in self.edges]}

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str, what: str = "variable") -> int:
        """Index of a variable in `names`; raises `InputError`, starting with `what`, for an unknown name."""
        try:
            return self.names.index(name)
        except ValueError:
            raise InputError(f"{what}: expected one of {', '.join(self.names)}, got {name!r:.80}") from None

    @cached_property
    def digraph(self) -> nx.DiGraph:
        """The graph as a networkx object."""
        digraph = nx.DiGraph()
        digraph.add_nodes_from(self.names)
        digraph.add_edges_from(self.edges)
        return digraph

    @cached_property
    def parents(self) -> dict[str, tuple[str, ...]]:
        """Direct causes of every variable, in graph order."""
        return self._neighbours(self.digraph.pred)

    @cached_property
    def children(self) -> dict[str, tuple[str, ...]]:
        """Direct effects of every variable, in graph order."""
        return self._neighbours(self.digraph.succ)

    def _neighbours(self, found: Any) -> dict[str, tuple[str, ...]]:
        return {name: tuple(sorted(found[name], key=self.names.index)) for name in self.names}

    @cached_property
    def roots(self) -> tuple[str, ...]:
        """Variables without parents."""
        return tuple(name for name in self.names if not self.parents[name])

    @cached_property
    def topological_order(self) -> tuple[str, ...]:
        """Variables with causes before effects; ties keep the graph order."""
        return tuple(nx.lexicographical_topological_sort(self.digraph, key=self.names.index))

    @cached_property
    def adjacency(self) -> np.ndarray:
        """(n, n) float64 matrix, `adjacency[i, j] = 1` for `i -> j`."""
        return nx.to_numpy_array(self.digraph, nodelist=self.names)

    def descendants(self, *names: str) -> frozenset[str]:
        """All direct and indirect effects of `names`, without `names` themselves."""
        return self._reached(nx.descendants, names)

    def ancestors(self, *names: str) -> frozenset[str]:
        """All direct and indirect causes of `names`, without `names` themselves."""
        return self._reached(nx.ancestors, names)

    def _reached(self, walk: Callable[[nx.DiGraph, str], set[str]], names: tuple[str, ...]) -> frozenset[str]:
        found: set[str] = set()
        for name in names:
            self.index(name)
            found |= walk(self.digraph, name)
        return frozenset(found - set(names))
