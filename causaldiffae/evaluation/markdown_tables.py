"""Writes the tables of Markdown pages from results files, so that no figure is typed by hand.

A page holds a pair of marks; what is between them is replaced:

    <!-- table: KIND [NAME] -->
    <!-- end of table -->

KIND is a key of `result_tables.KINDS`. NAME is that of the results file, NAME.json or NAME.csv in the folder of
results, by default KIND.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from causaldiffae.errors import DataError, InputError
from causaldiffae.evaluation.result_tables import KINDS
from causaldiffae.files.reading import read_file, read_json, replace_file

MAX_BYTES: Final = 1 << 22
DIGITS: Final = 6
"""Significant digits of the numbers in the folder of results."""
_MARK: Final = re.compile(r"^<!-- (?:table: (?P<kind>\w+)(?: (?P<name>[\w-]+))?|(?P<end>end of table)) -->$")


def fill_tables(text: str, results: Path, page: str) -> str:
    """Replaces what is between the marks of a page.

    Args:
        text: the page.
        results: folder of the results files.
        page: name of the page in errors.

    Raises:
        InputError: for a table of an unknown kind, or a mark without its pair.
        DataError: if a results file is missing, or is not that of the table.
    """
    lines: list[str] = []
    kind = ""
    for line in text.splitlines():
        mark = _MARK.match(line)
        if mark is None:
            lines += [] if kind else [line]
        elif mark["end"]:
            if not kind:
                raise InputError(f"{page}: expected <!-- table: KIND --> before <!-- end of table -->, got none")
            lines.append(line)
            kind = ""
        else:
            if kind:
                raise InputError(f"{page}: expected <!-- end of table --> after table {kind}, got {line}")
            kind = mark["kind"]
            if kind not in KINDS:
                raise InputError(f"{page}: table: expected {', '.join(KINDS)}, got {kind!r}")
            lines += [line, "", _render(kind, mark["name"] or kind, results, page), ""]
    if kind:
        raise InputError(f"{page}: expected <!-- end of table --> after table {kind}, got the end of the page")
    return "\n".join(lines) + "\n"


def _render(kind: str, name: str, results: Path, page: str) -> str:
    found = read_results_file(results, name, page)
    try:
        return KINDS[kind](found)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(
            f"{page}: table {kind}: expected results of this kind in {results / name}, got others ({error!r})"
        ) from error


def read_results_file(folder: Path, name: str, page: str) -> Any:
    """The content of NAME.json, or the rows of NAME.csv as mappings.

    Raises:
        DataError: if there is neither.
    """
    if (path := folder / f"{name}.json").is_file():
        return read_json(path, MAX_BYTES)
    if (path := folder / f"{name}.csv").is_file():
        return list(csv.DictReader(io.StringIO(read_file(path, MAX_BYTES).decode(errors="replace"))))
    raise DataError(f"{page}: expected the results {folder / name}.json, got none; add them with --add {name}=FILE")


def add_results(folder: Path, name: str, source: Path) -> Path:
    """Copies a results file into the folder of results, without what belongs to the machine that made it.

    Numbers keep six digits, and absolute paths their last part.
    """
    if re.fullmatch(r"[\w-]+", name) is None:
        raise InputError(f"add: expected a name of letters, digits, - and _, got {name!r}")
    if source.suffix not in (".json", ".csv") or not source.is_file():
        raise InputError(f"add: expected a file .json or .csv, got {source}")
    target = folder / f"{name}{source.suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".csv":
        replace_file(target, read_file(source, MAX_BYTES))
    else:
        text = json.dumps(_shareable(read_json(source, MAX_BYTES)), indent=1, allow_nan=False)
        replace_file(target, (text + "\n").encode())
    return target


def _shareable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _shareable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_shareable(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if value == value else None
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return value


def find_pages(root: Path, name: str = "root") -> list[Path]:
    """README.md and docs/*.md of a folder; `InputError` that begins with `name` if there are none."""
    pages = [path for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))) if path.is_file()]
    if not pages:
        raise InputError(f"{name}: expected a folder with README.md or docs/, got {root}")
    return pages


def update_pages(root: Path, added: Mapping[str, Path]) -> list[Path]:
    """Copies results files to docs/results/ and fills the tables of README.md and docs/*.md.

    Args:
        root: the folder of README.md and docs/.
        added: the results files to copy, by name.

    Returns:
        The copies and the pages that have changed.

    Raises:
        InputError: if `root` has no pages, or for the reasons of `add_results` and `fill_tables`.
        DataError: for the reasons of `fill_tables`.
    """
    pages, results = find_pages(root), root / "docs" / "results"
    copies = [add_results(results, name, source) for name, source in added.items()]
    filled = {page: fill_tables(page.read_text(encoding="utf-8"), results, page.name) for page in pages}
    changed = [page for page, text in filled.items() if page.read_text(encoding="utf-8") != text]
    for page in changed:
        replace_file(page, filled[page].encode())
    return copies + changed
