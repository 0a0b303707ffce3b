"""Bootstrap intervals: coverage, differences, and values that are not finite."""

import numpy as np
import pytest

from causaldiffae.metrics.intervals import (
    difference_figure,
    mean_figure,
    percentiles,
    rate_difference_figure,
    resample_counts,
    statistic_figure,
    student_figure,
)


def test_resamples_have_the_size_of_the_set_and_a_fixed_seed() -> None:
    counts = resample_counts(7, 3)
    assert counts.shape == (1000, 7)
    assert (counts.sum(axis=1) == 7).all()
    np.testing.assert_array_equal(counts, resample_counts.__wrapped__(7, 3))
    assert not np.array_equal(counts, resample_counts(7, 4))


def test_intervals_have_their_coverage() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        figure = mean_figure(rng.exponential(2.0, 80))
        assert figure.low is not None and figure.high is not None
        covered += figure.low <= 2.0 <= figure.high
    assert 0.87 <= covered / 200 <= 0.99


def covered(values: np.ndarray, truth: float, **options: bool) -> bool:
    figure = mean_figure(values, **options)
    assert figure.low is not None and figure.high is not None
    return figure.low <= truth <= figure.high


def test_intervals_of_few_images_have_their_coverage() -> None:
    """Plain percentiles cover the mean of five normal values in 84 % of the cases, of twelve in 90 %."""
    rng = np.random.default_rng(0)
    for count in (2, 3, 5, 12):
        assert np.mean([covered(rng.normal(0, 1, count), 0.0) for _ in range(300)]) > 0.92, count
    assert percentiles(10_000) == pytest.approx((2.5, 97.5), abs=0.01)


def test_intervals_of_rare_events_have_their_coverage() -> None:
    """One event in fifty is not seen at all in 36 % of the samples, and resamples of none hold none."""
    rng = np.random.default_rng(0)
    assert np.mean([covered((rng.random(50) < 0.02).astype(float), 0.02, rate=True) for _ in range(300)]) > 0.88
    never = mean_figure(np.array([0.0] * 10 + [np.nan]), rate=True)
    z2 = 1.959964**2
    assert (never.mean, never.low, never.images, never.left_out) == (0.0, 0.0, 10, 1)
    assert never.high == pytest.approx(z2 / (10 + z2), rel=1e-5), "Wilson's interval of 0 in 10"


def test_one_image_has_no_interval() -> None:
    for values, options in ((np.array([3.0, np.nan]), {}), (np.array([1.0]), {"rate": True})):
        figure = mean_figure(values, **options)
        assert (figure.mean, figure.low, figure.high, figure.images) == (values[0], None, None, 1)
    figure = difference_figure(np.array([5.0, 1.0, 2.0]), np.array([True, False, False]))
    assert (figure.mean, figure.low, figure.high) == (3.5, None, None)


def test_values_that_are_not_finite_are_left_out_and_counted() -> None:
    figure = mean_figure(np.array([1.0, np.nan, 3.0, np.inf]))
    assert (figure.mean, figure.images, figure.left_out) == (2.0, 2, 2)
    assert (figure.low, figure.high) == pytest.approx((2 - 12.7062, 2 + 12.7062), rel=1e-5), (
        "t with 1 degree of freedom"
    )
    nothing = mean_figure(np.array([np.nan]))
    assert (nothing.mean, nothing.low, nothing.images, nothing.left_out) == (None, None, 0, 1)


def test_the_difference_of_two_arms() -> None:
    values, treated = np.array([5.0, 7.0, 1.0, 1.0]), np.array([True, True, False, False])
    figure = difference_figure(values, treated)
    assert figure.mean == 5.0
    assert (figure.low, figure.high) == pytest.approx((5 - 12.7062, 5 + 12.7062), rel=1e-5), "Welch's, one spread is 0"
    assert difference_figure(values, np.ones(4, bool)).mean is None
    constant = difference_figure(np.array([2.0, 2.0, 1.0, 1.0]), treated)
    assert (constant.mean, constant.low, constant.high) == (1.0, 1.0, 1.0)


def test_differences_of_small_arms_have_their_coverage() -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(300):
        figure = difference_figure(rng.normal(0, 1, 4), np.arange(4) < 2)
        assert figure.low is not None and figure.high is not None
        hits += figure.low <= 0 <= figure.high
    assert hits / 300 > 0.92, "percentiles cover it in 65 % of the cases"


def test_eight_or_more_values_are_resampled() -> None:
    values, treated = np.arange(16.0) ** 2, np.arange(16) % 2 == 0
    counts = resample_counts(16, 0)
    low, high = np.percentile(counts @ values / 16, percentiles(16))
    figure = mean_figure(values)
    assert (figure.low, figure.high) == pytest.approx((low, high), rel=1e-6)
    arms = [counts[:, rows] @ values[rows] / counts[:, rows].sum(axis=1) for rows in (treated, ~treated)]
    low, high = np.percentile(arms[0] - arms[1], percentiles(8))
    figure = difference_figure(values, treated)
    assert (figure.low, figure.high) == pytest.approx((low, high), rel=1e-6)


@pytest.mark.parametrize(
    ("more", "fewer", "count", "low", "high"),
    [
        (0, 1, 44, -0.11808, 0.05939),
        (12, 9, 50, -0.12249, 0.23896),
        (0, 0, 10, -0.27753, 0.27753),
        (5, 0, 5, 0.13104, 1.0),
        (0, 5, 5, -1.0, -0.13104),
    ],
)
def test_differences_of_paired_rates_have_tangos_interval(
    more: int, fewer: int, count: int, low: float, high: float
) -> None:
    """The expected ends maximise the likelihood under each difference numerically."""
    differences = np.repeat([1.0, -1.0, 0.0, np.nan], [more, fewer, count - more - fewer, 2])
    figure = rate_difference_figure(differences)
    assert figure.mean == pytest.approx((more - fewer) / count) and (figure.images, figure.left_out) == (count, 2)
    assert (figure.low, figure.high) == pytest.approx((low, high), abs=2e-5)


def test_one_pair_has_no_interval_and_none_no_difference() -> None:
    one, none = rate_difference_figure(np.array([1.0, np.nan])), rate_difference_figure(np.array([np.nan]))
    assert (one.mean, one.low, one.high, one.images) == (1.0, None, None, 1)
    assert (none.mean, none.low, none.images, none.left_out) == (None, None, 0, 1)


def test_equal_rates_of_many_pairs_differ_little() -> None:
    figure = rate_difference_figure(np.zeros(1_000_000))
    assert figure.high == pytest.approx(1.959964**2 / 1e6, rel=1e-4)


def test_the_interval_of_a_statistic() -> None:
    values = np.random.default_rng(0).normal(0, 1, 200)
    figure = statistic_figure(lambda indices: float(values[indices].var()), 200)
    assert figure.mean == pytest.approx(values.var())
    assert figure.low is not None and figure.high is not None and figure.low < values.var() < figure.high
    assert statistic_figure(lambda _: 1.0, 1).mean is None


def test_intervals_of_a_statistic_have_their_coverage() -> None:
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        values = rng.normal(0, 1, 300)
        figure = statistic_figure(lambda rows, values=values: float(values[rows].var()), 300, resamples=25)  # type: ignore[misc]
        assert figure.low is not None and figure.high is not None
        covered += figure.low <= 1.0 <= figure.high
    assert 0.9 <= covered / 200 <= 0.99


def test_intervals_of_a_statistic_of_few_images_have_their_coverage() -> None:
    """The mean of four: t with 3 degrees of freedom, and the spread of resamples is too small by (3 / 4)^(1/2)."""
    rng, covered = np.random.default_rng(0), 0
    for seed in range(200):
        values = rng.normal(0, 1, 4)
        figure = statistic_figure(lambda rows, values=values: float(values[rows].mean()), 4, seed)  # type: ignore[misc]
        assert figure.low is not None and figure.high is not None
        covered += figure.low <= 0 <= figure.high
    assert covered / 200 > 0.9


@pytest.mark.parametrize(
    ("resamples", "count", "expected"), [(100, 10_000, 1.9842), (10, 10_000, 2.2622), (100, 4, 3.6748), (10, 1, None)]
)
def test_degrees_of_freedom_are_those_of_the_fewer_of_images_and_resamples(
    resamples: int, count: int, expected: float | None
) -> None:
    drawn = np.arange(float(resamples))
    figure = student_figure(5.0, drawn, count)
    if expected is None:
        assert (figure.mean, figure.low, figure.high) == (5.0, None, None)
    else:
        assert figure.high is not None and (figure.high - 5) / drawn.std(ddof=1) == pytest.approx(expected, rel=1e-4)
