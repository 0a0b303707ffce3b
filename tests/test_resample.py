"""Samplers of time steps: draws follow the weights, and the weighted loss keeps its expectation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from causaldiffae.errors import InputError
from causaldiffae.resample import LossSecondMomentResampler, UniformSampler, create_named_schedule_sampler


def sampler_after(losses: np.ndarray) -> LossSecondMomentResampler:
    """A sampler that has recorded losses (T, history)."""
    sampler = LossSecondMomentResampler(len(losses), history_per_term=losses.shape[1])
    for column in losses.T:
        sampler.update(torch.arange(len(losses)), torch.from_numpy(column.copy()))
    return sampler


def draw(sampler: UniformSampler, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return sampler.sample(count, torch.Generator().manual_seed(0))


def test_uniform_sampler_draws_all_steps_equally_often() -> None:
    t, weights = draw(UniformSampler(10), 20_000)
    assert t.dtype == torch.int64 and torch.equal(weights, torch.ones(20_000))
    np.testing.assert_allclose(np.bincount(t, minlength=10) / len(t), 0.1, rtol=0.1)
    assert UniformSampler(10).state_dict() == {}


def test_draws_are_proportional_to_the_root_of_the_second_moment() -> None:
    sampler = sampler_after(np.array([[1.0, 1.0], [3.0, 4.0], [0.0, 0.0], [10.0, 2.0]]))
    p, root = sampler.weights(), np.sqrt([1.0, 12.5, 0.0, 52.0])
    np.testing.assert_allclose(p, 0.999 * root / root.sum() + 0.001 / 4, rtol=1e-12)
    t, weights = draw(sampler, 50_000)
    np.testing.assert_allclose(np.bincount(t.numpy(), minlength=4) / 50_000, p, atol=0.01)
    np.testing.assert_allclose(weights.numpy(), 1 / (4 * p[t.numpy()]), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 100.0), min_size=2, max_size=20))
def test_weighted_loss_is_unbiased_for_any_losses(levels: list[float]) -> None:
    """p_t w_t = 1 / T, so sum_t p_t w_t loss_t is the plain mean of loss_t."""
    sampler = sampler_after(np.array(levels)[:, None])
    p = sampler.weights()
    assert abs(p.sum() - 1) < 1e-12 and (p > 0).all()
    t, weights = draw(sampler, 500)
    np.testing.assert_allclose(weights.numpy() * p[t.numpy()] * len(p), 1.0, rtol=1e-5)


def test_sampling_is_uniform_until_every_step_has_a_full_history() -> None:
    sampler = LossSecondMomentResampler(3, history_per_term=2)
    sampler.update(torch.tensor([0, 0, 1, 1, 2]), torch.tensor([1.0, 1, 5, 5, 9]))
    assert sampler.weights().tolist() == [1, 1, 1]
    sampler.update(torch.tensor([2]), torch.tensor([9.0]))
    assert np.argsort(sampler.weights()).tolist() == [0, 1, 2]


def test_history_keeps_the_latest_losses() -> None:
    sampler = sampler_after(np.array([[1.0, 2.0], [1.0, 1.0]]))
    sampler.update(torch.tensor([0, 0, 0]), torch.tensor([7.0, 8.0, 9.0]))
    assert sampler.state_dict()["history"].tolist() == [[8.0, 9.0], [1.0, 1.0]]


def test_a_restored_sampler_continues_as_the_saved_one() -> None:
    sampler, restored = sampler_after(np.array([[1.0, 2.0], [4.0, 3.0], [1.0, 5.0]])), LossSecondMomentResampler(3, 2)
    state = sampler.state_dict()
    restored.load_state_dict(state)
    for each in (sampler, restored):
        each.update(torch.tensor([1, 1]), torch.tensor([8.0, 9.0]))
    assert np.array_equal(sampler.weights(), restored.weights())
    assert state["history"][1].tolist() == [4.0, 3.0], "a saved state does not change afterwards"
    assert all(map(torch.equal, draw(sampler, 50), draw(restored, 50)))


def test_samplers_are_chosen_by_name() -> None:
    assert type(create_named_schedule_sampler("uniform", 5)) is UniformSampler
    assert type(create_named_schedule_sampler("loss-second-moment", 5)) is LossSecondMomentResampler
    with pytest.raises(InputError, match="schedule_sampler: expected one of uniform, loss-second-moment, got 'none'"):
        create_named_schedule_sampler("none", 5)
