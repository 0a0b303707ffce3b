"""`ParsedGraph`, what a graph file contains, and the refusal of edges that are not directed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from causaldiffae.errors import DataError

MAX_EDGES: Final = 50_000


@dataclass(frozen=True)
class ParsedGraph:
    """Nodes and edges of a graph file, in its order.

    Attributes:
        nodes: identifiers of the nodes.
        edges: pairs [cause, effect] of identifiers.
        attributes: node -> its attributes, such as `label`.
    """

    nodes: list[str]
    edges: list[list[str]]
    attributes: dict[str, dict[str, str]] = field(default_factory=dict)


def undirected_edge(where: str, first: str, mark: str, second: str) -> DataError:
    """The error for an edge such as a <-> b, a -- b or a o-> b."""
    if "o" in mark or "@" in mark:
        kind = "one with a circle, as in a partial ancestral graph; choose a direction or remove it"
    elif "<" in mark and ">" in mark:
        kind = "a bidirected one (an unobserved common cause); add the cause as a variable or remove the edge"
    else:
        kind = "an undirected one; choose a direction"
    return DataError(f"{where}: edge {first:.80} {mark} {second:.80}: expected edges cause -> effect, got {kind}")
