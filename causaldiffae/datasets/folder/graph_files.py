"""Causal graphs in files: YAML, JSON, GML and DOT, told apart by the file name's ending.

YAML and JSON hold `edges: [[cause, effect], ...]` (with `names` where some variable has no edge or the order matters),
or `names` and a 0/1 matrix `adjacency` whose entry [i][j] is 1 for names[i] -> names[j]. They may hold a data set's
description as well (`folder_description.py`), which is passed over here. GML and DOT are what networkx and DoWhy read.

Files may come from strangers: they are small or refused, YAML has neither tags nor anchors, and every scalar in it is
text (so that a category `no` stays the word). Whatever is wrong is a `DataError` that names the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Final

import networkx as nx
import yaml

from causaldiffae.errors import DataError, InputError
from causaldiffae.files.dot import parse_dot
from causaldiffae.files.reading import parse_json
from causaldiffae.files.storage import read_address
from causaldiffae.files.yaml import parse_yaml
from causaldiffae.graphs import CausalGraph

MAX_BYTES: Final = 1 << 20
MAX_CHARACTERS: Final = 1 << 17  # of YAML, GML and DOT, whose readers are written in Python
GRAPH_KEYS: Final = ("names", "edges", "adjacency")
DESCRIPTION_KEYS: Final = (
    *("variables", "name", "image_size", "channels", "resize"),
    *("split_seed", "split_shares", "ignore"),
)
MAPPINGS: Final = (".yaml", ".yml", ".json")


def read_graph(path: str | Path) -> CausalGraph:
    """Reads a graph from .yaml, .yml, .json, .gml, .dot or .gv; local, or at an address like gs://bucket/graph.yaml.

    Raises:
        DataError: naming the file, if it is missing, too large or damaged, or the graph is none: the messages of
            `CausalGraph`, a cycle spelt out.
        InputError: for another ending.
    """
    return parse_graph(read_address(path, MAX_BYTES), str(path))


def parse_graph(content: bytes, where: str) -> CausalGraph:
    """The graph in a file's content; `where` is the file's name, whose ending says what it is."""
    ending = _ending(where)
    if ending in MAPPINGS:
        return graph_of(parse_mapping(content, where), where)
    return _built(_PARSERS[ending](_text(content, where), where), where)


def parse_mapping(content: bytes, where: str) -> dict[str, Any]:
    """A YAML or JSON file's content as a mapping; scalars of YAML are text."""
    if _ending(where) == ".json":
        return parse_json(content, where)
    mapping = parse_yaml(_text(content, where), where)
    if not isinstance(mapping, dict):
        raise DataError(f"{where}: a mapping is needed, like edges: [[cause, effect]]")
    return mapping


def graph_of(mapping: dict[str, Any], where: str) -> CausalGraph:
    """The graph among a file's keys; without `names`, the order is that of `variables`, then of the edges."""
    allowed = (*GRAPH_KEYS, *DESCRIPTION_KEYS)
    unknown = [str(key) for key in mapping if key not in allowed]
    if unknown:
        raise DataError(f"{where}: unknown key {unknown[0][:80]!r}, allowed are {', '.join(allowed)}")
    description: dict[str, Any] = {key: mapping[key] for key in GRAPH_KEYS if key in mapping}
    variables, edges = mapping.get("variables"), mapping.get("edges", [])
    if "names" not in mapping and isinstance(variables, dict) and isinstance(edges, list):
        ends = [name for edge in edges if isinstance(edge, list) for name in edge if isinstance(name, str)]
        description["names"] = list(dict.fromkeys([*variables, *ends]))
    return _built(description, where)


def write_graph(path: str | Path, graph: CausalGraph) -> None:
    """Writes a graph in the form that the file name's ending names; `read_graph` reads the same graph back."""
    path = Path(path)
    ending = _ending(path.name)
    if ending == ".json":
        text = json.dumps(graph.to_dict(), indent=1, ensure_ascii=False) + "\n"
    elif ending in MAPPINGS:
        text = yaml.safe_dump(graph.to_dict(), allow_unicode=True, sort_keys=False, default_flow_style=None)
    elif ending == ".gml":
        text = "\n".join(nx.generate_gml(graph.digraph)) + "\n"
    else:
        quoted = nx.relabel_nodes(graph.digraph, {name: _dot_quote(name) for name in graph.names})
        text = nx.nx_pydot.to_pydot(quoted).to_string()
    path.write_text(text, encoding="utf-8")


def _parse_gml(text: str, where: str) -> dict[str, Any]:
    try:
        digraph = nx.parse_gml(text, label=None)
    except Exception as error:  # networkx raises whatever its reader met
        raise DataError(f"{where}: it is no GML graph ({_one_line(error)})") from None
    if not digraph.is_directed():
        raise DataError(f"{where}: its edges have no direction; `directed 1` is needed")
    names = {node: str(attributes.get("label", node)) for node, attributes in digraph.nodes(data=True)}
    return {"names": list(names.values()), "edges": [[names[edge[0]], names[edge[1]]] for edge in digraph.edges()]}


def _parse_dot(text: str, where: str) -> dict[str, Any]:
    names, edges = parse_dot(text, where)
    return {"names": names, "edges": edges}


def _dot_quote(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


_PARSERS: Final[dict[str, Callable[[str, str], dict[str, Any]]]] = {
    ".gml": _parse_gml,
    ".dot": _parse_dot,
    ".gv": _parse_dot,
}


def _ending(where: str) -> str:
    ending = PurePosixPath(where).suffix.lower()
    if ending not in (*MAPPINGS, *_PARSERS):
        raise InputError(f"{where}: a graph is read from {', '.join((*MAPPINGS, *_PARSERS))}, not from {ending!r}")
    return ending


def _built(description: dict[str, Any], where: str) -> CausalGraph:
    try:
        return CausalGraph.from_dict(description)
    except (InputError, TypeError) as error:
        raise DataError(f"{where}: {str(error)[:1000]}") from None


def _text(content: bytes, where: str) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{where}: it is no UTF-8 text") from None
    if len(text) > MAX_CHARACTERS:
        raise DataError(f"{where}: it has {len(text)} characters, {MAX_CHARACTERS} are allowed")
    return text


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]
