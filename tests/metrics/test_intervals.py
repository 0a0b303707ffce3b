"""Bootstrap intervals: coverage, differences, and values that are not finite."""

import numpy as np
import pytest

from causaldiffae.metrics.intervals import (
    difference_figure,
    mean_figure,
    percentiles,
    resample_counts,
    statistic_figure,
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
    assert np.mean([covered(rng.normal(0, 1, 5), 0.0) for _ in range(300)]) > 0.88
    assert np.mean([covered(rng.normal(0, 1, 12), 0.0) for _ in range(300)]) > 0.92
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
    assert figure.low == 1.0 and figure.high == 3.0
    nothing = mean_figure(np.array([np.nan]))
    assert (nothing.mean, nothing.low, nothing.images, nothing.left_out) == (None, None, 0, 1)


def test_the_difference_of_two_arms() -> None:
    values, treated = np.array([5.0, 7.0, 1.0, 1.0]), np.array([True, True, False, False])
    figure = difference_figure(values, treated)
    assert figure.mean == 5.0 and figure.low == 4.0 and figure.high == 6.0
    assert difference_figure(values, np.ones(4, bool)).mean is None


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
