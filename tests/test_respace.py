"""Choosing steps, and the process over the chosen ones."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import GaussianDiffusion, get_named_beta_schedule
from causaldiffae.respace import SpacedDiffusion, space_timesteps

BETAS = get_named_beta_schedule("linear", 100)


def test_known_spacings() -> None:
    assert space_timesteps(10, "10") == set(range(10))
    assert space_timesteps(10, [10]) == set(range(10))
    assert space_timesteps(10, "3") == {0, 4, 9}
    assert space_timesteps(100, "ddim25") == set(range(0, 100, 4))
    assert space_timesteps(10, "1") == {0}
    assert sorted(space_timesteps(300, "10,15,20"))[:3] == [0, 11, 22]
    assert len(space_timesteps(300, "10,15,20")) == 45


@given(st.integers(1, 400), st.data())
def test_spacing_has_the_count_and_both_ends(steps: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, steps))
    chosen = space_timesteps(steps, str(count))
    assert len(chosen) == count
    assert min(chosen) == 0
    assert max(chosen) == (steps - 1 if count > 1 else 0)


@given(st.lists(st.integers(1, 10), min_size=1, max_size=6), st.integers(0, 30))
def test_each_section_has_its_count(counts: list[int], more: int) -> None:
    steps = 10 * len(counts) + more
    chosen = space_timesteps(steps, counts)
    base, extra = divmod(steps, len(counts))
    start = 0
    for i, count in enumerate(counts):
        size = base + (i < extra)
        assert len(chosen & set(range(start, start + size))) == count
        start += size
    assert len(chosen) == sum(counts)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("ddim99", "timestep_respacing: no integer stride over 100 steps gives 99 steps"),
        ("101", "timestep_respacing: expected 1 to 100 steps in a section, got 101"),
        ("60,60", "timestep_respacing: expected 1 to 50 steps in a section, got 60"),
        ("0", "timestep_respacing: expected counts like '10,10,25', or 'ddim50', got '0'"),
        ("ddim", "or 'ddim50', got 'ddim'"),
        ("ddim-5", "or 'ddim50', got 'ddim-5'"),
        ("ten", "or 'ddim50', got 'ten'"),
        ("", "or 'ddim50', got ''"),
        ([0], "timestep_respacing: expected 1 to 100 steps in a section, got 0"),
    ],
)
def test_refused_spacings(counts: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        space_timesteps(100, counts)  # type: ignore[arg-type]


def test_refused_steps() -> None:
    for steps in ([], [100], [-1, 3]):
        with pytest.raises(InputError, match="use_timesteps: expected at least one index between 0 and 99"):
            SpacedDiffusion(steps, betas=BETAS)


def test_all_steps_are_the_base_process() -> None:
    base, whole = GaussianDiffusion(betas=BETAS), SpacedDiffusion(range(100), betas=BETAS)
    np.testing.assert_allclose(whole.betas, base.betas, rtol=1e-10)
    np.testing.assert_allclose(whole.posterior_variance, base.posterior_variance, rtol=1e-9, atol=1e-18)
    assert whole.timestep_map.tolist() == list(range(100))


@given(st.sets(st.integers(0, 99), min_size=1))
@example({1, 95})
def test_alpha_bars_are_kept(steps: set[int]) -> None:
    """beta = 1 - r and alpha = 1 - beta lose one rounding unit each: 2 eps / r for a ratio r of neighbours, summed."""
    spaced = SpacedDiffusion(steps, betas=BETAS)
    expected = np.cumprod(1 - BETAS)[sorted(steps)]
    ratios = expected / np.append(1.0, expected[:-1])
    bound = np.cumsum(2 * np.finfo(np.float64).eps * (1 + 1 / ratios))
    assert (np.abs(spaced.alphas_cumprod - expected) <= bound * expected).all()
    assert (spaced.num_timesteps, spaced.original_num_steps) == (len(steps), 100)


@pytest.mark.parametrize("rescale", [False, True])
def test_network_sees_original_steps(rescale: bool) -> None:
    spaced = SpacedDiffusion([3, 50, 99], betas=BETAS, rescale_timesteps=rescale)
    seen: list[float] = []
    spaced.ddim_sample_loop(lambda x, t: (seen.append(float(t)), x)[1], torch.zeros(1, 1, 2, 2))
    assert seen == ([990.0, 500.0, 30.0] if rescale else [99, 50, 3])
