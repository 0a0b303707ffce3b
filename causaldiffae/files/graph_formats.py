"""Parses graphs as other tools write them: GML, GraphML, JSON of networkx, d3 and Cytoscape, Tetrad's text, BIF.

networkx reads GML and GraphML. Its readers of JSON construct a graph from any keys, so that a misspelt key gives an
empty graph; the four layouts are read here instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import networkx as nx

from causaldiffae.errors import DataError
from causaldiffae.files.parsed_graph import ParsedGraph, undirected_edge
from causaldiffae.files.reading import reading

_ENDS: Final = (("source", "target"), ("from", "to"), ("cause", "effect"), ("parent", "child"), ("src", "dst"))
_ARROW: Final = re.compile(r"\s*((?<=\s)(?:o-+>|<-+o|o-+o|o--|--o)(?=\s)|<-{1,2}>|-{1,2}>|=>|<-{1,2}|-{2,3})\s*")
_TETRAD_EDGE: Final = re.compile(r"\d+\.\s+(.+?)\s+(-->|<--|<->|---|o->|<-o|o-o|o--|--o)\s+(\S.*?)(?:\s+[dnp][dl])*\s*")
_BIF_VARIABLE: Final = re.compile(r'\bvariable\s+"?([^"{\s]+)"?\s*\{')
_BIF_PROBABILITY: Final = re.compile(r"\bprobability\s*\(([^()]*)\)")


def parse_gml(text: str, where: str) -> ParsedGraph:
    """Parses GML as written by networkx and DoWhy; raises `DataError`."""
    return _from_networkx(lambda: nx.parse_gml(text, label=None), "GML", where)


def parse_graphml(text: str, where: str) -> ParsedGraph:
    """Parses GraphML without a document type, whose entities could expand to any size; raises `DataError`."""
    if "<!" in re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL):
        raise DataError(f"{where}: expected GraphML without a document type")
    return _from_networkx(lambda: nx.parse_graphml(text), "GraphML", where)


def _from_networkx(parse: Callable[[], nx.Graph], title: str, where: str) -> ParsedGraph:
    with reading(f"a {title} graph", where):
        graph = parse()
    if not graph.is_directed():
        hint = "`directed 1`" if title == "GML" else 'edgedefault="directed"'
        raise DataError(f"{where}: expected a directed graph ({hint}), got an undirected one")
    nodes = {str(node): _texts(attributes) for node, attributes in graph.nodes(data=True)}
    return ParsedGraph(list(nodes), [[str(cause), str(effect)] for cause, effect in graph.edges()], nodes)


def _texts(attributes: Mapping[Any, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in attributes.items() if isinstance(value, str | int | float)}


def is_graph_json(value: Any) -> bool:
    """Whether a JSON value has the layout of `parse_graph_json`."""
    if not isinstance(value, dict):
        return False
    nodes = value.get("nodes")
    return isinstance(value.get("elements"), dict) or (
        isinstance(nodes, list) and all(isinstance(node, dict) for node in nodes)
    )


def parse_graph_json(value: Mapping[str, Any], where: str) -> ParsedGraph:
    """Reads networkx's node-link and adjacency data, d3's links and Cytoscape's elements.

    Raises:
        DataError: starting with `where`, for another layout or an undirected graph.
    """
    if isinstance(value.get("elements"), dict):  # Cytoscape
        elements = value["elements"]
        value = {**value, **{key: [_data(each) for each in _list(elements, key, where)] for key in ("nodes", "edges")}}
    if value.get("directed") is False:
        raise DataError(f"{where}: directed: expected true, got false; choose directions")
    given = _list(value, "nodes", where)
    ids = [_identifier(node, i) for i, node in enumerate(given)]
    attributes = {name: _texts(node) for name, node in zip(ids, given, strict=True)}
    if isinstance(value.get("adjacency"), list):
        rows = value["adjacency"]
        if len(rows) != len(ids) or not all(isinstance(row, list) for row in rows):
            raise DataError(f"{where}: adjacency: expected a list per node")
        edges = [[ids[i], _identifier(each, -1)] for i, row in enumerate(rows) for each in row]
        return ParsedGraph(ids, edges, attributes)
    links = _list(value, "links" if "links" in value else "edges", where)
    by_position = not any("id" in node for node in given)  # d3 refers to nodes without `id` by their index
    pairs = edge_objects(links, where)
    if by_position:
        pairs = [[ids[int(end)] if end.isdigit() and int(end) < len(ids) else end for end in pair] for pair in pairs]
    return ParsedGraph(ids, pairs, attributes)


def _list(value: Mapping[str, Any], key: str, where: str) -> list[Any]:
    found = value.get(key, [])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise DataError(f"{where}: {key}: expected a list of objects, got {str(found)!r:.80}")
    return found


def _data(element: Mapping[str, Any]) -> Any:
    return element["data"] if isinstance(element.get("data"), dict) else element


def _identifier(node: Any, position: int) -> str:
    keys = ("id", "key", "name", "label")
    return str(next((node[key] for key in keys if key in node), position)) if isinstance(node, dict) else str(node)


def edge_objects(edges: Iterable[Mapping[str, Any]], where: str) -> list[list[str]]:
    """Pairs of objects with the keys source and target, from and to, cause and effect, or parent and child."""
    pairs = []
    for edge in edges:
        ends = next((ends for ends in _ENDS if all(key in edge for key in ends)), None)
        if ends is None:
            raise DataError(f"{where}: edges: expected objects with source and target, got {str(dict(edge))!r:.80}")
        pairs.append([str(edge[key]) for key in ends])
    return pairs


def edge_columns(header: list[str]) -> tuple[int, int] | None:
    """Positions of the columns with the causes and the effects of an edge list."""
    lower = [name.casefold() for name in header]
    return next(((lower.index(a), lower.index(b)) for a, b in _ENDS if a in lower and b in lower), None)


def parse_arrows(text: str, where: str) -> list[list[str]]:
    """Parses a chain such as "age -> smile" or "a <- b -> c"; raises `DataError` for other text."""
    parts = _ARROW.split(text.strip())
    if len(parts) < 3 or not all(parts):
        raise DataError(f"{where}: expected an edge like age -> smile, got {text!r:.80}")
    edges = []
    for i in range(0, len(parts) - 2, 2):
        first, arrow, second = parts[i : i + 3]
        if "o" in arrow or ("<" in arrow) == (">" in arrow):
            raise undirected_edge(where, first, arrow, second)
        edges.append([first, second] if ">" in arrow else [second, first])
    return edges


def parse_tetrad(text: str, where: str) -> ParsedGraph:
    """Parses the text of Tetrad and causal-learn, `Graph Nodes:` and `Graph Edges:`; raises `DataError`."""
    head, _, tail = text.partition("Graph Edges:")
    names = head.partition("Graph Nodes:")[2]
    nodes = [name.strip() for name in re.split(r"[;,]", names) if name.strip()]
    edges = []
    for line in tail.strip().splitlines():
        if not re.match(r"\d+\.", line.strip()):
            break  # attributes of the graph follow
        found = _TETRAD_EDGE.fullmatch(line.strip())
        if found is None:
            raise DataError(f"{where}: expected an edge like 1. age --> smile, got {line.strip()!r:.80}")
        edges += parse_arrows(f"{found[1]} {found[2]} {found[3]}", where)
    return ParsedGraph(nodes, edges)


def parse_bif(text: str, where: str) -> ParsedGraph:
    """Parses the variables and parents of a Bayesian network in the interchange format; raises `DataError`."""
    nodes, edges = _BIF_VARIABLE.findall(text), []
    for given in _BIF_PROBABILITY.findall(text):
        child, _, parents = given.replace('"', "").partition("|")
        edges += [[parent.strip(), child.strip()] for parent in re.split(r"[,\s]+", parents) if parent.strip()]
    if not nodes:
        raise DataError(f"{where}: expected a Bayesian network with variables, got none")
    return ParsedGraph(nodes, edges)
