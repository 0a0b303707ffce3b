"""Loss terms against torch.distributions, sums over all pixel values, and Monte Carlo."""

import math

import pytest
import torch
from tiny import randomise
from torch.distributions import Normal, kl_divergence

from causaldiffae.encoder import Posterior
from causaldiffae.graphs import CausalGraph
from causaldiffae.losses import (
    approx_standard_normal_cdf,
    discretized_gaussian_log_likelihood,
    gaussian_nll,
    label_kl,
    masked_mean,
    normal_kl,
    prior_kl,
)
from causaldiffae.scm import LatentSCM


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_normal_kl() -> None:
    m1, l1, m2, l2 = (draws(50, seed=seed) for seed in range(4))
    expected = kl_divergence(Normal(m1, (l1 / 2).exp()), Normal(m2, (l2 / 2).exp()))
    torch.testing.assert_close(normal_kl(m1, l1, m2, l2), expected)
    torch.testing.assert_close(
        normal_kl(m1, 0.3, 0.2, -0.4), normal_kl(m1, *(torch.full((50,), v).double() for v in (0.3, 0.2, -0.4)))
    )
    assert normal_kl(m1, l1, m1, l1).abs().max() < 1e-15


def test_gaussian_nll() -> None:
    residual, log_scale = draws(50), draws(50, seed=1)
    torch.testing.assert_close(gaussian_nll(residual, log_scale), -Normal(0.0, log_scale.exp()).log_prob(residual))


def test_normal_cdf_is_close() -> None:
    x = torch.linspace(-5, 5, 201, dtype=torch.float64)
    assert (approx_standard_normal_cdf(x) - Normal(0.0, 1.0).cdf(x)).abs().max() < 5e-4


@pytest.mark.parametrize("mean", [-1.0, -0.37, 0.0, 0.9, 1.4])
@pytest.mark.parametrize("log_scale", [-5.0, -3.0, -1.0, 0.5])
def test_pixel_likelihoods_sum_to_one(mean: float, log_scale: float) -> None:
    pixels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    log_p = discretized_gaussian_log_likelihood(
        pixels, means=torch.full_like(pixels, mean), log_scales=torch.full_like(pixels, log_scale)
    )
    assert log_p.isfinite().all()
    assert abs(float(log_p.exp().sum()) - 1) < 1e-6


def test_pixel_likelihood_is_the_mass_of_a_bin() -> None:
    x, mean, scale = torch.tensor(51 / 127.5 - 1).double(), torch.tensor(-0.5).double(), 0.2
    normal = Normal(mean, scale)
    expected = (normal.cdf(x + 1 / 255) - normal.cdf(x - 1 / 255)).log()
    found = discretized_gaussian_log_likelihood(x, means=mean, log_scales=torch.tensor(math.log(scale)).double())
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)


def test_prior_kl() -> None:
    posterior, log_scale = Posterior(draws(3, 2, 4), draws(3, 2, 4, seed=1)), draws(2, seed=2)
    q = Normal(posterior.mean, (posterior.logvar / 2).exp())
    expected = kl_divergence(q, Normal(torch.zeros(2, 4).double(), log_scale.exp()[:, None].expand(2, 4))).sum(
        dim=(1, 2)
    )
    torch.testing.assert_close(prior_kl(posterior, log_scale), expected)
    standard = kl_divergence(q, Normal(torch.zeros(2, 4).double(), 1.0)).sum(dim=(1, 2))
    torch.testing.assert_close(prior_kl(posterior), standard)


def test_label_kl_and_its_mask() -> None:
    mean, logvar, labels = draws(3, 2, 4), draws(3, 2, 4, seed=1), draws(3, 2, seed=2)
    prior = Normal(labels[:, :, None].expand(3, 2, 4), 0.3)
    expected = kl_divergence(Normal(mean, (logvar / 2).exp()), prior).sum(dim=(1, 2))
    torch.testing.assert_close(label_kl(mean, logvar, labels, 0.3), expected)
    labelled = torch.tensor([True, False, True])
    masked = label_kl(mean, logvar, labels, 0.3, labelled)
    assert masked[1] == 0
    torch.testing.assert_close(masked[labelled], expected[labelled])
    torch.testing.assert_close(
        label_kl(mean, 0.0, labels, 1.0), 0.5 * ((mean - labels[:, :, None]) ** 2).sum(dim=(1, 2))
    )


@pytest.mark.parametrize("mechanism", ["additive", "affine"])
def test_chain_rule_of_the_label_kl(mechanism: str) -> None:
    """Averaged over the parents' noise, the sum over blocks is the divergence of the joint, by Monte Carlo."""
    torch.manual_seed(0)
    graph = CausalGraph(("a", "b", "c"), (("a", "b"), ("a", "c"), ("b", "c")))
    scm = randomise(LatentSCM(graph, 2, mechanism, width=8).double())
    count, labels = 100_000, torch.tensor([[0.3, -0.5, 0.8]]).double()
    mean, logvar = draws(1, 3, 2), -1 + 0.5 * draws(1, 3, 2, seed=1)
    with torch.no_grad():
        u = mean + (0.5 * logvar).exp() * draws(count, 3, 2, seed=2)
        z, stretch = scm.predict_with_stretch(u)
        log_q = Normal(mean, (0.5 * logvar).exp()).log_prob(u).sum(dim=(1, 2)) - stretch.sum(dim=(1, 2))
        log_p = Normal(labels[:, :, None], 0.7).log_prob(z).sum(dim=(1, 2))
        by_blocks = label_kl(z - stretch.exp() * (u - mean), logvar + 2 * stretch, labels.expand(count, -1), 0.7)
    joint = log_q - log_p
    error = float((joint - by_blocks).std()) / count**0.5
    assert abs(float(joint.mean() - by_blocks.mean())) < 4 * error
    assert error < 0.03 * float(joint.mean())


def test_masked_mean() -> None:
    values = torch.tensor([1.0, 5.0, 3.0])
    assert masked_mean(values, torch.tensor([True, False, True])) == 2


def test_masked_mean_of_nothing_is_zero_with_a_finite_gradient() -> None:
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    mean = masked_mean(values, torch.tensor([False, False]))
    assert mean == 0
    mean.backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 0.0]


def test_masked_means_of_pieces_average_to_the_whole() -> None:
    values, labelled = draws(12), torch.arange(12) % 4 == 1
    whole = values[labelled].mean()
    torch.testing.assert_close(masked_mean(values, labelled), whole)
    share = float(labelled.double().mean())
    pieces = [masked_mean(values[i : i + 3], labelled[i : i + 3], share) for i in range(0, 12, 3)]
    torch.testing.assert_close(torch.stack(pieces).mean(), whole)
    nothing = masked_mean(values.requires_grad_(), torch.zeros(12, dtype=torch.bool), 0.0)
    nothing.backward()
    assert nothing == 0 and not values.grad.any()  # type: ignore[union-attr]
