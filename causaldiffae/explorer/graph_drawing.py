"""Geometry of the causal graph as the page shows it, with the values of one result.

An intervention removes the edges into the variables that it sets (Pearl's graph surgery); these are drawn dashed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, Final, NamedTuple

from causaldiffae.graphs import CausalGraph
from causaldiffae.visualization.graph import LINE, edge_points, layout, wrap

_PIXELS: Final = 92.0  # per inch
_PADDING: Final = 0.12  # inches above and below the text of a box
_MARGIN: Final = 0.06  # inches around boxes
_WIDEST_VALUE: Final = "000.0 → 000.0"  # boxes keep their width while a slider moves


class GraphDrawing(NamedTuple):
    """A drawing in pixels.

    Attributes:
        edges: state ("cut", "live" or "idle") and SVG path of each.
        boxes: role, centre x and y, width, height and lines (x, y, text) of each variable's box.
    """

    width: int
    height: int
    edges: list[dict[str, str]]
    boxes: list[dict[str, Any]]


def roles(graph: CausalGraph, do: Iterable[str]) -> dict[str, str]:
    """The role of every variable: "set", "follows" (a descendant of a set variable) or "stays"."""
    chosen = set(do) & set(graph.names)  # without the class
    moved = graph.descendants(*chosen) if chosen else frozenset()
    return {name: "set" if name in chosen else "follows" if name in moved else "stays" for name in graph.names}


def draw(
    graph: CausalGraph, do: Iterable[str], values: Mapping[str, str], widest: Mapping[str, str] | None = None
) -> GraphDrawing:
    """Draws the graph with the variables in `do` set.

    Args:
        values: the texts below the names.
        widest: longest texts of variables, for which their boxes have room; by default those of numbers.
    """
    role_of = roles(graph, do)
    names = {name: wrap(name).split("\n") for name in graph.names}
    placed = layout(
        graph,
        {
            name: "\n".join([*lines, max(_WIDEST_VALUE, (widest or {}).get(name, ""), key=len)])
            for name, lines in names.items()
        },
    )
    heights = {name: (len(lines) + 1) * LINE + 2 * _PADDING for name, lines in names.items()}
    top = max(heights.values()) / 2 + _MARGIN

    def pixels(x: float, y: float) -> tuple[float, float]:
        return (x - placed.left + _MARGIN) * _PIXELS, (top - y) * _PIXELS

    edges = []
    for edge in graph.edges:
        cause, effect = role_of[edge[0]], role_of[edge[1]]
        path = _curve([pixels(*point) for point in edge_points(placed, edge, heights)])
        edges.append({"state": "cut" if effect == "set" else "live" if cause != "stays" else "idle", "path": path})
    boxes = []
    for name in graph.names:
        x, y = pixels(*placed.positions[name])
        width, height = (placed.widths[name] - _MARGIN) * _PIXELS, heights[name] * _PIXELS
        first = y - height / 2 + (_PADDING + LINE * 0.75) * _PIXELS
        lines = [(x, first + i * LINE * _PIXELS, text) for i, text in enumerate([*names[name], values.get(name, "")])]
        boxes.append({"role": role_of[name], "x": x, "y": y, "width": width, "height": height, "lines": lines})
    right, bottom = pixels(placed.right, -placed.step * (placed.layers - 1))
    return GraphDrawing(round(right + _MARGIN * _PIXELS), round(bottom + top * _PIXELS), edges, boxes)


def _curve(points: list[tuple[float, float]]) -> str:
    """A smooth SVG path through the points, vertical at each of them."""
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x0, y0), (x1, y1) in pairwise(points):
        bend = (y1 - y0) * 0.45
        path += f"C{x0:.1f} {y0 + bend:.1f} {x1:.1f} {y1 - bend:.1f} {x1:.1f} {y1:.1f}"
    return path
