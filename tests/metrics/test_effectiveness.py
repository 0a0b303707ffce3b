"""Roles of variables, label errors and treatment effects."""

import numpy as np
import pytest

from causaldiffae.graphs import CausalGraph
from causaldiffae.metrics.effectiveness import (
    Role,
    arms,
    label_columns,
    label_errors,
    outcomes,
    role_of,
    treatment_effect,
)


def test_roles_and_label_errors() -> None:
    graph = CausalGraph(("a", "b", "c", "d"), (("a", "b"), ("b", "c")))
    assert [role_of(graph, "b", name) for name in graph.names] == [Role.OTHER, Role.SET, Role.DESCENDANT, Role.OTHER]
    errors = label_errors(np.array([[1.0, np.nan]], np.float32), np.array([[3.0, 1.0]]))
    assert errors[0, 0] == 2.0 and np.isnan(errors[0, 1])


def test_an_effect_is_the_difference_of_the_arms() -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 10, 400)
    true_change = 2 * values + rng.normal(0, 0.1, 400)
    upper = arms("a", values, (0.0, 10.0), ())[""]
    right = treatment_effect(true_change, true_change, upper)
    assert right.model.mean == pytest.approx(10, abs=1) and right.error.mean == 0.0
    nothing = treatment_effect(np.zeros(400), true_change, upper)
    assert nothing.model.mean == 0.0 and nothing.error.mean == pytest.approx(-right.truth.mean)  # type: ignore[operator]
    assert nothing.error.high is not None and nothing.error.high < -5


def test_errors_of_categories_are_error_rates() -> None:
    predicted = np.array([[1.5, 0.4, 2.0], [1.5, 0.6, 0.0], [1.5, np.nan, 1.1]])
    true = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
    errors = label_errors(predicted, true, ((), (0.0, 1.0), (0.0, 1.0, 2.0)))
    np.testing.assert_array_equal(errors, [[0.5, 0, 1], [0.5, 1, 0], [0.5, np.nan, 0]])


def test_all_categories_are_equally_far_from_each_other() -> None:
    columns = label_columns(np.array([0.0, 1.0, 2.0]), (0.0, 1.0, 2.0))
    distances = ((columns[:, None] - columns) ** 2).sum(axis=2)
    np.testing.assert_array_equal(distances, 2.0 * (1 - np.eye(3)))
    np.testing.assert_array_equal(label_columns(np.array([3.0, 5.0]), ()), [[3.0], [5.0]])
    missing = label_columns(np.array([np.nan, 1.0]), (0.0, 1.0, 2.0))
    np.testing.assert_array_equal(missing, [[np.nan] * 3, [0.0, 1.0, 0.0]])


def test_arms_and_outcomes_of_categories() -> None:
    values = np.array([0.0, 1.0, 2.0, 1.0])
    assert arms("smile", values[:2], (0.0, 1.0), (0.0, 1.0))[""].tolist() == [False, True]
    by_category = arms("hat", values, (0.0, 2.0), (0.0, 1.0, 2.0))
    assert list(by_category) == ["hat=0", "hat=1", "hat=2"]
    np.testing.assert_array_equal(by_category["hat=1"], [False, True, False, True])
    assert outcomes("age", values, ())["age"].tolist() == values.tolist()
    assert outcomes("smile", np.array([0.4, 0.9]), (0.0, 1.0))["smile"].tolist() == [0, 1]
    hats = outcomes("hat", np.array([0.0, np.nan, 2.0]), (0.0, 1.0, 2.0))
    np.testing.assert_array_equal(hats["hat=2"], [0, np.nan, 1])
    names = lambda value: ("none", "cap", "straw")[int(value)]  # noqa: E731
    assert list(arms("hat", values, (0.0, 2.0), (0.0, 1.0, 2.0), names)) == ["hat=none", "hat=cap", "hat=straw"]
    assert list(outcomes("hat", values, (0.0, 1.0, 2.0), names)) == ["hat=none", "hat=cap", "hat=straw"]
    # half of the treated change to category 2, none of the others
    change = outcomes("hat", np.array([2.0, 0.0, 1.0, 0.0]), (0.0, 1.0, 2.0))["hat=2"]
    effect = treatment_effect(change, change, np.array([True, True, False, False]))
    assert effect.model.mean == 0.5
