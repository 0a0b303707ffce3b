"""Reads a whole folder of images and says what is wrong with it, all at once, or what is in it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import causaldiffae.datasets.registry  # noqa: F401  the names that a graph file may give
from causaldiffae.datasets.folder.label_table import SPLITS
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.datasets.folder.reader import TABLE, Content, Request, open_image_folder, read_images
from causaldiffae.files.storage import Folder
from causaldiffae.visualization.graph import draw_graph

PICTURE = "graph.png"


@dataclass(frozen=True)
class FolderReport:
    """What `check_folder` found.

    Attributes:
        problems: one line each; empty for a folder that can be trained on. Beyond a thousand they are only counted.
        count: how many problems there are.
        summary: lines about images, splits and variables; empty if there are problems.
    """

    problems: list[str]
    count: int
    summary: list[str]


def check_folder(data_dir: str | Path, request: Request | None = None) -> FolderReport:
    """Reads graph, table and every image; a sound folder gets a picture of its graph, and its cache is ready then.

    Raises:
        DataError: if there is no such folder, or the picture cannot be written.
    """
    problems = Problems()
    folder, content = open_image_folder(data_dir, problems, request or Request())
    if content is not None:
        for split in SPLITS:
            rows = content.rows(split)
            if not len(rows) and split != "val":
                chosen = "by the column" if content.table.splits is not None else "by chance; name it in a column"
                problems.add(f"{content.table.where}: no image is in split {split} ({chosen} `split`)")
            elif len(rows):
                read_images(folder, content, rows, split, problems, all_of_them=True)
    if problems.count or content is None:
        return FolderReport(problems.lines, problems.count, [])
    return FolderReport([], 0, _summary(folder, content))


def _summary(folder: Folder, content: Content) -> list[str]:
    assert content.spec is not None and content.labels is not None
    spec, rule = content.spec, content.rule
    size = "x".join(map(str, rule.shape))
    counts = {split: content.rows(split) for split in SPLITS}
    labelled = ~np.isnan(content.labels).any(1)
    lines = [f"{folder.where}/{TABLE}: {len(content.splits)} images, taken as {size} ({rule.resize})"]
    for split, rows in counts.items():
        share = f", {100 * labelled[rows].mean():.4g} % labelled" if len(rows) else ""
        lines.append(f"  {split}: {len(rows)} images{share}")
    edges = f"{len(spec.graph.edges)} edge{'' if len(spec.graph.edges) == 1 else 's'}"
    lines.append(f"graph: {len(spec.graph)} variables, {edges}")
    for place, name in enumerate(spec.graph.names):
        lines.append(f"  {name}: {_describe(content, place)}")
    picture = io.BytesIO()
    Image.fromarray(draw_graph(spec.graph)).save(picture, format="PNG")
    folder.write(PICTURE, picture.getvalue())
    return [*lines, f"the graph is drawn in {folder.where}/{PICTURE}"]


def _describe(content: Content, place: int) -> str:
    """One variable: kind, range or categories in the training split, and how often it is missing."""
    assert content.spec is not None and content.labels is not None
    spec, values = content.spec, content.labels[content.splits == "train", place]
    kind = spec.kinds[place] if spec.kinds else "continuous"
    present = values[~np.isnan(values)]
    categories = spec.categories[place] if spec.categories else ()
    unit = f" {spec.units[place]}" if spec.units and spec.units[place] else ""
    if kind == "continuous":
        numbers = f"{spec.low[place]:g}..{spec.high[place]:g}{unit}, mean {present.mean(dtype=np.float64):.4g}"
        text = f"{kind}, {numbers}, standard deviation {present.std(dtype=np.float64):.4g}"
    else:
        pairs = enumerate(categories) if categories else ((v, f"{v:g}") for v in (spec.low[place], spec.high[place]))
        shares = [f"{shown} {100 * (present == value).mean():.3g} %" for value, shown in pairs]
        more = f", and {len(shares) - 12} more" if len(shares) > 12 else ""
        text = f"{kind}, {', '.join(shares[:12])}{more}{unit}"
    missing = 1 - len(present) / len(values)
    return text + (f"; {100 * missing:.3g} % missing" if missing else "")
