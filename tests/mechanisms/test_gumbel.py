"""Gumbel-max against rejection sampling, the law of total probability, and the closed form of two categories."""

import pytest
import torch
from scipy.stats import ks_2samp
from tiny import normal
from torch import Tensor

from causaldiffae.mechanisms.gumbel import (
    MARGIN,
    counterfactual_probabilities,
    most_probable,
    posterior_gumbels,
    sample_gumbels,
)

DRAWS = 20_000
SIZES = [2, 3, 7]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def posterior(logits: Tensor, category: int, seed: int = 0) -> Tensor:
    """`DRAWS` posterior samples (DRAWS, K) for one image's logits (K,)."""
    return posterior_gumbels(logits.expand(DRAWS, -1), torch.full((DRAWS,), category), generator(seed))


@pytest.mark.parametrize("size", SIZES)
def test_gumbel_max_draws_from_the_softmax(size: int) -> None:
    logits = normal(size)
    drawn = (logits + sample_gumbels((DRAWS, size), generator(), torch.float64)).argmax(dim=1)
    torch.testing.assert_close(
        torch.bincount(drawn, minlength=size) / DRAWS, logits.softmax(0).float(), rtol=0, atol=0.02
    )


@pytest.mark.parametrize("size", SIZES)
def test_the_posterior_is_that_of_rejection_sampling(size: int) -> None:
    """Every margin, and the difference to the factual category's value, by the Kolmogorov-Smirnov distance."""
    logits, category = normal(size, seed=1), size - 1
    prior = sample_gumbels((10 * DRAWS, size), generator(1), torch.float64)
    accepted = prior[(logits + prior).argmax(dim=1) == category]
    drawn = posterior(logits, category)
    assert len(accepted) > 2000 and ((logits + drawn).argmax(dim=1) == category).all()
    for j in range(size):
        assert ks_2samp(drawn[:, j], accepted[:, j]).pvalue > 1e-3
        gaps = [each[:, category] - each[:, j] for each in (drawn, accepted)]
        assert j == category or ks_2samp(*gaps).pvalue > 1e-3
    assert abs(torch.corrcoef(drawn.T) - torch.corrcoef(accepted.T)).max() < 0.05


def test_the_factual_category_leads_by_a_margin_even_where_it_was_improbable() -> None:
    logits = torch.tensor([[30.0, 0.0, -30.0]]).expand(1000, -1)
    for category in range(3):
        values = logits + posterior_gumbels(logits, torch.full((1000,), category), generator())
        others = torch.cat([values[:, :category], values[:, category + 1 :]], dim=1)
        assert values.isfinite().all() and (values[:, category, None] - others).min() > 0.5 * MARGIN
    even, count = torch.zeros(1, 2), 500_000  # some of so many draws would be nearly tied
    lead = posterior_gumbels(even.expand(count, -1), torch.zeros(count, dtype=torch.long), generator()).diff(dim=1)
    assert lead.max() < -0.5 * MARGIN and lead.max() > -2 * MARGIN


@pytest.mark.parametrize("size", SIZES)
def test_counterfactual_probabilities_are_the_shares_of_posterior_draws(size: int) -> None:
    before, after, category = normal(size, seed=2), normal(size, seed=3), 1
    shares = torch.bincount((after + posterior(before, category)).argmax(dim=1), minlength=size) / DRAWS
    exact = counterfactual_probabilities(before[None], after[None], torch.tensor([category]))[0]
    torch.testing.assert_close(exact.float(), shares, rtol=0, atol=0.015)


@pytest.mark.parametrize("size", [*SIZES, 40])
def test_averaged_over_factual_categories_they_are_the_interventional_distribution(size: int) -> None:
    """sum_k p_k P(j | k) = p'_j, exactly."""
    before, after = 2 * normal(size, seed=4), 2 * normal(size, seed=5)
    every = torch.arange(size)
    table = counterfactual_probabilities(before.expand(size, -1), after.expand(size, -1), every)
    torch.testing.assert_close(table.sum(dim=1), torch.ones(size).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(before.softmax(0) @ table, after.softmax(0), rtol=0, atol=1e-12)


def test_two_categories_have_the_closed_form_of_a_monotone_threshold() -> None:
    """P(1' | 0) = max(0, p' - p) / (1 - p) and P(0' | 1) = max(0, p - p') / p, with p = P(1)."""
    before, after = normal(50, 2), normal(50, 2, seed=1)
    p, q = before.softmax(1)[:, 1], after.softmax(1)[:, 1]
    zeros, ones = torch.zeros(50, dtype=torch.long), torch.ones(50, dtype=torch.long)
    rises = counterfactual_probabilities(before, after, zeros)[:, 1]
    falls = counterfactual_probabilities(before, after, ones)[:, 0]
    torch.testing.assert_close(rises, (q - p).clamp(min=0) / (1 - p), rtol=0, atol=1e-12)
    torch.testing.assert_close(falls, (p - q).clamp(min=0) / p, rtol=0, atol=1e-12)


def test_a_category_whose_odds_did_not_fall_is_kept_by_every_draw() -> None:
    """Counterfactual stability: the odds of the factual category against all others rise."""
    before = normal(100, 5)
    after = before - normal(100, 5, seed=1).abs()
    category = before.argmin(dim=1)
    after[torch.arange(100), category] = before[torch.arange(100), category] + 0.1
    for seed in range(20):
        assert torch.equal((after + posterior_gumbels(before, category, generator(seed))).argmax(dim=1), category)
    exact = counterfactual_probabilities(before, after, category)
    assert (exact[torch.arange(100), category] == 1).all() and torch.equal(
        most_probable(before, after, category), category
    )


def test_unchanged_logits_keep_the_category_and_ties_too() -> None:
    logits, category = normal(50, 4), torch.arange(50) % 4
    assert torch.equal(most_probable(logits, logits, category), category)
    assert torch.equal(most_probable(logits, logits + 3.0, category), category), "a common shift has no effect"
    half = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, torch.log(torch.tensor(3.0))]])  # P(1 | 0) = 1/2
    assert most_probable(*half, torch.tensor([0])).tolist() == [0]


def test_extreme_logits_give_finite_probabilities() -> None:
    before = torch.tensor([[900.0, -900.0, 0.0], [0.0, 0.0, 0.0]])
    for after in (-before, before.flip(1), 1e4 * before):
        for category in range(3):
            found = counterfactual_probabilities(before, after, torch.full((2,), category))
            assert found.isfinite().all() and (found >= 0).all()
            torch.testing.assert_close(found.sum(dim=1), torch.ones(2), rtol=0, atol=1e-5)
