"""The mechanism of a discrete variable: codes, prior, likelihood, and noise that gives its category back."""

import math

import pytest
import torch
from tiny import normal, randomise

from causaldiffae.mechanisms.discrete import DiscreteMechanism

D = 6
SIZES = [2, 3, 4, 6]


def mechanism(count: int = 3, parents: int = 1) -> DiscreteMechanism:
    torch.manual_seed(0)
    made = DiscreteMechanism([float(k) for k in range(count)], D, parents, width=16, depth=1)
    return randomise(made, scale=1.0)  # type: ignore[return-value]


@pytest.mark.parametrize("count", SIZES)
def test_codes_are_standardised_apart_and_found_again_in_noise(count: int) -> None:
    made = mechanism(count)
    full = made.codes[:, : D // count * count]
    torch.testing.assert_close(full.mean(0), torch.zeros(full.shape[1]), rtol=0, atol=1e-6)
    torch.testing.assert_close(full.square().mean(0), torch.ones(full.shape[1]))
    distances = torch.cdist(made.codes, made.codes) + 100 * torch.eye(count)
    assert distances.min() >= 2 * math.sqrt(2), "at least that of +1 and -1 in two entries"
    every = torch.arange(count)
    noisy = made.block(every, torch.float32) + 0.3 * normal(count, D, dtype=torch.float32)
    assert torch.equal(made.nearest_code(noisy), every)


def test_two_categories_are_plus_and_minus_one() -> None:
    assert mechanism(2).codes.tolist() == [[1.0, -1.0] * 3, [-1.0, 1.0] * 3]


@pytest.mark.parametrize("parents", [0, 1, 2])
def test_noise_of_the_posterior_gives_the_category_back(parents: int) -> None:
    made, given = mechanism(4, parents), normal(500, parents * D, dtype=torch.float32)
    category = torch.arange(500) % 4
    block = made.block(category, torch.float32)
    noise, code = made.abduct(given, block + 0.1, torch.Generator().manual_seed(1))
    assert noise.shape == (500, D) and torch.equal(code, block) and not noise[:, 4:].any()
    assert torch.equal(made.predict(given, noise), block)
    assert torch.equal(made.most_probable(given, block, given), block)


def test_the_likelihood_is_the_cross_entropy_and_that_of_a_fresh_network_is_uniform() -> None:
    made, given = mechanism(3), normal(7, D, dtype=torch.float32)
    block = made.block(torch.arange(7) % 3, torch.float32)
    expected = -made.logits(given).log_softmax(1)[torch.arange(7), torch.arange(7) % 3]
    torch.testing.assert_close(made.nll(given, block), expected)
    for parents in (0, 1):
        fresh = DiscreteMechanism([0.0, 1.0, 2.0], D, parents, 16, 1)
        torch.testing.assert_close(fresh.nll(given[:, : parents * D], block), torch.full((7,), math.log(3)))


def test_only_trained_tensors_are_in_the_state_dict() -> None:
    assert set(mechanism(3, 0).state_dict()) == {"prior"}
    assert all(name.startswith("network.") for name in mechanism(3, 1).state_dict())
