"""Graphs in the formats of other tools."""

import json
from collections.abc import Callable
from typing import Any

import networkx as nx
import pytest

from causaldiffae.errors import DataError
from causaldiffae.files.graph_formats import (
    is_graph_json,
    parse_arrows,
    parse_bif,
    parse_gml,
    parse_graph_json,
    parse_graphml,
    parse_tetrad,
)

GRAPH = nx.DiGraph([("age", "smile"), ("age", "glasses")])
EDGES = [["age", "smile"], ["age", "glasses"]]
GRAPHML = "".join(nx.generate_graphml(GRAPH))
TETRAD = """Graph Nodes:
age;smile;glasses

Graph Edges:
1. age --> smile
2. glasses <-- age dd nl

Graph Attributes:
x"""
BIF = """network unknown { }
variable age { type discrete [ 2 ] { young, old }; }
variable "smile" { type discrete [ 2 ] { no, yes }; }
variable glasses { }
probability ( age ) { table 0.5, 0.5; }
probability ( smile | age ) { (young) 0.1, 0.9; }
probability ( "glasses" | age, smile ) { }
"""


@pytest.mark.parametrize(
    "value",
    [
        nx.node_link_data(GRAPH, edges="edges"),
        nx.node_link_data(GRAPH, edges="links"),
        nx.adjacency_data(GRAPH),
        nx.cytoscape_data(GRAPH),
        {"nodes": [{"name": "age"}, {"name": "smile"}, {"name": "glasses"}],
         "links": [{"source": 0, "target": 1}, {"source": 0, "target": 2}]},
        {"nodes": [{"id": "age"}, {"id": "smile"}, {"id": "glasses"}],
         "edges": [{"from": "age", "to": "smile"}, {"from": "age", "to": "glasses"}]},
    ],
    ids=["node-link", "links", "adjacency", "cytoscape", "d3", "vis.js"],
)  # fmt: skip
def test_json_of_other_libraries_is_read(value: object) -> None:
    value = json.loads(json.dumps(value))
    assert is_graph_json(value) and isinstance(value, dict)
    graph = parse_graph_json(value, "g.json")
    assert (graph.nodes, graph.edges) == (["age", "smile", "glasses"], EDGES)


def test_our_own_json_is_not_taken_for_it() -> None:
    for value in ({"names": ["a"], "edges": []}, {"nodes": ["a"]}, [["a", "b"]], 3):
        assert not is_graph_json(value)


def test_text_formats_are_read() -> None:
    for graph in (parse_graphml(GRAPHML, "g"), parse_gml("\n".join(nx.generate_gml(GRAPH)), "g")):
        assert len(graph.nodes) == 3 and len(graph.edges) == 2
    assert parse_tetrad(TETRAD, "g").edges == EDGES and parse_tetrad(TETRAD, "g").nodes == ["age", "smile", "glasses"]
    assert parse_tetrad("Graph Nodes:\na,b\nGraph Edges:\n", "g").nodes == ["a", "b"]
    network = parse_bif(BIF, "g")
    assert network.nodes == ["age", "smile", "glasses"]
    assert network.edges == [["age", "smile"], ["age", "glasses"], ["smile", "glasses"]]
    assert parse_arrows("a -> b <- c --> d", "g") == [["a", "b"], ["c", "b"], ["c", "d"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a <-> b", "edge a <-> b: expected edges cause -> effect, got a bidirected one .* add the cause"),
        ("a --- b", "edge a --- b: expected edges cause -> effect, got an undirected one; choose a direction"),
        ("a o-> b", "edge a o-> b: .* got one with a circle"),
        ("a -> ", "expected an edge like age -> smile, got 'a -> '"),
        ("a", "expected an edge like age -> smile, got 'a'"),
    ],
)
def test_other_edges_are_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=f"^g: {message}"):
        parse_arrows(text, "g")


UNDIRECTED = nx.Graph([("a", "b")])
REFUSED = [
    (parse_graphml, "".join(nx.generate_graphml(UNDIRECTED)), r"expected a directed graph \(edgedefault"),
    (parse_graphml, "<!DOCTYPE x [<!ENTITY a 'b'>]>" + GRAPHML, "expected GraphML without a document type"),
    (parse_graphml, "<graphml><graph>", "expected a GraphML graph"),
    (parse_graph_json, nx.node_link_data(UNDIRECTED, edges="edges"), "directed: expected true, got false"),
    (parse_graph_json, {"nodes": [], "edges": [{"x": 1}]}, "edges: expected objects with source and target"),
    (parse_graph_json, {"nodes": [], "edges": 3}, "edges: expected a list of objects"),
    (parse_graph_json, {"nodes": [], "adjacency": [[]]}, "adjacency: expected a list per node"),
    (parse_tetrad, "Graph Edges:\n1. a b", "expected an edge like 1. age --> smile, got '1. a b'"),
    (parse_tetrad, "Graph Edges:\n1. a o-o b", "edge a o-o b: .* circle"),
    (parse_bif, "network x {}", "expected a Bayesian network with variables"),
]


@pytest.mark.parametrize(("parse", "given", "message"), REFUSED)
def test_other_files_are_refused(parse: Callable[[Any, str], object], given: object, message: str) -> None:
    with pytest.raises(DataError, match=f"^g: {message}"):
        parse(given, "g")
