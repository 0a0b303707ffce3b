"""Text and tables of unknown encoding and separator, as spreadsheets and statistics programs write them."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from causaldiffae.errors import DataError

SEPARATORS: Final = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars", " ": "spaces"}
_BOMS: Final = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\0\0", "utf-32-le"),
    (b"\0\0\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
_TITLES: Final = {"utf-8": "UTF-8", "cp1252": "Windows-1252", "utf-16": "UTF-16", "utf-32": "UTF-32"}
_SNIFFED_LINES: Final = 20


class DecodedText(NamedTuple):
    """A text and the name of its encoding."""

    text: str
    encoding: str


def decode_text(content: bytes, where: str) -> DecodedText:
    """Decodes UTF-8, UTF-16 and UTF-32 with or without a byte order mark, and Windows-1252.

    Raises:
        DataError: starting with `where`, for other content.
    """
    for mark, encoding in _BOMS:
        if content.startswith(mark):
            return _decoded(content[len(mark) :], encoding, where)
    sample = content[:2000]
    if b"\0" in sample:  # every other byte of UTF-16 is zero for Latin letters
        return _decoded(content, "utf-16-le" if sample[1::2].count(0) > sample[::2].count(0) else "utf-16-be", where)
    try:
        return _decoded(content, "utf-8", where)
    except DataError:
        return _decoded(content, "cp1252", where)


def _decoded(content: bytes, encoding: str, where: str) -> DecodedText:
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise DataError(f"{where}: expected UTF-8, UTF-16 or Windows-1252 text; save it as UTF-8")
    return DecodedText(text, _TITLES[encoding.removesuffix("-le").removesuffix("-be")])


def clean_name(text: str) -> str:
    """A name with single spaces between words, in Unicode's composed form (NFC); macOS writes the other one."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


def first_rows(text: str, separator: str, count: int) -> list[list[str]]:
    """The cells of the first non-empty rows; an incomplete last row is left out."""
    head = text[: 1 << 16]
    if separator == " ":
        return [line.split() for line in head.splitlines() if line.strip()][:count]
    found: list[list[str]] = []
    try:
        for row in csv.reader(io.StringIO(head, newline=""), delimiter=separator, skipinitialspace=True):
            if any(cell.strip() for cell in row):
                found.append([cell.strip() for cell in row])
            if len(found) > count:
                break
    except csv.Error:
        pass
    return found[:count] if len(head) == len(text) or len(found) > count else found[:-1] or found


def sniff_separator(text: str, is_known: Callable[[str], bool] = lambda name: False) -> str:
    """The separator of a table: the one that divides the header into most names, and the next rows likewise.

    White space is the separator only if no other one divides the header, and it yields an expected name.

    Args:
        is_known: whether a name in the header is expected; separators that yield one take precedence.
    """

    def score(separator: str) -> tuple[bool, bool, int]:
        rows = first_rows(text, separator, _SNIFFED_LINES)
        width = len(rows[0]) if rows else 0
        alike = sum(len(row) == width for row in rows) * 2 > len(rows)
        return width > 0 and any(map(is_known, rows[0])), alike and width > 1, width

    best = max((separator for separator in SEPARATORS if separator != " "), key=score)
    words = next(iter(first_rows(text, " ", 1)), [])
    return " " if score(best)[2] < 2 <= len(words) and any(map(is_known, words)) else best


def read_small_table(content: bytes, where: str, max_bytes: int) -> list[list[str]]:
    """Reads all rows of a small table with any separator; empty rows are left out.

    Raises:
        DataError: starting with `where`, for a large table or invalid CSV.
    """
    if len(content) > max_bytes:
        raise DataError(f"{where}: expected at most {max_bytes} bytes, got {len(content)}")
    text = decode_text(content, where).text
    rows: Sequence[Sequence[str]]
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=sniff_separator(text), skipinitialspace=True))
    except csv.Error as error:
        raise DataError(f"{where}: invalid CSV ({error})") from None
    return [[clean_name(cell) for cell in row] for row in rows if any(cell.strip() for cell in row)]
