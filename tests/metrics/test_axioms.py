"""Composition and reversibility of models in closed form."""

import pytest
import torch
from torch import Tensor

from causaldiffae.metrics.axioms import composition, non_finite_pixels, reversibility

GREY = 1 / 127.5  # one grey level


class Brighter:
    """A model whose image is its label; every output is `leak` grey levels too bright."""

    def __init__(self, leak: float) -> None:
        self.leak, self.calls = leak, 0

    def __call__(self, images: Tensor, labels: Tensor, do: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        self.calls += 1
        if do:
            labels = do["grey"][:, None]
            images = labels[:, :, None, None].expand(images.shape)
        return images + self.leak * GREY, labels


def darker(current: Tensor, labels: Tensor, do: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A model that darkens by half a grey level, whatever the intervention."""
    return current - 0.5 * GREY, labels


def images() -> tuple[Tensor, Tensor]:
    labels = torch.linspace(-0.5, 0.5, 3)[:, None]
    return labels[:, :, None, None].expand(3, 1, 4, 4).clone(), labels


def assert_all(found: Tensor, expected: float) -> None:
    torch.testing.assert_close(found, torch.full((3,), expected, dtype=torch.float64), atol=1e-3, rtol=0)


@pytest.mark.parametrize("cycles", [1, 10])
def test_errors_accumulate_over_null_interventions(cycles: int) -> None:
    model = Brighter(0.25)
    assert_all(composition(model, *images(), cycles), 0.25 * cycles)
    assert model.calls == cycles


@pytest.mark.parametrize("cycles", [1, 10])
def test_errors_accumulate_over_interventions_and_inverses(cycles: int) -> None:
    x_start, labels = images()
    do = {"grey": torch.zeros(3)}
    assert_all(reversibility(darker, x_start, labels, do, do, cycles), cycles)
    assert_all(reversibility(darker, x_start, labels, do, do, cycles, (x_start - 3 * GREY, labels)), cycles + 2.5)


def test_reversibility_is_the_error_of_the_inverse() -> None:
    x_start, labels = images()
    do, inverse = {"grey": torch.full((3,), 0.9)}, {"grey": labels[:, 0]}
    model = Brighter(0.5)
    assert_all(reversibility(model, x_start, labels, do, inverse, 10), 0.5)
    assert model.calls == 20
    wrong = reversibility(Brighter(0.0), x_start, labels, do, do, 1)
    torch.testing.assert_close(wrong, (0.9 - labels[:, 0]).double() * 127.5, atol=1e-3, rtol=0)


def test_non_finite_pixels_are_counted() -> None:
    x_start, _ = images()
    x_start[1, 0, 0, :2] = torch.tensor([float("nan"), float("inf")])
    assert non_finite_pixels(x_start).tolist() == [0, 2, 0]
