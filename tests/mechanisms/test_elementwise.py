"""Elementwise mechanisms: exact inverses, the logarithm of their derivative, their tails, and what they can fit."""

import pytest
import torch
from tiny import normal
from torch.autograd.functional import jacobian

from causaldiffae.mechanisms.elementwise import BOUND, FAMILIES, MAX_LOG_STRETCH, Elementwise

D = 3
NAMES = list(FAMILIES)


def mechanism(name: str, count: int = 5, scale: float = 2.0) -> Elementwise:
    return FAMILIES[name].build(scale * normal(count, D * FAMILIES[name].parameters))


@pytest.mark.parametrize("name", NAMES)
def test_the_inverse_is_exact_far_beyond_the_knots_too(name: str) -> None:
    u = 4 * normal(5, D, seed=1)
    assert name != "spline" or (u.abs() > BOUND).any()
    z = mechanism(name).forward(u).z
    torch.testing.assert_close(mechanism(name).inverse(z), u, rtol=0, atol=1e-9)
    torch.testing.assert_close(mechanism(name).forward(mechanism(name).inverse(u)).z, u, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_log_stretch_is_the_log_of_the_derivative_of_each_entry(name: str) -> None:
    u, one = 3 * normal(1, D, seed=2), mechanism(name, 1)
    dz_du = jacobian(lambda v: one.forward(v).z[0], u)[:, 0]
    torch.testing.assert_close(dz_du.diagonal().log(), one.forward(u).log_stretch[0], rtol=0, atol=1e-9)
    assert not (dz_du - dz_du.diagonal().diag()).any()


@pytest.mark.parametrize("name", NAMES)
def test_zero_parameters_are_the_identity(name: str) -> None:
    u = 3 * normal(50, D)
    z, log_stretch = FAMILIES[name].build(torch.zeros(50, D * FAMILIES[name].parameters).double()).forward(u)
    torch.testing.assert_close(z, u, rtol=0, atol=1e-12)
    assert log_stretch.abs().max() < 1e-12


def test_beyond_its_knots_a_spline_is_its_affine_map() -> None:
    """So that it extrapolates."""
    spline = mechanism("spline", 1)
    steps = torch.linspace(BOUND, 3 * BOUND, 9).double()[:, None].expand(-1, D)
    for sign in (1, -1):
        z, log_stretch = spline.forward(sign * steps)
        torch.testing.assert_close(z.diff(dim=0), sign * (steps[1] - steps[0]) * log_stretch[:1].exp().expand(8, -1))


@pytest.mark.parametrize("name", ["affine", "spline"])
def test_stretch_is_bounded(name: str) -> None:
    u = torch.tensor([[2.0 * BOUND] * D]).double()
    assert mechanism(name, 1, scale=1e4).forward(u).log_stretch.abs().max() <= MAX_LOG_STRETCH


def test_half_precision_parameters_are_computed_in_float32() -> None:
    parameters = normal(5, D * FAMILIES["spline"].parameters).bfloat16()
    assert FAMILIES["spline"].build(parameters).forward(torch.zeros(5, D)).z.dtype == torch.float32
