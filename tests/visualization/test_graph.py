"""Drawings of causal graphs: causes lie above effects, nothing overlaps, large and dense graphs stay bounded."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causaldiffae.graphs import CausalGraph
from causaldiffae.visualization.graph import MAX_SIDE, draw_graph, edge_points, layout


def random_graph(count: int, span: int, edges: int, seed: int = 0) -> CausalGraph:
    names = tuple(f"variable_{i}" for i in range(count))
    pairs = [(names[i], names[j]) for i in range(count) for j in range(i + 1, min(i + span, count))]
    chosen = np.random.default_rng(seed).choice(len(pairs), min(edges, len(pairs)), replace=False)
    return CausalGraph(names, tuple(pairs[k] for k in chosen))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 20), st.integers(2, 12), st.integers(0, 40), st.integers(0, 99))
def test_causes_lie_above_effects_and_boxes_do_not_overlap(count: int, span: int, edges: int, seed: int) -> None:
    graph = random_graph(count, span, edges, seed)
    placed = layout(graph, {name: name for name in graph.names})
    heights = dict.fromkeys(graph.names, 0.3)
    for edge in graph.edges:
        assert all(upper > lower for (_, upper), (_, lower) in pairwise(edge_points(placed, edge, heights)))
    rows: dict[float, list[tuple[float, float]]] = {}
    for name, (x, y) in placed.positions.items():
        rows.setdefault(y, []).append((x, placed.widths[name]))
        assert placed.left <= x - placed.widths[name] / 2 and x + placed.widths[name] / 2 <= placed.right
    for bends in placed.bends.values():
        for x, y in bends:
            rows[y].append((x, 0.0))
    for row in rows.values():
        for (left, left_width), (right, right_width) in pairwise(sorted(row)):
            assert right - left > (left_width + right_width) / 2
    assert len(rows) == placed.layers


def test_an_avoidable_crossing_is_removed() -> None:
    placed = layout(CausalGraph(("a", "b", "c", "d"), (("a", "d"), ("b", "c"))), dict.fromkeys("abcd", "x"))
    x = {name: position[0] for name, position in placed.positions.items()}
    assert (x["a"] < x["b"]) == (x["d"] < x["c"])
    assert x["a"] == pytest.approx(x["d"]) and x["b"] == pytest.approx(x["c"]), "effects lie below their only cause"


def test_a_large_graph_is_drawn() -> None:
    picture = draw_graph(random_graph(30, 12, 60))
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert max(picture.shape) < 4000 and 0.005 < (picture < 200).mean() < 0.3


def test_names_with_formulas_and_a_dense_graph_are_drawn() -> None:
    assert draw_graph(CausalGraph(("$x", "a_very_long_name_of_a_variable"), ())).shape[2] == 3
    assert max(draw_graph(random_graph(45, 45, 990)).shape) <= MAX_SIDE
