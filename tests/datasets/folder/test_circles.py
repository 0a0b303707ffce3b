"""Circular variables are recognised by their names, units and values."""

import numpy as np
import pytest

from causaldiffae.datasets.folder.circles import describe_circle

ROUND = np.random.default_rng(0).uniform(0, 1, 300)


@pytest.mark.parametrize(
    ("name", "unit", "values", "period"),
    [
        ("angle", "", 360 * ROUND, "360"),
        ("x", "degrees", 360 * ROUND - 180, "360"),
        ("windDirection", "", np.arange(0, 360, 15), "360"),
        ("rotation (rad)", "", 2 * np.pi * ROUND, "6.28319"),
        ("hue", "", ROUND, "1"),
        ("hour", "", np.arange(24), "24"),
        ("month", "", np.arange(1, 13), "12"),
        ("weekday", "", np.arange(7), "7"),
    ],
)
def test_labels_over_a_whole_circle_are_described(name: str, unit: str, values: np.ndarray, period: str) -> None:
    found = describe_circle(name, unit, values)
    assert f" is likely a circle of {period}, but is read as a line with two ends; write sectors as categories" in found


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("angle", 84 * ROUND - 40),
        ("angle", 180 * ROUND),
        ("angle", np.array([0, 359])),
        ("angle", 3600 * ROUND),
        ("hours", 18 * ROUND),
        ("rectangle", 360 * ROUND),
        ("age", 24 * ROUND),
    ],
)
def test_part_of_a_circle_and_other_variables_are_not(name: str, values: np.ndarray) -> None:
    assert describe_circle(name, "", values) == ""


def test_a_circle_with_a_wide_gap_can_be_cut_there() -> None:
    values = np.arange(-30, 31, 5) % 360
    assert describe_circle("angle", "", values) == (
        "0..355 is likely a circle of 360, but is read as a line with two ends; no value is in 30..330: subtract 360 "
        "from those of 330 and more"
    )
