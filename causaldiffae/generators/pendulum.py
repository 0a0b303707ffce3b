"""Pendulum: a swinging ball, a light, and the shadow they cast (Yang et al., 2021, CausalVAE).

Four variables: `angle` and `light` are causes, `shadow_length` and `shadow_position` their effects. Angle i and light j
are in grid units of pi/200 rad: theta = i pi/200, phi = j pi/200. Lengths are in axes units (x 0..20, y -1..21).
A point (x, y) casts its shadow on the floor y = -1/2 at x - (y + 1/2) / tan(phi). With p0 and p1 the shadows of the
pivot (10, 10.5) and of the pendulum's tip (10 + 9.5 sin theta, 10.5 - 9.5 cos theta):

    shadow_position = (p0 + p1) / 2          shadow_length = max(3, |p0 - p1|)

The model is deterministic: the shadow has no exogenous noise. The data set is the whole grid i = -40..43, j = 60..147
without 100 (a light straight overhead). Its file names hold the labels, those of the shadow truncated to integers.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from scipy import ndimage

from causaldiffae.errors import InputError
from causaldiffae.generators.common import Generator, complete_folder, is_finished, measure_in_blocks
from causaldiffae.generators.workers import parallel_map
from causaldiffae.graphs import CausalGraph

_SHADOW: Final = ("shadow_length", "shadow_position")
GRAPH: Final = CausalGraph(("angle", "light", *_SHADOW), tuple(itertools.product(("angle", "light"), _SHADOW)))
IMAGE_SIZE: Final = 96

_RECIPE: Final = {"dataset": "pendulum", "version": 1}
_UNIT: Final = np.pi / 200.0
_PIVOT: Final = (10.0, 10.5)
_FLOOR_Y: Final = -0.5
_SUN_Y: Final = 20.5
_SHORTEST: Final = 3.0
_BALL_RADIUS, _SUN_RADIUS = 1.5, 3.0
# matplotlib's default position of the axes, as shares of the figure: left, bottom, width, height.
_AXES: Final = (0.125, 0.11, 0.775, 0.77)
_X_RANGE, _Y_RANGE = (0.0, 20.0), (-1.0, 21.0)
_COLOURS: Final = ((255, 255, 255), (178, 34, 34), (255, 165, 0))  # background, ball (firebrick), sun (orange)
_SHADOW_THICKNESS: Final = 3.0 / 72.0  # as a share of the image


def true_labels(angle: Any, light: Any) -> np.ndarray:
    """Labels (N, 4) float64 of angles and lights, numbers or (N,) arrays, in grid units."""
    angle, light = np.broadcast_arrays(*(np.atleast_1d(np.asarray(cause, np.float64)) for cause in (angle, light)))
    inside = (light > 0) & (light < 200)  # above the floor
    if not inside.all():
        raise InputError(f"light: expected a number strictly between 0 and 200, got {light[~inside][0]:g}")
    theta = angle * _UNIT
    tip = _shadow_of(_PIVOT[0] + 9.5 * np.sin(theta), _PIVOT[1] - 9.5 * np.cos(theta), light)
    pivot = _shadow_of(*_PIVOT, light)
    length = np.maximum(_SHORTEST, np.abs(pivot - tip))
    return np.stack([angle, light, length, (pivot + tip) / 2.0], axis=1)


def _shadow_of(x: Any, y: Any, light: np.ndarray) -> np.ndarray:
    return x - (y - _FLOOR_Y) / np.tan(light * _UNIT)


class _Renderer:
    """One figure whose artists move; building a new figure for each image takes ten times as long."""

    def __init__(self) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Circle, Polygon

        figure = Figure(figsize=(1.0, 1.0), dpi=IMAGE_SIZE, facecolor="white")
        self.canvas = FigureCanvasAgg(figure)
        axes = figure.add_axes(_AXES)
        axes.set_xlim(_X_RANGE)
        axes.set_ylim(_Y_RANGE)
        axes.set_axis_off()
        empty = np.zeros((2, 2))
        self.rod = Polygon(empty, closed=True, color="black", linewidth=3)
        self.ball = Circle((0, 0), _BALL_RADIUS, color="firebrick", linewidth=1)
        self.sun = Circle((0, 0), _SUN_RADIUS, color="orange", linewidth=1)
        self.shadow = Polygon(empty, closed=True, color="black", linewidth=3)
        for artist in (self.rod, self.ball, self.sun, self.shadow):  # drawn in this order
            artist.set_antialiased(True)
            axes.add_artist(artist)

    def __call__(self, angle: float, light: float, length: float, position: float) -> np.ndarray:
        theta = angle * _UNIT
        ball = (_PIVOT[0] + 8.0 * np.sin(theta), _PIVOT[1] - 8.0 * np.cos(theta))
        self.rod.set_xy([_PIVOT, ball])
        self.ball.set_center(ball)
        self.sun.set_center((_PIVOT[0] + (_SUN_Y - _PIVOT[1]) / np.tan(light * _UNIT), _SUN_Y))
        self.shadow.set_xy([(position - length / 2.0, _FLOOR_Y), (position + length / 2.0, _FLOOR_Y)])
        self.canvas.draw()
        return np.array(self.canvas.buffer_rgba())


@cache
def _renderer() -> _Renderer:
    return _Renderer()


def render(
    angle: float, light: float, shadow_length: float | None = None, shadow_position: float | None = None
) -> np.ndarray:
    """Renders one pendulum as (96, 96, 4) uint8 RGBA.

    Args:
        angle, light: grid units.
        shadow_length, shadow_position: axes units; None takes the value that follows from angle and light. Any other
            value is an intervention on the shadow.
    """
    length, position = true_labels(angle, light)[0, 2:]
    length = length if shadow_length is None else float(shadow_length)
    position = position if shadow_position is None else float(shadow_position)
    for name, value in (("angle", angle), ("shadow_length", length), ("shadow_position", position)):
        if not np.isfinite(value):
            raise InputError(f"{name}: expected a finite number, got {value}")
    if length < 0:
        raise InputError(f"shadow_length: expected 0 or more, got {length:g}")
    return _renderer()(float(angle), float(light), length, position)


class PendulumGenerator(Generator):
    """The structural causal model of Pendulum: counterfactual labels, counterfactual images and measurement.

    The shadow is recomputed where a cause is intervened on; otherwise it keeps its label.
    """

    graph = GRAPH

    def _update_effects(self, factual: np.ndarray, result: np.ndarray, effects: list[str]) -> None:
        if effects:
            columns = [self.graph.index(name) for name in effects]
            result[:, columns] = true_labels(result[:, 0], result[:, 1])[:, columns]

    def counterfactual_images(self, labels: Any, do: Mapping[str, Any]) -> np.ndarray:
        """The true counterfactual images, (N, 96, 96, 4) uint8; arguments and errors as `counterfactual_labels`.

        The factual shadow labels are not used: the shadow follows from angle and light unless intervened on.
        """
        target = self.counterfactual_labels(labels, do)
        images = np.empty((len(target), IMAGE_SIZE, IMAGE_SIZE, 4), np.uint8)
        for i, row in enumerate(target):
            shadow = {name: row[self.graph.index(name)] for name in _SHADOW if name in do}
            images[i] = render(row[0], row[1], **shadow)
        return images

    def measure(self, images: np.ndarray) -> np.ndarray:
        """Reads angle, light, shadow length and shadow position off images by geometry.

        Every pixel is a mixture of white, firebrick, orange and black, whose shares follow from the three channels.
        The centroids of ball and sun give the angles, the black share near the floor gives the ends of the shadow.
        The part of a shadow that lies outside the image is not counted in its length.

        Args:
            images: (N, S, S, C) uint8 with C >= 3 (RGB first), any square size S.

        Returns:
            (N, 4) float64 in label units; NaN where an object is not found.
        """
        return measure_in_blocks(_measure, images, len(GRAPH))


def _measure(images: np.ndarray) -> np.ndarray:
    size = images.shape[1]
    ball, sun, black = _shares(images)
    centres = (np.arange(size) + 0.5) / size
    left, bottom, width, height = _AXES
    x = (centres - left) / width * (_X_RANGE[1] - _X_RANGE[0]) + _X_RANGE[0]
    y = (1.0 - centres - bottom) / height * (_Y_RANGE[1] - _Y_RANGE[0]) + _Y_RANGE[0]
    ball = _near_densest(ball * (y < _PIVOT[1])[:, None], 2.0 * _BALL_RADIUS)
    ball_x, ball_y = _centroid(ball, x, y, np.pi * _BALL_RADIUS**2)
    sun = _near_densest(sun * (y > _SUN_Y - 1.3 * _SUN_RADIUS)[:, None], 2.0 * _SUN_RADIUS)
    sun_x = np.interp(_centroid(sun, x, y, np.pi * _SUN_RADIUS**2 / 2)[0], *_clipped_sun())
    angle = np.arctan2(ball_x - _PIVOT[0], _PIVOT[1] - ball_y) / _UNIT
    light = np.arctan2(_SUN_Y - _PIVOT[1], sun_x - _PIVOT[0]) / _UNIT
    # The line is 3/72 inch thick: 1.2 axes units around the floor. One more pixel covers the blur of down-scaling.
    band = np.abs(y - _FLOOR_Y) < 0.6 + 22.0 / (height * size)
    return np.stack([angle, light, *_shadow_ends(black[:, band].sum(axis=1), x)], axis=1)


def _shares(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares of firebrick, orange and black in every pixel, each (N, S, S) in 0..1; faint ones become 0."""
    mixing = np.array(_COLOURS, np.float64).T / 255.0
    shares = (images[..., :3].astype(np.float64) / 255.0) @ np.linalg.inv(mixing).T
    ball, sun, black = shares[..., 1], shares[..., 2], 1.0 - shares.sum(axis=-1)
    ball, sun, black = (np.where(share > 0.15, np.minimum(share, 1.0), 0.0) for share in (ball, sun, black))
    return ball, sun, black


def _near_densest(share: np.ndarray, diameter: float) -> np.ndarray:
    """`share` (N, S, S) around the disk of this diameter (axes units) that contains most of it, 0 elsewhere.

    This excludes stray pixels of generated images from the centroid.
    """
    size = share.shape[1]
    pixels = diameter * _AXES[2] * size / 20.0
    window = max(int(pixels), 1)
    density = ndimage.uniform_filter(share, (0, window, window), mode="constant")
    row, column = np.divmod(density.reshape(len(share), -1).argmax(axis=1), size)
    indices, reach = np.arange(size), 0.75 * pixels + 1.0
    near_row = np.abs(indices - row[:, None]) <= reach
    near_column = np.abs(indices - column[:, None]) <= reach
    return share * (near_row[:, :, None] & near_column[:, None, :])


def _centroid(share: np.ndarray, x: np.ndarray, y: np.ndarray, area: float) -> tuple[np.ndarray, np.ndarray]:
    """Centroid (x, y), each (N,), of `share`; NaN where it covers less than a quarter of `area` (axes units)."""
    size, mass = share.shape[1], share.sum(axis=(1, 2))
    pixels = area * (_AXES[2] * size / 20.0) * (_AXES[3] * size / 22.0)
    mass = np.where(mass > 0.25 * pixels, mass, np.nan)
    return share.sum(axis=1) @ x / mass, share.sum(axis=2) @ y / mass


def _shadow_ends(profile: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Length and centre of the dark interval in column profiles (N, S); NaN where it is nearly empty."""
    level = np.quantile(profile, 0.95, axis=1, keepdims=True)  # full coverage: a shadow takes a tenth of the columns
    share = np.minimum(profile / np.maximum(level, 1e-9), 1.0)
    total = share.sum(axis=1)
    found = (level[:, 0] > 0.2 * _SHADOW_THICKNESS * len(x)) & (total > 0)
    total = np.where(found, total, np.nan)
    return total * (x[1] - x[0]), (share * x).sum(axis=1) / total


@cache
def _clipped_sun() -> tuple[np.ndarray, np.ndarray]:
    """Table: the x centroid of the part of the sun inside the axes, and the x of the sun's true centre."""
    stroke = 0.5 / 72.0  # half the outline's width adds to the radius, as a share of the figure
    radius_x = _SUN_RADIUS + stroke / _AXES[2] * 20.0
    radius_y = _SUN_RADIUS + stroke / _AXES[3] * 22.0
    x = (np.arange(4000) + 0.5) / 4000 * 20.0
    centre = np.linspace(-2.0, 22.0, 961)
    half = radius_y * np.sqrt(np.maximum(1.0 - ((x[None] - centre[:, None]) / radius_x) ** 2, 0.0))
    depth = np.minimum(half, _Y_RANGE[1] - _SUN_Y) + half
    return (depth * x).sum(1) / depth.sum(1), centre


def grid() -> tuple[np.ndarray, np.ndarray]:
    """Angle and light, (7308,) int64 each, of the whole data set in its order."""
    pairs = np.array([(i, j) for i, j in itertools.product(range(-40, 44), range(60, 148)) if j != 100])
    return pairs[:, 0], pairs[:, 1]


def held_out_rows() -> np.ndarray:
    """(7308,) bool: the rows of the grid that are the test set, every fourth except the first row (1,826)."""
    rows = np.arange(len(grid()[0]))
    return (rows % 4 == 0) & (rows > 0)


def file_name(labels: np.ndarray) -> str:
    """`a_{angle}_{light}_{length}_{position}.png` for one row of labels, truncated to integers."""
    return "a_" + "_".join(str(int(value)) for value in labels) + ".png"


def _write_chunk(chunk: list[tuple[Path, int, int]]) -> None:
    for folder, angle, light in chunk:
        Image.fromarray(render(angle, light)).save(folder / file_name(true_labels(angle, light)[0]))


def write_dataset(out: str | Path, workers: int = 2, progress: bool = True) -> Path:
    """Draws the whole data set: `out/train` (5,482 PNGs) and `out/test` (1,826).

    The folder appears when complete. If `out` is already this data set, nothing is done.
    """
    out = Path(out)
    if is_finished(out, _RECIPE):
        return out
    with complete_folder(out, _RECIPE) as folder:
        for split in ("train", "test"):
            (folder / split).mkdir()
        splits = np.where(held_out_rows(), "test", "train")
        rows = [(folder / str(s), int(i), int(j)) for s, i, j in zip(splits, *grid(), strict=True)]
        chunks = [rows[start : start + 87] for start in range(0, len(rows), 87)]
        for _ in parallel_map(_write_chunk, chunks, workers=workers, description="pendulum", progress=progress):
            pass
    return out
