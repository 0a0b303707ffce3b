"""Opens a folder of images: its graph, its table, what follows from both, and the images of some rows.

Everything that is wrong is noted in `Problems` and the reading goes on as far as it can, so that one look tells all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from causaldiffae.datasets.dataset import DATASETS
from causaldiffae.datasets.folder.description import FolderDescription, Variable, parse_description
from causaldiffae.datasets.folder.graph_files import MAX_BYTES
from causaldiffae.datasets.folder.image_cache import cache_folder, cached_images, decode_all
from causaldiffae.datasets.folder.image_files import MODES, ImageRule
from causaldiffae.datasets.folder.label_table import (
    MAX_TABLE_BYTES,
    Column,
    Table,
    assign_splits,
    check_columns,
    check_training_labels,
    parse_table,
    read_column,
)
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.datasets.reading_rules import SPLIT_SHARES
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import write_json
from causaldiffae.files.storage import FileStamp, Folder, open_folder, read_address

TABLE: Final = "labels.csv"
GRAPHS: Final = ("graph.yaml", "graph.yml", "graph.json", "graph.gml", "graph.dot")
SMALLEST, LARGEST = 8, 512


@dataclass(frozen=True)
class Request:
    """What the caller wants in place of what the graph's file says; None for nothing."""

    graph_path: str | Path | None = None
    image_size: int | None = None
    channels: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None and not SMALLEST <= self.image_size <= LARGEST:
            raise InputError(f"image_size: {self.image_size} given, {SMALLEST}..{LARGEST} are allowed")
        if self.channels is not None and self.channels not in MODES:
            raise InputError(f"channels: {self.channels} given, 1 (grey), 3 (RGB) or 4 (RGBA) are allowed")


@dataclass(frozen=True)
class Content:
    """What a table says, alone or together with a graph or a spec.

    Attributes:
        rule: what the files are to become.
        table: the cells.
        splits: (N,) one of `label_table.SPLITS` for each row.
        spec: what a model has to know; None if there were problems.
        labels: (N, n) float32, columns in the graph's order, NaN where there is none; None if there were problems.
    """

    rule: ImageRule
    table: Table
    splits: np.ndarray
    spec: DatasetSpec | None = None
    labels: np.ndarray | None = None

    def rows(self, split: str) -> np.ndarray:
        """Places of a split's rows, in the table's order."""
        return np.nonzero(self.splits == split)[0]


class OpenFolder(NamedTuple):
    """A folder and what its table says, if there is a table."""

    folder: Folder
    content: Content | None


def open_image_folder(data_dir: str | Path, problems: Problems, request: Request) -> OpenFolder:
    """Reads the graph and the table and works out the spec."""
    folder = open_folder(data_dir)
    graph = table = None
    with noted(problems):
        graph = _read_graph_file(folder, request.graph_path)
    with noted(problems):
        table = folder.read(TABLE, MAX_TABLE_BYTES)
    content, found = _interpret(folder.where, table, graph, request)
    problems.extend(found)
    if content is not None and content.spec is not None and (home := cache_folder(folder)) is not None:
        write_json(home / "statistics.json", content.spec.to_dict())  # for people; a checkpoint holds the same
    return OpenFolder(folder, content)


@lru_cache(maxsize=1)  # several splits are read, one after the other
def _interpret(
    where: str, table_bytes: bytes | None, graph_file: tuple[str, bytes] | None, request: Request
) -> tuple[Content | None, Problems]:
    """What a table and a graph's file say together, as far as they are there."""
    problems = Problems()
    description, table = None, None
    with noted(problems):
        if graph_file is not None:
            description = _override(parse_description(graph_file[1], graph_file[0]), request)
    with noted(problems):
        if table_bytes is not None:
            table = parse_table(table_bytes, f"{where}/{TABLE}", problems)
    if table is None:
        return None, problems
    if description is None:
        return Content(ImageRule(64, 3, "crop"), table, assign_splits(table, 0, SPLIT_SHARES)), problems
    content = Content(
        rule=ImageRule(description.image_size, description.channels, description.resize),
        table=table,
        splits=assign_splits(table, description.split_seed, description.split_shares),
    )
    with noted(problems):
        content = _with_labels(content, description, problems)
    return content, problems


def _with_labels(content: Content, description: FolderDescription, problems: Problems) -> Content:
    """Adds the spec and the labels, if there are no problems."""
    table, names = content.table, description.graph.names
    check_columns(table, names, description.ignore, problems)
    present = [name for name in names if name in table.cells]
    columns = {name: read_column(table, name, description.variable(name), problems) for name in present}
    if not columns:
        return content
    labels = np.stack([column.values for column in columns.values()], axis=1)
    in_training = (content.splits == "train") & ~np.isnan(labels).any(1)
    if not in_training.any():
        problems.add(f"{table.where}: no image of split train has all its labels")
    check_training_labels(table, columns, in_training, problems)
    if problems.count:
        return content
    return replace(content, spec=_spec(description, columns, labels[in_training]), labels=labels)


def open_with_spec(data_dir: str | Path, problems: Problems, spec: DatasetSpec) -> OpenFolder:
    """Reads the table under the spec of a model or of a built-in data set."""
    folder = open_folder(data_dir)
    content, found = _interpret_with_spec(folder.where, folder.read(TABLE, MAX_TABLE_BYTES), spec)
    problems.extend(found)
    return OpenFolder(folder, content)


@lru_cache(maxsize=1)
def _interpret_with_spec(where: str, table_bytes: bytes, spec: DatasetSpec) -> tuple[Content | None, Problems]:
    problems = Problems()
    table = parse_table(table_bytes, f"{where}/{TABLE}", problems)
    check_columns(table, spec.graph.names, None, problems)
    if problems.count:
        return None, problems
    columns = []
    for i, name in enumerate(spec.graph.names):
        categories = spec.categories[i] if spec.categories else ()
        kind = spec.kinds[i] if categories else "continuous"  # two numbers are read as they are
        columns.append(read_column(table, name, Variable(kind, categories=categories), problems).values)
    rule = ImageRule(spec.image_size, spec.channels, spec.resize)
    splits = assign_splits(table, spec.split_seed, spec.split_shares)
    return Content(rule, table, splits, spec, np.stack(columns, axis=1)), problems


def read_images(
    folder: Folder, content: Content, rows: np.ndarray, label: str, problems: Problems, all_of_them: bool = False
) -> np.ndarray:
    """The images of some rows.

    Args:
        label: of their cache, see `cached_images`.
        all_of_them: look at every file although some are missing.

    Returns:
        (N, C, S, S) uint8; of no use if there were problems.
    """
    names, stamps = [], []
    wanted = [content.table.files[row] for row in rows]
    for row, name, stamp in zip(rows, wanted, folder.stamps(wanted), strict=True):
        if not name:  # it is refused, and that has been said
            continue
        if isinstance(stamp, FileStamp):
            names.append(name)
            stamps.append(stamp)
        else:
            problems.add(f"{content.table.at(row)}: {name}: {stamp}")
    if len(names) == len(rows):
        return cached_images(folder, names, stamps, content.rule, label, problems)
    if all_of_them:
        decode_all(folder, names, content.rule, None, problems)
    return np.empty((0, *content.rule.shape), np.uint8)


@contextlib.contextmanager
def noted(problems: Problems) -> Iterator[None]:
    """Turns a refusal into a problem, so that what comes after it is looked at too."""
    try:
        yield
    except DataError as error:
        problems.add(str(error))


def _read_graph_file(folder: Folder, graph_path: str | Path | None) -> tuple[str, bytes]:
    """The name and the content of the graph's file."""
    if graph_path:
        return str(graph_path), read_address(graph_path, MAX_BYTES)
    for name in GRAPHS:
        if folder.has(name):
            return f"{folder.where}/{name}", folder.read(name, MAX_BYTES)
    raise DataError(f"{folder.where}: there is no {GRAPHS[0]} in it; name the graph's file with --graph")


def _override(description: FolderDescription, request: Request) -> FolderDescription:
    description = replace(
        description,
        image_size=description.image_size if request.image_size is None else request.image_size,
        channels=description.channels if request.channels is None else request.channels,
        split_seed=description.split_seed if request.seed is None else request.seed,
    )
    try:
        Request(None, description.image_size, description.channels)
    except InputError as error:
        raise DataError(f"graph: {error}") from None
    if description.name not in DATASETS:
        raise DataError(f"graph: name: {description.name!r} given, known data sets are {', '.join(DATASETS)}")
    return description


def _spec(description: FolderDescription, columns: Mapping[str, Column], labels: np.ndarray) -> DatasetSpec:
    """The spec that follows from the labelled training rows, (M, n); what is declared goes first."""
    names = description.graph.names
    variables = [description.variable(name) for name in names]
    wide = labels.astype(np.float64)
    measured = {"shift": wide.mean(0), "scale": wide.std(0), "low": wide.min(0), "high": wide.max(0)}

    def values(key: str) -> tuple[float, ...]:
        given = [getattr(variable, key) for variable in variables]
        return tuple(float(m) if g is None else g for g, m in zip(given, measured[key], strict=True))

    units = tuple(variable.unit for variable in variables)
    return DatasetSpec(
        name=description.name,
        image_size=description.image_size,
        channels=description.channels,
        graph=description.graph,
        shift=values("shift"),
        scale=values("scale"),
        low=values("low"),
        high=values("high"),
        units=units if any(units) else (),
        kinds=tuple(columns[name].kind for name in names),
        categories=tuple(columns[name].categories for name in names),
        resize=description.resize,
        split_seed=description.split_seed,
        split_shares=description.split_shares,
    )
