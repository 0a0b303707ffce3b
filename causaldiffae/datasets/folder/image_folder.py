"""An image folder with a label table and a graph as a data set.

    my_images/labels.csv        file,age,hat          (table_files.py, label_table.py, label_columns.py)
    my_images/graph.yaml        edges: [[age, hat]]   (description.py, graph_files.py)
    my_images/photos/1.jpg ...                        (file_names.py, image_files.py, image_cache.py)
    my_images/counterfactuals.csv                     true counterfactuals, if there are any (true_pairs.py)

The spec is computed once from the training split and stored in the checkpoint: the graph, shift and scale (mean and
standard deviation of the labels), their ranges, the categories, and the rules for resizing, scaling and splitting
(content.py). Given this spec, the folder is read exactly as for training, without its graph file.

Any data set can have this layout. With the spec of a built-in data set, images and labels are bitwise equal to those of
its own layout.

Errors are collected in `Problems`, and reading continues as far as possible to report all of them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from causaldiffae.datasets.dataset import Dataset, check_form, register
from causaldiffae.datasets.folder.content import Content, interpret, interpret_with_spec
from causaldiffae.datasets.folder.file_names import find_files
from causaldiffae.datasets.folder.graph_files import EXTENSIONS, MAX_BYTES
from causaldiffae.datasets.folder.image_cache import cache_folder, cached_images
from causaldiffae.datasets.folder.image_files import CHANNELS, MODES
from causaldiffae.datasets.folder.label_table import SPLITS, groups_of
from causaldiffae.datasets.folder.probe import measure_value_range
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.datasets.folder.table_files import TableFile, has_table, read_tables, unread_tables
from causaldiffae.datasets.folder.true_pairs import read_true_pairs
from causaldiffae.datasets.images import ImageData, evenly_spread
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import write_json
from causaldiffae.files.storage import FileStamp, Folder, is_remote, links_are_followed, open_folder, read_address

GRAPHS: Final = tuple(f"graph{extension}" for extension in EXTENSIONS)


def is_image_folder(data_dir: str | Path) -> bool:
    """Whether a folder has this layout."""
    return (is_remote(data_dir) or Path(data_dir).is_dir()) and has_table(open_folder(data_dir))


def folder_spec(
    data_dir: str | Path,
    graph_path: str | Path | None = None,
    image_size: int | None = None,
    channels: int | None = None,
) -> DatasetSpec:
    """Computes the spec of an image folder.

    Args:
        data_dir: a local path or an address like gs://bucket/set.
        graph_path: the graph file; by default `graph.yaml` in the folder, or another of `GRAPHS`.
        image_size, channels: by default as in the graph file.

    Raises:
        DataError: with the first problem of the graph or the table, and the number of further ones.
    """
    problems = Problems()
    _, content = open_image_folder(data_dir, problems, graph_path, image_size, channels)
    problems.raise_first()
    problems.warn_hints()
    assert content is not None and content.spec is not None
    return content.spec


def open_image_folder(
    data_dir: str | Path,
    problems: Problems,
    graph_path: str | Path | None = None,
    image_size: int | None = None,
    channels: int | None = None,
) -> tuple[Folder, Content | None]:
    """Reads the graph and the table and computes the spec; the content is None if the table cannot be read."""
    check_form(64 if image_size is None else image_size, 3 if channels is None else channels, tuple(MODES), CHANNELS)
    folder, graph = open_folder(data_dir), None
    tables: tuple[TableFile, ...] = ()
    with problems.collect():
        graph = _read_graph_file(folder, graph_path)
    with problems.collect():
        tables = read_tables(folder)
        if others := unread_tables(folder):
            problems.note(f"{folder.where}: {tables[0].name} is the table; {', '.join(others)} is not read")
    content, found = interpret(folder.where, tables, graph, image_size, channels, links_are_followed())
    problems.extend(found)
    if content is None or content.spec is None:
        return folder, content
    if not content.spec.value_range:
        content = _with_value_range(folder, content, problems)
    if content.spec is not None and (cache := cache_folder(folder)) is not None:
        write_json(cache / "statistics.json", content.spec.to_dict())  # for the user; checkpoints contain it too
    return folder, content


def _with_value_range(folder: Folder, content: Content, problems: Problems) -> Content:
    """Adds the measured range of training images with more than 8 bits."""
    files = [content.table.files[row] for row in content.rows("train")]
    measured = None
    with problems.collect():
        measured = measure_value_range(folder, files)
    if measured is None or content.spec is None:
        return content
    low, high = measured
    problems.note(
        f"{folder.where}: images have more than 8 bits; black is {low:g}, white {high:g}; `value_range` in "
        "the graph file sets other values"
    )
    spec = replace(content.spec, value_range=measured)
    return replace(content, spec=spec, rule=replace(content.rule, value_range=measured))


def _read_graph_file(folder: Folder, graph_path: str | Path | None) -> tuple[str, bytes]:
    """Name and content of the graph file."""
    if graph_path:
        return str(graph_path), read_address(graph_path, MAX_BYTES)
    for name in GRAPHS:
        if folder.has(name):
            return f"{folder.where}/{name}", folder.read(name, MAX_BYTES)
    raise DataError(f"{folder.where}: expected {GRAPHS[0]}, got none; add it or set --graph")


def read_image_folder(
    spec: DatasetSpec | None,
    data_dir: str | Path,
    split: str,
    limit: int | None = None,
    graph_path: str | Path | None = None,
    image_size: int | None = None,
    channels: int | None = None,
) -> ImageData:
    """Reads one split. Images are mapped from the cache, which the first call writes.

    Args:
        spec: spec of a model or built-in data set; by default computed by `folder_spec`.
        split: "train", "val" or "test".
        limit: maximum number of images, evenly spaced in the table.
        graph_path, image_size, channels: see `folder_spec`; only without `spec`.

    Returns:
        The images with their labels; a missing label is NaN.

    Raises:
        DataError: with the first problem of the folder, and the number of further ones.
        InputError: for another split.
    """
    if split not in SPLITS:
        raise InputError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    problems = Problems()
    if spec is None:
        folder, content = open_image_folder(data_dir, problems, graph_path, image_size, channels)
        problems.raise_first()
    else:
        folder = open_folder(data_dir)
        content = interpret_with_spec(folder.where, read_tables(folder), spec, links_are_followed())
    assert content is not None and content.spec is not None and content.labels is not None
    rows = content.rows(split)
    if not len(rows):
        advice = "" if content.table.splits is not None else "; add a column `split` to assign images to it"
        raise DataError(f"{content.table.where}: expected images in split {split}, got none{advice}")
    if limit is not None and limit < len(rows):  # the first ones may have the same label
        rows = rows[evenly_spread(limit, len(rows))]
    label = split if limit is None else f"{split}_{limit}"
    images = read_images(folder, content, rows, label, problems)
    pairs = read_true_pairs(folder, content, rows, label, problems) if not problems.count else None
    problems.raise_first()
    ids = [content.table.files[row] for row in rows]
    groups = groups_of(content.table, content.spec.group)
    groups = None if groups is None else groups[rows]
    return ImageData(content.spec, split, images, content.labels[rows], None, ids, pairs=pairs, groups=groups)


def has_split(data_dir: str | Path, spec: DatasetSpec, split: str) -> bool:
    """Whether a split of an image folder, read with the spec of a model, has images."""
    folder = open_folder(data_dir)
    content = interpret_with_spec(folder.where, read_tables(folder), spec, links_are_followed())
    return bool(len(content.rows(split)))


def read_images(folder: Folder, content: Content, rows: np.ndarray, label: str, problems: Problems) -> np.ndarray:
    """Reads the images of the given rows.

    Args:
        label: see `cached_images`.

    Returns:
        (N, C, S, S) uint8; invalid if there were problems.
    """
    located = locate_images(folder, content, rows, problems)
    if len(located.rows) < len(rows):
        return np.empty((0, *content.rule.shape), np.uint8)
    return cached_images(folder, located.names, located.stamps, content.rule, label, problems)


class Located(NamedTuple):
    """Rows of a table whose image files exist, with the actual names and stamps of these files."""

    rows: np.ndarray
    names: list[str]
    stamps: list[FileStamp]

    def among(self, rows: np.ndarray) -> Located:
        """The files of some of the rows."""
        chosen = np.nonzero(np.isin(self.rows, rows))[0].tolist()
        return Located(self.rows[chosen], [self.names[i] for i in chosen], [self.stamps[i] for i in chosen])


def locate_images(folder: Folder, content: Content, rows: np.ndarray, problems: Problems) -> Located:
    """Finds the image files of the given rows; missing ones are reported."""
    table = content.table
    given = [int(row) for row in rows if table.files[row]]  # others were reported with the table
    found = find_files(folder, [table.files[row] for row in given])
    existing, missing = [], []
    for row, name, stamp in zip(given, found.names, found.stamps, strict=True):
        if isinstance(stamp, FileStamp):
            existing.append((row, name, stamp))
        else:
            missing.append((row, stamp))
    renamed = [(table.files[row], name) for row, name, _ in existing if table.files[row] != name]
    if renamed:
        (first, actual), count = renamed[0], len(renamed)
        problems.note(f"{table.where}: {count} names of files are completed, such as {first} to {actual}")
    for reason in dict.fromkeys(reason for _, reason in missing):
        lines = [f"{table.at(row)}: {table.files[row]}: {why}" for row, why in missing if why == reason]
        advice = "paths are relative to the folder of the table" if reason == "file not found" else ""
        problems.add_rows(lines, len(rows), advice)
    kept = np.array([row for row, _, _ in existing], np.int64)
    return Located(kept, [name for _, name, _ in existing], [stamp for _, _, stamp in existing])


register(
    Dataset(
        name="folder",
        spec=None,
        read=read_image_folder,
        source="an image folder of the user; its licence is unknown.",
    )
)
