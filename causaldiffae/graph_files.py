"""Causal graphs in files: YAML, JSON, GML and DOT, told apart by the file name's ending.

YAML and JSON hold `edges: [[cause, effect], ...]` (with `names` where some variable has no edge or the order matters),
or `names` and a 0/1 matrix `adjacency` whose entry [i][j] is 1 for names[i] -> names[j]. They may hold a data set's
description as well (`folder_description.py`), which is passed over here. GML and DOT are what networkx and DoWhy read.

Files may come from strangers: they are small or refused, YAML has neither tags nor anchors, and every scalar in it is
text (so that a category `no` stays the word). Whatever is wrong is a `DataError` that names the file.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Final

import networkx as nx
import yaml

from causaldiffae.errors import DataError, InputError
from causaldiffae.folders.storage import read_address
from causaldiffae.graphs import CausalGraph
from causaldiffae.safe_files import parse_json

MAX_BYTES: Final = 1 << 20
MAX_DOT_BYTES: Final = 1 << 17  # its parser takes seconds for more
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
    text = _text(content, where)
    try:
        mapping = _TextLoader(text).get_single_data()
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"{where}: it is no YAML ({_one_line(error)})") from None
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


class _TextLoader(yaml.BaseLoader):
    """YAML whose scalars are all text, without tags, anchors and repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.YAMLError(f"anchors are not allowed, line {event.start_mark.line + 1}")
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError(f"tags are not allowed, line {event.start_mark.line + 1}")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            raise yaml.YAMLError(f"a key is given twice in the mapping at line {node.start_mark.line + 1}")
        return mapping


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
    import pydot

    if len(text) > MAX_DOT_BYTES:
        raise DataError(f"{where}: it has {len(text)} characters, {MAX_DOT_BYTES} are allowed")
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):  # pydot prints what is wrong
            graphs = pydot.graph_from_dot_data(f"{text}\ndigraph end {{}}\n")  # it stops in silence at what is no graph
    except Exception as error:  # and raises the rest
        raise DataError(f"{where}: it is no DOT graph ({_one_line(error)})") from None
    if not graphs:
        raise DataError(f"{where}: it is no DOT graph ({_one_line(printed.getvalue().strip())})")
    if len(graphs) != 2 or graphs[0].get_type() != "digraph":
        raise DataError(f"{where}: one `digraph` and nothing else is needed")
    names: dict[str, None] = {}
    edges: list[list[str]] = []
    _walk_dot(graphs[0], names, edges, where)
    return {"names": list(names), "edges": edges}


def _walk_dot(graph: Any, names: dict[str, None], edges: list[list[str]], where: str) -> None:
    """Adds the nodes and edges of a DOT graph and of its subgraphs, in the order of the text."""
    parts = [*graph.get_node_list(), *graph.get_edge_list(), *graph.get_subgraph_list()]
    for part in sorted(parts, key=lambda part: part.get_sequence() or 0):
        if hasattr(part, "get_source"):
            if _dot_unquote(str(part.get("dir") or "forward")) != "forward":
                raise DataError(f"{where}: an edge has dir={part.get('dir')}; only cause -> effect is read")
            causes, effects = (_dot_ends(end, names) for end in (part.get_source(), part.get_destination()))
            edges += [[cause, effect] for cause in causes for effect in effects]
        elif hasattr(part, "get_node_list"):
            _walk_dot(part, names, edges, where)
        elif part.get_name() not in ("node", "edge", "graph", '"\\n"', '"\\r\\n"'):
            names.setdefault(_dot_unquote(part.get_name()))


def _dot_ends(end: Any, names: dict[str, None]) -> list[str]:
    """The nodes at one end of an edge: a name, or all in `{a b}`."""
    found = [end] if isinstance(end, str) else [str(name) for name in end.get("nodes", ())]
    found = [_dot_unquote(name) for name in found]
    names.update(dict.fromkeys(found))
    return found


def _dot_quote(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _dot_unquote(name: str) -> str:
    if len(name) < 2 or name[0] != '"' or name[-1] != '"':
        return name
    return name[1:-1].replace('\\"', '"').replace("\\\\", "\\")


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
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{where}: it is no UTF-8 text") from None


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]
