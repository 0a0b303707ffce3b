"""How a folder's images are resized and split: what a `DatasetSpec` holds of it, and how that is checked."""

from __future__ import annotations

import math
from typing import Any, Final

from causaldiffae.errors import DataError

RESIZE_RULES: Final = ("crop", "area")
SPLIT_SHARES: Final = (0.8, 0.1, 0.1)


def finite_number(value: Any, where: str) -> float:
    """A number that may be written as text; else a `DataError` that starts with `where`."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where} is {str(value)[:80]!r}, a finite number is needed")
    return number


def whole_number(value: Any, where: str, lowest: int) -> int:
    """A whole number of `lowest` or more that may be written as text."""
    number = finite_number(value, where)
    if number != int(number) or not lowest <= number < 2**63:
        raise DataError(f"{where} is {str(value)[:80]!r}, a whole number of {lowest} or more is needed")
    return int(number)


def one_of(value: Any, where: str, allowed: tuple[str, ...]) -> str:
    """One of some words; any word where none are `allowed` in particular."""
    if not isinstance(value, str) or (allowed and value not in allowed):
        wanted = f"one of {', '.join(allowed)}" if allowed else "a word"
        raise DataError(f"{where} is {str(value)[:80]!r}, {wanted} is needed")
    return value


def check_shares(values: Any, where: str) -> tuple[float, float, float]:
    """Shares of train, val and test: three numbers of 0 or more that sum to 1."""
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise DataError(f"{where} is {str(values)[:80]}, three shares (train, val, test) are needed")
    shares = [finite_number(value, where) for value in values]
    if min(shares) < 0 or not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
        raise DataError(f"{where} is {shares}, shares of 0 or more that sum to 1 are needed")
    return shares[0], shares[1], shares[2]
