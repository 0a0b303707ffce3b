"""The content of an image folder's table and graph: labels, splits and the spec of the data set.

The spec is computed from the training split; declared values take precedence. With the spec of a model or of a built-in
data set, a table is read as for training, without its graph file, and further columns are ignored.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from causaldiffae.datasets.folder.column_hints import (
    check_training_labels,
    hint_groups,
    hint_labels,
    hint_splits,
)
from causaldiffae.datasets.folder.description import FolderDescription, parse_description
from causaldiffae.datasets.folder.image_files import ImageRule
from causaldiffae.datasets.folder.label_columns import read_column, read_with_spec
from causaldiffae.datasets.folder.label_table import SPLITS, Table, assign_splits, check_columns, check_group
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.datasets.folder.table_files import TableFile, parse_tables
from causaldiffae.datasets.folder.value_range import FULL_RANGE
from causaldiffae.datasets.spec import SPLIT_SHARES, DatasetSpec

GROUP = "group"
"""Column of groups if the graph file names no other."""


@dataclass(frozen=True)
class Content:
    """The content of a table, with labels if a graph or a spec is available.

    Attributes:
        rule: conversion of the image files.
        table: the cells of the table.
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


@lru_cache(maxsize=1)  # for several splits of one folder
def interpret(
    where: str,
    tables: tuple[TableFile, ...],
    graph_file: tuple[str, bytes] | None,
    image_size: int | None = None,
    channels: int | None = None,
    links: bool = False,
) -> tuple[Content | None, Problems]:
    """Combines the tables of the folder `where` and a graph file, as far as they are available.

    Args:
        links: `links_are_followed()`, on which the result depends.
    """
    problems, in_table, table, description = Problems(), Problems(), None, None
    with in_table.collect():
        table = parse_tables(tables, where, in_table) if tables else None
    with problems.collect():
        if graph_file is not None:
            columns = tuple(table.cells) if table is not None else ()
            description = parse_description(graph_file[1], graph_file[0], columns, problems)
    problems.extend(in_table)
    if table is None:
        return None, problems
    if description is None:
        return Content(ImageRule(64, 3, "crop", FULL_RANGE), table, assign_splits(table, 0, SPLIT_SHARES)), problems
    size, channels = image_size or description.image_size, channels or description.channels
    group = _group_column(table, description)
    splits = assign_splits(table, description.split_seed, description.split_shares, group)
    low, high = description.value_range or FULL_RANGE
    content = Content(ImageRule(size, channels, description.resize, (low, high)), table, splits)
    if group:
        check_group(table, splits, group, problems)
    if group and not description.group:
        problems.note(f"{table.where}: images with the same {group} are kept in one split; list it in `ignore` if not")
    with problems.collect():
        content = _with_labels(content, description, group, problems)
    return content, problems


def _group_column(table: Table, description: FolderDescription) -> str:
    if description.group:
        return description.group
    is_used = GROUP in description.graph.names or GROUP in description.ignore
    return GROUP if GROUP in table.cells and not is_used else ""


def _with_labels(content: Content, description: FolderDescription, group: str, problems: Problems) -> Content:
    """Adds labels and the spec, computed from all training labels of each variable; declared values take precedence."""
    table, rule, names = content.table, content.rule, description.graph.names
    check_columns(table, names, description.ignore, group, problems, description.has_keys)
    present = [name for name in names if name in table.cells]
    declared = {name: description.variable(name) for name in names}
    columns = {name: read_column(table, name, declared[name], problems) for name in present}
    if not columns:
        return content
    labels = np.stack([column.values for column in columns.values()], axis=1)
    in_training = content.splits == "train"
    if not np.isnan(labels[in_training]).all():
        check_training_labels(table, columns, in_training, problems)
    elif np.isin(content.splits, SPLITS).any() and not problems.count:  # unknown splits are reported with the table
        problems.add(f"{table.where}: expected images of split train with labels, got none")
    hint_labels(table, columns, declared, problems)
    hint_splits(table, names, problems)
    if not group:
        hint_groups(table, content.splits, names, problems)
    if problems.count:
        return content
    wide = labels[in_training & ~np.isnan(labels).all(1)].astype(np.float64)
    ends = {"low": np.nanmin(wide, axis=0), "high": np.nanmax(wide, axis=0)}
    statistics = {"shift": np.nanmean(wide, axis=0), "scale": np.nanstd(wide, axis=0), **ends}
    numbers: dict[str, Any] = {}
    for key, values in statistics.items():
        given = [getattr(variable, key) for variable in declared.values()]
        numbers[key] = tuple(float(v) if g is None else g for g, v in zip(given, values, strict=True))
    units = tuple(variable.unit for variable in declared.values())
    missing = tuple(variable.missing for variable in declared.values())
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
        group=group,
        value_range=description.value_range,
        missing=missing if any(missing) else (),
        **numbers,
    )
    return replace(content, spec=spec, labels=labels)


@lru_cache(maxsize=1)
def interpret_with_spec(where: str, tables: tuple[TableFile, ...], spec: DatasetSpec, links: bool = False) -> Content:
    """Reads the tables of the folder `where` with the spec of a model or built-in data set.

    Not all models need labels, so a column may be empty. A missing column counts as empty, with a warning.

    Raises:
        DataError: with the first problem, and the number of further ones.
    """
    problems = Problems()
    table = parse_tables(tables, where, problems)
    problems.raise_first()
    if absent := [name for name in spec.graph.names if name not in table.cells]:
        shown = ", ".join(absent)[:200]
        warnings.warn(f"{table.where}: no column {shown}; these labels count as missing", stacklevel=2)
    columns = []
    for name in spec.graph.names:
        if name in absent:
            columns.append(np.full(len(table.files), np.nan, np.float32))
            continue
        columns.append(read_with_spec(table, name, spec, problems))
    if spec.group and table.splits is None and spec.group not in table.cells:
        problems.add(f"{table.where}: expected a column {spec.group!r:.80} of groups to divide the images, got none")
    problems.raise_first(advice="")  # `check` infers kinds and categories anew
    low, high = spec.value_range or FULL_RANGE
    rule = ImageRule(spec.image_size, spec.channels, spec.resize, (low, high))
    splits = assign_splits(table, spec.split_seed, spec.split_shares, spec.group)
    return Content(rule, table, splits, spec, np.stack(columns, axis=1))
