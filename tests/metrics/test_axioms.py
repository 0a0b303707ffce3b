"""Composition and reversibility of models in closed form."""

import numpy as np
import pytest
import torch
from torch import Tensor

from causaldiffae.graphs import CausalGraph
from causaldiffae.metrics.axioms import broken, composition, reversibility
from causaldiffae.metrics.effectiveness import Role, label_errors, role_of, treatment_effect

GREY = 1 / 127.5  # one grey level


class Brighter:
    """A model whose image is its label; every answer is `leak` grey levels too bright."""

    def __init__(self, leak: float) -> None:
        self.leak, self.asked = leak, 0

    def __call__(self, images: Tensor, labels: Tensor, do: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        self.asked += 1
        if do:
            labels = do["grey"][:, None]
            images = labels[:, :, None, None].expand(images.shape)
        return images + self.leak * GREY, labels


def images(count: int = 3) -> tuple[Tensor, Tensor]:
    labels = torch.linspace(-0.5, 0.5, count)[:, None]
    return labels[:, :, None, None].expand(count, 1, 4, 4).clone(), labels


def test_composition_adds_up_over_cycles() -> None:
    x_start, labels = images()
    for cycles in (1, 10):
        model = Brighter(0.25)
        torch.testing.assert_close(
            composition(model, x_start, labels, cycles), torch.full((3,), 0.25 * cycles).double(), atol=1e-4, rtol=0
        )
        assert model.asked == cycles
    model = Brighter(0.25)
    known = composition(model, x_start, labels, 2, first=x_start + GREY)
    torch.testing.assert_close(known, torch.full((3,), 1.25).double(), atol=1e-4, rtol=0)
    assert model.asked == 1


def test_there_and_back() -> None:
    x_start, labels = images()
    there, back = {"grey": torch.full((3,), 0.9)}, {"grey": labels[:, 0]}
    model = Brighter(0.5)
    torch.testing.assert_close(
        reversibility(model, x_start, labels, there, back, 10), torch.full((3,), 0.5).double(), atol=1e-4, rtol=0
    )
    assert model.asked == 20
    wrong = reversibility(Brighter(0.0), x_start, labels, there, there, 1)
    torch.testing.assert_close(wrong, ((0.9 - labels[:, 0]).double() * 127.5), atol=1e-3, rtol=0)


def test_ways_add_up_over_cycles() -> None:
    def darker(current: Tensor, labels: Tensor, do: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return current - 0.5 * GREY, labels

    x_start, labels = images()
    ways = {"grey": torch.zeros(3)}, {"grey": torch.zeros(3)}
    for cycles in (1, 10):
        found = reversibility(darker, x_start, labels, *ways, cycles)
        torch.testing.assert_close(found, torch.full((3,), 1.0 * cycles).double(), atol=1e-3, rtol=0)
    known = reversibility(darker, x_start, labels, *ways, 2, first=(x_start - 3 * GREY, labels))
    torch.testing.assert_close(known, torch.full((3,), 4.5).double(), atol=1e-3, rtol=0)


def test_broken_pixels_are_counted() -> None:
    x_start, _ = images()
    x_start[1, 0, 0, :2] = torch.tensor([float("nan"), float("inf")])
    assert broken(x_start).tolist() == [0, 2, 0]


def test_roles_and_label_errors() -> None:
    graph = CausalGraph(("a", "b", "c", "d"), (("a", "b"), ("b", "c")))
    assert [role_of(graph, "b", name) for name in graph.names] == [Role.OTHER, Role.SET, Role.DESCENDANT, Role.OTHER]
    errors = label_errors(np.array([[1.0, np.nan]], np.float32), np.array([[3.0, 1.0]]))
    assert errors[0, 0] == 2.0 and np.isnan(errors[0, 1])


def test_effect_is_the_difference_of_the_arms() -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 10, 400)
    true_change = 2 * values + rng.normal(0, 0.1, 400)
    right = treatment_effect(true_change, true_change, values, 5.0)
    assert right.model.mean == pytest.approx(10, abs=1) and right.error.mean == 0.0
    nothing = treatment_effect(np.zeros(400), true_change, values, 5.0)
    assert nothing.model.mean == 0.0 and nothing.error.mean == pytest.approx(-right.truth.mean)  # type: ignore[operator]
    assert nothing.error.high is not None and nothing.error.high < -5
