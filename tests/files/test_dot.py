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
    "digraph{" + "{" * 16 + "b" + "}" * 16 + "}": (["b"], []),
}
CAUSES, EFFECTS = (" ".join(f"{letter}{i}" for i in range(400)) for letter in "ab")


@pytest.mark.parametrize("text", GRAPHS)
def test_nodes_and_edges_are_read_in_order(text: str) -> None:
    assert tuple(parse_dot(text, "g")) == GRAPHS[text]


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
        ("digraph { a -- b }", "expected edges cause -> effect"),
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
