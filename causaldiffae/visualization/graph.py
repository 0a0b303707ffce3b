"""A picture of a causal graph: causes above their effects.

The drawing follows Sugiyama, Tagawa and Toda (1981). Every variable lies one layer below its lowest cause; an edge
that passes layers gets an invisible place in each, so that it runs between the variables there; the places of a layer
are ordered by the mean place of their neighbours, to and fro, and the order with the fewest crossings is kept; last,
places move towards their neighbours as far as their width lets them.
"""

from __future__ import annotations

import bisect
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from causaldiffae.graphs import CausalGraph

SWEEPS: Final = 24
CHARACTER, MARGIN, LINE, GAP = 0.085, 0.22, 0.17, 0.3  # inches
PASSING: Final = 0.16  # what an edge takes in a layer that it passes
DPI: Final = 110
MAX_SIDE: Final = 8000  # pixels of the whole picture
COLOURS: Final = ("#34568b", "#7a4b94", "#2f7d5b", "#a3572e", "#7d2f45", "#5b6770")
"""Of the edges, by their cause."""
MAX_PASSING: Final = 3000  # edges of larger graphs run as they please

Place = tuple[str, ...]  # (variable,) or (cause, effect, layer) of an edge that passes


@dataclass(frozen=True)
class GraphLayout:
    """Where everything of a drawing lies, in inches; y grows upwards, the first layer is at 0.

    Attributes:
        places: the middle (x, y) of every variable's box.
        widths: of every variable's box with its margin.
        bends: for every edge, the points between the boxes that it passes on its way down, in order.
        step: from one layer to the next; left, right: the ends of the drawing.
        layers: how many there are.
    """

    places: dict[str, tuple[float, float]]
    widths: dict[str, float]
    bends: dict[tuple[str, str], list[tuple[float, float]]]
    step: float
    left: float
    right: float
    layers: int


def layout(graph: CausalGraph, texts: Mapping[str, str]) -> GraphLayout:
    """Places boxes that hold `texts` (lines, one text for each variable), causes above their effects."""
    layers, links = _layers(graph)
    _order(layers, links)
    widths = {place: _width(place, texts) for layer in layers for place in layer}
    x = _positions(layers, links, widths)
    depth = _depth(texts)
    step = depth + 0.45 + 0.02 * max(len(layer) for layer in layers)
    y = {place: -step * i for i, layer in enumerate(layers) for place in layer}
    left, right = (f(x[p] + side * widths[p] / 2 for p in x) for f, side in ((min, -1), (max, 1)))
    bends: dict[tuple[str, str], list[tuple[float, float]]] = {edge: [] for edge in graph.edges}
    for place in sorted((place for place in x if len(place) > 1), key=lambda place: int(place[2])):
        bends[(place[0], place[1])].append((x[place], y[place]))
    places = {name: (x[(name,)], y[(name,)]) for name in graph.names}
    own_widths = {name: widths[(name,)] for name in graph.names}
    return GraphLayout(places, own_widths, bends, step, left, right, len(layers))


def draw_graph(graph: CausalGraph) -> np.ndarray:
    """The graph as (H, W, 3) uint8: boxes with the variables' names, arrows from cause to effect."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    texts = {name: wrap(name) for name in graph.names}
    placed, depth = layout(graph, texts), _depth(texts)
    lowest = placed.step * (placed.layers - 1)
    size = (placed.right - placed.left + 0.4, lowest + depth + 0.4)
    figure = Figure(figsize=size, dpi=min(DPI, MAX_SIDE / max(size)))
    canvas = FigureCanvasAgg(figure)
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axis.set_xlim(placed.left - 0.2, placed.right + 0.2)
    axis.set_ylim(-lowest - depth / 2 - 0.2, depth / 2 + 0.2)
    axis.set_axis_off()
    heights = {name: (texts[name].count("\n") + 1) * LINE + 0.16 for name in graph.names}
    _draw_edges(axis, graph, placed, heights)
    for name in graph.names:
        box = {"boxstyle": "round,pad=0.35", "facecolor": "#eef3fa", "edgecolor": "#34568b", "linewidth": 1.0}
        axis.text(*placed.places[name], texts[name], ha="center", va="center", fontsize=9, bbox=box,
                  linespacing=1.1, parse_math=False, zorder=3)  # fmt: skip
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def wrap(name: str) -> str:
    """A name on lines of about 14 letters, broken at spaces and behind underscores."""
    lines = textwrap.wrap(name.replace("_", "_ "), 15)
    return "\n".join(line.replace("_ ", "_") for line in lines)


def _depth(texts: Mapping[str, str]) -> float:
    """Of a box: the most lines of any, and the margins."""
    return max(text.count("\n") + 1 for text in texts.values()) * LINE + 2 * MARGIN


def _width(place: Place, texts: Mapping[str, str]) -> float:
    if len(place) > 1:
        return PASSING
    return max(map(len, texts[place[0]].split("\n"))) * CHARACTER + MARGIN


def _layers(graph: CausalGraph) -> tuple[list[list[Place]], list[tuple[Place, Place]]]:
    """The places of every layer, and the links between places of neighbouring layers."""
    depth: dict[str, int] = {}
    for name in graph.topological_order:
        depth[name] = 1 + max((depth[cause] for cause in graph.parents[name]), default=-1)
    for name in graph.topological_order[::-1]:  # a root comes down to right above its effects
        if not graph.parents[name] and graph.children[name]:
            depth[name] = min(depth[effect] for effect in graph.children[name]) - 1
    layers: list[list[Place]] = [[] for _ in range(max(depth.values()) + 1)]
    for name in graph.names:
        layers[depth[name]].append((name,))
    links: list[tuple[Place, Place]] = []
    many = sum(depth[effect] - depth[cause] - 1 for cause, effect in graph.edges) > MAX_PASSING
    for cause, effect in graph.edges:
        if many and depth[effect] > depth[cause] + 1:
            continue
        passed: list[Place] = [(cause, effect, str(i)) for i in range(depth[cause] + 1, depth[effect])]
        for place in passed:
            layers[int(place[2])].append(place)
        chain = [(cause,), *passed, (effect,)]
        links += pairwise(chain)
    return layers, links


def _neighbours(links: Sequence[tuple[Place, Place]]) -> tuple[dict[Place, list[Place]], dict[Place, list[Place]]]:
    """Of every place, those above and those below."""
    above: dict[Place, list[Place]] = {}
    below: dict[Place, list[Place]] = {}
    for upper, lower in links:
        below.setdefault(upper, []).append(lower)
        above.setdefault(lower, []).append(upper)
    return above, below


def _order(layers: list[list[Place]], links: Sequence[tuple[Place, Place]]) -> None:
    """Sorts every layer by the mean place of its neighbours, and keeps the order with the fewest crossings."""
    above, below = _neighbours(links)
    best, fewest = [list(layer) for layer in layers], _crossings(layers, below)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for i in range(1, len(layers)) if down else range(len(layers) - 2, -1, -1):
            place_of = {place: k for k, place in enumerate(layers[i - 1 if down else i + 1])}
            near = above if down else below
            own = {place: k for k, place in enumerate(layers[i])}

            def key(
                place: Place,
                near: dict[Place, list[Place]] = near,
                place_of: dict[Place, int] = place_of,
                own: dict[Place, int] = own,
            ) -> float:
                found = [place_of[other] for other in near.get(place, ())]
                return sum(found) / len(found) if found else own[place]

            layers[i].sort(key=key)
        crossings = _crossings(layers, below)
        if crossings < fewest:
            best, fewest = [list(layer) for layer in layers], crossings
    layers[:] = best


def _crossings(layers: Sequence[Sequence[Place]], below: dict[Place, list[Place]]) -> int:
    """How many links cross."""
    count = 0
    for upper, lower in pairwise(layers):
        place_of = {place: k for k, place in enumerate(lower)}
        ends = [sorted(place_of[other] for other in below.get(place, ())) for place in upper]
        passed: list[int] = []  # sorted ends of the links further left
        for some in ends:
            count += sum(len(passed) - bisect.bisect_right(passed, end) for end in some)
            for end in some:
                bisect.insort(passed, end)
    return count


def _positions(
    layers: Sequence[Sequence[Place]], links: Sequence[tuple[Place, Place]], widths: dict[Place, float]
) -> dict[Place, float]:
    """The middle of every place in inches: near its neighbours', without overlaps within a layer."""
    above, below = _neighbours(links)
    x: dict[Place, float] = {}
    for layer in layers:
        offset = -sum(widths[place] + GAP for place in layer) / 2
        for place in layer:
            x[place] = offset + (widths[place] + GAP) / 2
            offset += widths[place] + GAP
    for sweep in range(SWEEPS):
        for layer in layers if sweep % 2 == 0 else layers[::-1]:
            near = {place: [*above.get(place, ()), *below.get(place, ())] for place in layer}
            wanted = [np.mean([x[o] for o in near[place]]) if near[place] else x[place] for place in layer]
            for place, middle in zip(layer, _spread(np.array(wanted), [widths[p] + GAP for p in layer]), strict=True):
                x[place] = float(middle)
    return x


def _spread(wanted: np.ndarray, widths: Sequence[float]) -> np.ndarray:
    """The places nearest to the wanted ones (least squares) that keep the order and the widths.

    Without the widths' running sum, neighbours must only not fall: the pool-adjacent-violators algorithm.
    """
    steps = np.array([0.0, *(np.add(widths[:-1], widths[1:]) / 2)]).cumsum()
    pools: list[list[float]] = []  # mean and size
    for value in wanted - steps:
        pools.append([float(value), 1])
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            (mean, size), (last, count) = pools[-2], pools[-1]
            pools[-2:] = [[(mean * size + last * count) / (size + count), size + count]]
    return np.repeat([mean for mean, _ in pools], [int(size) for _, size in pools]) + steps


def _draw_edges(axis: object, graph: CausalGraph, placed: GraphLayout, heights: Mapping[str, float]) -> None:
    """Arrows from the lower edge of the cause's box to the upper edge of the effect's, upright in every layer."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    for cause, effect in graph.edges:
        points = edge_points(placed, (cause, effect), heights)
        vertices, codes = [points[0]], [Path.MOVETO]
        for (x0, y0), (x1, y1) in pairwise(points):
            bend = (y0 - y1) * 0.45
            vertices += [(x0, y0 - bend), (x1, y1 + bend), (x1, y1)]
            codes += [Path.CURVE4] * 3
        colour = COLOURS[graph.index(cause) % len(COLOURS)]
        arrow = FancyArrowPatch(path=Path(vertices, codes), arrowstyle="-|>", mutation_scale=10, color=colour,
                                linewidth=1.0, zorder=2)  # fmt: skip
        axis.add_patch(arrow)  # type: ignore[attr-defined]


def edge_points(placed: GraphLayout, edge: tuple[str, str], heights: Mapping[str, float]) -> list[tuple[float, float]]:
    """The points that an edge goes through: out of the cause's box below, past the boxes between, into the effect's."""
    (x0, y0), (x1, y1) = placed.places[edge[0]], placed.places[edge[1]]
    return [(x0, y0 - heights[edge[0]] / 2), *placed.bends[edge], (x1, y1 + heights[edge[1]] / 2)]
