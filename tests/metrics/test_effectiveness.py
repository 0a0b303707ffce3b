"""Roles of variables, label errors and treatment effects."""

import numpy as np
import pytest

from causaldiffae.graphs import CausalGraph
from causaldiffae.metrics.effectiveness import Role, label_errors, role_of, treatment_effect


def test_roles_and_label_errors() -> None:
    graph = CausalGraph(("a", "b", "c", "d"), (("a", "b"), ("b", "c")))
    assert [role_of(graph, "b", name) for name in graph.names] == [Role.OTHER, Role.SET, Role.DESCENDANT, Role.OTHER]
    errors = label_errors(np.array([[1.0, np.nan]], np.float32), np.array([[3.0, 1.0]]))
    assert errors[0, 0] == 2.0 and np.isnan(errors[0, 1])


def test_an_effect_is_the_difference_of_the_arms() -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 10, 400)
    true_change = 2 * values + rng.normal(0, 0.1, 400)
    right = treatment_effect(true_change, true_change, values, 5.0)
    assert right.model.mean == pytest.approx(10, abs=1) and right.error.mean == 0.0
    nothing = treatment_effect(np.zeros(400), true_change, values, 5.0)
    assert nothing.model.mean == 0.0 and nothing.error.mean == pytest.approx(-right.truth.mean)  # type: ignore[operator]
    assert nothing.error.high is not None and nothing.error.high < -5
