"""An image folder with `labels.csv` and a graph as a data set.

    my_images/labels.csv        file,age,hat          (label_table.py)
    my_images/graph.yaml        edges: [[age, hat]]   (description.py, graph_files.py)
    my_images/photos/1.jpg ...                        (image_files.py, image_cache.py)

The spec is computed once from the training split and stored in the checkpoint: the graph, shift and scale (mean and
standard deviation of the labels), their ranges, the categories, and the rules for resizing and splitting. Given this
spec, the folder is read exactly as for training, without its graph file.

Any data set can have this layout. With the spec of a built-in data set, images and labels are bitwise equal to those of
its own layout.

Errors are collected in `Problems`, and reading continues as far as possible to report all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from causaldiffae.datasets.dataset import Dataset, check_form, register
from causaldiffae.datasets.folder.description import FolderDescription, Variable, parse_description
from causaldiffae.datasets.folder.graph_files import EXTENSIONS, MAX_BYTES
from causaldiffae.datasets.folder.image_cache import cache_folder, cached_images, decode_all
from causaldiffae.datasets.folder.image_files import CHANNELS, MODES, ImageRule
from causaldiffae.datasets.folder.label_table import (
    MAX_TABLE_BYTES,
    SPLITS,
    Table,
    assign_splits,
    check_columns,
    check_training_labels,
    parse_table,
    read_column,
)
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.datasets.folder.value_range import FULL_RANGE
from causaldiffae.datasets.images import ImageData, evenly_spread
from causaldiffae.datasets.spec import SPLIT_SHARES, DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import write_json
from causaldiffae.files.storage import FileStamp, Folder, is_remote, open_folder, read_address

TABLE: Final = "labels.csv"
GRAPHS: Final = tuple(f"graph{extension}" for extension in EXTENSIONS)


@dataclass(frozen=True)
class Content:
    """The content of a table, with labels if a graph or a spec is available.

    Attributes:
        rule: conversion of the image files.
        table: the cells of `labels.csv`.
        splits: (N,) split of each row.
        spec: None if there were problems.
        labels: (N, n) float32 with columns in graph order, NaN if missing; None if there were problems.
    """

    rule: ImageRule
    table: Table
    splits: np.ndarray
    spec: DatasetSpec | None = None
    labels: np.ndarray | None = None

    def rows(self, split: str) -> np.ndarray:
        """Row indices of a split."""
        return np.nonzero(self.splits == split)[0]


def is_image_folder(data_dir: str | Path) -> bool:
    """Whether a folder has this layout."""
    return open_folder(data_dir).has(TABLE) if is_remote(data_dir) else Path(data_dir, TABLE).is_file()


def folder_spec(
    data_dir: str | Path,
    graph_path: str | Path | None = None,
    image_size: int | None = None,
    channels: int | None = None,
) -> DatasetSpec:
    """Computes the spec of an image folder.

    Args:
        data_dir: a local path or an address like gs://bucket/set.
        graph_path: the graph file; by default `graph.yaml` in the folder, or with another extension of graph_files.py.
        image_size, channels: by default as in the graph file.

    Raises:
        DataError: with the first problem of the graph or the table, and the number of further ones.
    """
    problems = Problems()
    _, content = open_image_folder(data_dir, problems, graph_path, image_size, channels)
    problems.raise_first()
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
    folder, graph, table = open_folder(data_dir), None, None
    with problems.collect():
        graph = _read_graph_file(folder, graph_path)
    with problems.collect():
        table = folder.read(TABLE, MAX_TABLE_BYTES)
    content, found = interpret(folder.where, table, graph, image_size, channels)
    problems.extend(found)
    if content is not None and content.spec is not None and (cache := cache_folder(folder)) is not None:
        write_json(cache / "statistics.json", content.spec.to_dict())  # for the user; checkpoints contain it too
    return folder, content


def _read_graph_file(folder: Folder, graph_path: str | Path | None) -> tuple[str, bytes]:
    """Name and content of the graph file."""
    if graph_path:
        return str(graph_path), read_address(graph_path, MAX_BYTES)
    for name in GRAPHS:
        if folder.has(name):
            return f"{folder.where}/{name}", folder.read(name, MAX_BYTES)
    raise DataError(f"{folder.where}: expected {GRAPHS[0]}, got none; add it or set --graph")


@lru_cache(maxsize=1)  # for several splits of one folder
def interpret(
    where: str,
    table_bytes: bytes | None,
    graph_file: tuple[str, bytes] | None,
    image_size: int | None = None,
    channels: int | None = None,
) -> tuple[Content | None, Problems]:
    """Combines a table and a graph file, as far as they are available."""
    problems, table, description = Problems(), None, None
    in_table = Problems()
    with in_table.collect():
        if table_bytes is not None:
            table = parse_table(table_bytes, f"{where}/{TABLE}", in_table)
    with problems.collect():
        if graph_file is not None:
            columns = tuple(table.cells) if table is not None else ()
            description = parse_description(graph_file[1], graph_file[0], columns)
    problems.extend(in_table)
    if table is None:
        return None, problems
    if description is None:
        return Content(ImageRule(64, 3, "crop", FULL_RANGE), table, assign_splits(table, 0, SPLIT_SHARES)), problems
    size, channels = image_size or description.image_size, channels or description.channels
    splits = assign_splits(table, description.split_seed, description.split_shares)
    content = Content(ImageRule(size, channels, description.resize, FULL_RANGE), table, splits)
    with problems.collect():
        content = _with_labels(content, description, problems)
    return content, problems


def _with_labels(content: Content, description: FolderDescription, problems: Problems) -> Content:
    """Adds labels and the spec, computed from the labelled training rows; declared values take precedence."""
    table, rule, names = content.table, content.rule, description.graph.names
    check_columns(table, names, description.ignore, problems)
    present = [name for name in names if name in table.cells]
    declared = {name: description.variables.get(name, Variable()) for name in names}
    columns = {name: read_column(table, name, declared[name], problems) for name in present}
    if not columns:
        return content
    labels = np.stack([column.values for column in columns.values()], axis=1)
    in_training = (content.splits == "train") & ~np.isnan(labels).any(1)
    if not in_training.any():
        problems.add(f"{table.where}: expected images of split train with all labels, got none")
    check_training_labels(table, columns, in_training, problems)
    if problems.count:
        return content
    wide = labels[in_training].astype(np.float64)
    numbers: dict[str, Any] = {}
    for key, values in {"shift": wide.mean(0), "scale": wide.std(0), "low": wide.min(0), "high": wide.max(0)}.items():
        given = [getattr(variable, key) for variable in declared.values()]
        numbers[key] = tuple(float(v) if g is None else g for g, v in zip(given, values, strict=True))
    units = tuple(variable.unit for variable in declared.values())
    spec = DatasetSpec(
        name=description.name,
        image_size=rule.image_size,
        channels=rule.channels,
        graph=description.graph,
        units=units if any(units) else (),
        kinds=tuple(column.kind for column in columns.values()),
        categories=tuple(column.categories for column in columns.values()),
        resize=description.resize,
        split_seed=description.split_seed,
        split_shares=description.split_shares,
        **numbers,
    )
    return replace(content, spec=spec, labels=labels)


@lru_cache(maxsize=1)
def _interpret_with_spec(where: str, table_bytes: bytes, spec: DatasetSpec) -> Content:
    """Reads a table with the spec of a model or built-in data set; further columns are ignored."""
    problems = Problems()
    table = parse_table(table_bytes, f"{where}/{TABLE}", problems)
    check_columns(table, spec.graph.names, None, problems)
    problems.raise_first()
    columns = []
    for i, name in enumerate(spec.graph.names):
        categories = spec.category_names(i)
        kind = spec.kind(i) if categories else "continuous"  # as is a binary variable with numeric values
        columns.append(read_column(table, name, Variable(kind, categories=categories), problems).values)
    problems.raise_first()
    value_range = (spec.value_range[0], spec.value_range[1]) if spec.value_range else FULL_RANGE
    rule = ImageRule(spec.image_size, spec.channels, spec.resize, value_range)
    splits = assign_splits(table, spec.split_seed, spec.split_shares)
    return Content(rule, table, splits, spec, np.stack(columns, axis=1))


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
        The images with their labels; where a label is missing, `labels` is NaN and `labelled` is False.

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
        content = _interpret_with_spec(folder.where, folder.read(TABLE, MAX_TABLE_BYTES), spec)
    assert content is not None and content.spec is not None and content.labels is not None
    rows = content.rows(split)
    if not len(rows):
        raise DataError(f"{content.table.where}: expected images in split {split}, got none")
    if limit is not None and limit < len(rows):  # the first ones may have the same label
        rows = rows[evenly_spread(limit, len(rows))]
    images = read_images(folder, content, rows, split if limit is None else f"{split}_{limit}", problems)
    problems.raise_first()
    labels = content.labels[rows]
    labelled = ~np.isnan(labels).any(1)
    ids = [content.table.files[row] for row in rows]
    return ImageData(content.spec, split, images, labels, None, ids, labelled=None if labelled.all() else labelled)


def read_images(
    folder: Folder, content: Content, rows: np.ndarray, label: str, problems: Problems, check_all: bool = False
) -> np.ndarray:
    """Reads the images of the given rows.

    Args:
        label: see `cached_images`.
        check_all: decode every file even if some are missing.

    Returns:
        (N, C, S, S) uint8; invalid if there were problems.
    """
    names, stamps = [], []
    files = [content.table.files[row] for row in rows]
    for row, name, stamp in zip(rows, files, folder.stamps(files), strict=True):
        if name and isinstance(stamp, FileStamp):
            names.append(name)
            stamps.append(stamp)
        elif name:  # an empty name marks an invalid path, which was already reported
            problems.add(f"{content.table.at(row)}: {name}: {stamp}")
    if len(names) == len(rows):
        return cached_images(folder, names, stamps, content.rule, label, problems)
    if check_all:
        decode_all(folder, names, content.rule, None, problems)
    return np.empty((0, *content.rule.shape), np.uint8)


register(
    Dataset(
        name="folder",
        spec=None,
        read=read_image_folder,
        source="an image folder of the user; its licence is unknown.",
    )
)
