"""Bootstrap intervals: coverage, pairs, and what could not be computed."""

import numpy as np
import pytest

from causaldiffae.metrics.intervals import difference_figure, mean_figure, resample_counts, statistic_figure


def test_resamples_are_whole_and_the_same_each_time() -> None:
    counts = resample_counts(7, 3)
    assert counts.shape == (1000, 7)
    assert (counts.sum(axis=1) == 7).all()
    np.testing.assert_array_equal(counts, resample_counts.__wrapped__(7, 3))
    assert not np.array_equal(counts, resample_counts(7, 4))


def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        figure = mean_figure(rng.exponential(2.0, 80))
        assert figure.low is not None and figure.high is not None
        held += figure.low <= 2.0 <= figure.high
    assert 0.87 <= held / 200 <= 0.99


def test_what_is_not_finite_is_left_out_and_counted() -> None:
    figure = mean_figure(np.array([1.0, np.nan, 3.0, np.inf]))
    assert (figure.mean, figure.images, figure.left_out) == (2.0, 2, 2)
    assert figure.low == 1.0 and figure.high == 3.0
    nothing = mean_figure(np.array([np.nan]))
    assert (nothing.mean, nothing.low, nothing.images, nothing.left_out) == (None, None, 0, 1)


def test_difference_of_two_arms() -> None:
    values, treated = np.array([5.0, 7.0, 1.0, 1.0]), np.array([True, True, False, False])
    figure = difference_figure(values, treated)
    assert figure.mean == 5.0 and figure.low == 4.0 and figure.high == 6.0
    assert difference_figure(values, np.ones(4, bool)).mean is None


def test_a_statistic_with_its_interval() -> None:
    values = np.random.default_rng(0).normal(0, 1, 200)
    figure = statistic_figure(lambda places: float(values[places].var()), 200)
    assert figure.mean == pytest.approx(values.var())
    assert figure.low is not None and figure.high is not None and figure.low < values.var() < figure.high
    assert statistic_figure(lambda places: 1.0, 1).mean is None
