"""Graphs in files: every form reads back what was written, and what is wrong is said."""

from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causaldiffae.datasets.folder.description import parse_description
from causaldiffae.datasets.folder.graph_files import parse_graph, read_graph, write_graph
from causaldiffae.errors import DataError, InputError
from causaldiffae.graphs import CausalGraph

ENDINGS = [".yaml", ".yml", ".json", ".gml", ".dot", ".gv"]
CHAIN = CausalGraph(("b", "a", "alone", "c"), (("a", "b"), ("b", "c")))
DOWHY_GML = """graph [
  directed 1
  node [ id "Z" label "Z" ]
  node [ id "X" label "X" ]
  node [ id "Y" label "Y" ]
  edge [ source "Z" target "X" ]
  edge [ source "X" target "Y" ]
]"""


def large_graph() -> CausalGraph:
    """30 variables and 60 edges."""
    rng = np.random.default_rng(0)
    names = tuple(f"variable_{i}" for i in range(30))
    pairs = [(names[i], names[j]) for i in range(30) for j in range(i + 1, min(i + 12, 30))]
    return CausalGraph(names, tuple(pairs[k] for k in rng.choice(len(pairs), 60, replace=False)))


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_form_reads_back_what_was_written(tmp_path: Path, ending: str) -> None:
    for graph in (CHAIN, large_graph(), CausalGraph(("only",))):
        write_graph(tmp_path / f"g{ending}", graph)
        assert read_graph(tmp_path / f"g{ending}") == graph


odd_names = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(st.lists(odd_names.map(str.strip).filter(bool), min_size=2, max_size=4, unique=True), st.sampled_from(ENDINGS))
def test_odd_names_survive(tmp_path_factory: pytest.TempPathFactory, names: list[str], ending: str) -> None:
    graph = CausalGraph(tuple(names), tuple((names[0], name) for name in names[1:]))
    path = tmp_path_factory.getbasetemp() / f"odd{ending}"
    write_graph(path, graph)
    assert read_graph(path) == graph


def test_networkx_reads_what_is_written(tmp_path: Path) -> None:
    write_graph(tmp_path / "g.gml", CHAIN)
    assert set(nx.read_gml(tmp_path / "g.gml").edges) == {("a", "b"), ("b", "c")}
    write_graph(tmp_path / "g.dot", CHAIN)
    assert {tuple(n.strip('"') for n in edge[:2]) for edge in nx.nx_pydot.read_dot(tmp_path / "g.dot").edges} == {
        ("a", "b"),
        ("b", "c"),
    }


def test_forms_that_others_write() -> None:
    expected = (("Z", "X"), ("X", "Y"))
    assert parse_graph(DOWHY_GML.encode(), "g.gml").edges == expected
    dot = b'/* DoWhy */ strict digraph "m" { Z -> X -> Y; node [shape=box]; Y [label="why"]; }'
    assert parse_graph(dot, "g.dot").edges == expected
    nested = b"digraph { subgraph cluster_a { a -> b } ; {c d} -> b; e }"
    assert set(parse_graph(nested, "g.dot").edges) == {("a", "b"), ("c", "b"), ("d", "b")}
    assert set(parse_graph(nested, "g.dot").names) == set("abcde")
    table = b"names: [a, b]\nadjacency:\n- [0, 1]\n- [0, 0]\n"
    assert parse_graph(table, "g.yaml") == CausalGraph(("a", "b"), (("a", "b"),))
    assert parse_graph(b'\xef\xbb\xbf{"edges": [["a", "b"]]}'[3:], "g.json").names == ("a", "b")


def test_words_of_yaml_stay_words() -> None:
    """`no`, `on` and numbers are names like others; the order without `names` is that of `variables`, then edges."""
    text = b"variables: {on: , c: {unit: 'no'}}\nedges: [[no, on], [1, c]]\n"
    assert parse_graph(text, "g.yaml").names == ("on", "c", "no", "1")
    description = parse_description(b"edges: [[a, b]]\nvariables: {a: {categories: [no, yes]}}", "g.yaml")
    assert description.variable("a").categories == ("no", "yes") and description.variable("a").kind == "binary"


LAUGHS = b"a: &a [x, x]\nb: &b [*a, *a]\nedges: [*b, *b]\n"
INVALID = {
    "self-loop": ("g.yaml", b"edges: [[a, a]]", "g.yaml: graph: a -> a is a self-loop"),
    "cycle": ("g.yaml", b"edges: [[a, b], [b, c], [c, a]]", "g.yaml: graph: it has a cycle, a -> b -> c -> a"),
    "cycle in dot": ("g.dot", b"digraph { a -> b -> a }", "g.dot: graph: it has a cycle, a -> b -> a"),
    "cycle in gml": (
        "g.gml",
        DOWHY_GML.replace('source "Z"', 'source "Y"').encode(),
        "g.gml: graph: it has a cycle, X -> Y -> X",
    ),
    "repeated name": ("g.json", b'{"names": ["a", "a"]}', "g.json: graph: variable 'a' is named more than once"),
    "unknown key": ("g.yaml", b"nodes: [a]", "g.yaml: unknown key 'nodes', allowed are names, edges, adjacency, vari"),
    "key twice": ("g.yaml", b"edges: [[a, b]]\nedges: [[b, a]]", "a key is given twice in the mapping at line 1"),
    "key twice in json": ("g.json", b'{"names": ["a"], "names": ["b"]}', "it is no JSON (a key is given twice)"),
    "anchors": ("g.yaml", LAUGHS, "g.yaml: it is no YAML (anchors are not allowed, line 1)"),
    "tags": ("g.yaml", b"edges: !!python/object/apply:os.system [ls]", "(tags are not allowed, line 1)"),
    "no yaml": ("g.yaml", b"edges: [[a, b", "g.yaml: it is no YAML ("),
    "deep yaml": ("g.yaml", b"[" * 1200, "g.yaml: it is no YAML ("),
    "control character": ("g.yaml", b"\0", "g.yaml: it is no YAML (unacceptable character #x0000"),
    "no mapping": ("g.yaml", b"- a\n", "g.yaml: a mapping is needed, like edges: [[cause, effect]]"),
    "no text": ("g.yaml", b"\xff\xfe", "g.yaml: it is no UTF-8 text"),
    "undirected gml": ("g.gml", DOWHY_GML.replace("directed 1", "").encode(), "`directed 1` is needed"),
    "no gml": ("g.gml", b"graph [ node", "g.gml: it is no GML graph ("),
    "undirected dot": ("g.dot", b"graph { a -- b }", "g.dot: one `digraph` and nothing else is needed"),
    "two dots": ("g.dot", b"digraph { a } digraph { b }", "g.dot: one `digraph` and nothing else is needed"),
    "two-way dot": ("g.dot", b"digraph { a -> b [dir=both] }", "dir=both; only cause -> effect is read"),
    "no dot": ("g.dot", b"digraph { a -> ", "g.dot: it is no DOT graph ("),
    "rest behind dot": ("g.dot", b"digraph { a -> b } and more", "g.dot: one `digraph` and nothing else is needed"),
    "large dot": ("g.dot", b"digraph {" + b" " * 200_000 + b"}", "it has 200010 characters, 131072 are allowed"),
    "ending": ("g.txt", b"", "g.txt: a graph is read from .yaml, .yml, .json, .gml, .dot, .gv, not from '.txt'"),
}


@pytest.mark.parametrize(("name", "content", "message"), INVALID.values(), ids=INVALID.keys())
def test_a_wrong_file_is_refused(name: str, content: bytes, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_graph(content, name)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""  # pydot would print


def test_a_missing_or_large_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none.yaml: it is missing or no regular file"):
        read_graph(tmp_path / "none.yaml")
    (tmp_path / "g.yaml").write_bytes(b" " * (1 << 20) + b" ")
    with pytest.raises(DataError, match="g.yaml: it has 1048577 bytes, 1048576 are allowed"):
        read_graph(tmp_path / "g.yaml")


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["g.yaml", "g.json", "g.gml", "g.dot"]),
    st.binary(max_size=60)
    | st.text("ab[]{}:,-> \n\"'!&*graphdi01.", max_size=60).map(str.encode)
    | st.integers(0, 200).map(lambda cut: DOWHY_GML.encode()[:cut]),
)
def test_any_content_is_a_graph_or_an_input_error(name: str, content: bytes) -> None:
    try:
        graph = parse_description(content, name).graph
    except InputError as error:
        assert str(error).startswith(name)
    else:
        assert len(graph)


WRONG_DESCRIPTIONS = {
    "image_size: 8.5": "image_size is '8.5', a whole number of 8 or more is needed",
    "image_size: large": "image_size is 'large', a finite number is needed",
    "channels: [3]": r"channels is \"\['3'\]\", a finite number is needed",
    "resize: stretch": "resize is 'stretch', one of crop, area is needed",
    "split_seed: -1": "split_seed is '-1', a whole number of 0 or more is needed",
    "split_shares: [1, 0]": "split_shares is .*, three shares \\(train, val, test\\) are needed",
    "split_shares: [1, 0, .5]": r"split_shares is \[1.0, 0.0, 0.5\], shares of 0 or more that sum to 1 are needed",
    "ignore: notes": "ignore is 'notes', a list of words is needed",
    "ignore: [x, x]": "ignore is .*, one of them is given twice",
    "variables: [a]": "variables is .*, a mapping from variable to its keys is needed",
    "variables: {a: 3}": "variables: a is '3', a mapping is needed",
    "variables: {a: {size: 3}}": "variables: a: unknown key 'size', allowed are kind, unit, categories, low",
    "variables: {a: {kind: ordinal}}": "variables: a: kind is 'ordinal', one of continuous, binary, categorical is",
    "variables: {a: {scale: 0}}": "variables: a: scale is 0, a number above 0 is needed",
    "variables: {a: {low: 2, high: 1}}": "variables: a: low 2 is not below high 1",
    "variables: {a: {low: nan}}": "variables: a: low is 'nan', a finite number is needed",
    "variables: {a: {kind: binary, low: 1}}": "variables: a: low and high are for a continuous variable",
    "variables: {a: {categories: [x]}}": "variables: a: two or more categories are for a binary or categorical",
    "variables: {a: {kind: binary, categories: [x, y, z]}}": "variables: a: 3 categories are given, a",
    "variables: {a: {categories: [x, x]}}": "variables: a: categories is .*, one of them is given twice",
    "names: [split, a]": "a variable is named 'split'; that column names the image or its split",
    "names: [' a']": "variable ' a' has spaces at its ends",
}


@pytest.mark.parametrize(("text", "message"), WRONG_DESCRIPTIONS.items())
def test_a_wrong_description_is_refused(text: str, message: str) -> None:
    graph = "" if text.startswith("names") else "edges: [[a, b]]\n"
    with pytest.raises(DataError, match=f"^g.yaml: {message}"):
        parse_description(f"{graph}{text}\n".encode(), "g.yaml")
    if "variables: [" not in text and not text.startswith("names"):  # a graph alone does not mind
        assert parse_graph(f"{graph}{text}\n".encode(), "g.yaml").edges == (("a", "b"),)


def test_variables_must_be_in_a_graph_with_names() -> None:
    with pytest.raises(DataError, match="g.yaml: variables: 'c' is not in the graph, known are a, b"):
        parse_description(b"names: [a, b]\nvariables: {c: {}}\n", "g.yaml")
