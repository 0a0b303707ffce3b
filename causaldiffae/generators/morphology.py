"""Morphometry of handwritten digits, and redrawing a digit at a given thickness (Castro et al., 2019, Morpho-MNIST).

A 28 x 28 image is up-scaled (cubic spline, then a Gaussian of sigma = scale / 3), quantised to 8 bits and thresholded
at half of its range, which gives the stroke. With the medial axis S of the stroke and the distance D to the background,
in pixels:

    area = |stroke|                  thickness = 2 mean_{p in S} D(p)
    length = steps along S, 1 for a side and sqrt(2) for a diagonal
    slant = arctan(-mu_11 / mu_02), mu the central moments of the grey image
    width, height = sides of the slanted box with all but 2 % of the mass, half of that outside of either end

Where the medial axis is not unique, Morpho-MNIST breaks ties at random with seed 42. So does this module: the same
image always has the same thickness. To set a thickness, the stroke is dilated or eroded at scale 16, then scaled down.

Three steps are ours, although libraries have them, because redrawing a data set spends all its time in them. Each is
tested against the library call: the spline as a matrix (`skimage.transform.pyramid_expand`), the dilation by running
sums (`scipy.ndimage.grey_dilation`) and medial axes of many strokes at once (`skimage.morphology.medial_axis`, which
spends 33 ms per call on preparing its tables).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
from scipy import ndimage
from threadpoolctl import threadpool_limits

from causaldiffae.errors import InputError
from causaldiffae.generators.workers import parallel_map

DIGIT_SIZE: Final = 28
MEASURE_SCALE: Final = 4
REDRAW_SCALE: Final = 16
_BOUND_FRACTION: Final = 0.02
_SEED: Final = 42
_BATCH: Final = 128
_TOWER: Final = 24
# Every pair of neighbours is counted once: east, south-west, south, south-east.
_STEPS: Final = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [np.sqrt(2.0), 1.0, np.sqrt(2.0)]])


class Morphometrics(NamedTuple):
    """Measurements of a digit, in pixels of the original image; slant in radians, positive to the right."""

    area: float
    length: float
    thickness: float
    slant: float
    width: float
    height: float


class Stroke(NamedTuple):
    """A digit to be redrawn: its stroke at scale 16, (448, 448) bool, and its mean thickness in pixels."""

    stroke: np.ndarray
    thickness: float


def measure_batch(images: np.ndarray, workers: int = 1, progress: bool = False) -> np.ndarray:
    """Measures digits (N, 28, 28) uint8, bright on a dark background: (N, 6) float64, columns as `Morphometrics`.

    A row is NaN for an image of one grey level.
    """
    images = _check(images)
    chunks = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
    rows = list(parallel_map(_measure, chunks, workers=workers, description="measure", progress=progress))
    return np.concatenate(rows) if rows else np.empty((0, 6))


def mean_thickness(images: np.ndarray) -> np.ndarray:
    """Column `thickness` of `measure_batch` alone, (N,) float64, at half the cost."""
    images = _check(images)
    result = np.full(len(images), np.nan)
    for start in range(0, len(images), _BATCH):
        with threadpool_limits(1):
            strokes = [_stroke(upscale(image, MEASURE_SCALE)) for image in images[start : start + _BATCH]]
        for i, (skeleton, distance) in enumerate(medial_axes(strokes), start):
            result[i] = _mean_thickness(skeleton, distance, MEASURE_SCALE)
    return result


def measure_intensity(image: np.ndarray) -> float:
    """Median grey level of the pixels at or above half of the image's range; NaN for an image of one grey level."""
    image = np.asarray(image)
    low, high = float(image.min()), float(image.max())
    return float(np.median(image[image >= low + (high - low) * 0.5])) if high > low else float("nan")


def strokes_of(images: np.ndarray) -> list[Stroke]:
    """What redrawing digits (N, 28, 28) uint8 needs, whatever the new thickness; this is the slow part.

    An image of one grey level has an empty stroke and thickness NaN.
    """
    with threadpool_limits(1):
        strokes = [_stroke(upscale(image, REDRAW_SCALE)) for image in _check(images)]
    axes = medial_axes(strokes)
    return [Stroke(s, _mean_thickness(*axis, REDRAW_SCALE)) for s, axis in zip(strokes, axes, strict=True)]


def check_drawable(thickness: float, intensity: float) -> None:
    """Raises `InputError` for a thickness (pixels) or an intensity (grey levels) that no digit can have."""
    if not (np.isfinite(thickness) and 0 < thickness <= DIGIT_SIZE):
        raise InputError(f"thickness: expected a number in (0, {DIGIT_SIZE}], got {thickness}")
    if not (np.isfinite(intensity) and 0 <= intensity <= 255):
        raise InputError(f"intensity: expected a number in 0..255, got {intensity}")


def redraw(base: Stroke, thickness: float, intensity: float) -> np.ndarray:
    """The digit, (28, 28) uint8, dilated or eroded to a mean thickness (pixels) and scaled to a median intensity.

    Erosion by a radius that would leave no stroke uses the largest radius that leaves one.
    """
    check_drawable(thickness, intensity)
    if not base.stroke.any():
        return np.zeros((DIGIT_SIZE, DIGIT_SIZE), np.uint8)
    change = thickness - base.thickness
    radius = int(REDRAW_SCALE * abs(change) / 2.0)
    if change >= 0:
        image = _downscale(dilate(base.stroke, radius))
    else:
        image = _downscale(~dilate(~base.stroke, radius))
        while not image.any():
            radius -= 1
            image = _downscale(~dilate(~base.stroke, radius))
    return np.clip(image * (intensity / measure_intensity(image)), 0, 255).astype(np.uint8)


def upscale(image: np.ndarray, scale: int) -> np.ndarray:
    """A digit `scale` times larger, uint8: `skimage.transform.pyramid_expand` of order 3, rounded down.

    The spline is a matrix here: equal to 1e-15, in a tenth of the time.
    """
    if image.min() == image.max():  # rounding must not add structure
        return np.full((DIGIT_SIZE * scale,) * 2, image.min(), np.uint8)
    matrix = _spline(scale)
    grey = image / 255.0
    large = np.clip(matrix @ grey @ matrix.T, grey.min(), grey.max())
    return (255.0 * _blur(_blur(large, scale).T, scale).T).astype(np.uint8)


def medial_axes(strokes: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Medial axis (bool) and distance to the background (float64) of each stroke (bool, all of one shape).

    Strokes are joined into one image, one below the other, because most of the time of
    `skimage.morphology.medial_axis` does not depend on the image. Ties are broken as for each stroke alone.
    """
    from skimage.morphology import medial_axis

    axes = [(np.zeros_like(stroke), np.zeros(stroke.shape)) for stroke in strokes]
    boxes = {}
    for i, stroke in enumerate(strokes):
        if stroke[[0, -1]].any() or stroke[:, [0, -1]].any():  # background around it would change its distances
            axes[i] = medial_axis(stroke, return_distance=True, rng=_SEED)
        elif stroke.any():
            boxes[i] = _box(stroke)
    order = sorted(boxes, key=lambda i: boxes[i][1].stop - boxes[i][1].start)  # similar widths waste little space
    for start in range(0, len(order), _TOWER):
        members = order[start : start + _TOWER]
        crops = [strokes[i][boxes[i]] for i in members]
        width = max(crop.shape[1] for crop in crops)
        tower = np.concatenate([np.pad(crop, ((0, 0), (0, width - crop.shape[1]))) for crop in crops])
        ties = _TieBreaks([int(crop.sum()) for crop in crops])
        skeleton, distance = medial_axis(tower, return_distance=True, rng=ties)
        top = 0
        for i, crop in zip(members, crops, strict=True):
            part = (slice(top, top + crop.shape[0]), slice(0, crop.shape[1]))
            axes[i][0][boxes[i]], axes[i][1][boxes[i]] = skeleton[part], distance[part]
            top += crop.shape[0]
    return axes


class _TieBreaks(np.random.Generator):
    """The random order of the pixels of several strokes, each drawn with the same seed."""

    def __new__(cls, _: Sequence[int]) -> _TieBreaks:
        return super().__new__(cls, np.random.PCG64(_SEED))  # type: ignore[call-arg]

    def __init__(self, counts: Sequence[int]) -> None:
        super().__init__(np.random.PCG64(_SEED))
        self.counts = list(counts)

    def permutation(self, x: Any, axis: int = 0) -> np.ndarray:  # type: ignore[override]
        assert len(x) == sum(self.counts)
        draws = [np.random.default_rng(_SEED).permutation(np.arange(count)) for count in self.counts]
        return np.concatenate(draws)


def dilate(stroke: np.ndarray, radius: int) -> np.ndarray:
    """Dilates (bool) by the anti-aliased disk of an integer radius; pixels outside the image are background.

    The disk is a stack of horizontal runs, and dilating by a run is a difference of running sums: exact for any shape,
    at a cost that grows with the radius and not with its square.
    """
    if radius == 0:
        return stroke
    height, width = stroke.shape
    sums = np.zeros((height, width + 2 * radius + 1), np.int32)
    np.cumsum(stroke, axis=1, out=sums[:, radius + 1 : radius + 1 + width])
    sums[:, radius + 1 + width :] = sums[:, radius + width, None]
    result = np.zeros_like(stroke)
    halves = _disk_halves(radius)
    for half in np.unique(halves[halves >= 0]):
        first = radius - half
        run = sums[:, first + 2 * half + 1 : first + 2 * half + 1 + width] > sums[:, first : first + width]
        for shift in np.flatnonzero(halves == half) - radius:
            if abs(shift) < height:
                target = slice(max(shift, 0), height + min(shift, 0))
                source = slice(max(-shift, 0), height + min(-shift, 0))
                result[target] |= run[source]
    return result


@cache
def _disk_halves(radius: int) -> np.ndarray:
    """Half-width of each row of the anti-aliased disk: the non-zero part of a disk 16 times as large, scaled down."""
    from skimage.morphology import disk
    from skimage.transform import pyramid_reduce

    covered = pyramid_reduce(disk(REDRAW_SCALE * radius).astype(np.float64), downscale=REDRAW_SCALE, order=1) > 0
    return covered.sum(axis=1) // 2 - (~covered.any(axis=1)).astype(int)


@cache
def _spline(scale: int) -> np.ndarray:
    """(28 scale, 28) matrix of the cubic spline's interpolation at the centres of the smaller pixels."""
    return ndimage.zoom(np.eye(DIGIT_SIZE), (scale, 1), order=3, mode="mirror", grid_mode=True)


def _blur(large: np.ndarray, scale: int) -> np.ndarray:
    """Gaussian of sigma = scale / 3 along the columns, by blocks of a banded matrix: faster than `gaussian_filter`."""
    matrix, blocks = _gaussian(large.shape[0], scale)
    result = np.empty_like(large)
    for rows, columns in blocks:
        np.matmul(matrix[rows, columns], large[columns], out=result[rows])
    return result


@cache
def _gaussian(size: int, scale: int) -> tuple[np.ndarray, list[tuple[slice, slice]]]:
    matrix = ndimage.gaussian_filter1d(np.eye(size), 2.0 * scale / 6.0, axis=0)
    reach = int(4.0 * 2.0 * scale / 6.0 + 0.5)
    rows = [slice(start, start + size // 8) for start in range(0, size, size // 8)]
    return matrix, [(part, slice(max(part.start - reach, 0), min(part.stop + reach, size))) for part in rows]


@cache
def _reduction() -> np.ndarray:
    """(28, 448) matrix of `skimage.transform.pyramid_reduce`, order 3: a Gaussian, then the spline at the centres."""
    large = DIGIT_SIZE * REDRAW_SCALE
    smooth = ndimage.gaussian_filter1d(np.eye(large), 2.0 * REDRAW_SCALE / 6.0, axis=0)
    return ndimage.zoom(smooth, (1.0 / REDRAW_SCALE, 1), order=3, mode="mirror", grid_mode=True)


def _downscale(stroke: np.ndarray) -> np.ndarray:
    """(448, 448) bool to (28, 28) uint8, rounded down."""
    matrix = _reduction()
    grey = matrix @ stroke.astype(np.float64) @ matrix.T
    return (255.0 * np.clip(grey, 0.0, 1.0)).astype(np.uint8)


def _stroke(large: np.ndarray) -> np.ndarray:
    low, high = float(large.min()), float(large.max())
    return large >= low + (high - low) * 0.5 if high > low else np.zeros(large.shape, bool)


def _box(stroke: np.ndarray) -> tuple[slice, slice]:
    """The stroke's bounding box with one pixel of background around it."""
    rows, columns = (np.flatnonzero(stroke.any(axis=axis)) for axis in (1, 0))
    return slice(rows[0] - 1, rows[-1] + 2), slice(columns[0] - 1, columns[-1] + 2)


def _mean_thickness(skeleton: np.ndarray, distance: np.ndarray, scale: int) -> float:
    return 2.0 * float(distance[skeleton].mean()) / scale if skeleton.any() else float("nan")


def _measure(images: np.ndarray) -> np.ndarray:
    large = [upscale(image, MEASURE_SCALE) for image in images]
    strokes = [_stroke(image) for image in large]
    result = np.full((len(images), len(Morphometrics._fields)), np.nan)
    for i, (skeleton, distance) in enumerate(medial_axes(strokes)):
        if strokes[i].any():
            axis = skeleton.astype(np.float64)
            shear, width, height = _slanted_box(large[i].astype(np.float64))
            result[i] = Morphometrics(
                area=float(strokes[i].sum()) / MEASURE_SCALE**2,
                length=float((ndimage.correlate(axis, _STEPS, mode="constant") * axis).sum()) / MEASURE_SCALE,
                thickness=_mean_thickness(skeleton, distance, MEASURE_SCALE),
                slant=float(np.arctan(-shear)),
                width=width / MEASURE_SCALE,
                height=height / MEASURE_SCALE,
            )
    return result


def _slanted_box(mass: np.ndarray) -> tuple[float, float, float]:
    """Shear dx/dy of the mass, and width and height of its slanted box in pixels of `mass`."""
    y, x = np.mgrid[: mass.shape[0], : mass.shape[1]].astype(np.float64)
    total = mass.sum()
    y_offset, x_offset = y - (mass * y).sum() / total, x - (mass * x).sum() / total
    shear = float((mass * x_offset * y_offset).sum() / total / ((mass * y_offset**2).sum() / total))
    edges = np.arange(mass.shape[1] + 1) - 0.5
    across, _ = np.histogram(x - shear * y_offset, bins=edges, weights=mass)
    return shear, _extent(across / total), _extent(mass.sum(axis=1) / total)


def _extent(profile: np.ndarray) -> float:
    share = np.cumsum(profile)
    low, high = np.interp((_BOUND_FRACTION / 2.0, 1.0 - _BOUND_FRACTION / 2.0), share, np.arange(len(profile)))
    return float(high - low)


def _check(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (DIGIT_SIZE, DIGIT_SIZE):
        size = f"{DIGIT_SIZE}, {DIGIT_SIZE}"
        raise InputError(f"images: expected uint8 (N, {size}), got {images.dtype} {images.shape}")
    return images
