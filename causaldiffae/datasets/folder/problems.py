"""Collects the problems of a user's files, so that all of them are reported together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from causaldiffae.errors import DataError

MAX_KEPT: Final = 1000


class Problems:
    """A list of one-line messages, of which at most `MAX_KEPT` are stored."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.count = 0

    def add(self, line: str) -> None:
        """Adds a problem."""
        self.count += 1
        if len(self.lines) < MAX_KEPT:
            self.lines.append(" ".join(line.split())[:1000])

    def extend(self, others: Problems) -> None:
        """Adds the problems of another list."""
        self.lines += others.lines[: MAX_KEPT - len(self.lines)]
        self.count += others.count

    @contextlib.contextmanager
    def collect(self) -> Iterator[None]:
        """Context manager that adds a `DataError` of its body as a problem instead of raising it."""
        try:
            yield
        except DataError as error:
            self.add(str(error))

    def raise_first(self) -> None:
        """Raises a `DataError` with the first problem and the number of further ones, if there are any."""
        if self.count:
            more = f" (and {self.count - 1} more)" if self.count > 1 else ""
            raise DataError(self.lines[0] + more)
