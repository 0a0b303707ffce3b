"""Collects what is wrong with a user's files, so that all of it can be said at once."""

from __future__ import annotations

from typing import Final

from causaldiffae.errors import DataError

MAX_KEPT: Final = 1000


class Problems:
    """A list of one-line messages; beyond `MAX_KEPT` they are only counted."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.count = 0

    def add(self, line: str) -> None:
        """Notes a problem."""
        self.count += 1
        if len(self.lines) < MAX_KEPT:
            self.lines.append(" ".join(line.split())[:1000])

    def extend(self, others: Problems) -> None:
        """Notes others' problems too."""
        self.lines += others.lines[: MAX_KEPT - len(self.lines)]
        self.count += others.count

    def refuse(self) -> None:
        """Raises a `DataError` with the first problem and the number of the others, if there are any."""
        if self.count:
            more = f" (and {self.count - 1} more)" if self.count > 1 else ""
            raise DataError(self.lines[0] + more)
