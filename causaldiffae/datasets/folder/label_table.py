"""The label table of an image folder: one row per image, one column per variable.

Column `file` (or `filename`, `image_id` and so on) contains the path of the image relative to the folder, an optional
column `split` contains train, val or test or usual synonyms, and all other columns are variables of the graph. Columns
without a name are left out if they are empty or hold row numbers, as pandas and R write them.

A missing label makes its image unlabelled, see label_columns.py.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath, PurePosixPath
from typing import Final

import numpy as np

from causaldiffae.datasets.folder.file_names import is_image_name
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.errors import DataError
from causaldiffae.files.storage import is_remote, leaves_folder, links_are_followed
from causaldiffae.files.tables import (
    TextColumn,
    TextTable,
    read_celeba,
    read_csv,
    read_excel,
    read_json_lines,
    read_parquet,
)
from causaldiffae.files.text import clean_name

SPLITS: Final = ("train", "val", "test")
MAX_TABLE_BYTES: Final = 1 << 29
SPLIT_WORDS: Final = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "eval", "evaluation", "holdout"), "test"),
}
MISSING: Final = frozenset(
    (
        *("", "?", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"),
        *("N/A", "NA", "NULL", "NaN", "NAN", "None", "n/a", "nan", "null"),
    )
)
"""Cells without a value, as in pandas."""
_SPLIT_NUMBERS: Final = {"0": "train", "1": "val", "2": "test"}  # as in CelebA
_FILE_COLUMNS: Final = (
    {"file", "filename"},
    {"image", "imagefile", "imagefilename", "imagename", "imageid", "imageindex", "imagepath", "img", "imgname"}
    | {"imgpath", "imageurl", "path", "filepath"},
)
_READERS: Final[dict[str, Callable[[bytes, str], TextTable]]] = {
    ".jsonl": read_json_lines,
    ".parquet": read_parquet,
    ".xlsx": read_excel,
}
_ROW_NUMBERS: Final = re.compile(r"|Unnamed: \d+(\.\d+)?")


@dataclass(frozen=True)
class Table:
    """A label table.

    Attributes:
        where: file name, for messages.
        files: normalised path of each image relative to the folder; "" if invalid.
        lines: (N,) line of each row in the file.
        splits: the split of each row, or None without such a column.
        cells: the other columns by name.
        separator: between the cells of a row in the file.
        origins: the file of each row, for messages, if the table consists of several files.
    """

    where: str
    files: list[str]
    lines: np.ndarray
    splits: list[str] | None
    cells: dict[str, TextColumn]
    separator: str = ","
    origins: list[str] | None = None

    def at(self, row: int) -> str:
        """File name and line of a row, for messages."""
        return f"{self.where if self.origins is None else self.origins[row]}:{self.lines[row]}"


def is_file_column(name: str) -> bool:
    """Whether a column of this name may hold the paths of the images."""
    return any(_plain(name) in names for names in _FILE_COLUMNS)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def parse_table(content: bytes, where: str, problems: Problems, unique: bool = True) -> Table:
    """Parses a table by its extension, CSV by default; invalid rows are reported to `problems` and skipped.

    Args:
        unique: whether each image must have one row.

    Raises:
        DataError: if the file has no valid header or no rows.
    """
    name = PurePosixPath(where).name
    if name == "list_attr_celeba.txt":
        text = read_celeba(content, where)
    elif reader := _READERS.get(PurePosixPath(where).suffix.lower()):
        text = reader(content, where)
    else:
        text = read_csv(content, where, is_file_column)
    for note in text.notes:
        problems.note(f"{where}: {note}")
    expected = len(text.header)
    lines = [f"{where}:{line}: expected {expected} cells, got {width}" for line, width in text.wrong]
    problems.add_rows(lines, len(lines) + len(text.lines))
    return _build(text, where, problems, unique)


def _build(text: TextTable, where: str, problems: Problems, unique: bool) -> Table:
    columns = _named_columns(text, where, problems)
    files_in = _file_column(columns, text.header, where)
    if not len(text.lines):
        raise DataError(f"{where}: expected at least one row, got none")
    if _plain(files_in) not in _FILE_COLUMNS[0]:
        problems.note(f"{where}: column {files_in!r:.80} holds the paths of the images")
    files = _normalised_paths(columns.pop(files_in).cells(), text.lines, where, problems, unique)
    split_in = next((name for name in columns if name.casefold() == "split"), None)
    table = Table(where, files, text.lines, None, columns, text.separator)
    if split_in is None:
        return table
    return with_splits(table, columns.pop(split_in), problems)


def _named_columns(text: TextTable, where: str, problems: Problems) -> dict[str, TextColumn]:
    """The columns by name, without those that have no name and are empty or hold row numbers."""
    columns: dict[str, TextColumn] = {}
    for i, (name, column) in enumerate(zip(text.header, text.columns, strict=True)):
        is_empty = column.words in ((), ("",))
        if _ROW_NUMBERS.fullmatch(name) and not is_empty:
            is_number = all(re.fullmatch(r"\d+", word) for word in column.words)
            if is_number and 1 < len(column.words) == len(column.codes):
                problems.note(f"{where}: column {i + 1} without a name holds row numbers and is left out")
                continue
        if _ROW_NUMBERS.fullmatch(name) and is_empty and len(text.lines):
            continue
        if not name:
            problems.add(f"{where}: column {i + 1}: expected a name, got none")
        elif name in columns:
            problems.add(f"{where}: expected unique column names, got {name!r} twice")
        else:
            columns[name] = column
    return columns


def _file_column(columns: Mapping[str, TextColumn], header: list[str], where: str) -> str:
    for accepted in _FILE_COLUMNS:
        found = [name for name in columns if _plain(name) in accepted]
        if len(found) == 1:
            return found[0]
        if found:
            break
    shown = ", ".join(header)[:500] or "no columns"
    likely = [name for name, column in columns.items() if column.words and all(map(is_image_name, column.words))]
    advice = f"; rename {likely[0]!r:.80}, which holds names of images, to `file`" if likely else ""
    if any(map(is_image_name, header)):
        advice = "; the first row must hold the names of the columns"
    raise DataError(f"{where}: expected one column `file` with the paths of the images, got {shown}{advice}")


def _normalised_paths(names: list[str], lines: np.ndarray, where: str, problems: Problems, unique: bool) -> list[str]:
    """Normalises image paths ("./a.png" becomes "a.png"); "" for an invalid one."""
    paths: list[str] = []
    seen: dict[str, int] = {}
    found: dict[str, list[str]] = defaultdict(list)
    inside, own = not links_are_followed(), _address_of_folder(where)
    for name, line in zip(names, lines.tolist(), strict=True):
        slashed = name.replace("\\", "/")
        slashed = slashed.removeprefix(own) if inside else slashed
        path, cause = posixpath.normpath(slashed) if name else "", ""
        if not name or path == ".":
            cause, text = "empty", "expected the path of an image, got an empty cell"
        elif "\0" in name or len(name.splitlines()) > 1:
            cause, text = "control", f"expected a path without control characters, got {name!r:.200}"
        elif inside and leaves_folder(slashed):
            cause, text = "leaves", f"expected a path inside the folder, got {name!r:.200}"
        elif unique and path in seen:
            cause, text = "twice", f"expected unique paths, got {name!r:.200} as in line {seen[path]}"
        if cause:
            found[cause].append(f"{where}:{line}: {text}")
        seen.setdefault(path, line)
        paths.append("" if cause else path)
    for cause, texts in found.items():
        advice = "for your own images elsewhere, use paths inside the folder, or links and --follow_links"
        problems.add_rows(texts, len(names), advice if cause == "leaves" else "")
    if any("\\" in name for name in names):
        problems.note(f"{where}: backslashes in paths are read as slashes")
    return paths


def _address_of_folder(where: str) -> str:
    """The absolute path or the URL of the folder of a table, with a slash at the end."""
    folder = where.rpartition("/")[0]
    return f"{folder if is_remote(where) else PurePath(os.path.abspath(folder)).as_posix()}/"  # noqa: PTH100 - links stay


def with_splits(table: Table, column: TextColumn, problems: Problems) -> Table:
    """The table with the splits of a column; unknown words are reported."""
    numbers = {word: word.removesuffix(".0") for word in column.words}
    if all(number in _SPLIT_NUMBERS for word, number in numbers.items() if word):
        splits = {word: _SPLIT_NUMBERS.get(number, "") for word, number in numbers.items()}
    else:
        splits = {word: SPLIT_WORDS.get(word.casefold(), "") for word in column.words}
    read = [f"{word} as {split}" for word, split in splits.items() if split and word != split]
    if read:
        problems.note(f"{table.where}: split: {', '.join(sorted(read))}")
    unknown = np.array([not splits[word] for word in column.words])
    rows = np.nonzero(unknown[column.codes])[0].tolist() if len(column.codes) else []
    expected = f"split: expected one of {', '.join(SPLITS)}"
    lines = [f"{table.at(row)}: {expected}, got {column.words[column.codes[row]]!r:.80}" for row in rows]
    problems.add_rows(lines, len(column.codes))
    words = np.array([splits[word] or word for word in column.words], object)
    return replace(table, splits=words[column.codes].tolist())


def assign_splits(table: Table, seed: int, shares: Sequence[float], group: str = "") -> np.ndarray:
    """The split of each row, (N,) text: from the column if it exists, or else at random.

    The random split is a hash of the seed and the path, or the cell in column `group`, so adding or removing images
    does not move others.
    """
    if table.splits is not None:
        return np.array(table.splits)
    keys = table.files
    if group in table.cells:
        cells = table.cells[group].cells()
        keys = [file if cell in MISSING else cell for cell, file in zip(cells, table.files, strict=True)]
    hashes = [hashlib.sha256(f"{seed}/{key}".encode("utf-8", "surrogatepass")).digest() for key in keys]
    numbers = np.array([int.from_bytes(digest[:6], "big") / 2**48 for digest in hashes])  # in [0, 1)
    return np.array(SPLITS)[np.searchsorted(np.cumsum(shares)[:2], numbers, side="right")]


def groups_of(table: Table, group: str) -> np.ndarray | None:
    """The group of each row, (N,) text; a row without one is a group of its own. None without a column `group`."""
    if group not in table.cells:
        return None
    cells = table.cells[group].cells()
    return np.array([f"row {row}" if cell in MISSING else f"group {cell}" for row, cell in enumerate(cells)])


def check_group(table: Table, splits: np.ndarray, group: str, problems: Problems) -> None:
    """Checks that the column `group` exists and that no group is divided between splits."""
    if group not in table.cells:
        problems.add(f"{table.where}: group: expected a column {group!r:.80}, got none")
        return
    column = table.cells[group]
    occurs = np.stack([np.bincount(column.codes[splits == split], minlength=len(column.words)) for split in SPLITS])
    divided = []
    for code in np.nonzero((occurs > 0).sum(0) > 1)[0].tolist():
        if column.words[code] not in MISSING:
            found = [split for split, count in zip(SPLITS, occurs[:, code], strict=True) if count]
            divided.append(f"{column.words[code]!r:.40} in {' and '.join(found)}")
    if divided:
        more = f" (and {len(divided) - 1} more)" if len(divided) > 1 else ""
        problems.add(f"{table.where}: split: expected each {group} in one split, got {divided[0]}{more}")


def check_columns(
    table: Table, names: Iterable[str], ignore: Sequence[str], group: str, problems: Problems, has_keys: bool = True
) -> None:
    """Checks that every variable has a column, and that other columns are in `ignore`.

    Args:
        has_keys: whether the file of the graph can hold the key `ignore`.
    """
    names = list(names)
    for name in names:
        if name not in table.cells:
            alike = {_plain(other): other for other in table.cells if other not in names}
            nearest = difflib.get_close_matches(_plain(name), alike, 1, 0.8)
            meant = f"; did you mean {alike[nearest[0]]!r:.80}?" if nearest else ""
            problems.add(f"{table.where}: expected a column {name!r} for the variable of the graph, got none{meant}")
    others = [name for name in table.cells if name not in names and name != group]
    left = [name for name in others if not any(_matches(name, pattern) for pattern in ignore)]
    if len(left) > 5:
        shown = ", ".join(left[:5])[:300]
        advice = 'to skip them, list them in `ignore`, or ["*"] for all others'
        advice = advice if has_keys else _without_keys("*", left[0])
        problems.add(
            f"{table.where}: columns {shown} and {len(left) - 5} more: expected variables of the graph; {advice}"
        )
        left = []
    for name in left:
        advice = "to skip it, list it in `ignore`" if has_keys else _without_keys(name, name)
        problems.add(f"{table.where}: column {name!r}: expected a variable of the graph; {advice}")
    for pattern in ignore:
        if "*" not in pattern and clean_name(pattern) not in table.cells:
            problems.add(f"{table.where}: expected a column {pattern!r}, which is listed in `ignore`, got none")


def _without_keys(ignored: str, name: str) -> str:
    """Advice on further columns, for a graph in a format of another tool."""
    return (
        f'write the graph as graph.yaml, with `ignore: ["{ignored:.80}"]` to skip it, or with `variables: '
        f'{{"{name:.80}": {{}}}}` for a variable without edges'
    )


def _matches(name: str, pattern: str) -> bool:
    """Whether a name equals a pattern, in which * stands for any text."""
    parts = map(re.escape, clean_name(pattern).split("*"))
    return re.fullmatch(".*".join(parts), name, re.DOTALL) is not None
