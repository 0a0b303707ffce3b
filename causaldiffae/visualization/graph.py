"""Draws a causal graph, with causes above their effects.

A layered layout in the style of Sugiyama, Tagawa and Toda (1981). Layers are networkx's topological generations. An
edge that spans several layers passes through an invisible node in each. Nodes are ordered by the mean position of their
neighbours and moved towards them by isotonic regression. networkx's `multipartite_layout` neither reduces crossings nor
respects box widths, and Graphviz is a system package.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import networkx as nx
import numpy as np

from causaldiffae.graphs import CausalGraph
from causaldiffae.visualization.image_grids import render

SWEEPS: Final = 24
CHARACTER, MARGIN, LINE, GAP = 0.085, 0.22, 0.17, 0.3  # inches
PASSING: Final = 0.16  # width of an edge in a layer that it passes, inches
DPI: Final = 110
MAX_SIDE: Final = 8000  # pixels
COLOURS: Final = ("#34568b", "#7a4b94", "#2f7d5b", "#a3572e", "#7d2f45", "#5b6770")
"""Edge colours, by cause."""
MAX_PASSING: Final = 3000  # invisible nodes; in larger graphs long edges are straight

Node = tuple[str, ...]  # (variable,), or (cause, effect, layer) where an edge passes a layer


@dataclass(frozen=True)
class GraphLayout:
    """Positions in inches; y points upwards and is 0 in the first layer.

    Attributes:
        positions: centre (x, y) of each variable's box.
        widths: width of each variable's box with its margin.
        bends: for each edge, the points at which it passes the layers between its ends, from top to bottom.
        step: vertical distance between layers.
        left, right: horizontal bounds of the drawing.
        layers: number of layers.
    """

    positions: dict[str, tuple[float, float]]
    widths: dict[str, float]
    bends: dict[tuple[str, str], list[tuple[float, float]]]
    step: float
    left: float
    right: float
    layers: int


def layout(graph: CausalGraph, texts: Mapping[str, str]) -> GraphLayout:
    """Computes the layout of one box per variable, with causes above effects.

    Args:
        texts: text of each variable's box, possibly of several lines.
    """
    layered, layers = _layers(graph)
    _order(layered, layers)
    widths = {node: _width(node, texts) for node in layered}
    x = _horizontal_positions(layered, layers, widths)
    step = _box_height(texts) + 0.45 + 0.02 * max(len(layer) for layer in layers)
    y = {node: -step * i for i, layer in enumerate(layers) for node in layer}
    bends: dict[tuple[str, str], list[tuple[float, float]]] = {edge: [] for edge in graph.edges}
    for node in sorted((node for node in x if len(node) > 1), key=lambda node: int(node[2])):
        bends[(node[0], node[1])].append((x[node], y[node]))
    return GraphLayout(
        positions={name: (x[(name,)], y[(name,)]) for name in graph.names},
        widths={name: widths[(name,)] for name in graph.names},
        bends=bends,
        step=step,
        left=min(x[node] - widths[node] / 2 for node in x),
        right=max(x[node] + widths[node] / 2 for node in x),
        layers=len(layers),
    )


def edge_points(placed: GraphLayout, edge: tuple[str, str], heights: Mapping[str, float]) -> list[tuple[float, float]]:
    """Points of an edge from the bottom of the cause's box to the top of the effect's box; box heights in inches."""
    (x0, y0), (x1, y1) = placed.positions[edge[0]], placed.positions[edge[1]]
    return [(x0, y0 - heights[edge[0]] / 2), *placed.bends[edge], (x1, y1 + heights[edge[1]] / 2)]


def wrap(name: str) -> str:
    """Wraps a name to lines of about 14 characters, at spaces and after underscores."""
    lines = textwrap.wrap(name.replace("_", "_ "), 15)
    return "\n".join(line.replace("_ ", "_") for line in lines)


def draw_graph(graph: CausalGraph) -> np.ndarray:
    """Draws the graph as (H, W, 3) uint8: one box per variable, arrows from cause to effect."""
    from matplotlib.figure import Figure

    texts = {name: wrap(name) for name in graph.names}
    placed, depth = layout(graph, texts), _box_height(texts)
    lowest = placed.step * (placed.layers - 1)
    size = (placed.right - placed.left + 0.4, lowest + depth + 0.4)
    figure = Figure(figsize=size, dpi=min(DPI, MAX_SIDE / max(size)))
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axis.set_xlim(placed.left - 0.2, placed.right + 0.2)
    axis.set_ylim(-lowest - depth / 2 - 0.2, depth / 2 + 0.2)
    axis.set_axis_off()
    heights = {name: (texts[name].count("\n") + 1) * LINE + 0.16 for name in graph.names}
    for edge in graph.edges:
        colour = COLOURS[graph.index(edge[0]) % len(COLOURS)]
        axis.add_patch(_arrow(edge_points(placed, edge, heights), colour))
    for name in graph.names:
        box = {"boxstyle": "round,pad=0.35", "facecolor": "#eef3fa", "edgecolor": "#34568b", "linewidth": 1.0}
        axis.text(*placed.positions[name], texts[name], ha="center", va="center", fontsize=9, bbox=box,
                  linespacing=1.1, parse_math=False, zorder=3)  # fmt: skip
    return render(figure)


def _arrow(points: Sequence[tuple[float, float]], colour: str) -> Any:
    """A smooth arrow through the points, vertical at each of them."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    vertices, codes = [points[0]], [Path.MOVETO]
    for (x0, y0), (x1, y1) in pairwise(points):
        bend = (y0 - y1) * 0.45
        vertices += [(x0, y0 - bend), (x1, y1 + bend), (x1, y1)]
        codes += [Path.CURVE4] * 3
    path = Path(vertices, codes)
    return FancyArrowPatch(path=path, arrowstyle="-|>", mutation_scale=10, color=colour, linewidth=1.0, zorder=2)


def _box_height(texts: Mapping[str, str]) -> float:
    """Height of the tallest box with its margins."""
    return max(text.count("\n") + 1 for text in texts.values()) * LINE + 2 * MARGIN


def _width(node: Node, texts: Mapping[str, str]) -> float:
    if len(node) > 1:
        return PASSING
    return max(map(len, texts[node[0]].split("\n"))) * CHARACTER + MARGIN


def _layers(graph: CausalGraph) -> tuple[nx.DiGraph, list[list[Node]]]:
    """The graph with invisible nodes, so that edges join adjacent layers, and the nodes of each layer."""
    variables = nx.DiGraph(graph.edges)
    variables.add_nodes_from(graph.names)
    depth = {name: i for i, names in enumerate(nx.topological_generations(variables)) for name in names}
    for name in graph.names:  # a root lies directly above its highest effect
        if not graph.parents[name] and graph.children[name]:
            depth[name] = min(depth[effect] for effect in graph.children[name]) - 1
    layers: list[list[Node]] = [[] for _ in range(max(depth.values()) + 1)]
    for name in graph.names:
        layers[depth[name]].append((name,))
    layered = nx.DiGraph()
    layered.add_nodes_from((name,) for name in graph.names)
    straight = sum(depth[effect] - depth[cause] - 1 for cause, effect in graph.edges) > MAX_PASSING
    for cause, effect in graph.edges:
        if straight and depth[effect] > depth[cause] + 1:
            continue
        between: list[Node] = [(cause, effect, str(i)) for i in range(depth[cause] + 1, depth[effect])]
        for node in between:
            layers[int(node[2])].append(node)
        nx.add_path(layered, [(cause,), *between, (effect,)])
    return layered, layers


def _order(layered: nx.DiGraph, layers: list[list[Node]]) -> None:
    """Sorts each layer by the mean index of its neighbours, down and up again, which reduces crossings."""
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        neighbours = layered.pred if down else layered.succ
        for i in range(1, len(layers)) if down else range(len(layers) - 2, -1, -1):
            index = {node: k for k, node in enumerate(layers[i - 1 if down else i + 1])}
            means = {
                node: np.mean([index[other] for other in neighbours[node]]) if neighbours[node] else float(k)
                for k, node in enumerate(layers[i])
            }
            layers[i].sort(key=means.__getitem__)


def _horizontal_positions(
    layered: nx.DiGraph, layers: Sequence[Sequence[Node]], widths: Mapping[Node, float]
) -> dict[Node, float]:
    """Horizontal centres of all nodes: close to their neighbours, in layer order, without overlap."""
    from scipy.optimize import isotonic_regression

    x: dict[Node, float] = {}
    offsets = []  # centres of the nodes if adjacent boxes touch
    for layer in layers:
        sizes = np.array([widths[node] + GAP for node in layer])
        offsets.append(np.cumsum(sizes) - sizes / 2)
        x.update(zip(layer, (offsets[-1] - sizes.sum() / 2).tolist(), strict=True))
    order = list(zip(layers, offsets, strict=True))
    for sweep in range(SWEEPS):
        for layer, offset in order if sweep % 2 == 0 else order[::-1]:
            target = [
                np.mean([x[other] for other in nx.all_neighbors(layered, node)]) if layered.degree(node) else x[node]
                for node in layer
            ]
            shifts = isotonic_regression(np.array(target) - offset).x  # boxes do not overlap if shifts do not decrease
            x.update(zip(layer, (shifts + offset).tolist(), strict=True))
    return x
