"""Parses directed graphs in Graphviz's DOT language.

    digraph NAME { a -> b -> {c d}; e; subgraph s { f -> a } node [shape=box]; b [label="why"]; rankdir=LR }

Nodes and edges keep their order in the text. Attributes are ignored, except that `dir` must not reverse an edge.

pydot 4.0 is unsuitable for untrusted files because its parser backtracks: 14 nested braces take 44 s, a sequence of
3,000 blocks `{a}` (9 kB) 34 s, and 3,000 plain edges 5 s, compared with less than 0.1 s here. It also prints syntax
errors. This parser reads every token once, in time proportional to the length of the text.
"""

from __future__ import annotations

import re
from itertools import pairwise, product
from typing import Final, NamedTuple

from causaldiffae.errors import DataError

MAX_DEPTH: Final = 50  # nested subgraphs
MAX_EDGES: Final = 50_000  # {a b} -> {c d} is four

_TOKEN: Final = re.compile(
    r"""(?P<space>(?:\s|//[^\n]*|^\#[^\n]*|/\*.*?\*/)+)
    |"(?P<quoted>(?:[^"\\]|\\.)*)"
    |(?P<html><(?:[^<>]|<[^<>]*>)*>)
    |(?P<bare>->|--|[{}\[\];,=:+]|[^\W\d]\w*|-?(?:\.\d+|\d+(?:\.\d*)?))""",
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)


class DotGraph(NamedTuple):
    """Nodes and edges [cause, effect], in the order of the text."""

    names: list[str]
    edges: list[list[str]]


class _Token(NamedTuple):
    text: str
    is_bare: bool  # neither quoted nor HTML: a keyword, a symbol or a name
    is_name: bool


def parse_dot(text: str, where: str) -> DotGraph:
    """Parses a `digraph`.

    Raises:
        DataError: starting with `where`, for invalid text or an edge that is not directed forward.
    """
    parser = _Parser(text, where)
    parser.graph()
    return DotGraph(list(parser.names), parser.edges)


class _Parser:
    """Recursive descent with one token of lookahead."""

    def __init__(self, text: str, where: str) -> None:
        self.where, self.tokens, self.position = where, self.tokenise(text, where), 0
        self.names: dict[str, None] = {}
        self.edges: list[list[str]] = []

    @staticmethod
    def tokenise(text: str, where: str) -> list[_Token]:
        tokens, position = [], 0
        while position < len(text):
            found = _TOKEN.match(text, position)
            if found is None:
                line = text.count("\n", 0, position) + 1
                raise DataError(f"{where}:{line}: expected a DOT graph, got {text[position : position + 20]!r}")
            kind, position = str(found.lastgroup), found.end()
            content = found[kind]
            if kind == "quoted":
                tokens.append(_Token(content.replace('\\"', '"').replace("\\\\", "\\"), False, True))
            elif kind != "space":
                is_name = kind == "html" or content[-1].isalnum() or content[-1] in "_."
                tokens.append(_Token(content, kind == "bare", is_name))
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
        self.require(self.skip("digraph"), "'digraph'")
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
                self.attributes(is_edge)
            elif not self.skip(";"):
                nodes.update(self.statement(depth))
        return nodes

    def statement(self, depth: int) -> dict[str, None]:
        """Parses `a`, `a -> b -> {c d}` or `key = value` and returns its nodes."""
        is_block = self.sees("{", "subgraph")
        ends = [self.end(depth)]
        if not is_block and self.skip("="):
            self.name()
            return {}
        self.names.update(ends[0])
        while self.skip("->"):
            ends.append(self.end(depth))
            self.names.update(ends[-1])
        self.require(not self.sees("--"), "edges cause -> effect")
        self.attributes(len(ends) > 1)
        for causes, effects in pairwise(ends):
            if len(self.edges) + len(causes) * len(effects) > MAX_EDGES:
                raise DataError(f"{self.where}: expected at most {MAX_EDGES} edges, got more")
            self.edges += [[cause, effect] for cause, effect in product(causes, effects)]
        return dict.fromkeys(name for nodes in ends for name in nodes)

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

    def attributes(self, is_edge: bool) -> None:
        """Parses `[key=value, key=value] [...]`; raises for an edge that is not directed forward."""
        while self.skip("["):
            while not self.skip("]"):
                key = self.name()
                value = self.name() if self.skip("=") else "true"
                if is_edge and key == "dir" and value != "forward":
                    raise DataError(f"{self.where}: expected edges cause -> effect, got dir={value:.40}")
                self.skip(",", ";")
