"""Graph files: all formats are read, everything invalid is refused by name, and no content hangs."""

import io
import json
import unicodedata

import networkx as nx
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from causaldiffae.datasets.folder.description import parse_description
from causaldiffae.datasets.folder.graph_files import parse_graph
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.errors import DataError, InputError
from causaldiffae.graphs import CausalGraph

DOWHY_GML = """graph [
  directed 1
  node [ id "Z" label "Z" ]
  node [ id "X" label "X" ]
  node [ id "Y" label "Y" ]
  edge [ source "Z" target "X" ]
  edge [ source "X" target "Y" ]
]"""


def written(graph: CausalGraph, ending: str) -> str:
    """A graph as libraries write it."""
    if ending == "json":
        return json.dumps(graph.to_dict())
    if ending in ("yaml", "yml"):
        return yaml.safe_dump(graph.to_dict(), allow_unicode=True, sort_keys=False)
    if ending == "gml":
        return "\n".join(nx.generate_gml(graph.digraph))
    quoted = {name: '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"' for name in graph.names}
    return str(nx.nx_pydot.to_pydot(nx.relabel_nodes(graph.digraph, quoted)))


names = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=8)
names = names.map(lambda name: unicodedata.normalize("NFC", name).strip())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(names.filter(bool), min_size=1, max_size=4, unique=True),
    st.sampled_from(["yaml", "yml", "json", "gml", "dot", "gv"]),
)
def test_any_graph_that_a_library_writes_is_read(names: list[str], ending: str) -> None:
    graph = CausalGraph(tuple(names), tuple((names[0], name) for name in names[1:]))
    assert parse_graph(written(graph, ending).encode(), f"g.{ending}")[0] == graph


def parsed(content: bytes | str, name: str) -> CausalGraph:
    return parse_graph(content if isinstance(content, bytes) else content.encode(), name)[0]


def test_files_that_others_write_are_read() -> None:
    expected = (("Z", "X"), ("X", "Y"))
    assert parsed(DOWHY_GML, "g.gml").edges == expected
    dot = '/* DoWhy */ strict digraph "m" { Z -> X -> Y; node [shape=box]; Y [label="why"]; }'
    assert parsed(dot, "g.dot").edges == expected
    nested = parsed("digraph { subgraph cluster_a { a -> b } ; {c d} -> b; e }", "g.dot")
    assert set(nested.edges) == {("a", "b"), ("c", "b"), ("d", "b")} and set(nested.names) == set("abcde")
    assert parsed("names: [a, b]\nadjacency:\n- [0, 1]\n- [0, 0]\n", "g.yaml") == CausalGraph(("a", "b"), (("a", "b"),))


def test_comments_end_lines_of_arrows() -> None:
    text = "# causes\nage -> smile # known\nage -> n#1\n"
    assert parsed(text, "g.txt").edges == (("age", "smile"), ("age", "n#1"))


def test_yaml_scalars_are_text() -> None:
    """`no`, `on` and numbers are names; without `names`, the order is that of `variables`, then of the edges."""
    text = b"variables: {on: , c: {unit: 'no'}}\nedges: [[no, on], [1, c]]\n"
    assert parsed(text, "g.yaml").names == ("on", "c", "no", "1")
    variables = parse_description(b"edges: [[a, b]]\nvariables: {a: {categories: [no, yes]}}", "g.yaml").variables
    assert variables["a"].categories == ("no", "yes") and variables["a"].kind == "binary"


EDGES = (("age", "smile"), ("age", "glasses"))
AS_WRITTEN = {
    "dagitty.txt": 'dag {\nbb="0,0,1,1"\nage [exposure,pos="0,0"]\nsmile [outcome]\nage -> smile\nglasses <- age\n}',
    "dagitty.dot": "# model\ndag { age -> smile age -> glasses }",
    "pydot.txt": "/* */ digraph { age -> smile; age -> glasses }",
    "gml.txt": "graph [\ndirected 1\nnode [ id 0 label age ]\n]".replace("age", '"age"'),
    "tetrad.txt": "Graph Nodes:\nage;smile;glasses\n\nGraph Edges:\n1. age --> smile\n2. age --> glasses",
    "arrows.txt": "# edges\nage -> smile\nglasses <- age\n",
    "edges.csv": "from,to\nage,smile\nage,glasses\n",
    "matrix.tsv": "\tage\tsmile\tglasses\nage\t0\t1\t1\nsmile\t0\t0\t0\nglasses\t0\t0\t0\n",
    "node-link.json": '{"nodes": [{"id": "age"}, {"id": "smile"}, {"id": "glasses"}], '
    '"links": [{"source": "age", "target": "smile"}, {"source": "age", "target": "glasses"}]}',
    "pairs.json": '[["age", "smile"], ["age", "glasses"]]',
    "network.bif": "variable age {\n}\nvariable smile {\n}\nvariable glasses {\n}\n"
    "probability ( smile | age ) {}\nprobability ( glasses | age ) {}",
    "arrows.yaml": "edges:\n- age -> smile\n- glasses <- age\n",
}


@pytest.mark.parametrize("name", [name for name in AS_WRITTEN if name != "gml.txt"])
def test_formats_of_other_tools_are_read(name: str) -> None:
    graph = parsed(AS_WRITTEN[name], name)
    assert set(graph.edges) == set(EDGES) and set(graph.names) == {"age", "smile", "glasses"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("edges.yaml", "edges: {age: [smile, glasses], hat: []}\nimage_size: 32"),
        ("edges.yaml", "edges:\n- age: [smile, glasses]\n- hat:\n"),
        ("bare.yaml", "age: [smile, glasses]\nhat:\n"),
        ("bare.json", '{"age": ["smile", "glasses"], "smile": [], "hat": []}'),
        ("arrows.txt", "hat\n# causes\nage -> smile\nglasses <- age\n"),
        ("arrows.txt", "age -> smile; glasses <- age; hat # the last\n"),
    ],
)
def test_variables_with_their_effects_and_variables_without_edges(name: str, text: str) -> None:
    graph = parse_description(text.encode(), name).graph
    assert set(graph.edges) == set(EDGES) and set(graph.names) == {"age", "smile", "glasses", "hat"}


@pytest.mark.parametrize("name", sorted(AS_WRITTEN))
def test_formats_of_other_tools_have_no_keys(name: str) -> None:
    assert parse_description(AS_WRITTEN[name].encode(), name).has_keys is (name in ("arrows.yaml", "pairs.json"))


def test_text_files_are_told_apart_by_their_content() -> None:
    assert parsed(AS_WRITTEN["gml.txt"], "g.txt").names == ("age",)
    assert parsed("".join(nx.generate_graphml(nx.DiGraph([("a", "b")]))), "g.xml").edges == (("a", "b"),)
    assert parsed("names: [Gr\u00f6\u00dfe]".encode("utf-16"), "g.yaml").names == ("Gr\u00f6\u00dfe",)


LABELS = 'digraph { n0 [label="age"]; n1 [label="smile"]; n0 -> n1 }'
NAMES = 'graph [ directed 1 node [ id 3 name "age" ] node [ id 7 name "smile" ] edge [ source 3 target 7 ] ]'
CAUSAL_LEARN = """digraph { fontsize=18; 0 [label=age]; 1 [label=smile];
0 -> 1 [dir=both, arrowtail=none, arrowhead=normal]; }"""


@pytest.mark.parametrize(("name", "text"), [("g.dot", LABELS), ("g.gml", NAMES), ("g.dot", CAUSAL_LEARN)])
def test_labels_are_names_where_nodes_are_numbered(name: str, text: str) -> None:
    assert parsed(text, name) == CausalGraph(("age", "smile"), (("age", "smile"),))


def test_columns_decide_between_identifiers_and_labels() -> None:
    assert parse_graph(LABELS.encode(), "g.dot", ("n0", "n1", "x"))[0].names == ("n0", "n1")
    text = 'digraph { a [label="Age (years)"]; b [label="smile"]; a -> b }'
    assert parsed(text, "g.dot").names == ("a", "b")
    assert parse_graph(text.encode(), "g.dot", ("smile", "Age (years)"))[0].names == ("Age (years)", "smile")


def test_a_matrix_without_names_has_the_columns_of_the_table() -> None:
    file = io.BytesIO()
    np.save(file, np.array([[0, 1], [0, 0]]))
    assert parse_graph(file.getvalue(), "g.npy", ("age", "smile"))[0].edges == (("age", "smile"),)
    with pytest.raises(
        DataError, match="g.npy: expected names for the variables of the matrix, got none; the table has 1"
    ):
        parse_graph(file.getvalue(), "g.npy", ("age",))


@pytest.mark.parametrize("declared", ['observed="no"', "latent", "unobserved", 'label="Unobserved Confounders"'])
def test_unobserved_common_causes_are_refused(declared: str) -> None:
    text = f"digraph {{ U [{declared}]; age -> smile; U -> age; U -> smile }}"
    with pytest.raises(
        DataError, match="g.dot: expected observed variables, got the unobserved U, a cause of age, smile"
    ):
        parsed(text, "g.dot")
    assert parsed(text.replace("U -> age;", ""), "g.dot").names == ("age", "smile"), "noise of one variable is left out"
    assert "U" in parse_graph(text.encode(), "g.dot", ("U", "age", "smile"))[0].names, "it is labelled"


def test_marks_of_missing_labels_are_declared_for_all_variables_or_one() -> None:
    text = b"names: [a, b]\nmissing: [-999]\nvariables: {a: {missing: [x]}}\ngroup: patient\nvalue_range: [0, 4095]\n"
    description = parse_description(text, "g.yaml")
    assert description.variable("a").missing == ("x", "-999") and description.variable("b").missing == ("-999",)
    assert description.group == "patient" and description.value_range == (0, 4095)


EXAMPLE = "like edges: [[age, glasses]]"
LAUGHS = "a: &a [x, x]\nb: &b [*a, *a]\nedges: [*b, *b]\n"
BACKWARDS = DOWHY_GML.replace('source "Z"', 'source "Y"')


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("g.yaml", "edges: [[a, a]]", "g.yaml: graph: expected no self-loops, got edge a -> a"),
        ("g.yaml", "edges: [[a, b], [b, c], [c, a]]", "g.yaml: graph: expected no cycles, got a -> b -> c -> a"),
        ("g.dot", "digraph { a -> b -> a }", "g.dot: graph: expected no cycles, got a -> b -> a"),
        ("g.gml", BACKWARDS, "g.gml: graph: expected no cycles, got X -> Y -> X"),
        ("g.json", '{"names": ["a", "a"]}', "g.json: graph: expected unique variable names, got 'a' 2 times"),
        ("g.yaml", "edges: [[a, b]]\nedges: [[b, a]]", "line 1"),
        ("g.json", '{"names": ["a"], "names": ["b"]}', "(repeated key)"),
        ("g.yaml", LAUGHS, "line 1"),
        ("g.yaml", "edges: !!python/object/apply:os.system [ls]", "line 1"),
        ("g.yaml", "edges: [[a, b", "g.yaml: "),
        ("g.yaml", "[" * 1200, "g.yaml: "),
        ("g.yaml", "\0", "g.yaml: expected UTF-8, UTF-16 or Windows-1252 text"),
        ("g.yaml", "- a\n", "g.yaml: expected a mapping, like edges: [[age, glasses]]"),
        ("g.yaml", b"\xff\x81", "g.yaml: expected UTF-8, UTF-16 or Windows-1252 text"),
        ("g.gml", DOWHY_GML.replace("directed 1", ""), "g.gml: expected a directed graph (`directed 1`)"),
        ("g.gml", "graph [ node", "g.gml: expected a GML graph ("),
        ("g.dot", "graph { a -- b }", "g.dot: DOT graph: expected 'digraph', got 'graph'"),
        ("g.dot", "digraph { a } digraph { b }", "DOT graph: expected the end after one digraph, got 'digraph'"),
        ("g.dot", "digraph { a -> b [dir=both] }", "g.dot: expected edges cause -> effect, got dir=both"),
        ("g.dot", "digraph {" + " " * 200_000 + "}", "g.dot: expected at most 131072 characters, got 200010"),
        ("g.txt", "", "g.txt: expected an adjacency matrix or a list of edges, got an empty file"),
        ("g.docx", "", "g.docx: expected a file name ending in .yaml, .yml, .json, .gml, .dot, .gv, .graphml"),
        ("g.yaml", "edges: [a <-> b]", "edge a <-> b: expected edges cause -> effect, got a bidirected one"),
        (
            "g.json",
            '{"nodes": [{"id": "a"}], "edges": [{"source": "a", "target": "b"}]}',
            "a -> b: expected variables among a",
        ),
        (
            "g.json",
            '{"edges": ' + "[" * 900 + "]" * 900 + "}",
            "g.json: graph: expected an edge [cause, effect], got [[",
        ),
        ("g.json", "3", "g.json: expected a JSON object, got int"),
        ("g.yaml", "edges: age -> glasses; smile", f"g.yaml: edges: expected a list, {EXAMPLE}, got 'age -> glasses; "),
        ("g.yaml", "edges: {from: age, to: smile}", f"g.yaml: edges: expected a list, {EXAMPLE}, got "),
        ("g.yaml", "edgse: [age -> glasses]", f"g.yaml: expected a graph, {EXAMPLE}, got the keys edgse"),
        ("g.yaml", "age: [glasses]\nignore: [smile]", f"g.yaml: expected a graph, {EXAMPLE}, got the keys age, ignore"),
        ("g.json", "{}", f"g.json: expected a graph, {EXAMPLE}, got no keys"),
        ("g.txt", "a -> b\nc, d\n", "g.txt: expected an edge like age -> smile, got 'c, d'"),
        ("g.txt", "a -> b\nc o-o d\n", "g.txt: edge c o-o d: expected edges cause -> effect"),
        ("g.json", '[{"a": 1}]', "edges: expected objects with source and target"),
    ],
)
def test_an_invalid_file_is_refused(
    name: str, content: bytes | str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    content = content if isinstance(content, bytes) else content.encode()
    with pytest.raises(InputError) as caught:
        parse_description(content, name, problems=Problems())  # also where single wrong edges are only collected
        parse_description(content, name)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr().out == "", "nothing is printed"


WHOLE, NUMBER = "expected a non-negative integer, got ", "expected a finite number, got "
WORDS = "of distinct strings, got "
SHARES = r"split_shares: expected three non-negative fractions \(train, val, test\) that sum to 1, got "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes: [a]", "unknown key 'nodes', expected one of names, edges, adjacency, variables, name, image_size"),
        ("variabels: {a: {}}", "unknown key 'variabels', expected one of .*; did you mean `variables`\\?$"),
        ("xyz: 1", "unknown key 'xyz', expected one of .*, value_range$"),
        ("image_size: 8.5", "image_size: " + WHOLE + "'8.5'"),
        ("image_size: large", "image_size: " + WHOLE + "'large'"),
        ("channels: [3]", "channels: " + WHOLE),
        ("resize: stretch", "resize: expected one of crop, area, pad, got 'stretch'"),
        ("split_seed: -1", "split_seed: " + WHOLE + "'-1'"),
        ("split_shares: [1, 0]", SHARES),
        ("split_shares: [1, 0, .5]", SHARES),
        ("split_shares: [2, -1, 0]", SHARES),
        ("group: a", "group: expected a column that is no variable, got 'a'"),
        ("value_range: [1, 0]", r"value_range: expected two increasing numbers, like \[0, 4095\], got "),
        ("value_range: 3", "value_range: expected two increasing numbers"),
        ("missing: -999", "missing: expected a list " + WORDS + "'-999'"),
        ("ignore: notes", "ignore: expected a list " + WORDS + "'notes'"),
        ("ignore: [x, x]", "ignore: expected a list " + WORDS),
        ("variables: [a]", "variables: expected a mapping from variable to its keys, got "),
        ("variables: {a: 3}", "variables: a: expected a mapping, like {kind: binary}, got '3'"),
        ("variables: {a: {size: 3}}", "variables: a: unknown key 'size', expected one of kind, unit, categories, low"),
        ("variables: {a: {kind: ordinal}}", "variables: a: kind: expected one of continuous, binary, categorical, got"),
        ("variables: {a: {scale: 0}}", "variables: a: scale: expected a positive number, got 0"),
        ("variables: {a: {low: 2, high: 1}}", "variables: a: low: expected a number below high 1, got 2"),
        ("variables: {a: {low: nan}}", "variables: a: low: " + NUMBER + "'nan'"),
        ("variables: {a: {kind: binary, low: 1}}", "variables: a: low, high: expected none for a binary variable"),
        ("variables: {a: {categories: [x]}}", "variables: a: categories: expected two or more names"),
        ("variables: {a: {kind: binary, categories: [x, y, z]}}", "variables: a: categories: expected 2 .*, got 3"),
        ("variables: {a: {categories: [x, x]}}", "variables: a: categories: expected a list " + WORDS),
        ("names: [split, a]", "expected a variable name other than file, filename, split, got 'split'"),
        ("names: [' a']", "variable ' a': expected a name with single spaces between words only"),
        ("names: [a, b]\nvariables: {c: {}}", "variables: expected names among a, b, got 'c'"),
    ],
)
def test_an_invalid_description_is_refused(text: str, message: str) -> None:
    edges = "" if text.startswith("names") else "edges: [[a, b]]\n"
    with pytest.raises(InputError, match=f"^g.yaml: {message}"):
        parse_description(f"{edges}{text}\n".encode(), "g.yaml")
