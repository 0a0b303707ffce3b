"""Graph laws on random DAGs, and one message test per invalid graph."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causaldiffae.errors import InputError
from causaldiffae.graphs import CausalGraph

PENDULUM = CausalGraph(
    ("angle", "light", "shadow_length", "shadow_position"),
    tuple((cause, effect) for cause in ("angle", "light") for effect in ("shadow_length", "shadow_position")),
)


@st.composite
def random_dags(draw: st.DrawFn) -> CausalGraph:
    """A DAG over one to eight names whose listed order is, as a rule, not a topological one."""
    n = draw(st.integers(1, 8))
    names = tuple(f"v{i}" for i in range(n))
    order = draw(st.permutations(names))
    pairs = [(order[i], order[j]) for i in range(n) for j in range(i + 1, n)]
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    return CausalGraph(names, tuple(draw(st.permutations(chosen))))


@given(random_dags())
def test_topological_order_puts_causes_first(graph: CausalGraph) -> None:
    order = graph.topological_order
    assert sorted(order) == sorted(graph.names)
    assert all(order.index(cause) < order.index(effect) for cause, effect in graph.edges)


@given(random_dags())
def test_adjacency_is_cause_to_effect(graph: CausalGraph) -> None:
    for i, cause in enumerate(graph.names):
        for j, effect in enumerate(graph.names):
            assert graph.adjacency[i, j] == ((cause, effect) in graph.edges)
            assert (cause in graph.parents[effect]) == (effect in graph.children[cause]) == bool(graph.adjacency[i, j])


@given(random_dags())
def test_descendants_are_the_powers_of_the_adjacency(graph: CausalGraph) -> None:
    n = len(graph)
    reach = np.linalg.inv(np.eye(n) - graph.adjacency).round() - np.eye(n)  # A + A^2 + ...: the number of paths
    for i, name in enumerate(graph.names):
        assert graph.descendants(name) == {graph.names[j] for j in np.nonzero(reach[i])[0]}
        assert graph.ancestors(name) == {graph.names[j] for j in np.nonzero(reach[:, i])[0]}
    assert set(graph.roots) == {graph.names[j] for j in np.nonzero(reach.sum(0) == 0)[0]}


@given(random_dags())
def test_plain_forms_round_trip(graph: CausalGraph) -> None:
    assert CausalGraph.from_dict(graph.to_dict()) == graph
    assert CausalGraph.from_adjacency(graph.names, graph.adjacency) == graph
    table = {"names": list(graph.names), "adjacency": graph.adjacency.astype(int).tolist()}
    assert CausalGraph.from_dict(table) == graph
    assert hash(CausalGraph.from_dict(table)) == hash(graph)


@given(random_dags(), st.data())
def test_one_edge_more_that_closes_a_cycle_is_refused(graph: CausalGraph, data: st.DataObject) -> None:
    if not graph.edges:
        return
    cause = data.draw(st.sampled_from(sorted({c for c, _ in graph.edges})))
    effect = data.draw(st.sampled_from(sorted(graph.descendants(cause))))
    with pytest.raises(InputError, match="graph: it has a cycle, ") as caught:
        CausalGraph(graph.names, (*graph.edges, (effect, cause)))
    walk = str(caught.value).split("a cycle, ")[1].split(" -> ")
    assert walk[0] == walk[-1]
    assert set(nx.utils.pairwise(walk)) <= {*graph.edges, (effect, cause)}


def test_pendulum() -> None:
    assert PENDULUM.roots == ("angle", "light")
    assert PENDULUM.parents["shadow_length"] == ("angle", "light")
    assert PENDULUM.descendants("angle") == {"shadow_length", "shadow_position"}
    assert PENDULUM.descendants("angle", "shadow_length") == {"shadow_position"}
    assert PENDULUM.descendants() == frozenset()
    assert PENDULUM.index("light") == 1


def test_names_can_be_left_to_the_edges() -> None:
    graph = CausalGraph.from_dict({"edges": [["thickness", "intensity"]]})
    assert graph.names == ("thickness", "intensity")


INVALID = {
    "no mapping": ([], "a mapping with names and edges is needed, got list"),
    "unknown key": ({"nodes": ["a"]}, "unknown key 'nodes', allowed are names, edges, adjacency"),
    "both forms": ({"names": ["a"], "edges": [], "adjacency": [[0]]}, "both edges and adjacency are given"),
    "names no list": ({"names": "ab"}, "names must be a list, got 'ab'"),
    "edges no list": ({"names": ["a"], "edges": {"a": "b"}}, "edges must be a list"),
    "edges only numbers": ({"edges": [1]}, "1 is no edge; a pair"),
    "empty": ({}, "it has no variables"),
    "empty name": ({"names": [""]}, "'' is no variable name"),
    "name no string": ({"names": [["a"]]}, "is no variable name"),
    "name repeated": ({"names": ["a", "b", "a"]}, "variable 'a' is named more than once"),
    "edge no pair": ({"names": ["a", "b"], "edges": [["a", "b", "a"]]}, "a pair \\[cause, effect\\] is needed"),
    "edge a string": ({"names": ["a", "b"], "edges": ["ab"]}, "'ab' is no edge"),
    "edge a number": ({"names": ["a", "b"], "edges": [3]}, "3 is no edge"),
    "edge of lists": ({"names": ["a", "b"], "edges": [[["a"], "b"]]}, "\\[\\['a'\\], 'b'\\] is no edge"),
    "unknown variable": ({"names": ["a", "b"], "edges": [["a", "c"]]}, "a -> c names 'c', known are a, b"),
    "self-loop": ({"names": ["a"], "edges": [["a", "a"]]}, "a -> a is a self-loop"),
    "edge repeated": ({"names": ["a", "b"], "edges": [["a", "b"]] * 2}, "edge a -> b is given twice"),
    "cycle": ({"edges": [["a", "b"], ["b", "c"], ["c", "a"]]}, "it has a cycle, "),
    "adjacency of text": ({"names": ["a"], "adjacency": [["x"]]}, "is no table of numbers"),
    "adjacency ragged": ({"names": ["a", "b"], "adjacency": [[0], [0, 1]]}, "is no table of numbers"),
    "adjacency too small": (
        {"names": ["a", "b"], "adjacency": [[0]]},
        "has shape \\(1, 1\\), 2 variables need \\(2, 2\\)",
    ),
    "adjacency weighted": ({"names": ["a", "b"], "adjacency": [[0, 0.5], [0, 0]]}, "may hold only 0 and 1"),
    "adjacency with a cycle": ({"names": ["a", "b"], "adjacency": [[0, 1], [1, 0]]}, "it has a cycle, a -> b -> a"),
    "adjacency without names": ({"adjacency": [[0]]}, "graph: "),
}


@pytest.mark.parametrize(("description", "message"), INVALID.values(), ids=INVALID.keys())
def test_invalid_graph_says_what_is_wrong(description: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        CausalGraph.from_dict(description)
    assert str(caught.value).startswith("graph: ")


def test_unknown_variable_lists_the_known() -> None:
    for ask in (PENDULUM.index, PENDULUM.descendants, PENDULUM.ancestors):
        with pytest.raises(InputError, match="unknown variable 'wind', known are angle, light"):
            ask("wind")


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["a", "b", "c", ""]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "names", "b"]), inner, max_size=2)
    ),
    max_leaves=8,
)
keys = st.sampled_from(["names", "edges", "adjacency"])


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(keys, plain, max_size=3) | plain)
def test_malformed_descriptions_only_raise_input_errors(description: object) -> None:
    try:
        graph = CausalGraph.from_dict(description)
    except InputError:
        return
    assert CausalGraph.from_dict(graph.to_dict()) == graph
