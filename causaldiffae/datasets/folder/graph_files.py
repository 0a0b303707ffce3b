"""Reads causal graphs from files of many formats, by file name extension or, for text files, by their content.

YAML and JSON files contain `edges: [[cause, effect], ...]`, `edges: [cause -> effect, ...]` or `edges: {cause: [effect,
...]}` (and `names`, for variables without edges or in another order), or `names` and a 0/1 matrix `adjacency` with
[i][j] = 1 for names[i] -> names[j]. They can also contain the description of a data set (description.py), or nothing
but `cause: [effect, ...]` for each variable.

Other formats are DOT, GML and GraphML, dagitty's models, JSON of networkx, d3 and Cytoscape, the text of Tetrad and
causal-learn, Bayesian networks (BIF), lists of edges and adjacency matrices as CSV, and matrices as .npy, whose
variables have the order of the columns of the table. A line of arrows may hold the name of a variable without edges.
Nodes may have the names of columns as identifier, `label` or `name`. Nodes that are declared as unobserved are refused
if they have several effects, and else left out.

Files are untrusted: their size is limited, YAML tags and anchors are rejected, and YAML scalars are strings (so that a
category `no` is not a boolean). Every error is a `DataError` that names the file.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any, Final

import networkx as nx

from causaldiffae.datasets.folder.problems import MAX_KEPT, Problems
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.dot import KINDS, parse_dot
from causaldiffae.files.graph_formats import (
    edge_objects,
    is_graph_json,
    parse_arrows,
    parse_bif,
    parse_gml,
    parse_graph_json,
    parse_graphml,
    parse_tetrad,
)
from causaldiffae.files.graph_tables import parse_graph_table, parse_npy_matrix
from causaldiffae.files.parsed_graph import ParsedGraph
from causaldiffae.files.reading import parse_json_value
from causaldiffae.files.text import decode_text
from causaldiffae.files.yaml import parse_yaml
from causaldiffae.graphs import CausalGraph

MAX_BYTES: Final = 1 << 20
MAX_CHARACTERS: Final = 1 << 17  # of formats that are parsed in Python
MAX_REPAIRED: Final = 1000  # edges of a graph whose wrong edges are all listed
GRAPH_KEYS: Final = ("names", "edges", "adjacency")
EXTENSIONS: Final = (
    *(".yaml", ".yml", ".json", ".gml", ".dot", ".gv", ".graphml", ".xml", ".bif"),
    *(".csv", ".tsv", ".npy", ".txt", ".dag", ".dagitty"),
)
_KIND_BY_EXTENSION: Final = {
    **{".yaml": "yaml", ".yml": "yaml", ".json": "json", ".gml": "gml", ".dot": "dot", ".gv": "dot"},
    **{".graphml": "graphml", ".bif": "bif", ".csv": "table", ".tsv": "table"},
}
_KIND_BY_CONTENT: Final = (
    ("json", r"[\[{]"),
    ("graphml", r"<"),
    ("dot", rf"(strict\s+)?({'|'.join(KINDS)}|graph)\b[^\[]*?\{{"),
    ("gml", r"(Creator\b[^\n]*\n)?\s*graph\s*\["),
    ("tetrad", r"Graph Nodes:"),
    ("bif", r"(network|variable|probability)\b[^\n]*\{"),
    ("arrows", r"([^\n,;\t|]*\n)*[^\n]*\S\s*(<?--?>|=>|<--?)\s*\S"),
)
_EXAMPLE: Final = "edges: [[age, glasses]]"
_ARROW: Final = re.compile(r"--|[-=]>|<-|\bo-o\b")
_NO_NAME: Final = re.compile(rf"{_ARROW.pattern}|[,|=:\[\]{{}}<>]")
_COMMENT: Final = re.compile(r"\s+|//[^\n]*|#[^\n]*|/\*.*?\*/", re.DOTALL)
_IDENTIFIER: Final = re.compile(r"\W*[A-Za-z_]{0,8}[-_ ]?\d+")
_UNOBSERVED: Final = {
    "observed": ("no", "false", "0"),
    **dict.fromkeys(("latent", "unobserved", "u"), ("true", "yes", "1")),
}
_DOWHY_CONFOUNDERS: Final = "Unobserved Confounders"


def parse_graph(
    content: bytes,
    where: str,
    columns: Sequence[str] = (),
    problems: Problems | None = None,
    other_keys: Collection[str] = (),
) -> tuple[CausalGraph, dict[str, Any] | None]:
    """Parses the content of a file named `where`.

    Args:
        columns: names of the columns of the data set, if known, to choose between identifiers and labels of nodes.
        problems: gets one line for each invalid edge and each cycle, and the graph is returned without these edges; by
            default they are errors.
        other_keys: keys of YAML and JSON files that are not variables.

    Returns:
        The graph, and the other keys of a YAML or JSON file; None for a format without keys.

    Raises:
        DataError: starting with `where`, for a damaged file or an invalid graph.
        InputError: for an unsupported extension.
    """
    description, keys = _description(content, where, columns, {*GRAPH_KEYS, "variables", *other_keys})
    return _built(description, where, columns, problems), keys


def _description(
    content: bytes, where: str, columns: Sequence[str], known: set[str]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Names and edges, or an adjacency matrix, and the other keys of a YAML or JSON file, of which some are `known`."""
    extension = PurePosixPath(where).suffix.lower()
    if extension not in EXTENSIONS:
        raise InputError(f"{where}: expected a file name ending in {', '.join(EXTENSIONS)}, got {extension!r}")
    if extension == ".npy":
        return {"adjacency": parse_npy_matrix(content, where)}, None
    text = unicodedata.normalize("NFC", decode_text(content, where).text)
    kind = _KIND_BY_EXTENSION.get(extension) or _kind_by_content(text)
    if kind == "json":
        return _from_json(parse_json_value(text, where), where, columns, known)
    if len(text) > MAX_CHARACTERS:
        raise DataError(f"{where}: expected at most {MAX_CHARACTERS} characters, got {len(text)}")
    if kind == "yaml":
        mapping = parse_yaml(text, where)
        if not isinstance(mapping, dict):
            raise DataError(f"{where}: expected a mapping, like {_EXAMPLE}")
        return _split(mapping, where, known)
    if kind == "table":
        return parse_graph_table(content, where), None
    if kind == "arrows":
        return _from_arrows(text, where), None
    parse = {
        "dot": parse_dot,
        "gml": parse_gml,
        "graphml": parse_graphml,
        "tetrad": parse_tetrad,
        "bif": parse_bif,
    }[kind]
    return _named(parse(text, where), where, columns, prefer_labels=kind == "gml"), None


def _kind_by_content(text: str) -> str:
    position = 0
    while (found := _COMMENT.match(text, position)) is not None:
        position = found.end()
    start = text[position : position + 10_000]
    return next((kind for kind, pattern in _KIND_BY_CONTENT if re.match(pattern, start, re.IGNORECASE)), "table")


def _from_arrows(text: str, where: str) -> dict[str, Any]:
    """Names and edges of lines such as `age -> smile`; a line without an arrow names a variable."""
    names: list[str] = []
    edges: list[list[str]] = []
    for line in re.split(r"[\n;]", re.sub(r"[ \t]#[ \t].*", "", text)):
        if _COMMENT.sub("", line):
            found = [] if not _NO_NAME.search(line) else parse_arrows(line, where)
            edges += found
            names += [name for edge in found for name in edge] or [line.strip()]
    return {"names": list(dict.fromkeys(names)), "edges": edges}


def _from_json(
    value: Any, where: str, columns: Sequence[str], known: set[str]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    if is_graph_json(value):
        return _named(parse_graph_json(value, where), where, columns), None
    if isinstance(value, list):
        value = {"edges": value}
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return _split(value, where, known)


def _split(mapping: dict[str, Any], where: str, known: set[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The graph and the other keys; without `names`, variables are ordered as in `variables`, then as in `edges`."""
    if known.isdisjoint(mapping) and _maps_to_effects(mapping):
        mapping = {"edges": mapping}
    graph: dict[str, Any] = {key: mapping[key] for key in GRAPH_KEYS if key in mapping}
    variables, given = mapping.get("variables"), mapping.get("edges") or []
    if not graph and not isinstance(variables, dict):
        got = f"the keys {', '.join(map(str, mapping))}" if mapping else "no keys"
        raise DataError(f"{where}: expected a graph, like {_EXAMPLE}, got {got:.200}")
    entries = [given] if _maps_to_effects(given) else given
    if not isinstance(entries, list):
        raise DataError(f"{where}: edges: expected a list, like {_EXAMPLE}, got {str(given)!r:.80}")
    pairs = _pairs(entries, where)
    graph |= {"edges": pairs} if "edges" in mapping else {}
    causes = [name for entry in entries if _maps_to_effects(entry) for name in entry]
    if "names" not in mapping and (isinstance(variables, dict) or causes):
        ends = [name for pair in pairs if isinstance(pair, list) for name in pair if isinstance(name, str)]
        graph["names"] = list(dict.fromkeys([*(variables or ()), *causes, *ends]))
    return graph, {key: value for key, value in mapping.items() if key not in GRAPH_KEYS}


def _maps_to_effects(value: Any) -> bool:
    """Whether a value maps variables to lists of their effects, which may be empty."""
    if not isinstance(value, dict) or not value:
        return False
    lists = [[] if effects in ("", None) else effects for effects in value.values()]
    names = [*value, *(name for each in lists for name in (each if isinstance(each, list) else [None]))]
    return all(isinstance(name, str) and not _ARROW.search(name) for name in names)


def _pairs(edges: list[Any], where: str) -> list[Any]:
    """Edges as pairs, of which some are given as "cause -> effect", as objects with source and target, or by cause."""
    pairs: list[Any] = []
    for edge in edges:
        if isinstance(edge, str):
            pairs += parse_arrows(edge, where)
        elif _maps_to_effects(edge):
            pairs += [[cause, effect] for cause, effects in edge.items() for effect in effects or ()]
        else:
            pairs += edge_objects([edge], where) if isinstance(edge, dict) else [edge]
    return pairs


def _named(parsed: ParsedGraph, where: str, columns: Sequence[str] = (), prefer_labels: bool = False) -> dict[str, Any]:
    """Names and edges by the names of the nodes, without nodes that are declared as unobserved."""
    latent = {node for node in parsed.nodes if _is_latent(node, parsed.attributes.get(node, {}), columns)}
    for node in latent:
        _check_latent(node, parsed, latent, where)
    observed = [node for node in parsed.nodes if node not in latent]
    names = _choose_names(observed, parsed.attributes, columns, prefer_labels)
    edges = [[names.get(end, end) for end in edge] for edge in parsed.edges if not latent.intersection(edge)]
    return {"names": [names[node] for node in observed], "edges": edges}


def _choose_names(
    nodes: list[str], attributes: dict[str, dict[str, str]], columns: Sequence[str], prefer_labels: bool
) -> dict[str, str]:
    """Node -> its identifier, label or name: the first of these that are all columns, or else the likeliest."""
    identifiers = {node: node for node in nodes}
    candidates = [identifiers]
    for key in ("label", "name"):
        candidates.append({node: attributes.get(node, {}).get(key) or node for node in nodes})
    for candidate in candidates:
        if columns and set(_composed(list(candidate.values()))) <= set(columns):
            return candidate
    are_numbered = all(_IDENTIFIER.fullmatch(node) for node in nodes)
    for candidate in candidates[1:]:
        given = [node for node in nodes if candidate[node] != node]
        if prefer_labels and given:
            return candidate
        if are_numbered and len(given) == len(nodes) == len(set(candidate.values())):
            return candidate
    return identifiers


def _is_latent(node: str, attributes: dict[str, str], columns: Sequence[str]) -> bool:
    if node in columns or attributes.get("label") in columns:
        return False
    declared = any(attributes.get(key, "").lower() in values for key, values in _UNOBSERVED.items())
    return declared or _DOWHY_CONFOUNDERS in (node, attributes.get("label"))


def _check_latent(node: str, parsed: ParsedGraph, latent: set[str], where: str) -> None:
    """Raises `DataError` for an unobserved node that relates observed ones; others are noise of one variable."""
    effects = [effect for cause, effect in parsed.edges if cause == node]
    causes = [cause for cause, effect in parsed.edges if effect == node]
    if len(effects) > 1 or (causes and effects) or latent & {*effects, *causes}:
        names = [parsed.attributes.get(each, {}).get("label", each) for each in (*causes, *effects)]
        role = "a cause of" if not causes else "between"
        raise DataError(
            f"{where}: expected observed variables, got the unobserved {node:.80}, {role} {', '.join(names)[:200]}; "
            "remove it from the file if hidden confounding is to be ignored"
        )


def _built(
    description: dict[str, Any], where: str, columns: Sequence[str] = (), problems: Problems | None = None
) -> CausalGraph:
    """The graph; a matrix without names has the columns of the table as variables."""
    if "adjacency" in description and description.get("names") is None:
        matrix = description["adjacency"]
        if not isinstance(matrix, list) or len(matrix) != len(columns):
            got = f"; the table has {len(columns)} columns of labels" if columns else ""
            raise DataError(
                f"{where}: expected names for the variables of the matrix, got none{got}; write names and adjacency to "
                "graph.yaml"
            )
        description = {**description, "names": list(columns)}
    description = {key: _composed(value) for key, value in description.items()}
    try:
        return CausalGraph.from_dict(description)
    except (InputError, TypeError) as error:
        message = f"{where}: {str(error)[:1000]}"
        if problems is not None and (graph := _without_wrong_edges(description, where, problems)) is not None:
            return graph
        raise DataError(message) from None


def _without_wrong_edges(description: dict[str, Any], where: str, problems: Problems) -> CausalGraph | None:
    """The graph without invalid edges and one edge of each cycle, which are reported; None if more is wrong."""
    found, kept = Problems(), dict[tuple[str, str], None]()
    try:
        edges = [tuple(edge) for edge in description.get("edges") or ()]
        names = description.get("names") or list(dict.fromkeys(name for edge in edges for name in edge))
        graph = CausalGraph(tuple(names))
        if len(edges) > MAX_REPAIRED or "adjacency" in description:
            return None
        for edge in edges:
            try:
                CausalGraph(graph.names, (edge, edge) if edge in kept else (edge,))  # type: ignore[arg-type]
                kept[edge] = None  # type: ignore[index]
            except InputError as error:
                found.add(f"{where}: {str(error)[:1000]}")
        while (cycle := _cycle(graph.names, kept)) and found.count < MAX_KEPT:
            found.add(f"{where}: graph: expected no cycles, got {' -> '.join([*cycle, cycle[0]])}")
            del kept[cycle[-1], cycle[0]]
        graph = CausalGraph(graph.names, tuple(kept))
    except (InputError, TypeError):
        return None
    problems.extend(found)
    return graph


def _cycle(names: Sequence[str], edges: Iterable[tuple[str, str]]) -> list[str]:
    """The variables of a cycle in their order; empty if there is none."""
    digraph = nx.DiGraph()
    digraph.add_nodes_from(names)
    digraph.add_edges_from(edges)
    try:
        return [cause for cause, _ in nx.find_cycle(digraph)]
    except nx.NetworkXNoCycle:
        return []


def _composed(value: Any, levels: int = 2) -> Any:
    """Names and edges with their strings in Unicode's composed form (NFC), as in tables."""
    if isinstance(value, list) and levels:
        return [_composed(each, levels - 1) for each in value]
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else value
