"""Checks an image folder: reports all of its problems, or else a summary of its content, and hints at mistakes."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

import causaldiffae.datasets.registry  # noqa: F401  registers the data sets
from causaldiffae.datasets.folder.content import Content
from causaldiffae.datasets.folder.image_cache import cached_images, decode_all
from causaldiffae.datasets.folder.image_folder import locate_images, open_image_folder
from causaldiffae.datasets.folder.image_hints import hint_files, hint_pixels
from causaldiffae.datasets.folder.label_table import SPLITS, Table
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.datasets.folder.table_files import read_tables
from causaldiffae.datasets.folder.true_pairs import PAIRS, read_true_pairs
from causaldiffae.errors import DataError
from causaldiffae.files.storage import Folder
from causaldiffae.visualization.graph import draw_graph

GRAPH_IMAGE: Final = "graph.png"
REDUCED_TABLE: Final = "labels.csv"


@dataclass(frozen=True)
class FolderReport:
    """Result of `check_folder`.

    Attributes:
        problems: one line each, at most `MAX_KEPT`; empty for a folder that can be used for training.
        count: number of problems.
        summary: lines on images, splits and variables; empty if there are problems.
        hints: properties of the data that are likely mistakes.
        notes: how the files were read, where that is not obvious.
    """

    problems: list[str]
    count: int
    summary: list[str]
    hints: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_folder(
    data_dir: str | Path,
    graph_path: str | Path | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    drop_broken: bool = False,
) -> FolderReport:
    """Reads the graph, the table and every image, which fills the cache; draws the graph if the folder is valid.

    Args:
        drop_broken: write the table without images that are missing or cannot be decoded, as `labels.csv`; a previous
            file of this name is kept as `labels.csv.orig`. The new table is checked.

    Raises:
        DataError: if the folder is missing, or the drawing of the graph or the table cannot be written.
    """
    problems = Problems()
    folder, content = open_image_folder(data_dir, problems, graph_path, image_size, channels)
    broken: list[int] = []
    if content is not None:
        broken = _check_images(folder, content, problems)
        hint_files(folder, content, problems)
        if content.spec is not None and not problems.count:
            _check_pairs(folder, content, problems)
    if drop_broken and broken and content is not None:
        written = _write_without(folder, content.table, broken)
        report = check_folder(data_dir, graph_path, image_size, channels)
        return FolderReport(report.problems, report.count, report.summary, report.hints, [written, *report.notes])
    summary = [] if problems.count or content is None else _summary(folder, content)
    return FolderReport(problems.lines, problems.count, summary, problems.hints, problems.notes)


def _check_images(folder: Folder, content: Content, problems: Problems) -> list[int]:
    """Decodes all images into the cache; returns the rows whose image is missing or cannot be decoded."""
    total = len(content.table.files)
    located = locate_images(folder, content, np.arange(total), problems)
    broken = np.setdiff1d(np.arange(total), located.rows).tolist()
    for split in SPLITS:
        rows = content.rows(split)
        if not len(rows) and split != "val" and np.isin(content.splits, SPLITS).any():
            hint = "" if content.table.splits is not None else "; add a column `split` to assign images to it"
            problems.add(f"{content.table.where}: expected images in split {split}, got none{hint}")
        if not len(rows):
            continue
        found = located.among(rows)
        failed: list[int] = []
        if len(found.rows) == len(rows):
            images = cached_images(folder, found.names, found.stamps, content.rule, split, problems, failed)
            if not failed:
                hint_pixels(found.names, images, split, problems)
        else:
            decode_all(folder, found.names, content.rule, None, problems, failed)
        broken += found.rows[failed].tolist()
    return broken


def _check_pairs(folder: Folder, content: Content, problems: Problems) -> None:
    """Reads the true counterfactuals of all splits."""
    counts = []
    for split in SPLITS:
        pairs = read_true_pairs(folder, content, content.rows(split), split, problems)
        if pairs is not None:
            counts.append(f"{len(pairs.dos)} of {len(np.unique(pairs.rows))} images in split {split}")
    if counts:
        problems.note(f"{folder.where}/{PAIRS}: true counterfactuals: {', '.join(counts)}")


def _write_without(folder: Folder, table: Table, broken: list[int]) -> str:
    """Writes the table without some rows; returns a note."""
    kept = np.setdiff1d(np.arange(len(table.files)), broken)
    if not len(kept):
        raise DataError(f"{table.where}: drop_broken: expected some images that can be read, got none")
    previous = next((file for file in read_tables(folder) if file.name == REDUCED_TABLE), None)
    if previous is not None:
        folder.write(f"{REDUCED_TABLE}.orig", previous.content)
    columns = {"file": table.files, **{name: column.cells() for name, column in table.cells.items()}}
    if table.splits is not None:
        columns["split"] = table.splits
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=table.separator if table.separator in ",;\t|" else ",")
    writer.writerow(columns)
    writer.writerows(zip(*([cells[row] for row in kept] for cells in columns.values()), strict=True))
    folder.write(REDUCED_TABLE, text.getvalue().encode())
    was = f"; the previous table is {REDUCED_TABLE}.orig" if previous is not None else ""
    images = "image" if len(broken) == 1 else "images"
    return f"{folder.where}/{REDUCED_TABLE}: written without {len(broken)} {images} that cannot be read{was}"


def _summary(folder: Folder, content: Content) -> list[str]:
    assert content.spec is not None and content.labels is not None
    graph, rule = content.spec.graph, content.rule
    labelled = ~np.isnan(content.labels).any(1)
    size = "x".join(map(str, rule.shape))
    lines = [f"{content.table.where}: {len(content.splits)} images, read as {size} ({rule.resize})"]
    for split in SPLITS:
        rows = content.rows(split)
        share = f", {100 * labelled[rows].mean():.4g} % labelled" if len(rows) else ""
        lines.append(f"  {split}: {len(rows)} images{share}")
    lines.append(f"graph: {len(graph)} variables, {len(graph.edges)} edge{'' if len(graph.edges) == 1 else 's'}")
    lines += [f"  {name}: {_describe(content, i)}" for i, name in enumerate(graph.names)]
    encoded = io.BytesIO()
    Image.fromarray(draw_graph(graph)).save(encoded, format="PNG")
    folder.write(GRAPH_IMAGE, encoded.getvalue())
    return [*lines, f"graph written to {folder.where}/{GRAPH_IMAGE}"]


def _describe(content: Content, i: int) -> str:
    """Describes a variable: kind, range or categories in the training split, and fraction of missing labels."""
    assert content.spec is not None and content.labels is not None
    spec, values = content.spec, content.labels[content.splits == "train", i]
    kind, present = spec.kind(i), values[~np.isnan(values)]
    unit = f" {spec.units[i]}" if spec.units and spec.units[i] else ""
    if kind == "continuous":
        numbers = f"{spec.low[i]:g}..{spec.high[i]:g}{unit}, mean {present.mean(dtype=np.float64):.4g}"
        text = f"{kind}, {numbers}, standard deviation {present.std(dtype=np.float64):.4g}"
    else:
        names = spec.category_names(i) or tuple(f"{value:g}" for value in spec.category_values(i))
        pairs = zip(names, spec.category_values(i), strict=True)
        shares = [f"{name} {100 * (present == value).mean():.3g} %" for name, value in pairs]
        more = f", and {len(shares) - 12} more" if len(shares) > 12 else ""
        text = f"{kind}, {', '.join(shares[:12])}{more}{unit}"
    missing = 1 - len(present) / len(values)
    return text + (f"; {100 * missing:.3g} % missing" if missing else "")
