"""Interventions as text, "thickness=4.5,intensity=90", on command lines and in tables."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

from causaldiffae.datasets.spec import CheckedDo, DatasetSpec
from causaldiffae.errors import InputError


def parse_do(text: str, spec: DatasetSpec, warn: bool = True) -> CheckedDo:
    """Parses "thickness=4.5,intensity=90"; a category may be given by name.

    Names and categories that contain commas or equals signs are recognised; other values with commas are quoted:
    `"weight, kg"=60,hat="felt, wide"`. Errors and `warn` are those of `DatasetSpec.check_do`.
    """
    do: dict[str, float | str] = {}
    left = text.strip()
    while left or not do:
        name, rest = take_name(left, spec.graph.names, "=")
        if not name or not rest.startswith("=") or not rest[1:].strip(" ,"):
            advice = "; write decimals with a point" if do and re.match(r"\d+\s*(,|$)", left) else ""
            raise InputError(f"do: expected name=value, like thickness=4.5, got {left[:200]!r}{advice}")
        categories = spec.category_names(spec.graph.names.index(name)) if name in spec.graph.names else ()
        value, left = take_name(rest[1:], categories, ",")
        if left and not left.startswith(","):
            raise InputError(f"do: {name[:80]}: expected a comma after {value[:80]!r}, got {left[:80]!r}")
        left = left.removeprefix(",").strip()
        if name in do:
            raise InputError(f"do: expected each variable once, got {name[:80]} twice in {text[:200]!r}")
        try:
            do[name] = value if value in categories else float(value)
        except ValueError:
            do[name] = value[:200]
    return spec.check_do(do, warn=warn)


def take_name(text: str, known: Sequence[str], end: str) -> tuple[str, str]:
    """Splits off a quoted string, the longest of the `known` strings before `end`, or the text before `end`.

    Returns:
        The string in Unicode's composed form (NFC), as in tables and graphs, and the rest of the text.
    """
    text = unicodedata.normalize("NFC", text).strip()
    if quoted := re.match(r"""(["'])(.*?)\1\s*""", text, re.DOTALL):
        return quoted[2], text[quoted.end() :]
    for candidate in sorted(known, key=len, reverse=True):
        rest = text[len(candidate) :].lstrip()
        if text.startswith(candidate) and rest[:1] in ("", end):
            return candidate, rest
    value, found, rest = text.partition(end)
    return value.strip(), found + rest


def describe_do(do: Mapping[str, float | str], spec: DatasetSpec | None = None) -> str:
    """{"thickness": 4.5} -> "do(thickness=4.5)"; with a `spec`, categories by name."""
    texts = {name: value if isinstance(value, str) else f"{value:g}" for name, value in do.items()}
    for name, value in do.items():
        if spec is not None and spec.values_of(name) and not isinstance(value, str):
            texts[name] = spec.format_value(name, value)
    return "do(" + ", ".join(f"{name}={text}" for name, text in texts.items()) + ")"
