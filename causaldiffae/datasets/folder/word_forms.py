"""Words in a column of labels that stand for numbers: numbers with a unit, dates and times."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

NO_CATEGORY: Final = "images share a category; remove an identifier from the graph and list it in `ignore`"
_CURRENCIES: Final = "$\u00a3\u00a5\u20ac"
_WITH_UNIT: Final = re.compile(
    rf"(?P<sign>[{_CURRENCIES}<>~]=?)? ?[+-]?\d+([.,]\d+)? ?(?P<unit>[^\W\d_]{{1,12}}|[%\u2030\u00b0{_CURRENCIES}])?\.?"
)
_DATE: Final = re.compile(
    r"\d{4}([-/.]\d{1,2}){1,2}([T ]\d.*)?|\d{1,2}([-/.])\d{1,2}\3\d{2,4}( \d.*)?|\d{1,2}:\d{2}(:\d{2})?( ?[ap]m)?",
    re.IGNORECASE,
)
_FEWEST: Final = 3


def describe_numbers(words: Sequence[str]) -> str:
    """Says how to write words as numbers if all of them are dates, times, or numbers with the same unit; else ""."""
    if len(words) < _FEWEST:
        return ""
    if all(map(_DATE.fullmatch, words)):
        return "dates and times are words; write them as numbers, such as years, days or hours"
    found = [_WITH_UNIT.fullmatch(word) for word in words]
    units = {f"{each['sign'] or ''}{(each['unit'] or '').casefold()}" if each else "" for each in found}
    if len(units) == 1 and "" not in units:
        return f"numbers with {units.pop()!r} are words; write the numbers alone, and a unit in the graph file"
    return ""
