"""Laws of graphs on random DAGs, and the message for each kind of invalid graph."""

from collections.abc import Callable

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
def test_an_edge_that_closes_a_cycle_is_refused(graph: CausalGraph, data: st.DataObject) -> None:
    if not graph.edges:
        return
    cause = data.draw(st.sampled_from(sorted({c for c, _ in graph.edges})))
    effect = data.draw(st.sampled_from(sorted(graph.descendants(cause))))
    with pytest.raises(InputError, match="graph: expected no cycles, got ") as caught:
        CausalGraph(graph.names, (*graph.edges, (effect, cause)))
    walk = str(caught.value).split("got ")[1].split(" -> ")
    assert walk[0] == walk[-1]
    assert set(nx.utils.pairwise(walk)) <= {*graph.edges, (effect, cause)}


def test_relatives_of_variables() -> None:
    assert PENDULUM.roots == ("angle", "light")
    assert PENDULUM.parents["shadow_length"] == ("angle", "light")
    assert PENDULUM.descendants("angle") == {"shadow_length", "shadow_position"}
    assert PENDULUM.descendants("angle", "shadow_length") == {"shadow_position"}
    assert PENDULUM.descendants() == frozenset()
    assert PENDULUM.index("light") == 1
    graph = CausalGraph(("c", "a", "b"), (("a", "b"), ("c", "b"), ("c", "a")))
    assert graph.parents == {"c": (), "a": ("c",), "b": ("c", "a")} and graph.children["c"] == ("a", "b")


def test_names_can_be_omitted() -> None:
    graph = CausalGraph.from_dict({"edges": [["thickness", "intensity"]]})
    assert graph.names == ("thickness", "intensity")


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ([], "expected a mapping with names and edges, got list"),
        ({"nodes": ["a"]}, "unknown key 'nodes', expected names, edges or adjacency"),
        ({"names": ["a"], "edges": [], "adjacency": [[0]]}, "expected either edges or adjacency, got both"),
        ({"names": "ab"}, "names: expected a list, got 'ab'"),
        (
            {"names": ["a"], "edges": {"a": "b"}},
            r'edges: expected a list, like \[\["age", "glasses"\]\], got {' "'a': 'b'}",
        ),
        ({}, r"expected 1\.\.1000 variables and at most 50000 edges, got 0 variables and 0 edges"),
        ({"names": [""]}, "expected non-empty strings as variable names, got ''"),
        ({"names": [f"v{i}" for i in range(1001)]}, "expected .*, got 1001 variables and 0 edges"),
        ({"names": ["a\x1b[2J"]}, "expected names of at most 200 printable characters, got .* of 5 characters"),
        ({"names": ["a" * 201]}, "expected names of at most 200 printable characters, got 'a+' of 201 characters"),
        ({"names": [["a"]]}, "expected non-empty strings as variable names, got "),
        ({"names": ["a", "b", "a"]}, "expected unique variable names, got 'a' 2 times"),
        ({"edges": [1]}, r"expected an edge \[cause, effect\], got 1"),
        ({"edges": ["ab"]}, r"expected an edge \[cause, effect\], got 'ab'"),
        (
            {"names": ["a", "b"], "edges": [["a", "b", "a"]]},
            r"expected an edge \[cause, effect\], got \['a', 'b', 'a'\]",
        ),
        ({"names": ["a", "b"], "edges": [[["a"], "b"]]}, r"expected an edge \[cause, effect\], got \[\['a'\], 'b'\]"),
        ({"names": ["a", "b"], "edges": [["a", "c"]]}, "edge a -> c: expected variables among a, b, got 'c'"),
        ({"names": ["a"], "edges": [["a", "a"]]}, "expected no self-loops, got edge a -> a"),
        ({"names": ["a", "b"], "edges": [["a", "b"]] * 2}, "expected unique edges, got a -> b twice"),
        ({"edges": [["a", "b"], ["b", "c"], ["c", "a"]]}, "expected no cycles, got "),
        ({"names": ["a"], "adjacency": [["x"]]}, "adjacency: expected a matrix of numbers"),
        ({"names": ["a", "b"], "adjacency": [[0], [0, 1]]}, "adjacency: expected a matrix of numbers"),
        (
            {"names": ["a", "b"], "adjacency": [[0]]},
            r"adjacency: expected shape \(2, 2\) for 2 variables, got \(1, 1\)",
        ),
        (
            {"names": ["a", "b"], "adjacency": [[0, 0.5], [0, 0]]},
            "adjacency: expected a 0/1 matrix, got 0.5; 1 in row i",
        ),
        ({"names": ["a", "b"], "adjacency": [[0, 1], [1, 0]]}, "expected no cycles, got a -> b -> a"),
        ({"adjacency": [[0]]}, ""),
    ],
)
def test_an_invalid_graph_is_refused(description: object, message: str) -> None:
    with pytest.raises(InputError, match=f"^graph: {message}"):
        CausalGraph.from_dict(description)


@pytest.mark.parametrize("lookup", [PENDULUM.index, PENDULUM.descendants, PENDULUM.ancestors])
def test_an_unknown_variable_is_refused(lookup: Callable[[str], object]) -> None:
    with pytest.raises(InputError, match="variable: expected one of angle, light, .*, got 'wind'"):
        lookup("wind")


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
