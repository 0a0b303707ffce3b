"""Confidence intervals over images, by the bootstrap and, for rates and few images, by formulas.

A figure is a mean over N images. Its 95 % interval contains the central means of `RESAMPLES` resamples: N images drawn
with replacement, the same draws for all figures of one N, so that figures can be compared (Efron and Tibshirani, 1993,
chapter 13). The means of resamples of few images vary too little. Their percentiles are therefore those of Student's t
(expanded percentiles, Hesterberg, 2015, arXiv 1411.5279), which makes no difference for many images. Resamples of fewer
than `FEW` images have too few distinct means, so these images have the interval of Student's t, or of Welch's t for the
difference of two groups.

The resamples of a rate without a single event are all 0, so rates have Wilson's interval (Wilson, 1927), and the
difference of two rates of the same images that of Tango (1998). A value that cannot be computed for an image is NaN;
such images are left out of the mean and counted. There is no interval for one image.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, norm
from scipy.stats import t as student_t

RESAMPLES: Final = 1000
FEW: Final = 8
"""The interval of the mean of fewer values is that of Student's t."""


@dataclass(frozen=True)
class Figure:
    """A mean with its 95 % interval; None without finite values, or for an interval that is not known.

    Attributes:
        mean, low, high: in the unit of the values.
        images: number of images in the mean.
        left_out: number of images without a finite value.
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
    """Writes a CSV table: the keys of each row, then each figure as NAME, NAME_low, NAME_high; empty for None.

    Args:
        path: the file.
        keys: headings of the first columns.
        rows: values of the keys, and the figures by name, the same names in each row.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*keys, *(f"{name}{end}" for name in rows[0][1] for end in ("", "_low", "_high"))])
        for values, figures in rows:
            numbers = [number for figure in figures.values() for number in (figure.mean, figure.low, figure.high)]
            writer.writerow([*values, *("" if number is None else f"{number:.6g}" for number in numbers)])


@lru_cache(maxsize=8)
def resample_counts(count: int, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """(resamples, count) float32: how often each resample contains each image; rows sum to `count`."""
    rng = np.random.Generator(np.random.Philox(key=[seed, count]))
    draws = rng.integers(0, count, (resamples, count))
    return np.stack([np.bincount(indices, minlength=count) for indices in draws]).astype(np.float32)


def resample_indices(count: int, seed: int, resamples: int) -> np.ndarray:
    """(resamples, count) int64: the images of each resample, in rising order."""
    counts = resample_counts(count, seed, resamples).astype(np.int64)
    return np.stack([np.repeat(np.arange(count), row) for row in counts])


def percentiles(count: int) -> tuple[float, float]:
    """The percentiles of the resampled means of `count` >= 2 values between which 95 % of the means lie."""
    half = float(student_t.ppf(0.975, count - 1)) * (count / (count - 1)) ** 0.5  # in standard deviations of the means
    low = 100.0 * float(norm.cdf(-half))
    return low, 100.0 - low


def mean_figure(values: np.ndarray, seed: int = 0, rate: bool = False) -> Figure:
    """The mean of (N,) values with its interval; values that are not finite are left out and counted.

    Args:
        values: one per image.
        seed: seed of the resamples.
        rate: the values are 0 or 1, and the interval is Wilson's.
    """
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    found, left_out = int(finite.sum()), int((~finite).sum())
    if not found:
        return Figure(None, None, None, 0, left_out)
    mean = float(values[finite].mean())
    if found == 1:
        return Figure(mean, None, None, found, left_out)
    if rate:
        wilson = binomtest(round(values[finite].sum()), found).proportion_ci(0.95, "wilson")
        return Figure(mean, float(wilson.low), float(wilson.high), found, left_out)
    if found < FEW:
        half = interval(values[finite])
        return Figure(mean, mean - half, mean + half, found, left_out)
    counts = resample_counts(len(values), seed)
    kept = counts * finite
    totals, sizes = kept @ np.where(finite, values, 0.0), kept.sum(axis=1)
    means = totals[sizes > 0] / sizes[sizes > 0]
    low, high = np.percentile(means, percentiles(found))
    return Figure(mean, float(low), float(high), found, left_out)


def interval(values: np.ndarray) -> float:
    """Half-width of the 95 % interval of Student's t of the mean of values (N,); NaN for one value."""
    count = len(values)
    if count < 2:
        return float("nan")
    return float(student_t.ppf(0.975, count - 1) * values.std(ddof=1) / count**0.5)


def difference_figure(values: np.ndarray, treated: np.ndarray, seed: int = 0) -> Figure:
    """Mean of values (N,) where `treated` (N,) bool is true minus the mean elsewhere; images are resampled.

    The interval is Welch's if one of the groups has fewer than `FEW` values.
    """
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    groups = [finite & treated, finite & ~treated]
    found, left_out = int(finite.sum()), int((~finite).sum())
    smallest = int(min(group.sum() for group in groups))
    if not smallest:
        return Figure(None, None, None, found, left_out)
    mean = float(values[groups[0]].mean() - values[groups[1]].mean())
    if smallest == 1:
        return Figure(mean, None, None, found, left_out)
    if smallest < FEW:
        half = _welch(*(values[group] for group in groups))
        return Figure(mean, mean - half, mean + half, found, left_out)
    counts, filled = resample_counts(len(values), seed), np.where(finite, values, 0.0)
    sums = [(counts * group) @ filled for group in groups]
    sizes = [(counts * group).sum(axis=1) for group in groups]
    usable = (sizes[0] > 0) & (sizes[1] > 0)
    differences = sums[0][usable] / sizes[0][usable] - sums[1][usable] / sizes[1][usable]
    low, high = np.percentile(differences, percentiles(smallest))
    return Figure(mean, float(low), float(high), found, left_out)


def _welch(*groups: np.ndarray) -> float:
    """Half-width of the 95 % interval of the difference of the means of two groups, with Welch's degrees of freedom."""
    parts = np.array([group.var(ddof=1) / len(group) for group in groups])
    if not parts.any():
        return 0.0
    freedom = parts.sum() ** 2 / sum(part**2 / (len(group) - 1) for part, group in zip(parts, groups, strict=True))
    return float(student_t.ppf(0.975, freedom) * parts.sum() ** 0.5)


def rate_difference_figure(differences: np.ndarray) -> Figure:
    """The difference of two rates of the same images, with the score interval of Tango (1998, Stat. Med. 17, 891).

    Unlike that of the mean of the differences, it has a width also where all differences are 0.

    Args:
        differences: (N,) an event of 0 or 1 under one condition minus that under the other; NaN is left out.
    """
    values = np.asarray(differences, np.float64)
    values = values[np.isfinite(values)]
    count, left_out = len(values), len(differences) - len(values)
    if not count:
        return Figure(None, None, None, 0, left_out)
    mean = float(values.mean())
    if count == 1:
        return Figure(mean, None, None, 1, left_out)
    more, fewer = int((values > 0).sum()), int((values < 0).sum())
    low, high = -_tango_end(fewer, more, count), _tango_end(more, fewer, count)
    return Figure(mean, low, high, count, left_out)


def _tango_end(more: int, fewer: int, count: int) -> float:
    """The upper end of Tango's interval of (more - fewer) / count, from the numbers of discordant pairs."""
    z = float(norm.ppf(0.975))

    def excess(delta: float) -> float:
        """The score of a true difference `delta` below that of the 97.5 % quantile; 0 at the end of the interval."""
        b, c = (2 * count - more + fewer) * delta - more - fewer, -fewer * delta * (1 - delta)
        rarer = ((max(b * b - 8 * count * c, 0.0)) ** 0.5 - b) / (4 * count)  # most likely rate of `fewer`
        return more - fewer - count * delta + z * (count * max(2 * rarer + delta * (1 - delta), 0.0)) ** 0.5

    mean = (more - fewer) / count
    return 1.0 if mean == 1 else float(brentq(excess, mean + 1e-6, 1.0))  # the score is 0 also at some means


def statistic_figure(
    statistic: Callable[[np.ndarray], float], count: int, seed: int = 0, resamples: int = 100, left_out: int = 0
) -> Figure:
    """Any statistic of a set of images with the interval of `student_figure` from resamples of the images.

    The tails of few resamples are coarse, their standard deviation is not (7 % at 100). Repeated images in a resample
    increase distances between sets, so the interval is centred at the statistic and not at the mean of the resamples.

    Args:
        statistic: indices (count,) of images -> a number.
        count: number of images.
        resamples: number of resamples, at least 2.
        left_out: number of images that were excluded before.
    """
    if count < 2:
        return Figure(None, None, None, count, left_out)
    whole = statistic(np.arange(count))
    drawn = np.array([statistic(indices) for indices in resample_indices(count, seed, resamples)])
    drawn = drawn[np.isfinite(drawn)]
    if not np.isfinite(whole):
        return Figure(None, None, None, count, left_out)
    return student_figure(float(whole), drawn, count, left_out)


def student_figure(value: float, drawn: np.ndarray, count: int, left_out: int = 0) -> Figure:
    """A value with the 95 % interval t * s * (N / (N - 1))^(1/2), s the standard deviation of (R,) resampled values.

    s has the degrees of freedom of the N = `count` images and of the R resamples, and t those of the fewer of them.
    Resamples vary less than sets of N images do, which the root corrects. No interval for fewer than two of either.
    """
    fewest = min(len(drawn), count)
    if fewest < 2:
        return Figure(value, None, None, count, left_out)
    half = float(student_t.ppf(0.975, fewest - 1) * np.std(drawn, ddof=1)) * (count / (count - 1)) ** 0.5
    return Figure(value, value - half, value + half, count, left_out)
