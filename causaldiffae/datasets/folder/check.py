"""Checks an image folder: reports all of its problems, or else a summary of its content."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import causaldiffae.datasets.registry  # noqa: F401  registers the data sets
from causaldiffae.datasets.folder.image_folder import TABLE, Content, open_image_folder, read_images
from causaldiffae.datasets.folder.label_table import SPLITS
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.files.storage import Folder
from causaldiffae.visualization.graph import draw_graph

GRAPH_IMAGE = "graph.png"


@dataclass(frozen=True)
class FolderReport:
    """Result of `check_folder`.

    Attributes:
        problems: one line each, at most `MAX_KEPT`; empty for a folder that can be used for training.
        count: number of problems.
        summary: lines on images, splits and variables; empty if there are problems.
    """

    problems: list[str]
    count: int
    summary: list[str]


def check_folder(
    data_dir: str | Path,
    graph_path: str | Path | None = None,
    image_size: int | None = None,
    channels: int | None = None,
) -> FolderReport:
    """Reads the graph, the table and every image, which fills the cache; draws the graph if the folder is valid.

    Raises:
        DataError: if the folder is missing or the drawing of the graph cannot be written.
    """
    problems = Problems()
    folder, content = open_image_folder(data_dir, problems, graph_path, image_size, channels)
    if content is not None:
        for split in SPLITS:
            rows = content.rows(split)
            if len(rows):
                read_images(folder, content, rows, split, problems, check_all=True)
            elif split != "val":
                hint = "" if content.table.splits is not None else "; add a column `split` to assign images to it"
                problems.add(f"{content.table.where}: expected images in split {split}, got none{hint}")
    summary = [] if problems.count or content is None else _summary(folder, content)
    return FolderReport(problems.lines, problems.count, summary)


def _summary(folder: Folder, content: Content) -> list[str]:
    assert content.spec is not None and content.labels is not None
    graph, rule = content.spec.graph, content.rule
    labelled = ~np.isnan(content.labels).any(1)
    size = "x".join(map(str, rule.shape))
    lines = [f"{folder.where}/{TABLE}: {len(content.splits)} images, read as {size} ({rule.resize})"]
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
