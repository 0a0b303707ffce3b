"""Parses directed graphs in Graphviz's DOT language, and dagitty's models.

    digraph NAME { a -> b -> {c d}; e; subgraph s { f -> a } node [shape=box]; b [label="why"]; rankdir=LR }
    dag { bb="0,0,1,1" a [exposure,pos="0,0"]; b <- a; b <- {c d} }

Nodes and edges keep their order in the text. An edge with `dir=both` is read by its arrow heads, as causal-learn writes
it; other values of `dir` must not reverse an edge. Dagitty's `<-` is read in both languages.

pydot 4.0 is unsuitable for untrusted files because its parser backtracks: 14 nested braces take 44 s, a sequence of
3,000 blocks `{a}` (9 kB) 34 s, and 3,000 plain edges 5 s, compared with less than 0.1 s here. It also prints syntax
errors. This parser reads every token once, in time proportional to the length of the text.
"""

from __future__ import annotations

import re
from itertools import pairwise, product
from typing import Final, NamedTuple

from causaldiffae.errors import DataError
from causaldiffae.files.parsed_graph import MAX_EDGES, ParsedGraph, undirected_edge

MAX_DEPTH: Final = 50  # nested subgraphs
KINDS: Final = ("digraph", "dag", "pdag", "mag", "pag")  # the last four are dagitty's
_OPERATORS: Final = ("->", "<-", "<->", "--", "@-@", "@->", "<-@", "@--", "--@")

_TOKEN: Final = re.compile(
    r"""(?P<space>(?:\s|//[^\n]*|^\#[^\n]*|/\*.*?\*/)+)
    |"(?P<quoted>(?:[^"\\]|\\.)*)"
    |(?P<edge><->|<-@|<-|@->|@-@|@--|--@|->|--)
    |(?P<html><(?:[^<>]|<[^<>]*>)*>)
    |(?P<bare>[{}\[\];,=:+]|[^\W\d](?:[\w.]*\w)?|-?(?:\.\d+|\d+(?:\.\d*)?))""",
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)


_HTML: Final = re.compile(r"(?P<html><(?:[^<>]|<[^<>]*>)*>)")


class _Token(NamedTuple):
    text: str
    is_bare: bool  # neither quoted nor HTML: a keyword, a symbol or a name
    is_name: bool


def parse_dot(text: str, where: str) -> ParsedGraph:
    """Parses a `digraph`, or a `dag` of dagitty.

    Raises:
        DataError: starting with `where`, for invalid text or an edge that is not directed from cause to effect.
    """
    parser = _Parser(text, where)
    parser.graph()
    return ParsedGraph(list(parser.names), parser.edges, parser.node_attributes)


class _Parser:
    """Recursive descent with one token of lookahead."""

    def __init__(self, text: str, where: str) -> None:
        self.where, self.tokens, self.position = where, self.tokenise(text, where), 0
        self.names: dict[str, None] = {}
        self.edges: list[list[str]] = []
        self.node_attributes: dict[str, dict[str, str]] = {}

    @staticmethod
    def tokenise(text: str, where: str) -> list[_Token]:
        tokens: list[_Token] = []
        position = 0
        while position < len(text):
            found = _TOKEN.match(text, position)
            if found is not None and found.lastgroup == "edge" and tokens and tokens[-1].text == "=":
                found = _HTML.match(text, position) or found  # an attribute's value <-x->
            if found is None:
                line = text.count("\n", 0, position) + 1
                raise DataError(f"{where}:{line}: expected a DOT graph, got {text[position : position + 20]!r}")
            kind, position = str(found.lastgroup), found.end()
            content = found[kind]
            if kind == "quoted":
                tokens.append(_Token(content.replace('\\"', '"').replace("\\\\", "\\"), False, True))
            elif kind != "space":
                is_name = kind == "html" or (kind == "bare" and (content[-1].isalnum() or content[-1] in "_."))
                tokens.append(_Token(content, kind != "html", is_name))
        return [*tokens, _Token("the end", False, False)]

    @property
    def next(self) -> _Token:
        return self.tokens[self.position]

    def sees(self, *texts: str) -> bool:
        """Whether the next token is one of these symbols or keywords."""
        return self.next.is_bare and self.next.text.lower() in texts

    def skip(self, *texts: str) -> bool:
        """Consumes the next token if it is one of these symbols or keywords."""
        seen = self.sees(*texts)
        self.position += seen
        return seen

    def require(self, condition: bool, expected: str) -> None:
        if not condition:
            given = self.next.text
            raise DataError(f"{self.where}: DOT graph: expected {expected}, got {given!r:.40}")

    def name(self) -> str:
        """Parses a name; quoted parts may be joined by +."""
        parts: list[str] = []
        while not parts or self.skip("+"):
            self.require(self.next.is_name, "a name")
            parts.append(self.next.text)
            self.position += 1
        return "".join(parts)

    def graph(self) -> None:
        self.skip("strict")
        self.require(self.skip(*KINDS), "'digraph'")
        if self.next.is_name:
            self.name()
        self.block(0)
        self.require(self.position == len(self.tokens) - 1, "the end after one digraph")

    def block(self, depth: int) -> dict[str, None]:
        """Parses `{ statements }` and returns its nodes."""
        self.require(depth <= MAX_DEPTH, f"at most {MAX_DEPTH} nested subgraphs")
        self.require(self.skip("{"), "'{'")
        nodes: dict[str, None] = {}
        while not self.skip("}"):
            if self.sees("graph", "node", "edge"):
                is_edge = self.sees("edge")
                self.position += 1
                self.require(self.sees("["), "'['")
                given = self.attributes()
                if is_edge:
                    self.check_direction(given)
            elif not self.skip(";"):
                nodes.update(self.statement(depth))
        return nodes

    def statement(self, depth: int) -> dict[str, None]:
        """Parses `a`, `a -> b -> {c d}` or `key = value` and returns its nodes."""
        is_block = self.sees("{", "subgraph")
        ends, operators = [self.end(depth)], []
        if not is_block and self.skip("="):
            self.name()
            return {}
        self.names.update(ends[0])
        while self.sees(*_OPERATORS):
            operators.append(self.next.text)
            self.position += 1
            ends.append(self.end(depth))
            self.names.update(ends[-1])
        given = self.attributes()
        if operators:
            for (first, second), operator in zip(pairwise(ends), operators, strict=True):
                self.connect(first, operator, second, given)
        elif not is_block:
            for node in ends[0]:
                self.node_attributes.setdefault(node, {}).update(given)
        return dict.fromkeys(name for nodes in ends for name in nodes)

    def connect(self, first: dict[str, None], operator: str, second: dict[str, None], given: dict[str, str]) -> None:
        """Adds the edges between two sets of nodes; raises for edges that are not directed."""
        if len(self.edges) + len(first) * len(second) > MAX_EDGES:
            raise DataError(f"{self.where}: expected at most {MAX_EDGES} edges, got more")
        if operator == "->" and given.get("dir") == "both" and {"arrowhead", "arrowtail"} <= given.keys():
            marks = {"none": "", "normal": ">", "odot": "o"}
            tail, head = (marks.get(given[key], "?") for key in ("arrowtail", "arrowhead"))
            operator = f"{'<' if tail == '>' else tail}-{head}" if tail or head else "--"
        elif operator == "->":
            self.check_direction(given, f" at {next(iter(first), '')} -> {next(iter(second), '')}")
        for one, other in product(first, second):
            if operator not in ("->", "<-"):
                raise undirected_edge(self.where, one, operator, other)
            self.edges.append([one, other] if operator == "->" else [other, one])

    def check_direction(self, given: dict[str, str], place: str = "") -> None:
        direction = given.get("dir", "forward")
        if direction != "forward":
            raise DataError(f"{self.where}: expected edges cause -> effect, got dir={direction:.40}{place:.200}")

    def end(self, depth: int) -> dict[str, None]:
        """Parses one end of an edge, a node or a subgraph, and returns its nodes."""
        if self.skip("subgraph"):
            if self.next.is_name:
                self.name()
            return self.block(depth + 1)
        if self.sees("{"):
            return self.block(depth + 1)
        node = self.name()
        for _ in range(2):  # node:port:compass
            if self.skip(":"):
                self.name()
        return {node: None}

    def attributes(self) -> dict[str, str]:
        """Parses `[key=value, key=value] [...]`; a key without a value has the value "true"."""
        given: dict[str, str] = {}
        while self.skip("["):
            while not self.skip("]"):
                key = self.name()
                given[key] = self.name() if self.skip("=") else "true"
                self.skip(",", ";")
        return given
