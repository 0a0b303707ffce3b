"""Image grids, plain (`tile`), labelled and as an HTML table, and PNG output."""

from __future__ import annotations

import base64
import html
import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAP = 2
_HEADED_SIDE, _FONT_SIZE = 96, 11
_TITLE = 13  # characters of a title per inch
_HEADING_SIZE = 8  # points, in `labelled_grid`
_HTML_SIDE = 96  # pixels of the page; small images are enlarged


def tile(images: np.ndarray) -> np.ndarray:
    """Arranges (rows, columns, C, H, W) uint8 images in one (H', W', C) uint8 image with white gaps of two pixels."""
    rows, columns, channels, height, width = images.shape
    shape = (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, channels)
    canvas = np.full(shape, 255, dtype=np.uint8)
    for i in range(rows):
        for j in range(columns):
            top, left = GAP + i * (height + GAP), GAP + j * (width + GAP)
            canvas[top : top + height, left : left + width] = images[i, j].transpose(1, 2, 0)
    return canvas


def headed_tile(
    columns: Sequence[tuple[str, np.ndarray]], captions: Sequence[Sequence[str]] | None = None
) -> np.ndarray:
    """As `tile`, with a heading per column, and small images enlarged: quicker than `labelled_grid` for many images.

    Args:
        columns: headings and (N, C, H, W) uint8 images, the same N for all columns.
        captions: for each column, N captions below the images, broken to lines that fit; None for none.

    Returns:
        (H', W', 3) uint8.
    """
    images = np.stack([_three_channels(images) for _, images in columns], axis=1)
    scale = -(-_HEADED_SIDE // images.shape[-1])
    enlarged = images.repeat(scale, axis=3).repeat(scale, axis=4)
    width, font = enlarged.shape[-1], ImageFont.load_default(_FONT_SIZE)

    def lines_of(text: str) -> list[str]:
        return wrap_heading(text, lambda line: font.getlength(line) <= width)

    headings = [lines_of(heading) for heading, _ in columns]
    below = [[lines_of(text) for text in column] for column in captions or []]
    room = (_FONT_SIZE + 3) * max((len(lines) for column in below for lines in column), default=0)
    padded = np.pad(enlarged, ((0, 0), (0, 0), (0, 0), (0, room), (0, 0)), constant_values=255)
    grid = Image.fromarray(tile(padded))
    top = (_FONT_SIZE + 3) * max(len(lines) for lines in headings) + GAP
    canvas = Image.new("RGB", (grid.width, grid.height + top), "white")
    canvas.paste(grid, (0, top))
    draw = ImageDraw.Draw(canvas)

    def write(left: int, upper: int, lines: Sequence[str]) -> None:
        draw.multiline_text((left, upper), "\n".join(lines), fill="black", font=font, spacing=3)

    for j, heading in enumerate(headings):
        left = GAP + j * (width + GAP)
        write(left, GAP, heading)
        for i, lines in enumerate(below[j] if below else []):
            write(left, top + GAP + i * (width + room + GAP) + width, lines)
    return np.asarray(canvas)


def wrap_heading(heading: str, fits: Callable[[str], bool]) -> list[str]:
    """Breaks a heading at spaces, and long words after `=`, `,` or `_`, into lines that fit; a part may be too long."""
    lines = [""]
    for word in re.findall(r"[^ ]+ *|^ +", heading):
        for part in [word] if fits(word.rstrip()) else re.findall(r"[^=,_ ]+[=,_ ]*|^[=,_ ]+", word):
            if lines[-1] and not fits((lines[-1] + part).rstrip()):
                lines.append("")
            lines[-1] += part
    return [line.rstrip() for line in lines]


def render(figure: Figure) -> np.ndarray:
    """Renders a matplotlib figure as (H, W, 3) uint8, without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def labelled_grid(
    columns: Sequence[tuple[str, np.ndarray]],
    row_captions: Sequence[str] | None = None,
    cell_captions: Sequence[Sequence[str]] | None = None,
    title: str = "",
) -> np.ndarray:
    """A grid with a heading per column and captions per row and cell.

    Args:
        columns: headings, broken to lines that fit, and (N, C, H, W) uint8 images, the same N for all columns.
        row_captions: N captions at the left.
        cell_captions: for each column, N captions below the images.

    Returns:
        (H', W', 3) uint8.
    """
    from matplotlib.figure import Figure

    count = len(columns[0][1])
    lines = max((text.count("\n") + 1 for column in cell_captions or () for text in column if text), default=0)
    width = 1.35 * len(columns) + 0.9
    title = "\n".join(textwrap.wrap(title, int(width * _TITLE)))
    row = max(1.5, 0.9 * width / len(columns) + 0.05 + 0.115 * lines)  # an image and its caption, in inches
    room = (width - (0.9 if row_captions is not None else 0.3)) / len(columns) - 0.08  # of a heading, in inches
    headings = _wrapped_headings([heading for heading, _ in columns], room)
    above = max(heading.count("\n") for heading in headings)
    size = (width, row * count + 0.6 + 0.15 * title.count("\n") + 0.13 * max(0, above - 1))
    figure = Figure(figsize=size, dpi=110, layout="tight")
    axes = figure.subplots(count, len(columns), squeeze=False)
    for j, (heading, (_, images)) in enumerate(zip(headings, columns, strict=True)):
        axes[0][j].set_title(heading, fontsize=_HEADING_SIZE, parse_math=False)
        for i in range(count):
            axis = axes[i][j]
            image = images[i].transpose(1, 2, 0)
            axis.imshow(image[:, :, 0] if image.shape[2] == 1 else image, cmap="gray", vmin=0, vmax=255)
            axis.set_xticks([])
            axis.set_yticks([])
            if j == 0 and row_captions is not None:
                axis.set_ylabel(row_captions[i], fontsize=7, rotation=0, ha="right", va="center", parse_math=False)
            if cell_captions is not None:
                axis.set_xlabel(cell_captions[j][i], fontsize=6, labelpad=2, parse_math=False)
    if title:
        figure.suptitle(title, fontsize=9, y=1.0 - 0.05 / size[1], va="top", parse_math=False)
    return render(figure)


def _wrapped_headings(headings: Sequence[str], room: float) -> list[str]:
    """Headings of `labelled_grid`, broken to lines of at most `room` inches, so that adjacent ones do not overlap."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

    measure = FigureCanvasAgg(Figure(dpi=72)).get_renderer().get_text_width_height_descent
    font = FontProperties(size=_HEADING_SIZE)

    def fits(text: str) -> bool:
        return bool(measure(text, font, False)[0] <= 72 * room)

    return ["\n".join(part for line in text.split("\n") for part in wrap_heading(line, fits)) for text in headings]


def spread_maps(pixel_std: np.ndarray) -> tuple[str, np.ndarray]:
    """Heading and maps (N, 1, H, W) uint8 of standard deviations in grey levels; white is the largest of all."""
    largest = float(pixel_std.max())
    maps = np.rint(pixel_std * (255.0 / largest if largest else 0.0)).astype(np.uint8)
    return f"spread of draws,\nwhite: {largest:.{0 if largest >= 10 else 1}f} of 255", maps


def save_png(path: str | Path, image: np.ndarray) -> None:
    """Writes an (H, W, C) uint8 image."""
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(path)


def data_uri(image: np.ndarray) -> str:
    """Encodes an (H, W, 3) uint8 image as a PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


class ImageRow(NamedTuple):
    """A row of `html_table`: its heading, images (N, C, H, W) uint8, and for each label its N texts."""

    heading: str
    images: np.ndarray
    labels: Mapping[str, Sequence[str]]


def html_table(rows: Sequence[ImageRow], caption: str = "") -> str:
    """A table for notebooks: one column per image, and below each row of images their labels; texts are escaped."""
    left, right = 'style="text-align:left;white-space:nowrap"', 'style="text-align:center"'
    lines = [f"<table><caption {left}>{html.escape(caption)}</caption>"]
    for heading, images, labels in rows:
        side = f"width:{_HTML_SIDE}px;image-rendering:{'pixelated' if images.shape[-1] < _HTML_SIDE else 'auto'}"
        uris = [data_uri(_rgb(image)) for image in images]
        cells = "".join(f'<td {right}><img src="{uri}" style="{side}" alt=""></td>' for uri in uris)
        lines.append(f"<tr><th {left}>{html.escape(heading)}</th>{cells}</tr>")
        for name, texts in labels.items():
            cells = "".join(f"<td {right}>{html.escape(text)}</td>" for text in texts)
            lines.append(f"<tr><td {left}>{html.escape(name)}</td>{cells}</tr>")
    return "\n".join([*lines, "</table>"])


def _rgb(image: np.ndarray) -> np.ndarray:
    """(C, H, W) with 1, 3 or 4 channels as (H, W, 3)."""
    return _three_channels(image).transpose(1, 2, 0)


def _three_channels(images: np.ndarray) -> np.ndarray:
    """(..., C, H, W) with 1, 3 or 4 channels as (..., 3, H, W)."""
    return images.repeat(3, axis=-3) if images.shape[-3] == 1 else images[..., :3, :, :]
