"""Directed graphs in the DOT language of Graphviz, as far as a causal graph needs it.

    digraph NAME { a -> b -> {c d}; e; subgraph s { f -> a } node [shape=box]; b [label="why"]; rankdir=LR }

Nodes and edges are read, in the order of the text; attributes are passed over, except that an edge must not be turned
around (`dir`). The reader goes through the text once, without trying again: its time is proportional to the length,
where general DOT parsers backtrack (pydot needs minutes for 40 bytes of nested braces).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise, product
from typing import Final, NamedTuple

from causaldiffae.errors import DataError

MAX_DEPTH: Final = 50  # of subgraphs in subgraphs
MAX_EDGES: Final = 50_000  # {a b} -> {c d} stands for four

_TOKEN: Final = re.compile(
    r"""(?P<space>(?:\s|//[^\n]*|^\#[^\n]*|/\*.*?\*/)+)
    |(?P<quoted>"(?:[^"\\]|\\.)*")
    |(?P<name>[^\W\d]\w*|-?(?:\.\d+|\d+(?:\.\d*)?))
    |(?P<mark>->|--|[{}\[\];,=:+])
    |(?P<html><)""",
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_END: Final = ""


class DotGraph(NamedTuple):
    """The nodes and the edges (cause, effect), each in the order of the text."""

    names: list[str]
    edges: list[list[str]]


class _Token(NamedTuple):
    kind: str  # "name" (a quoted one too) or "mark"; "end" behind the last
    text: str
    bare: bool  # not quoted, so that it may be a keyword


def parse_dot(text: str, where: str) -> DotGraph:
    """Reads one `digraph`.

    Raises:
        DataError: starting with `where`, if the text is none, or an edge has another direction than cause -> effect.
    """
    return _Reader(text, where).graph()


def _tokens(text: str, where: str) -> Iterator[_Token]:
    place = 0
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            raise DataError(f"{where}: it is no DOT graph ({_shown(text[place:])} in line {_line(text, place)})")
        kind, content, place = str(found.lastgroup), found.group(), found.end()
        if kind == "html":
            place = _html_end(text, place, where)
            yield _Token("name", text[found.start() : place], False)
        elif kind == "quoted":
            yield _Token("name", content[1:-1].replace('\\"', '"').replace("\\\\", "\\"), False)
        elif kind != "space":
            yield _Token(kind, content, True)


def _html_end(text: str, place: int, where: str) -> int:
    """Behind the bracket that closes the one before `place`."""
    depth = 1
    for found in re.compile("[<>]").finditer(text, place):
        depth += 1 if found.group() == "<" else -1
        if not depth:
            return found.end()
    raise DataError(f"{where}: it is no DOT graph (a < without > in line {_line(text, place)})")


class _Reader:
    """Recursive descent, one token ahead."""

    def __init__(self, text: str, where: str) -> None:
        self.where = where
        self.tokens = _tokens(text, where)
        self.names: dict[str, None] = {}
        self.edges: list[list[str]] = []
        self.next = _Token("end", _END, False)
        self.advance()

    def advance(self) -> _Token:
        token, self.next = self.next, next(self.tokens, _Token("end", _END, False))
        return token

    def sees(self, *marks: str) -> bool:
        return self.next.kind == "mark" and self.next.text in marks

    def is_word(self, *words: str) -> bool:
        return self.next.kind == "name" and self.next.bare and self.next.text.lower() in words

    def refuse(self, needed: str) -> DataError:
        shown = _shown(self.next.text) if self.next.kind != "end" else "its end"
        return DataError(f"{self.where}: it is no DOT graph ({shown} where {needed} is needed)")

    def expect(self, mark: str) -> None:
        if not self.sees(mark):
            raise self.refuse(repr(mark))
        self.advance()

    def name(self) -> str:
        """A name; quoted pieces may be joined by +."""
        if self.next.kind != "name":
            raise self.refuse("a name")
        pieces = [self.advance().text]
        while self.sees("+"):
            self.advance()
            if self.next.kind != "name":
                raise self.refuse("a name")
            pieces.append(self.advance().text)
        return "".join(pieces)

    def graph(self) -> DotGraph:
        if self.is_word("strict"):
            self.advance()
        if not self.is_word("graph", "digraph"):
            raise self.refuse("'digraph'")
        directed = self.advance().text.lower() == "digraph"
        if self.next.kind == "name":
            self.name()
        if not directed:
            raise DataError(f"{self.where}: one `digraph` and nothing else is needed")
        self.block(0)
        if self.next.kind != "end":
            raise DataError(f"{self.where}: one `digraph` and nothing else is needed")
        return DotGraph(list(self.names), self.edges)

    def block(self, depth: int) -> dict[str, None]:
        """`{ statements }`; returns the nodes in it."""
        if depth > MAX_DEPTH:
            raise DataError(f"{self.where}: it is no DOT graph ({MAX_DEPTH} nested subgraphs are allowed)")
        self.expect("{")
        inside: dict[str, None] = {}
        while not self.sees("}"):
            if self.sees(";"):
                self.advance()
            elif self.is_word("graph", "node", "edge"):
                kind = self.advance().text.lower()
                attributes = self.attributes()
                if kind == "edge":
                    self.check_direction(attributes)
            else:
                inside.update(self.chain(depth))
        self.advance()
        return inside

    def chain(self, depth: int) -> dict[str, None]:
        """`a`, `a -> b -> {c d}` or `key = value`; returns the nodes in it."""
        is_block, nodes = self.end(depth)
        if not is_block and self.sees("="):
            self.advance()
            self.name()
            return {}
        ends = [nodes]
        self.names.update(nodes)
        while self.sees("->", "--"):
            if self.advance().text == "--":
                raise DataError(f"{self.where}: it has an edge --; only cause -> effect is read")
            ends.append(self.end(depth)[1])
            self.names.update(ends[-1])
        attributes = self.attributes() if self.sees("[") else {}
        if len(ends) > 1:
            self.check_direction(attributes)
        for causes, effects in pairwise(ends):
            if len(self.edges) + len(causes) * len(effects) > MAX_EDGES:
                raise DataError(f"{self.where}: it has more than {MAX_EDGES} edges")
            self.edges += [[cause, effect] for cause, effect in product(causes, effects)]
        return dict.fromkeys(name for nodes in ends for name in nodes)

    def end(self, depth: int) -> tuple[bool, dict[str, None]]:
        """One end of an edge: whether it is a subgraph, and its nodes."""
        if self.is_word("subgraph"):
            self.advance()
            if self.next.kind == "name":
                self.name()
            return True, self.block(depth + 1)
        if self.sees("{"):
            return True, self.block(depth + 1)
        node = self.name()
        for _ in range(2):  # node:port:compass
            if self.sees(":"):
                self.advance()
                self.name()
        return False, {node: None}

    def attributes(self) -> dict[str, str]:
        """`[key=value, key=value] [...]`."""
        found: dict[str, str] = {}
        if not self.sees("["):
            raise self.refuse("'['")
        while self.sees("["):
            self.advance()
            while not self.sees("]"):
                key, value = self.name(), "true"
                if self.sees("="):
                    self.advance()
                    value = self.name()
                found[key] = value
                if self.sees(",", ";"):
                    self.advance()
            self.advance()
        return found

    def check_direction(self, attributes: dict[str, str]) -> None:
        direction = attributes.get("dir", "forward")
        if direction != "forward":
            raise DataError(f"{self.where}: an edge has dir={direction[:40]}; only cause -> effect is read")


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _shown(text: str) -> str:
    return repr(" ".join(text[:20].split()))
