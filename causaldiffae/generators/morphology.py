"""Morphometry of handwritten digits, and redrawing a digit at a given thickness (Castro et al. 2019, Morpho-MNIST).

A 28 x 28 picture is up-scaled (cubic spline, then a Gaussian of sigma = scale / 3), quantised to 8 bits and cut at half
of its range: the stroke. With the medial axis S of the stroke and the distance D to the background, in pixels:

    area = |stroke|                  thickness = 2 mean_{p in S} D(p)
    length = steps along S, 1 for a side and sqrt(2) for a diagonal
    slant = arctan(-mu_11 / mu_02), mu the central moments of the grey picture
    width, height = sides of the slanted box that holds all but `bound_frac` of the mass, half of it cut at either end

Where the medial axis has a choice, Morpho-MNIST's measurements draw lots with seed 42; so does this module, so that a
picture has one thickness. To set a thickness, the stroke is dilated or eroded at scale 16, then scaled down again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
from scipy import ndimage
from threadpoolctl import threadpool_limits

from causaldiffae.errors import InputError
from causaldiffae.generators import parallel_map

DIGIT_SIZE: Final = 28
MEASURE_SCALE: Final = 4
REDRAW_SCALE: Final = 16
_SEED: Final = 42
_BATCH: Final = 128
_TOWER: Final = 24
# Every pair of neighbours is counted once: east, south-west, south, south-east.
_STEPS: Final = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [np.sqrt(2.0), 1.0, np.sqrt(2.0)]])


class Morphometrics(NamedTuple):
    """What is measured on a digit, in pixels of the original picture; slant in radians, positive to the right."""

    area: float
    length: float
    thickness: float
    slant: float
    width: float
    height: float


class Stroke(NamedTuple):
    """A digit ready to be redrawn: its stroke at scale 16, (448, 448) bool, and its mean thickness in pixels."""

    stroke: np.ndarray
    thickness: float


def measure_image(
    image: np.ndarray, threshold: float = 0.5, scale: int = MEASURE_SCALE, bound_frac: float = 0.02
) -> Morphometrics:
    """Measures one digit, (28, 28) uint8; all NaN for a picture of one grey level.

    Args:
        image: a bright digit on a dark ground.
        threshold: where to cut, as a share of the up-scaled picture's range.
        scale: how much to up-scale before measuring.
        bound_frac: share of the mass that the slanted box leaves out.

    Raises:
        InputError: if the picture is not (28, 28) uint8.
    """
    return Morphometrics(*_measure(_check(np.asarray(image)[None]), threshold, scale, bound_frac)[0])


def measure_batch(images: np.ndarray, workers: int = 1, progress: bool = False) -> np.ndarray:
    """`measure_image` with its defaults for (N, 28, 28) uint8 pictures: (N, 6) float64, columns as `Morphometrics`."""
    images = _check(images)
    chunks = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
    rows = list(parallel_map(_measure, chunks, workers=workers, description="measure", progress=progress))
    return np.concatenate(rows) if rows else np.empty((0, 6))


def mean_thickness(images: np.ndarray) -> np.ndarray:
    """Column `thickness` alone of `measure_batch`, (N,) float64, at half the cost."""
    images = _check(images)
    result = np.full(len(images), np.nan)
    for start in range(0, len(images), _BATCH):
        with threadpool_limits(1):
            strokes = [_stroke(upscale(image, MEASURE_SCALE)) for image in images[start : start + _BATCH]]
        for i, (skeleton, distance) in enumerate(medial_axes(strokes), start):
            result[i] = _mean_thickness(skeleton, distance, MEASURE_SCALE)
    return result


def measure_intensity(image: np.ndarray) -> float:
    """Median grey level of the pixels at or above half of the picture's range; NaN for a picture of one grey level."""
    image = np.asarray(image)
    low, high = float(image.min()), float(image.max())
    return float(np.median(image[image >= low + (high - low) * 0.5])) if high > low else float("nan")


def set_thickness(image: np.ndarray, thickness: float, intensity: float) -> np.ndarray:
    """Redraws one digit, (28, 28) uint8, at a mean thickness in pixels and a median intensity in grey levels."""
    return redraw(strokes_of(_check(np.asarray(image)[None]))[0], thickness, intensity)


def strokes_of(images: np.ndarray) -> list[Stroke]:
    """Everything about digits (N, 28, 28) uint8 that does not depend on the wanted thickness; the slow part.

    A picture of one grey level has an empty stroke and thickness NaN.
    """
    with threadpool_limits(1):
        strokes = [_stroke(upscale(image, REDRAW_SCALE)) for image in _check(images)]
    axes = medial_axes(strokes)
    return [Stroke(s, _mean_thickness(*axis, REDRAW_SCALE)) for s, axis in zip(strokes, axes, strict=True)]


def redraw(base: Stroke, thickness: float, intensity: float) -> np.ndarray:
    """The digit, (28, 28) uint8, dilated or eroded to a mean thickness and brightened to a median intensity.

    An erosion that would leave nothing takes the largest radius that leaves something.

    Raises:
        InputError: if thickness is not above 0, or intensity not in 0..255, or either is not finite.
    """
    if not (np.isfinite(thickness) and 0 < thickness <= DIGIT_SIZE):
        raise InputError(f"thickness: {thickness} given, a number in (0, {DIGIT_SIZE}] is needed")
    if not (np.isfinite(intensity) and 0 <= intensity <= 255):
        raise InputError(f"intensity: {intensity} given, a number in 0..255 is needed")
    if not base.stroke.any():
        return np.zeros((DIGIT_SIZE, DIGIT_SIZE), np.uint8)
    change = thickness - base.thickness
    radius = int(REDRAW_SCALE * abs(change) / 2.0)
    if change >= 0:
        picture = _downscale(dilate(base.stroke, radius))
    else:
        picture = _downscale(~dilate(~base.stroke, radius))
        while not picture.any():
            radius -= 1
            picture = _downscale(~dilate(~base.stroke, radius))
    return np.clip(picture * (intensity / measure_intensity(picture)), 0, 255).astype(np.uint8)


def upscale(image: np.ndarray, scale: int) -> np.ndarray:
    """One digit `scale` times larger, uint8: `skimage.transform.pyramid_expand` of order 3, rounded down.

    The spline is a matrix here: the same numbers to 1e-15, in a tenth of the time.
    """
    if image.min() == image.max():  # rounding must not make a picture out of it
        return np.full((DIGIT_SIZE * scale,) * 2, image.min(), np.uint8)
    matrix = _spline(scale)
    grey = image / 255.0
    large = np.clip(matrix @ grey @ matrix.T, grey.min(), grey.max())
    return (255.0 * _blur(_blur(large, scale).T, scale).T).astype(np.uint8)


def medial_axes(strokes: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Medial axis (bool) and distance to the background (float64) of each stroke (bool, all of one shape).

    `skimage.morphology.medial_axis` spends most of its time on preparing tables, so many strokes are given to it at
    once, one below the other with background between. Each stroke keeps the lots that it would draw alone.
    """
    from skimage.morphology import medial_axis

    results: list[tuple[np.ndarray, np.ndarray] | None] = [None] * len(strokes)
    stacked = []
    for i, stroke in enumerate(strokes):
        if stroke[[0, -1]].any() or stroke[:, [0, -1]].any():  # background between would change its distances
            results[i] = medial_axis(stroke, return_distance=True, rng=_SEED)
        elif not stroke.any():
            results[i] = (np.zeros_like(stroke), np.zeros(stroke.shape))
        else:
            stacked.append((i, _box(stroke)))
    stacked.sort(key=lambda pair: pair[1][1].stop - pair[1][1].start)  # of one width, so that little is wasted
    for start in range(0, len(stacked), _TOWER):
        _fill_axes(results, strokes, stacked[start : start + _TOWER])
    return results  # type: ignore[return-value]


def _fill_axes(
    results: list[tuple[np.ndarray, np.ndarray] | None],
    strokes: Sequence[np.ndarray],
    stacked: list[tuple[int, tuple[slice, slice]]],
) -> None:
    """Writes into `results` the medial axes of some strokes, given by their place and box, from one tower."""
    from skimage.morphology import medial_axis

    width = max(columns.stop - columns.start for _, (_, columns) in stacked)
    tower = np.zeros((sum(rows.stop - rows.start for _, (rows, _) in stacked), width), bool)
    floors, top = [], 0
    for i, (rows, columns) in stacked:
        floor = (slice(top, top + rows.stop - rows.start), slice(0, columns.stop - columns.start))
        tower[floor] = strokes[i][rows, columns]
        floors.append(floor)
        top = floor[0].stop
    lots = _Lots([int(tower[floor].sum()) for floor in floors])
    skeleton, distance = medial_axis(tower, return_distance=True, rng=lots)
    for (i, box), floor in zip(stacked, floors, strict=True):
        axis, depth = np.zeros_like(strokes[i]), np.zeros(strokes[i].shape)
        axis[box], depth[box] = skeleton[floor], distance[floor]
        results[i] = (axis, depth)


class _Lots(np.random.Generator):
    """The lots of several strokes in a row, each drawn afresh from the one seed."""

    def __new__(cls, _: Sequence[int]) -> _Lots:
        return super().__new__(cls, np.random.PCG64(_SEED))  # type: ignore[call-arg]

    def __init__(self, counts: Sequence[int]) -> None:
        super().__init__(np.random.PCG64(_SEED))
        self.counts = list(counts)

    def permutation(self, x: Any, axis: int = 0) -> np.ndarray:  # type: ignore[override]
        assert len(x) == sum(self.counts)
        draws = [np.random.default_rng(_SEED).permutation(np.arange(count)) for count in self.counts]
        return np.concatenate(draws)


def dilate(stroke: np.ndarray, radius: int) -> np.ndarray:
    """Dilates (bool) with the anti-aliased disk of an integer radius; outside the picture there is nothing.

    The disk is cut into horizontal runs, and a run's dilation is a difference of running sums: exact, whatever the
    shape, and its cost grows with the radius, not with its square.
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
    """Half-width of every row of the anti-aliased disk: a disk 16 times as large scaled down, all that is not 0."""
    from skimage.morphology import disk
    from skimage.transform import pyramid_reduce

    grey = pyramid_reduce(disk(REDRAW_SCALE * radius).astype(np.float64), downscale=REDRAW_SCALE, order=1)
    return (grey > 0).sum(axis=1) // 2 - (~(grey > 0).any(axis=1)).astype(int)


@cache
def _spline(scale: int) -> np.ndarray:
    """(28 scale, 28) matrix of the cubic spline's interpolation at the centres of the smaller pixels."""
    return ndimage.zoom(np.eye(DIGIT_SIZE), (scale, 1), order=3, mode="mirror", grid_mode=True)


def _blur(large: np.ndarray, scale: int) -> np.ndarray:
    """Gaussian of sigma = scale / 3 down the columns, as blocks of a banded matrix: five times faster than a filter."""
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


def _stroke(large: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    low, high = float(large.min()), float(large.max())
    return large >= low + (high - low) * threshold if high > low else np.zeros(large.shape, bool)


def _box(stroke: np.ndarray) -> tuple[slice, slice]:
    """The stroke's bounding box with one pixel of background around it."""
    rows, columns = (np.flatnonzero(stroke.any(axis=axis)) for axis in (1, 0))
    return slice(rows[0] - 1, rows[-1] + 2), slice(columns[0] - 1, columns[-1] + 2)


def _mean_thickness(skeleton: np.ndarray, distance: np.ndarray, scale: int) -> float:
    return 2.0 * float(distance[skeleton].mean()) / scale if skeleton.any() else float("nan")


def _measure(
    images: np.ndarray, threshold: float = 0.5, scale: int = MEASURE_SCALE, bound_frac: float = 0.02
) -> np.ndarray:
    large = [upscale(image, scale) for image in images]
    strokes = [_stroke(picture, threshold) for picture in large]
    return np.array(list(_rows(large, strokes, scale, bound_frac))).reshape(len(images), 6)


def _rows(large: list[np.ndarray], strokes: list[np.ndarray], scale: int, bound_frac: float) -> Iterator[Morphometrics]:
    for picture, stroke, (skeleton, distance) in zip(large, strokes, medial_axes(strokes), strict=True):
        if not stroke.any():
            yield Morphometrics(*[float("nan")] * 6)
            continue
        axis = skeleton.astype(np.float64)
        length = float((ndimage.correlate(axis, _STEPS, mode="constant") * axis).sum()) / scale
        shear, width, height = _slanted_box(picture.astype(np.float64), bound_frac)
        yield Morphometrics(
            area=float(stroke.sum()) / scale**2,
            length=length,
            thickness=_mean_thickness(skeleton, distance, scale),
            slant=float(np.arctan(-shear)),
            width=width / scale,
            height=height / scale,
        )


def _slanted_box(mass: np.ndarray, bound_frac: float) -> tuple[float, float, float]:
    """Shear dx/dy of the mass, and width and height of its slanted box in pixels of `mass`."""
    y, x = np.mgrid[: mass.shape[0], : mass.shape[1]].astype(np.float64)
    total = mass.sum()
    y_offset, x_offset = y - (mass * y).sum() / total, x - (mass * x).sum() / total
    shear = float((mass * x_offset * y_offset).sum() / total / ((mass * y_offset**2).sum() / total))
    upright = x - shear * y_offset
    edges = np.arange(mass.shape[1] + 1) - 0.5
    across, _ = np.histogram(upright, bins=edges, weights=mass)
    return shear, _extent(across / total, bound_frac), _extent(mass.sum(axis=1) / total, bound_frac)


def _extent(profile: np.ndarray, bound_frac: float) -> float:
    share = np.cumsum(profile)
    low, high = np.interp((bound_frac / 2.0, 1.0 - bound_frac / 2.0), share, np.arange(len(profile)))
    return float(high - low)


def _check(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (DIGIT_SIZE, DIGIT_SIZE):
        raise InputError(
            f"images: {images.dtype} {images.shape} given, uint8 (N, {DIGIT_SIZE}, {DIGIT_SIZE}) is needed"
        )
    return images
