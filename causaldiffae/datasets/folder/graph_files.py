"""Reads causal graphs from YAML, JSON, GML and DOT files, by file name extension.

YAML and JSON files contain `edges: [[cause, effect], ...]` (and `names`, for variables without edges or in another
order), or `names` and a 0/1 matrix `adjacency` with [i][j] = 1 for names[i] -> names[j]. They can also contain the
description of a data set (description.py). GML and DOT files are read as written by networkx and DoWhy.

Files are untrusted: their size is limited, YAML tags and anchors are rejected, and YAML scalars are strings (so that a
category `no` is not a boolean). Every error is a `DataError` that names the file.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Final

import networkx as nx

from causaldiffae.errors import DataError, InputError
from causaldiffae.files.dot import parse_dot
from causaldiffae.files.reading import parse_json
from causaldiffae.files.yaml import parse_yaml
from causaldiffae.graphs import CausalGraph

MAX_BYTES: Final = 1 << 20
MAX_CHARACTERS: Final = 1 << 17  # of YAML, GML and DOT, which are parsed in Python
GRAPH_KEYS: Final = ("names", "edges", "adjacency")
EXTENSIONS: Final = (".yaml", ".yml", ".json", ".gml", ".dot", ".gv")


def parse_graph(content: bytes, where: str) -> tuple[CausalGraph, dict[str, Any]]:
    """Parses the content of a file named `where`.

    Returns:
        The graph, and the other keys of a YAML or JSON file.

    Raises:
        DataError: starting with `where`, for a damaged file or an invalid graph.
        InputError: for an unsupported extension.
    """
    extension = PurePosixPath(where).suffix.lower()
    if extension not in EXTENSIONS:
        raise InputError(f"{where}: expected a file name ending in {', '.join(EXTENSIONS)}, got {extension!r}")
    if extension == ".json":
        return _split(parse_json(content, where), where)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{where}: expected UTF-8 text") from None
    if len(text) > MAX_CHARACTERS:
        raise DataError(f"{where}: expected at most {MAX_CHARACTERS} characters, got {len(text)}")
    if extension in (".yaml", ".yml"):
        mapping = parse_yaml(text, where)
        if not isinstance(mapping, dict):
            raise DataError(f"{where}: expected a mapping, like edges: [[cause, effect]]")
        return _split(mapping, where)
    names, edges = _parse_gml(text, where) if extension == ".gml" else parse_dot(text, where)
    return _built({"names": names, "edges": edges}, where), {}


def _split(mapping: dict[str, Any], where: str) -> tuple[CausalGraph, dict[str, Any]]:
    """The graph and the other keys; without `names`, variables are ordered as in `variables`, then as in `edges`."""
    graph: dict[str, Any] = {key: mapping[key] for key in GRAPH_KEYS if key in mapping}
    variables, edges = mapping.get("variables"), mapping.get("edges", [])
    if "names" not in mapping and isinstance(variables, dict) and isinstance(edges, list):
        ends = [name for edge in edges if isinstance(edge, list) for name in edge if isinstance(name, str)]
        graph["names"] = list(dict.fromkeys([*variables, *ends]))
    return _built(graph, where), {key: value for key, value in mapping.items() if key not in GRAPH_KEYS}


def _parse_gml(text: str, where: str) -> tuple[list[str], list[list[str]]]:
    try:
        digraph = nx.parse_gml(text, label=None)
    except Exception as error:  # networkx raises errors of many types for damaged files
        raise DataError(f"{where}: expected a GML graph ({' '.join(str(error).split())[:200]})") from None
    if not digraph.is_directed():
        raise DataError(f"{where}: expected a directed graph (`directed 1`), got an undirected one")
    names = {node: str(attributes.get("label", node)) for node, attributes in digraph.nodes(data=True)}
    return list(names.values()), [[names[edge[0]], names[edge[1]]] for edge in digraph.edges()]


def _built(description: dict[str, Any], where: str) -> CausalGraph:
    try:
        return CausalGraph.from_dict(description)
    except (InputError, TypeError) as error:
        raise DataError(f"{where}: {str(error)[:1000]}") from None
