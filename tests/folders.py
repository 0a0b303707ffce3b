"""A small folder of images with a table and a graph, made on the fly."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GRAPH = "edges: [[age, grey]]\nvariables: {hat: {}}\nimage_size: 8\n"


def paint(seed: int, width: int = 8, height: int = 8, mode: str = "RGB") -> Image.Image:
    """A picture of noise."""
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint8)
    return Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)


def table_rows(count: int = 20) -> list[dict[str, Any]]:
    """Continuous age, binary grey, categorical hat; 12 images in train, 4 in val, 4 in test."""
    splits = ["train"] * 12 + ["val"] * 4 + ["test"] * 4
    return [
        {
            "file": f"im/{i}.png",
            "age": 20 + 2.5 * i,
            "grey": "yes" if i % 4 == 0 else "no",
            "hat": ("none", "cap", "straw")[i % 3],
            "split": splits[i] if count == 20 else "train",
        }
        for i in range(count)
    ]


def write_table(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes `labels.csv` with the columns of the first row."""
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def make_folder(folder: Path, rows: Sequence[Mapping[str, Any]] | None = None, graph: str = GRAPH) -> Path:
    """A folder with 20 pictures of 8x8 that can be trained on; `rows` in place of `table_rows()`."""
    (folder / "im").mkdir(parents=True)
    rows = table_rows() if rows is None else rows
    write_table(folder, rows)
    (folder / "graph.yaml").write_text(graph, encoding="utf-8")
    for i, row in enumerate(rows):
        paint(i).save(folder / str(row["file"]))
    return folder
