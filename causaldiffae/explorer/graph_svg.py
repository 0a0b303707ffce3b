"""The causal graph as an inline SVG with the values of one answer: what was set, what followed, what stayed.

An intervention cuts the arrows into the variable that it sets (Pearl's graph surgery): these are drawn faint and
dashed. Each box holds its variable's name and its value before and after.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from itertools import pairwise
from typing import Final

import numpy as np

from causaldiffae.graphs import CausalGraph
from causaldiffae.visualization.graph import LINE, edge_points, layout, wrap

_PIXELS: Final = 92.0  # per inch
_PADDING: Final = 0.12  # inches inside a box, above and below its text
_WIDEST_VALUE: Final = "000.0 → 000.0"


def roles(graph: CausalGraph, do: Iterable[str]) -> dict[str, str]:
    """Of every variable: "set", "follows" (a descendant of a set one) or "stays"."""
    chosen = set(do)
    moved = graph.descendants(*chosen) if chosen else frozenset()
    return {name: "set" if name in chosen else "follows" if name in moved else "stays" for name in graph.names}


def graph_svg(graph: CausalGraph, do: Iterable[str], values: Mapping[str, str]) -> str:
    """The drawing.

    Args:
        do: the variables that are set.
        values: of every variable, the text under its name.
    """
    role_of = roles(graph, do)
    lines = {name: [*wrap(name).split("\n"), values.get(name, "")] for name in graph.names}
    # boxes are as wide as their longest value may become, so that nothing jumps while a slider moves
    placed = layout(graph, {name: "\n".join([*text[:-1], _WIDEST_VALUE]) for name, text in lines.items()})
    heights = {name: len(text) * LINE + 2 * _PADDING for name, text in lines.items()}
    top, bottom = max(heights.values()) / 2 + 0.06, placed.step * (placed.layers - 1) + max(heights.values()) / 2 + 0.06
    x_of, y_of = (lambda x: (x - placed.left + 0.06) * _PIXELS), (lambda y: (top - y) * _PIXELS)
    width, height = (placed.right - placed.left + 0.12) * _PIXELS, (top + bottom) * _PIXELS
    parts = []
    for edge in graph.edges:
        points = [(x_of(x), y_of(y)) for x, y in edge_points(placed, edge, heights)]
        state = "cut" if role_of[edge[1]] == "set" else "live" if role_of[edge[0]] != "stays" else "idle"
        parts.append(f'<path class="edge {state}" d="{_curve(points)}" marker-end="url(#cd-head-{state})"/>')
    for name in graph.names:
        x, y = placed.positions[name]
        wide, high = (placed.widths[name] - 0.06) * _PIXELS, heights[name] * _PIXELS
        parts.append(_box(x_of(x), y_of(y), wide, high, role_of[name], lines[name]))
    said = "; ".join(f"{name} {role_of[name]}: {values.get(name, '')}" for name in graph.names)
    heads = "".join(_head(state) for state in ("cut", "live", "idle"))
    return (
        f'<svg class="cd-graph" viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px" role="img" '
        f'aria-label="{escape("causal graph: " + said)}"><defs>{heads}</defs>{"".join(parts)}</svg>'
    )


def _head(state: str) -> str:
    return (
        f'<marker id="cd-head-{state}" class="head {state}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="6" '
        'markerHeight="6" orient="auto"><path d="M0 0L10 5L0 10z"/></marker>'
    )


def _curve(points: list[tuple[float, float]]) -> str:
    """A path through the points, upright in every one of them."""
    text = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x0, y0), (x1, y1) in pairwise(points):
        bend = (y1 - y0) * 0.45
        text += f"C{x0:.1f} {y0 + bend:.1f} {x1:.1f} {y1 - bend:.1f} {x1:.1f} {y1:.1f}"
    return text


def _box(x: float, y: float, width: float, height: float, role: str, lines: list[str]) -> str:
    first = y - height / 2 + (_PADDING + LINE * 0.75) * _PIXELS
    texts = "".join(
        f'<text class="{"value" if place == len(lines) - 1 else "name"}" x="{x:.1f}" '
        f'y="{first + place * LINE * _PIXELS:.1f}">{escape(line)}</text>'
        for place, line in enumerate(lines)
    )
    rectangle = (
        f'<rect x="{x - width / 2:.1f}" y="{y - height / 2:.1f}" width="{width:.1f}" height="{height:.1f}" rx="8"/>'
    )
    return f'<g class="node {role}">{rectangle}{texts}</g>'


def before_and_after(before: float, after: float, text_of: Mapping[str, str] | None = None, decimals: int = 2) -> str:
    """ "2.19 → 4.50", or one number where both look the same; `text_of` names categories."""
    first, second = (_value(value, text_of, decimals) for value in (before, after))
    return first if first == second else f"{first} → {second}"


def _value(value: float, text_of: Mapping[str, str] | None, decimals: int) -> str:
    if not np.isfinite(value):
        return "-"
    if text_of:
        return text_of.get(f"{value:.0f}", f"{value:.{decimals}f}")
    return f"{value:.{decimals}f}"
