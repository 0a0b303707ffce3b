"""Collects everything that is wrong with a user's files, so that it can be reported at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from causaldiffae.errors import DataError

MAX_KEPT: Final = 1000


class Problems:
    """A list of one-line messages; beyond `MAX_KEPT` they are only counted."""

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
        """Adds a `DataError` of the body as a problem, so that the code after it still runs."""
        try:
            yield
        except DataError as error:
            self.add(str(error))

    def raise_first(self) -> None:
        """Raises a `DataError` with the first problem and the number of the others, if there are any."""
        if self.count:
            more = f" (and {self.count - 1} more)" if self.count > 1 else ""
            raise DataError(self.lines[0] + more)
