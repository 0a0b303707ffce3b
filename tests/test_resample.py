"""Samplers of time steps: draws follow the weights, and the weighted loss stays what it was."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from causaldiffae.errors import InputError
from causaldiffae.resample import LossSecondMomentResampler, UniformSampler, create_named_schedule_sampler


def warmed(losses: np.ndarray) -> LossSecondMomentResampler:
    """A sampler that has seen losses (T, history)."""
    sampler = LossSecondMomentResampler(len(losses), history_per_term=losses.shape[1])
    for column in losses.T:
        sampler.update(torch.arange(len(losses)), torch.from_numpy(column.copy()))
    return sampler


def draw(sampler: UniformSampler, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return sampler.sample(count, torch.Generator().manual_seed(seed))


def test_uniform() -> None:
    t, weights = draw(UniformSampler(10), 20_000)
    assert t.dtype == torch.int64
    assert torch.equal(weights, torch.ones(20_000))
    frequencies = torch.bincount(t, minlength=10) / len(t)
    torch.testing.assert_close(frequencies, torch.full((10,), 0.1), rtol=0.1, atol=0)
    assert UniformSampler(10).state_dict() == {}


def test_draws_follow_the_weights() -> None:
    sampler = warmed(np.array([[1.0, 1.0], [3.0, 4.0], [0.0, 0.0], [10.0, 2.0]]))
    p = sampler.weights()
    root = np.sqrt([1.0, 12.5, 0.0, 52.0])
    np.testing.assert_allclose(p, 0.999 * root / root.sum() + 0.001 / 4, rtol=1e-12)
    t, weights = draw(sampler, 50_000)
    np.testing.assert_allclose(np.bincount(t.numpy(), minlength=4) / 50_000, p, atol=0.01)
    np.testing.assert_allclose(weights.numpy(), 1 / (4 * p[t.numpy()]), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 100.0), min_size=2, max_size=20))
def test_weights_are_unbiased(levels: list[float]) -> None:
    """sum_t p_t w_t loss_t is the plain mean of loss_t, for any losses."""
    sampler = warmed(np.array(levels)[:, None])
    p = sampler.weights()
    assert abs(p.sum() - 1) < 1e-12
    assert (p > 0).all()
    t, weights = draw(sampler, 500)
    np.testing.assert_allclose(weights.numpy() * p[t.numpy()] * len(p), 1.0, rtol=1e-5)


def test_weighted_mean_of_the_loss() -> None:
    losses = np.linspace(0.1, 5.0, 20)
    t, weights = draw(warmed(losses[:, None]), 20_000)
    assert abs(float((weights.double() * torch.from_numpy(losses)[t]).mean()) - losses.mean()) < 0.05


def test_uniform_until_every_step_has_a_full_history() -> None:
    sampler = LossSecondMomentResampler(3, history_per_term=2)
    sampler.update(torch.tensor([0, 0, 1, 1, 2]), torch.tensor([1.0, 1, 5, 5, 9]))
    assert sampler.weights().tolist() == [1, 1, 1]
    sampler.update(torch.tensor([2]), torch.tensor([9.0]))
    assert np.argsort(sampler.weights()).tolist() == [0, 1, 2]


def test_history_forgets_the_oldest() -> None:
    sampler = warmed(np.array([[1.0, 2.0], [1.0, 1.0]]))
    for loss in (7.0, 8.0, 9.0):
        sampler.update(torch.tensor([0]), torch.tensor([loss]))
    assert sampler.state_dict()["history"].tolist() == [[8.0, 9.0], [1.0, 1.0]]


def test_state_round_trip() -> None:
    sampler = warmed(np.array([[1.0, 2.0], [4.0, 3.0], [1.0, 5.0]]))
    other = LossSecondMomentResampler(3, history_per_term=2)
    state = sampler.state_dict()
    other.load_state_dict(state)
    for each in (sampler, other):
        each.update(torch.tensor([1, 1]), torch.tensor([8.0, 9.0]))
    assert np.array_equal(sampler.weights(), other.weights())
    assert state["history"][1].tolist() == [4.0, 3.0]
    for mine, theirs in zip(draw(sampler, 50), draw(other, 50), strict=True):
        assert torch.equal(mine, theirs)


def test_names() -> None:
    assert type(create_named_schedule_sampler("uniform", 5)) is UniformSampler
    assert type(create_named_schedule_sampler("loss-second-moment", 5)) is LossSecondMomentResampler
    with pytest.raises(InputError, match="schedule_sampler: expected one of uniform, loss-second-moment, got 'none'"):
        create_named_schedule_sampler("none", 5)
