"""Bootstrap intervals over images.

A figure is a mean over N images. Its 95 % interval is the middle of the means of resamples: N images drawn with
replacement, `RESAMPLES` times, with the same draws for every figure of one N, so that figures can be compared
(Efron and Tibshirani, 1993, chapter 13). What could not be computed for an image is NaN there and counted: such images
are left out of the mean, and the figure says how many they were.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

RESAMPLES: Final = 1000
_TAILS: Final = (2.5, 97.5)


@dataclass(frozen=True)
class Figure:
    """A mean with its 95 % interval; None where there is nothing to average.

    Attributes:
        mean, low, high: in the unit of what was averaged.
        images: how many images it is a mean of.
        left_out: images that gave no finite value.
    """

    mean: float | None
    low: float | None
    high: float | None
    images: int
    left_out: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)


def write_figures(path: Path, keys: Sequence[str], rows: Sequence[tuple[Sequence[Any], Mapping[str, Figure]]]) -> None:
    """A table as CSV: every row's keys, then each figure as NAME, NAME_low, NAME_high; empty where it is None.

    Args:
        keys: headings of the first columns.
        rows: values of the keys, and the figures, whose names are those of the first row.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*keys, *(f"{name}{end}" for name in rows[0][1] for end in ("", "_low", "_high"))])
        for values, figures in rows:
            numbers = [number for figure in figures.values() for number in (figure.mean, figure.low, figure.high)]
            writer.writerow([*values, *("" if number is None else f"{number:.6g}" for number in numbers)])


@lru_cache(maxsize=8)
def resample_counts(count: int, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """(resamples, count) float32: how often each image is in each resample; rows sum to `count`."""
    rng = np.random.Generator(np.random.Philox(key=[seed, count]))
    draws = rng.integers(0, count, (resamples, count))
    counts = np.zeros((resamples, count), np.float32)
    for row, places in zip(counts, draws, strict=True):
        row += np.bincount(places, minlength=count)
    return counts


def resample_places(count: int, seed: int, resamples: int) -> np.ndarray:
    """(resamples, count) int64: the images of each resample, rising."""
    counts = resample_counts(count, seed, resamples).astype(np.int64)
    return np.stack([np.repeat(np.arange(count), row) for row in counts])


def mean_figure(values: np.ndarray, seed: int = 0) -> Figure:
    """The mean of (N,) values with its interval; what is not finite is left out and counted."""
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    found, left_out = int(finite.sum()), int((~finite).sum())
    if not found:
        return Figure(None, None, None, 0, left_out)
    counts = resample_counts(len(values), seed)
    kept = counts * finite
    totals, sizes = kept @ np.where(finite, values, 0.0), kept.sum(axis=1)
    means = totals[sizes > 0] / sizes[sizes > 0]
    low, high = np.percentile(means, _TAILS)
    return Figure(float(values[finite].mean()), float(low), float(high), found, left_out)


def difference_figure(values: np.ndarray, treated: np.ndarray, seed: int = 0) -> Figure:
    """Mean of values (N,) where `treated` (N,) bool minus the mean where not; whole images are resampled."""
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    groups = [finite & treated, finite & ~treated]
    found, left_out = int(finite.sum()), int((~finite).sum())
    if not all(group.any() for group in groups):
        return Figure(None, None, None, found, left_out)
    counts, filled = resample_counts(len(values), seed), np.where(finite, values, 0.0)
    sums = [(counts * group) @ filled for group in groups]
    sizes = [(counts * group).sum(axis=1) for group in groups]
    usable = (sizes[0] > 0) & (sizes[1] > 0)
    differences = sums[0][usable] / sizes[0][usable] - sums[1][usable] / sizes[1][usable]
    low, high = np.percentile(differences, _TAILS) if usable.any() else (np.nan, np.nan)
    if not np.isfinite(low):
        return Figure(None, None, None, found, left_out)
    mean = float(values[groups[0]].mean() - values[groups[1]].mean())
    return Figure(mean, float(low), float(high), found, left_out)


def statistic_figure(
    statistic: Callable[[np.ndarray], float], count: int, seed: int = 0, resamples: int = 100, left_out: int = 0
) -> Figure:
    """Any statistic of a set of images, with an interval around it.

    Resamples hold images twice, which raises distances between sets: the interval is that of the resamples, moved so
    that its median meets the statistic.

    Args:
        statistic: places (count,) of images -> a number.
    """
    if count < 2:
        return Figure(None, None, None, count, left_out)
    whole = statistic(np.arange(count))
    drawn = np.array([statistic(places) for places in resample_places(count, seed, resamples)])
    drawn = drawn[np.isfinite(drawn)]
    if not np.isfinite(whole) or not len(drawn):
        return Figure(None, None, None, count, left_out)
    low, high = np.percentile(drawn, _TAILS) - np.median(drawn) + whole
    return Figure(float(whole), float(low), float(high), count, left_out)
