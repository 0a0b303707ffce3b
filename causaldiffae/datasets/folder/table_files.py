"""Finds the label table of an image folder, in the layouts of neighbouring tools.

labels.csv                        also .tsv, .txt, .jsonl, .parquet, .xlsx
metadata.csv                      also .jsonl, .parquet: Hugging Face's imagefolder; the images' folders train, test and
                                  so on are the splits, which may have tables of their own
list_attr_celeba.txt (or .csv)    CelebA as published, with list_eval_partition.txt (or .csv)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from causaldiffae.datasets.folder.label_table import MAX_TABLE_BYTES, SPLIT_WORDS, Table, parse_table, with_splits
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.errors import DataError
from causaldiffae.files.storage import Folder
from causaldiffae.files.tables import TextColumn, read_celeba_partition

_METADATA: Final = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
TABLES: Final = (
    *("labels.csv", "labels.tsv", "labels.txt", "labels.jsonl", "labels.parquet", "labels.xlsx"),
    *(*_METADATA, "list_attr_celeba.txt", "list_attr_celeba.csv"),
)
_PARTITIONS: Final = ("list_eval_partition.txt", "list_eval_partition.csv")
_TABLE_EXTENSIONS: Final = ("csv", "tsv", "txt", "json", "jsonl", "parquet", "xlsx", "xls", "ods", "xml")


class TableFile(NamedTuple):
    """Name of a table in its folder, and its content."""

    name: str
    content: bytes


def has_table(folder: Folder) -> bool:
    """Whether a folder has a label table."""
    return any(True for _ in _found(folder))


def _found(folder: Folder) -> Iterator[str]:
    """Names of the tables; those in the folders of splits only without one in the folder itself."""
    whole = next((name for name in TABLES if folder.has(name)), None)
    if whole is not None:
        yield whole
        return
    for split in SPLIT_WORDS:
        yield from (f"{split}/{name}" for name in _METADATA if folder.has(f"{split}/{name}"))


def read_tables(folder: Folder) -> tuple[TableFile, ...]:
    """Reads the first table of `TABLES`, or the tables of all splits; raises `DataError` if there is none."""
    names = list(_found(folder))
    if not names:
        likely = ", ".join(_other_tables(folder))[:300]
        advice = f"; if {likely} is the table, rename it or save it as {TABLES[0]}" if likely else ""
        raise DataError(f"{folder.where}/{TABLES[0]}: file not found, nor any of {', '.join(TABLES[1:])}{advice}")
    if names[0].startswith("list_attr_celeba"):
        names += [name for name in _PARTITIONS if folder.has(name)][:1]
    return tuple(TableFile(name, folder.read(name, MAX_TABLE_BYTES)) for name in names)


def _other_tables(folder: Folder) -> Iterator[str]:
    """Names of files in the folder itself that may hold a table."""
    for name in itertools.takewhile(lambda name: "/" not in name, folder.all_names([""])):
        stem, _, extension = name.lower().rpartition(".")
        if extension in _TABLE_EXTENSIONS and stem not in ("graph", "counterfactuals", "readme"):
            yield name


def unread_tables(folder: Folder) -> list[str]:
    """Names of the tables in the folder itself beside the one that is read."""
    return [name for name in TABLES if folder.has(name)][1:]


def parse_tables(files: Sequence[TableFile], where: str, problems: Problems) -> Table:
    """Parses the result of `read_tables` of the folder `where`; see `parse_table`."""
    first, others = files[0], files[1:]
    table = parse_table(first.content, f"{where}/{first.name}", problems)
    if others and others[0].name in _PARTITIONS:
        split_of = read_celeba_partition(others[0].content, f"{where}/{others[0].name}")
        return with_splits(table, TextColumn.of([split_of.get(file, "") for file in table.files]), problems)
    if "/" in first.name:
        parts = [table, *(parse_table(file.content, f"{where}/{file.name}", problems) for file in others)]
        return _joined([_in_split(part, file.name) for part, file in zip(parts, files, strict=True)], where, problems)
    if table.splits is None:
        tops = [file.partition("/")[0].casefold() if "/" in file else "" for file in table.files]
        folders = ", ".join(sorted(set(tops)))
        if all(top in SPLIT_WORDS for top in tops) and first.name in _METADATA:
            problems.note(f"{table.where}: the splits are the folders {folders}")
            return replace(table, splits=[SPLIT_WORDS[top] for top in tops])
        if len(set(tops)) > 1 and all(top in SPLIT_WORDS for top in tops):
            problems.hint(f"{table.where}: the folders {folders} are not read as splits; add a column `split` for that")
    return table


def _in_split(table: Table, name: str) -> Table:
    """A table of one split, with the paths relative to the folder of the data set."""
    folder = name.rpartition("/")[0]
    return replace(
        table,
        files=[f"{folder}/{file}" if file else "" for file in table.files],
        splits=[SPLIT_WORDS[folder]] * len(table.files),
        origins=[table.where] * len(table.files),
    )


def _joined(tables: list[Table], where: str, problems: Problems) -> Table:
    names = list(dict.fromkeys(name for table in tables for name in table.cells))
    cells = {}
    for name in names:
        parts = [table.cells[name].cells() if name in table.cells else [""] * len(table.files) for table in tables]
        cells[name] = TextColumn.of([cell for part in parts for cell in part])
    where = f"{where}/*/{tables[0].where.rpartition('/')[2]}"
    problems.note(f"{where}: {len(tables)} tables, one for each split, are read")
    return Table(
        where,
        [file for table in tables for file in table.files],
        np.concatenate([table.lines for table in tables]),
        [split for table in tables for split in table.splits or ()],
        cells,
        origins=[origin for table in tables for origin in table.origins or ()],
    )
