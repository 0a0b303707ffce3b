"""Checks an image folder: reports all of its problems, or else a summary of its content, and hints at mistakes.

The labels are also tested against the graph, see datasets/independence.py.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from PIL import Image

import causaldiffae.datasets.registry  # noqa: F401  registers the data sets
from causaldiffae.datasets.folder.content import Content
from causaldiffae.datasets.folder.image_cache import cached_images, decode_all
from causaldiffae.datasets.folder.image_files import ImageRule
from causaldiffae.datasets.folder.image_folder import locate_images, open_image_folder
from causaldiffae.datasets.folder.image_hints import Copies, hint_files, hint_pixels, note_grey
from causaldiffae.datasets.folder.label_table import SPLITS, Table, groups_of
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.datasets.folder.table_files import read_tables
from causaldiffae.datasets.folder.true_pairs import PAIRS, read_true_pairs
from causaldiffae.datasets.independence import test_graph
from causaldiffae.datasets.label_subsets import never_together
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError
from causaldiffae.files.storage import Folder
from causaldiffae.visualization.graph import draw_graph

GRAPH_IMAGE: Final = "graph.png"
REDUCED_TABLE: Final = "labels.csv"
_LISTED: Final = 12
_RULES: Final = {
    "crop": "centre square, resized",
    "area": "centre square, averaged",
    "pad": "whole image, padded with black",
}


class TrainingSize(NamedTuple):
    """What a training configuration says about the size of images and latents; 0 where it says nothing."""

    image_size: int
    channels: int
    block_size: int


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
    configurations: Mapping[str, TrainingSize] | None = None,
) -> FolderReport:
    """Reads the graph, the table and every image, which fills the cache; draws the graph if the folder is valid.

    Args:
        drop_broken: write the table without images that are missing or cannot be decoded, as `labels.csv`; a previous
            file of this name is kept as `labels.csv.orig`. The new table is checked.
        configurations: training configurations by name, whose sizes are compared with the data. A single one also sets
            `image_size` and `channels` where these are None.

    Raises:
        DataError: if the folder is missing, or the drawing of the graph or the table cannot be written.
    """
    problems, sizes = Problems(), configurations or {}
    if len(sizes) == 1:
        (given,) = sizes.values()
        image_size, channels = image_size or given.image_size or None, channels or given.channels or None
    folder, content = open_image_folder(data_dir, problems, graph_path, image_size, channels)
    broken: list[int] = []
    if content is not None:
        known = problems.count
        broken = _check_images(folder, content, problems)
        if drop_broken and broken and known:
            problems.add("drop_broken: expected no other problems of the table or the graph; correct them first")
            broken = []
        hint_files(folder, content, problems)
        if content.spec is not None and not problems.count:
            _check_pairs(folder, content, problems)
    if drop_broken and broken and content is not None:
        written = _write_without(folder, content.table, broken)
        report = check_folder(data_dir, graph_path, image_size, channels, configurations=sizes)
        return FolderReport(report.problems, report.count, report.summary, report.hints, [written, *report.notes])
    summary = []
    if content is not None and content.spec is not None and not problems.count:
        _hint_ranges(content, problems)
        _hint_blocks(content.spec, sizes, problems)
        _hint_apart(content, problems)
        tested = _test_labels(content, problems)
        summary = _summary(folder, content, sizes, tested)
    return FolderReport(problems.lines, problems.count, summary, problems.hints, problems.notes)


def _check_images(folder: Folder, content: Content, problems: Problems) -> list[int]:
    """Decodes all images into the cache; returns the rows whose image is missing or cannot be decoded."""
    total = len(content.table.files)
    located = locate_images(folder, content, np.arange(total), problems)
    broken, copies = np.setdiff1d(np.arange(total), located.rows).tolist(), Copies()
    are_assigned = content.table.splits is not None or all(content.table.files)  # random splits depend on the paths
    for split in SPLITS:
        rows = content.rows(split)
        if are_assigned and not len(rows) and split != "val" and np.isin(content.splits, SPLITS).any():
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
                copies.add(found.names, images, split)
                if split == "train":
                    note_grey(images, problems)
        else:
            decode_all(folder, found.names, content.rule, None, problems, failed)
        broken += found.rows[failed].tolist()
    copies.hint(problems)
    return broken


def _check_pairs(folder: Folder, content: Content, problems: Problems) -> None:
    """Reads the true counterfactuals of all splits."""
    counts = []
    for split in SPLITS:
        found = Problems()  # those of the whole table occur for every split
        pairs = read_true_pairs(folder, content, content.rows(split), split, found)
        for line in found.lines:
            if line not in problems.lines:
                problems.add(line)
        for line in found.notes:
            if line not in problems.notes:
                problems.note(line)
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
    original = f"{REDUCED_TABLE}.orig"
    if previous is not None and not folder.has(original):
        folder.write(original, previous.content)
    columns = {"file": table.files, **{name: column.cells() for name, column in table.cells.items()}}
    if table.splits is not None:
        columns["split"] = table.splits
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=table.separator if table.separator in ",;\t|" else ",")
    writer.writerow(columns)
    writer.writerows(zip(*([cells[row] for row in kept] for cells in columns.values()), strict=True))
    folder.write(REDUCED_TABLE, text.getvalue().encode())
    was = f"; the original table is {original}" if previous is not None else ""
    images = "image" if len(broken) == 1 else "images"
    return f"{folder.where}/{REDUCED_TABLE}: written without {len(broken)} {images} that cannot be read{was}"


def _hint_ranges(content: Content, problems: Problems) -> None:
    """Hints at training labels outside a declared range; a computed one includes them all."""
    assert content.spec is not None and content.labels is not None
    rows, spec = content.rows("train"), content.spec
    for i, name in enumerate(spec.graph.names):
        values = content.labels[rows, i].astype(np.float64)
        slack = 1e-6 * max(abs(spec.low[i]), abs(spec.high[i]))  # labels are float32
        outside = rows[(values < spec.low[i] - slack) | (values > spec.high[i] + slack)]
        if len(outside):
            first = outside[0]
            problems.hint(
                f"{content.table.at(first)}: {name}: expected a label in the declared range {spec.low[i]:g}.."
                f"{spec.high[i]:g}, got {content.labels[first, i]:g} ({len(outside)} of {len(rows)} training images)"
            )


def _hint_blocks(spec: DatasetSpec, sizes: Mapping[str, TrainingSize], problems: Problems) -> None:
    """Hints at variables with more categories than a configuration has latents per variable."""
    for i, name in enumerate(spec.graph.names):
        count = len(spec.category_values(i))
        small = [f"{size.block_size} in {each}" for each, size in sizes.items() if 0 < size.block_size < count]
        if small:
            problems.hint(
                f"{name}: {count} categories need as many latents per variable, got {', '.join(small)}; train with "
                f"--block_size {count}"
            )


def _hint_apart(content: Content, problems: Problems) -> None:
    """Hints at variables whose mechanism has no training image with all the labels that it relates."""
    assert content.spec is not None and content.labels is not None
    graph, observed = content.spec.graph, ~np.isnan(content.labels[content.rows("train")])
    for name in never_together(graph, observed):
        problems.hint(
            f"{name}: no training image has its label and those of its parents {', '.join(graph.parents[name])}, so "
            "its mechanism is not fitted to labels; label some images with all of them"
        )


def _test_labels(content: Content, problems: Problems) -> str:
    """Tests the labels against the graph; hints at contradictions and returns a summary."""
    assert content.spec is not None and content.labels is not None
    tested = test_graph(content.labels[_independent_rows(content)], content.spec)
    lines = tested.lines()
    for line in lines[:_LISTED]:
        problems.hint(line)
    if len(lines) > _LISTED:
        problems.hint(f"labels contradict the graph: and {len(lines) - _LISTED} more pairs of variables")
    count = len(tested.tests)
    if not count and not tested.untested:
        return "it implies no independence that labels could contradict"
    if not count:
        return (
            "labels are not tested against it: too few rows, large separating sets, or variables that others determine"
        )
    pairs = f"{count} pair{'s' if count > 1 else ''} without an edge tested"
    more = (
        f", {tested.untested} not (too few rows, a large separating set, or determined by others)"
        if tested.untested
        else ""
    )
    return f"{pairs} on the labels{more}: {len(lines) or 'none'} contradict{'' if len(lines) > 1 else 's'} it"


def _independent_rows(content: Content) -> np.ndarray:
    """The rows of all splits; of rows with the same group only the first, as they are related."""
    assert content.spec is not None
    rows = np.flatnonzero(np.isin(content.splits, SPLITS))
    groups = groups_of(content.table, content.spec.group)
    return rows if groups is None else rows[np.unique(groups[rows], return_index=True)[1]]


def _summary(folder: Folder, content: Content, sizes: Mapping[str, TrainingSize], tested: str) -> list[str]:
    assert content.spec is not None
    graph = content.spec.graph
    lines = [f"{content.table.where}: {len(content.splits)} images", *_image_lines(content.rule, sizes)]
    for split in SPLITS:
        rows = content.rows(split)
        lines.append(f"  {split}: {len(rows)} images{_label_shares(content, rows)}")
    lines.append(f"graph: {len(graph)} variables, {len(graph.edges)} edge{'' if len(graph.edges) == 1 else 's'}")
    lines += [f"  {name}: {_describe(content, i)}" for i, name in enumerate(graph.names)]
    encoded = io.BytesIO()
    Image.fromarray(draw_graph(graph)).save(encoded, format="PNG")
    folder.write(GRAPH_IMAGE, encoded.getvalue())
    return [*lines, f"graph: {tested}", f"graph written to {folder.where}/{GRAPH_IMAGE}"]


def _image_lines(rule: ImageRule, sizes: Mapping[str, TrainingSize]) -> list[str]:
    """The size of images in training, and that of configurations which set another."""
    names = {1: "grey", 3: "RGB", 4: "RGBA"}
    side = rule.image_size
    line = f"size in training: {side}x{side} pixels, {names[rule.channels]} ({rule.resize}: {_RULES[rule.resize]})"
    others = {name: size.image_size for name, size in sizes.items() if size.image_size not in (0, side)}
    if len(sizes) == 1:
        return [f"{line}, with {next(iter(sizes))}"]
    if not others:
        return [line]
    listed = ", ".join(f"{name} {size}x{size}" for name, size in others.items())
    return [line, f"  some configurations set another: {listed}; --config NAME checks the folder for one of them"]


def _label_shares(content: Content, rows: np.ndarray) -> str:
    """Shares of the rows that have the label of each variable, where some are missing, and that have all."""
    assert content.spec is not None and content.labels is not None
    known = ~np.isnan(content.labels[rows])
    if known.all():
        return ", all labelled" if len(rows) else ""
    shares = {name: float(share) for name, share in zip(content.spec.graph.names, known.mean(0), strict=True)}
    incomplete = sorted((name for name in shares if shares[name] < 1), key=lambda name: shares[name])
    parts = [f"{name} {_percent(shares[name])}" for name in incomplete[:_LISTED]]
    if len(incomplete) > _LISTED:
        parts.append(f"{len(incomplete) - _LISTED} more variables at least {_percent(shares[incomplete[_LISTED]])}")
    if len(incomplete) < len(shares):
        parts.append("others 100 %")
    return f"; labels: {', '.join(parts)}; all: {_percent(float(known.all(1).mean()))}"


def _percent(share: float) -> str:
    """A share with two or three digits that is neither rounded to nothing nor to all."""
    return f"{min(max(100 * share, 0.01 if share else 0.0), 99.99 if share < 1 else 100.0):.3g} %"


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
        shares = [f"{' '.join(name.split())} {100 * (present == value).mean():.3g} %" for name, value in pairs]
        more = f", and {len(shares) - 12} more" if len(shares) > 12 else ""
        text = f"{kind}, {', '.join(shares[:12])}{more}{unit}"
    missing = 1 - len(present) / len(values)
    return text + (f"; {100 * missing:.3g} % missing" if missing else "")
