"""Pictures for people: tiles of images, and labelled grids of counterfactuals."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

GAP = 2


def tile(images: np.ndarray, background: int = 255) -> np.ndarray:
    """Lays out (rows, columns, C, H, W) uint8 images on one (H', W', C) uint8 picture with narrow gaps."""
    rows, columns, channels, height, width = images.shape
    shape = (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, channels)
    picture = np.full(shape, background, dtype=np.uint8)
    for i in range(rows):
        for j in range(columns):
            top, left = GAP + i * (height + GAP), GAP + j * (width + GAP)
            picture[top : top + height, left : left + width] = images[i, j].transpose(1, 2, 0)
    return picture


def labelled_grid(
    columns: Sequence[tuple[str, np.ndarray]],
    row_captions: Sequence[str] | None = None,
    cell_captions: Sequence[Sequence[str]] | None = None,
    title: str = "",
) -> np.ndarray:
    """A grid with a heading per column and a caption per row and cell.

    Args:
        columns: heading and (N, C, H, W) uint8 images; every column has the same N.
        row_captions: N texts at the left.
        cell_captions: per column N texts under the images.

    Returns:
        (H', W', 3) uint8.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    count = len(columns[0][1])
    figure, axes = plt.subplots(
        count, len(columns), figsize=(1.35 * len(columns) + 0.9, 1.5 * count + 0.6), squeeze=False, dpi=110
    )
    for j, (heading, images) in enumerate(columns):
        for i in range(count):
            axis = axes[i][j]
            image = images[i].transpose(1, 2, 0)
            axis.imshow(image[:, :, 0] if image.shape[2] == 1 else image, cmap="gray", vmin=0, vmax=255)
            axis.set_xticks([])
            axis.set_yticks([])
            if i == 0:
                axis.set_title(heading, fontsize=8, parse_math=False)
            if j == 0 and row_captions is not None:
                axis.set_ylabel(row_captions[i], fontsize=7, rotation=0, ha="right", va="center", parse_math=False)
            if cell_captions is not None:
                axis.set_xlabel(cell_captions[j][i], fontsize=6, labelpad=2, parse_math=False)
    if title:
        figure.suptitle(title, fontsize=9, parse_math=False)
    figure.tight_layout()
    figure.canvas.draw()
    picture = np.asarray(figure.canvas.buffer_rgba())[:, :, :3].copy()  # type: ignore[attr-defined]
    plt.close(figure)
    return picture


def save_png(path: str | Path, picture: np.ndarray) -> None:
    """Writes an (H, W, C) uint8 picture."""
    Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(path)


def data_uri(picture: np.ndarray) -> str:
    """A picture (H, W, 3) uint8 as the text of a PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
