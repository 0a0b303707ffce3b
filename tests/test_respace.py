"""Choosing steps, and the diffusion process over the chosen steps."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import get_named_beta_schedule
from causaldiffae.respace import SpacedDiffusion, space_timesteps

BETAS = get_named_beta_schedule("linear", 100)


@pytest.mark.parametrize(
    ("steps", "counts", "expected"),
    [
        (10, "10", set(range(10))),
        (10, [10], set(range(10))),
        (10, "3", {0, 4, 9}),
        (10, "1", {0}),
        (100, "ddim25", set(range(0, 100, 4))),
        (6, "2,3", {0, 2, 3, 4, 5}),
    ],
)
def test_counts_are_spread_as_in_guided_diffusion(steps: int, counts: str | Sequence[int], expected: set[int]) -> None:
    assert space_timesteps(steps, counts) == expected


@given(st.lists(st.integers(1, 10), min_size=1, max_size=6), st.integers(0, 300))
def test_each_section_has_its_count_and_both_of_its_ends(counts: list[int], more: int) -> None:
    steps = 10 * len(counts) + more
    chosen = space_timesteps(steps, ",".join(map(str, counts)))
    base, extra = divmod(steps, len(counts))
    start = 0
    for i, count in enumerate(counts):
        end = start + base + (i < extra)
        section = chosen & set(range(start, end))
        assert len(section) == count and min(section) == start and max(section) == (end - 1 if count > 1 else start)
        start = end
    assert len(chosen) == sum(counts)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("ddim99", "no integer stride over 100 steps gives 99 steps"),
        ("101", "expected 1 to 100 steps in a section, got 101"),
        ("60,60", "expected 1 to 50 steps in a section, got 60"),
        ([0], "expected 1 to 100 steps in a section, got 0"),
        ([], "expected counts like '10,10,25', or 'ddim50', got none"),
        *((text, f"or 'ddim50', got '{text}'") for text in ("0", "ddim", "ddim-5", "ten", "")),
    ],
)
def test_counts_that_do_not_fit_are_refused(counts: str | Sequence[int], message: str) -> None:
    with pytest.raises(InputError, match=f"timestep_respacing: .*{message}"):
        space_timesteps(100, counts)


@pytest.mark.parametrize("steps", [[], [100], [-1, 3]])
def test_steps_outside_the_base_process_are_refused(steps: list[int]) -> None:
    with pytest.raises(InputError, match="use_timesteps: expected at least one index between 0 and 99"):
        SpacedDiffusion(steps, betas=BETAS)


@given(st.sets(st.integers(0, 99), min_size=1))
@example({1, 95})
@example(set(range(100)))
def test_alpha_bar_of_the_chosen_steps_is_kept(steps: set[int]) -> None:
    """beta = 1 - r and alpha = 1 - beta lose one rounding unit each: 2 eps / r for a ratio r of neighbours, summed."""
    spaced = SpacedDiffusion(steps, betas=BETAS)
    expected = np.cumprod(1 - BETAS)[sorted(steps)]
    ratios = expected / np.append(1.0, expected[:-1])
    bound = np.cumsum(2 * np.finfo(np.float64).eps * (1 + 1 / ratios))
    assert (np.abs(spaced.alphas_cumprod - expected) <= bound * expected).all()
    assert (spaced.num_timesteps, spaced.original_num_steps) == (len(steps), 100)


@pytest.mark.parametrize(("rescale", "expected"), [(False, [99, 50, 3]), (True, [990.0, 500.0, 30.0])])
def test_network_sees_the_original_steps(rescale: bool, expected: list[float]) -> None:
    spaced = SpacedDiffusion([3, 50, 99], betas=BETAS, rescale_timesteps=rescale)
    seen: list[float] = []
    spaced.ddim_sample_loop(lambda x, t: (seen.append(float(t)), x)[1], torch.zeros(1, 1, 2, 2))
    assert seen == expected and spaced.max_timestep == (1000.0 if rescale else 100.0)
