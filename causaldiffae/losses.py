"""The terms of the loss, per image.

CausalDiffAE (section 4.2) minimises  E ||eps - eps_theta(x_t, t, z)||^2 + gamma [ KL(q(z | x0, y) || p(z | y)) +
KL(q(u | x0) || p(u)) ]. `prior_kl` is the last term, `label_kl` the middle one. Here p(u_i) = N(0, sigma_i^2 I) with a
learned scale for variables with parents, so that the noise of a child is the *residual* of its mechanism. Otherwise the
noise could encode the child entirely, f = 0 would be optimal, and interventions on a parent would not affect the child.
`model.mechanism_nll` also fits the mechanisms to the labels themselves, whose blocks are known exactly.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from causaldiffae.nn import sum_flat

if TYPE_CHECKING:
    from causaldiffae.encoder import Posterior


def normal_kl(mean1: Tensor, logvar1: Tensor | float, mean2: Tensor | float, logvar2: Tensor | float) -> Tensor:
    """Returns KL(N(mean1, exp(logvar1)) || N(mean2, exp(logvar2))), elementwise, in nats; arguments broadcast."""
    logvar1, logvar2 = _like(mean1, logvar1), _like(mean1, logvar2)
    ratio = torch.exp(logvar1 - logvar2)
    return 0.5 * (-1.0 + logvar2 - logvar1 + ratio + (mean1 - mean2) ** 2 * torch.exp(-logvar2))


def _like(other: Tensor, value: Tensor | float) -> Tensor:
    """Returns a value in the dtype and on the device of a tensor; filling there, unlike copying, does not wait."""
    return (
        value.to(other) if isinstance(value, Tensor) else torch.full((), value, dtype=other.dtype, device=other.device)
    )


def discretized_gaussian_log_likelihood(x: Tensor, *, means: Tensor, log_scales: Tensor) -> Tensor:
    """Returns the log-likelihood of 8-bit pixels in [-1, 1] under a Gaussian integrated over the bin of each pixel.

    Ho et al., 2020, eq. 13, with the tanh approximation of the normal distribution function used to train the published
    networks.
    """
    centred, inv_std = x - means, torch.exp(-log_scales)
    upper = approx_standard_normal_cdf(inv_std * (centred + 1.0 / 255.0))
    lower = approx_standard_normal_cdf(inv_std * (centred - 1.0 / 255.0))
    inside = (upper - lower).clamp(min=1e-12).log()
    inside = torch.where(x < -0.999, upper.clamp(min=1e-12).log(), inside)
    return torch.where(x > 0.999, (1.0 - lower).clamp(min=1e-12).log(), inside)


def approx_standard_normal_cdf(x: Tensor) -> Tensor:
    """Approximates the distribution function of the standard normal (Page, 1977)."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def prior_kl(posterior: Posterior, log_scale: Tensor | float = 0.0, discrete: Tensor | None = None) -> Tensor:
    """Returns KL(q(u | x0) || N(0, sigma_i^2 I)) per image, (B,).

    Args:
        log_scale: (n,) log sigma, or a number.
        discrete: (n,) bool, variables to leave out: their blocks are tied to codes, and their noise is not Gaussian.
    """
    log_scale = _like(posterior.mean, log_scale).reshape(-1, 1)
    kl = normal_kl(posterior.mean, posterior.logvar, 0.0, 2.0 * log_scale)
    return sum_flat(kl if discrete is None else torch.where(discrete[:, None], torch.zeros_like(kl), kl))


def label_kl(
    z_mean: Tensor,
    z_logvar: Tensor | float,
    labels: Tensor,
    label_std: float,
    labelled: Tensor | None = None,
) -> Tensor:
    """Returns KL(q(z_i | z_pa, x0) || N(y_i 1, label_std^2 I)), summed over variables and dimensions, (B,).

    For a discrete variable the mean of the prior is the code of its category instead of y_i 1.

    Args:
        z_mean: (B, n, d), means of the blocks given their parents; by the chain rule the sum is the KL of the joint.
        z_logvar: (B, n, d) or a number.
        labels: (B, n, d) label blocks (`LatentSCM.label_blocks`), or (B, n) normalised labels of continuous variables.
        label_std: standard deviation of a block around its label.
        labelled: (B,) bool; images without labels get 0.
    """
    kl = sum_flat(normal_kl(z_mean, z_logvar, _as_blocks(labels), 2.0 * math.log(label_std)))
    return kl if labelled is None else torch.where(labelled, kl, torch.zeros_like(kl))


@torch.no_grad()
def label_kl_by_variable(
    z_mean: Tensor, z_logvar: Tensor | float, labels: Tensor, label_std: float, labelled: Tensor
) -> Tensor:
    """Returns the terms of `label_kl` by variable, (B, n), without gradient, for logging."""
    kl = normal_kl(z_mean, z_logvar, _as_blocks(labels), 2.0 * math.log(label_std)).sum(dim=2)
    return torch.where(labelled[:, None], kl, torch.zeros_like(kl))


def _as_blocks(labels: Tensor) -> Tensor:
    return labels[:, :, None] if labels.dim() == 2 else labels


def masked_mean(values: Tensor, labelled: Tensor, fraction: float | None = None) -> Tensor:
    """Returns the mean of (B,) values over the labelled images; 0 with zero gradient without labelled images.

    For a microbatch, `fraction` is the fraction of labelled images in the whole batch; the results of all microbatches
    then average to that of the batch.
    """
    kept = torch.where(labelled, values, torch.zeros_like(values))
    if fraction is None:
        return kept.sum() / labelled.sum().clamp(min=1)
    return kept.mean() / fraction if fraction > 0 else kept.sum() * 0.0


def squared_error(read: Tensor, labels: Tensor, labelled: Tensor) -> Tensor:
    """Returns the mean squared error of labels (B, n) per image, 0 for images without labels."""
    error = ((read - labels) ** 2).mean(dim=1)
    return torch.where(labelled, error, torch.zeros_like(error))


def gaussian_nll(residual: Tensor, log_scale: Tensor) -> Tensor:
    """Returns -log N(residual; 0, exp(log_scale)^2), elementwise, in nats."""
    return 0.5 * (residual * torch.exp(-log_scale)) ** 2 + log_scale + 0.5 * math.log(2 * math.pi)
