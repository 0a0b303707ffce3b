"""Collects the problems of a user's files, so that all of them are reported together."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Final

from causaldiffae.errors import DataError

MAX_KEPT: Final = 1000
_ALL: Final = 3
"""Smallest number of rows of which a common problem is reported once."""


class Problems:
    """A list of one-line messages, of which at most `MAX_KEPT` are stored.

    Attributes:
        lines: problems that prevent training.
        count: number of problems.
        hints: properties of the data that are likely mistakes.
        notes: how the files were read, where that is not obvious.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.hints: list[str] = []
        self.notes: list[str] = []
        self.count = 0

    def add(self, line: str) -> None:
        """Adds a problem."""
        self.count += 1
        self._append(self.lines, line)

    def add_rows(self, lines: Sequence[str], rows: int, advice: str = "") -> None:
        """Adds the problems of single rows, or the first of them if one cause affects all rows.

        Args:
            lines: problems with the same cause.
            rows: number of rows of the table.
            advice: how to fix it, if all rows are affected.
        """
        if len(lines) == rows and rows >= _ALL:
            self.add(f"{lines[0]} (the same for all {rows} rows){'; ' + advice if advice else ''}")
            return
        for line in lines:
            self.add(line)

    def hint(self, line: str) -> None:
        """Adds a hint."""
        self._append(self.hints, line)

    def note(self, line: str) -> None:
        """Adds a note."""
        self._append(self.notes, line)

    def _append(self, lines: list[str], line: str) -> None:
        if len(lines) < MAX_KEPT:
            lines.append(" ".join(line.split())[:1000])

    def extend(self, others: Problems) -> None:
        """Adds the messages of another list."""
        self.count += others.count
        for own, other in ((self.lines, others.lines), (self.hints, others.hints), (self.notes, others.notes)):
            own += other[: MAX_KEPT - len(own)]

    @contextlib.contextmanager
    def collect(self) -> Iterator[None]:
        """Context manager that adds a `DataError` of its body as a problem instead of raising it."""
        try:
            yield
        except DataError as error:
            self.add(str(error))

    def raise_first(self, advice: str = "; `causaldiffae check` lists them all") -> None:
        """Raises a `DataError` with the first problem and the number of further ones, if there are any."""
        if self.count:
            more = f" (and {self.count - 1} more{advice})" if self.count > 1 else ""
            raise DataError(self.lines[0] + more)

    def warn_hints(self) -> None:
        """Issues the hints as warnings."""
        for line in self.hints:
            warnings.warn(line, UserWarning, stacklevel=3)
