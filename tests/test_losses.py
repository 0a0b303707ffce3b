"""Loss terms against torch.distributions, sums over all pixel values, and Monte Carlo."""

import math

import pytest
import torch
from device_copies import META, Copies
from tiny import normal, randomise
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from causaldiffae.encoder import Posterior
from causaldiffae.graphs import CausalGraph
from causaldiffae.losses import (
    Observed,
    approx_standard_normal_cdf,
    discretized_gaussian_log_likelihood,
    gaussian_nll,
    label_kl,
    label_kl_by_variable,
    normal_kl,
    prior_kl,
    squared_error,
)
from causaldiffae.scm import LatentSCM

ZERO = torch.zeros(2, 4, dtype=torch.float64)


def gaussian(mean: Tensor, logvar: Tensor) -> Normal:
    return Normal(mean, (logvar / 2).exp())


def test_normal_kl_and_gaussian_nll_agree_with_torch_distributions() -> None:
    m1, l1, m2, l2 = (normal(50, seed=seed) for seed in range(4))
    torch.testing.assert_close(normal_kl(m1, l1, m2, l2), kl_divergence(gaussian(m1, l1), gaussian(m2, l2)))
    as_tensors = (torch.full((50,), value, dtype=torch.float64) for value in (0.3, 0.2, -0.4))
    torch.testing.assert_close(normal_kl(m1, 0.3, 0.2, -0.4), normal_kl(m1, *as_tensors))
    assert normal_kl(m1, l1, m1, l1).abs().max() < 1e-15
    torch.testing.assert_close(gaussian_nll(m1, l1), -Normal(0.0, l1.exp()).log_prob(m1))


def test_divergences_copy_no_numbers_to_the_device() -> None:
    mean = torch.zeros(2, 3, 4, device=META)
    posterior = Posterior(mean, mean)
    with Copies() as copies:
        normal_kl(mean, 0.3, 0.2, -0.4)
        prior_kl(posterior)
        label_kl(mean, 0.0, torch.zeros(2, 3, device=META), 0.5)
    assert not copies.waiting and not copies.other


def test_approximate_normal_cdf_is_within_5e_4() -> None:
    x = torch.linspace(-5, 5, 201, dtype=torch.float64)
    assert (approx_standard_normal_cdf(x) - Normal(0.0, 1.0).cdf(x)).abs().max() < 5e-4


@pytest.mark.parametrize("mean", [-1.0, -0.37, 0.0, 0.9, 1.4])
@pytest.mark.parametrize("log_scale", [-5.0, -3.0, -1.0, 0.5])
def test_pixel_likelihoods_sum_to_one(mean: float, log_scale: float) -> None:
    pixels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    log_p = discretized_gaussian_log_likelihood(
        pixels, means=torch.full_like(pixels, mean), log_scales=torch.full_like(pixels, log_scale)
    )
    assert log_p.isfinite().all() and abs(float(log_p.exp().sum()) - 1) < 1e-6


def test_pixel_likelihood_is_the_probability_of_its_bin() -> None:
    x, mean, scale = torch.tensor(51 / 127.5 - 1).double(), torch.tensor(-0.5).double(), 0.2
    cdf = Normal(mean, scale).cdf
    expected = (cdf(x + 1 / 255) - cdf(x - 1 / 255)).log()
    found = discretized_gaussian_log_likelihood(x, means=mean, log_scales=torch.tensor(math.log(scale)).double())
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)


def test_prior_kl_uses_the_scale_of_each_variable() -> None:
    posterior, log_scale = Posterior(normal(3, 2, 4), normal(3, 2, 4, seed=1)), normal(2, seed=2)
    q, scale = gaussian(*posterior), log_scale.exp()[:, None].expand(2, 4)
    torch.testing.assert_close(prior_kl(posterior, log_scale), kl_divergence(q, Normal(ZERO, scale)).sum(dim=(1, 2)))
    torch.testing.assert_close(prior_kl(posterior), kl_divergence(q, Normal(ZERO, 1.0)).sum(dim=(1, 2)))


def test_label_kl_ties_blocks_to_labels_and_leaves_out_unlabelled_images() -> None:
    mean, logvar, labels = normal(3, 2, 4), normal(3, 2, 4, seed=1), normal(3, 2, seed=2)
    anchors = labels[:, :, None].expand(3, 2, 4)
    expected = kl_divergence(gaussian(mean, logvar), Normal(anchors, 0.3)).sum(dim=(1, 2))
    torch.testing.assert_close(label_kl(mean, logvar, labels, 0.3), expected)
    labelled = torch.tensor([True, False, True])
    weights = Observed.of(labelled).weights()
    torch.testing.assert_close(label_kl(mean, logvar, labels, 0.3, weights), expected * labelled)
    torch.testing.assert_close(label_kl(mean, 0.0, labels, 1.0), 0.5 * ((mean - anchors) ** 2).sum(dim=(1, 2)))


@pytest.mark.parametrize("mechanism", ["additive", "affine"])
def test_label_kl_of_blocks_is_that_of_the_joint(mechanism: str) -> None:
    """The chain rule by Monte Carlo: averaged over the parents' noise, the sum over blocks is the joint divergence."""
    torch.manual_seed(0)
    graph = CausalGraph(("a", "b", "c"), (("a", "b"), ("a", "c"), ("b", "c")))
    scm = randomise(LatentSCM(graph, 2, mechanism, width=8).double())
    count, labels = 100_000, torch.tensor([[0.3, -0.5, 0.8]]).double()
    mean, logvar = normal(1, 3, 2), -1 + 0.5 * normal(1, 3, 2, seed=1)
    with torch.no_grad():
        u = mean + (0.5 * logvar).exp() * normal(count, 3, 2, seed=2)
        z, stretch = scm.predict_with_stretch(u)
        log_q = gaussian(mean, logvar).log_prob(u).sum(dim=(1, 2)) - stretch.sum(dim=(1, 2))
        log_p = Normal(labels[:, :, None], 0.7).log_prob(z).sum(dim=(1, 2))
        by_blocks = label_kl(z - stretch.exp() * (u - mean), logvar + 2 * stretch, labels.expand(count, -1), 0.7)
    joint = log_q - log_p
    error = float((joint - by_blocks).std()) / count**0.5
    assert abs(float(joint.mean() - by_blocks.mean())) < 4 * error
    assert error < 0.03 * float(joint.mean())


# ---------------------------------------------------------------------- labels missing by variable

MASK = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], dtype=torch.bool)
"""Variable 0 is observed on images 0, 1, 3, variable 1 on images 1, 3, 4, variable 2 on none."""


def test_the_term_of_each_variable_is_a_mean_over_its_observed_labels() -> None:
    values = normal(6, 3)
    observed = Observed.of(MASK)
    expected = values[MASK[:, 0], 0].mean() + values[MASK[:, 1], 1].mean()
    torch.testing.assert_close(observed.mean((values * observed.weights()).sum(dim=1)), expected)
    assert torch.equal(observed.images, MASK.any(dim=1))


def test_divergences_and_errors_of_labels_are_means_over_observed_labels() -> None:
    mean, logvar, labels = normal(6, 3, 2), normal(6, 3, 2, seed=1), normal(6, 3, seed=2)
    observed = Observed.of(MASK)
    kl = kl_divergence(gaussian(mean, logvar), Normal(labels[:, :, None], 0.3)).sum(dim=2)
    expected = torch.stack([kl[MASK[:, 0], 0].mean(), kl[MASK[:, 1], 1].mean(), torch.zeros(()).double()])
    torch.testing.assert_close(observed.mean(label_kl(mean, logvar, labels, 0.3, observed.weights())), expected.sum())
    by_variable = label_kl_by_variable(mean, logvar, labels, 0.3, observed.weights())
    torch.testing.assert_close(torch.stack([observed.mean(kl) for kl in by_variable.unbind(1)]), expected)
    read = normal(6, 3, seed=3)
    errors = [((read - labels)[MASK[:, i], i] ** 2).mean() for i in (0, 1)]
    torch.testing.assert_close(observed.mean(squared_error(read, labels, observed)), sum(errors) / 2)


def test_a_missing_label_has_a_gradient_of_exactly_zero() -> None:
    observed, values = Observed.of(MASK), normal(6, 3, 2).requires_grad_()
    labels = normal(6, 3, seed=1).requires_grad_()
    terms = label_kl(values, 0.0, labels, 0.3, observed.weights()) + squared_error(values.mean(2), labels, observed)
    observed.mean(terms).backward()
    assert values.grad is not None and labels.grad is not None
    assert torch.equal(values.grad != 0, MASK[:, :, None].expand(6, 3, 2))
    assert torch.equal(labels.grad != 0, MASK)


@pytest.mark.parametrize("mask", [[True, False, True], [True] * 3, [False] * 3])
def test_weights_are_0_or_1_if_every_image_has_all_labels_or_none(mask: list[bool]) -> None:
    labelled = torch.tensor(mask)
    for observed in (Observed.of(labelled), Observed.of(labelled[:, None].expand(3, 4))):
        assert torch.equal(observed.weights().expand(3, 4), labelled[:, None].expand(3, 4).float())
        assert torch.equal(observed.images, labelled)


def test_the_mean_of_no_images_is_zero_with_a_zero_gradient() -> None:
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    mean = Observed.of(torch.tensor([False, False])).mean(values)
    mean.backward()
    assert mean == 0 and values.grad is not None and values.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_means_of_microbatches_and_processes_average_to_that_of_the_batch(size: int) -> None:
    """Whatever the numbers of observed labels in each part; the third image and the last one have no label."""
    values = normal(6, 3)

    def mean(rows: slice) -> Tensor:
        part = Observed.of(MASK[rows], MASK)
        return part.mean((values[rows] * part.weights()).sum(dim=1))

    parts = [mean(slice(start, start + size)) for start in range(0, 6, size)]
    torch.testing.assert_close(torch.stack(parts).mean(), mean(slice(None)))
