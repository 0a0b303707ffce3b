"""DOT files are read as Graphviz does, in linear time."""

import pytest

from causaldiffae.errors import DataError
from causaldiffae.files.dot import parse_dot

GRAPHS = {
    'digraph "m" { a:n -> "b c":p:sw -> d; }': (["a", "b c", "d"], [["a", "b c"], ["b c", "d"]]),
    "# line\ndigraph { a = b; c // x -> y\n; graph [x=1]; edge [color=red] }": (["c"], []),
    'digraph { "a" + "b" -> <i<j>> }': (["ab", "<i<j>>"], [["ab", "<i<j>>"]]),
    "STRICT Digraph { {a b} -> subgraph x {c; d -> a} }": (
        ["a", "b", "c", "d"],
        [["d", "a"], ["a", "c"], ["a", "d"], ["a", "a"], ["b", "c"], ["b", "d"], ["b", "a"]],
    ),
    'digraph { -1.5 -> .5 [dir="forward", x] [y=z;]; "\\"q\\\\" }': (["-1.5", ".5", '"q\\'], [["-1.5", ".5"]]),
    'dag { bb="0,0,1,1" x.1 [exposure,pos="0,1"]\n y [outcome]\n x.1 -> y [pos="1,1"]\n y <- {z w}; z <- u -> w }': (
        ["x.1", "y", "z", "w", "u"],
        [["x.1", "y"], ["z", "y"], ["w", "y"], ["u", "z"], ["u", "w"]],
    ),
    "digraph { smile <- age\n age -> glasses; a [label=<-i->] }": (
        ["smile", "age", "glasses", "a"],
        [["age", "smile"], ["age", "glasses"]],
    ),
    "digraph { 0 [label=x]; 0 -> 1 [dir=both, arrowtail=none, arrowhead=normal]; 0 -> 2 [arrowhead=none, "
    "arrowtail=normal, dir=both] }": (["0", "1", "2"], [["0", "1"], ["2", "0"]]),
    "digraph{" + "{" * 16 + "b" + "}" * 16 + "}": (["b"], []),
}
ARROWS = "digraph {{ a -> b [dir=both, arrowtail={}, arrowhead={}] }}"
CAUSES, EFFECTS = (" ".join(f"{letter}{i}" for i in range(400)) for letter in "ab")


@pytest.mark.parametrize("text", GRAPHS)
def test_nodes_and_edges_are_read_in_order(text: str) -> None:
    graph = parse_dot(text, "g")
    assert (graph.nodes, graph.edges) == GRAPHS[text]


def test_attributes_of_nodes_are_kept() -> None:
    graph = parse_dot(
        'digraph { node [shape=box]; U [label="Unobserved", observed="no"]; a [latent]; U -> a [x=1] }', "g"
    )
    assert graph.attributes == {"U": {"label": "Unobserved", "observed": "no"}, "a": {"latent": "true"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected 'digraph', got 'the end'"),
        ("digraph { a -> }", "expected a name, got '}'"),
        ("digraph { a [b }", "expected a name, got '}'"),
        ("digraph { a & b }", "expected a DOT graph, got '& b }'"),
        ('digraph {\n "a }', "^g.dot:2: "),
        ("digraph { < a }", "expected a DOT graph, got '< a }'"),
        ("digraph { node }", r"expected '\[', got '}'"),
        ("digraph { a -- b }", "edge a -- b: expected edges cause -> effect, got an undirected one"),
        ("dag { a <-> {b c} }", "edge a <-> b: expected edges cause -> effect, got a bidirected one"),
        ("pag { a @-> b }", "edge a @-> b: expected edges cause -> effect, got one with a circle"),
        ("digraph { a -> b [dir=both] }", "expected edges cause -> effect, got dir=both at a -> b"),
        (ARROWS.format("normal", "normal"), "edge a <-> b: .* got a bidirected one"),
        (ARROWS.format("none", "none"), "edge a -- b: .* got an undirected one"),
        (ARROWS.format("odot", "normal"), "edge a o-> b: .* got one with a circle"),
        (ARROWS.format("diamond", "normal"), r"edge a \?-> b: expected edges cause -> effect"),
        ("digraph { edge [dir=back] a -> b }", "expected edges cause -> effect, got dir=back"),
        ("digraph { a", "expected a name, got 'the end'"),
        ("digraph" + "{" * 60, "expected at most 50 nested subgraphs"),
        (f"digraph {{ {{{CAUSES}}} -> {{{EFFECTS}}} }}", "expected at most 50000 edges"),
    ],
)
def test_other_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        parse_dot(text, "g.dot")
    assert str(caught.value).startswith("g.dot:")
