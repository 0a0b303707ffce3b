"""The terms of the loss, per image.

CausalDiffAE (section 4.2) minimises  E ||eps - eps_theta(x_t, t, z)||^2 + gamma [ KL(q(z | x0, y) || p(z | y)) +
KL(q(u | x0) || p(u)) ]. `prior_kl` is the last term, `label_kl` the middle one. Here p(u_i) = N(0, sigma_i^2 I) with a
learned scale for variables with parents, so that the noise of a child is the *residual* of its mechanism. Otherwise the
noise could encode the child entirely, f = 0 would be optimal, and interventions on a parent would not affect the child.
`model.mechanism_nll` also fits the mechanisms to the labels themselves, whose blocks are known exactly.

Labels may be missing by variable (`Observed`). The term of each variable is averaged over the images of the batch that
have its label, so an image without one label still contributes the terms of the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

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


class Observed(NamedTuple):
    """The labels of a batch that are observed.

    Attributes:
        labels: (B, n) bool, or (B, 1) if every image has all labels or none.
        whole: the same of the whole batch, (G, n) or (G, 1), of which the images are a microbatch or the share of a
            process.
    """

    labels: Tensor
    whole: Tensor

    @classmethod
    def of(cls, labelled: Tensor, of_batch: Tensor | None = None) -> Observed:
        """The mask for observed labels (B, n) bool, or images with all labels (B,) bool.

        Args:
            of_batch: the same for the whole batch; None if the images are the whole batch.
        """
        masks = (labelled, labelled if of_batch is None else of_batch)
        return cls(*(mask[:, None] if mask.dim() == 1 else mask for mask in masks))

    @property
    def images(self) -> Tensor:
        """(B,) bool, images with at least one label."""
        return self.labels.any(dim=1)

    def weights(self, terms: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Weights (B, n) of the terms of a loss, 0 for terms that are not known.

        `mean` of the weighted sum over variables is the sum of the means of every term over the images of the whole
        batch where it is known. All weights are 0 or 1 if every image has all labels or none.

        Args:
            terms: observed labels (B, n) bool -> known terms (B, n) bool; by default the same.
        """
        known, of_whole = (mask if terms is None else terms(mask) for mask in self)
        return known * (self.whole.any(dim=1).sum() / of_whole.sum(dim=0).clamp(min=1))

    def mean(self, values: Tensor) -> Tensor:
        """The mean of values (B,) over the images with labels; those of all microbatches average to that of the batch.

        0 with zero gradient if no image of the whole batch has labels.
        """
        kept = torch.where(self.images, values, torch.zeros_like(values))
        count = self.whole.any(dim=1).sum().clamp(min=1)
        return kept.mean() / (count / len(self.whole)).to(kept.dtype)


def label_kl(
    z_mean: Tensor,
    z_logvar: Tensor | float,
    labels: Tensor,
    label_std: float,
    weights: Tensor | None = None,
) -> Tensor:
    """Returns KL(q(z_i | z_pa, x0) || N(y_i 1, label_std^2 I)), summed over variables and dimensions, (B,).

    For a discrete variable the mean of the prior is the code of its category instead of y_i 1.

    Args:
        z_mean: (B, n, d), means of the blocks given their parents; by the chain rule the sum is the KL of the joint.
        z_logvar: (B, n, d) or a number.
        labels: (B, n, d) label blocks (`LatentSCM.label_blocks`), or (B, n) normalised labels of continuous variables;
            any finite number for a missing label.
        label_std: standard deviation of a block around its label.
        weights: (B, n) of `Observed.weights`, 0 for missing labels; 1 by default.
    """
    kl = normal_kl(z_mean, z_logvar, _as_blocks(labels), 2.0 * math.log(label_std))
    return sum_flat(kl if weights is None else kl * weights[:, :, None])


@torch.no_grad()
def label_kl_by_variable(
    z_mean: Tensor, z_logvar: Tensor | float, labels: Tensor, label_std: float, weights: Tensor
) -> Tensor:
    """Returns the terms of `label_kl` by variable, (B, n), without gradient, for logging."""
    return normal_kl(z_mean, z_logvar, _as_blocks(labels), 2.0 * math.log(label_std)).sum(dim=2) * weights


def _as_blocks(labels: Tensor) -> Tensor:
    return labels[:, :, None] if labels.dim() == 2 else labels


def squared_error(read: Tensor, labels: Tensor, observed: Observed) -> Tensor:
    """Returns the squared error of labels (B, n) per image, (B,), 0 for images without labels.

    `Observed.mean` of it is the mean squared error of each variable over its observed labels, averaged over variables.
    """
    error = ((read - labels) ** 2 * observed.weights()).mean(dim=1)
    return error / observed.whole.any(dim=0).to(error.dtype).mean().clamp(min=1 / labels.shape[1])


def gaussian_nll(residual: Tensor, log_scale: Tensor) -> Tensor:
    """Returns -log N(residual; 0, exp(log_scale)^2), elementwise, in nats."""
    return 0.5 * (residual * torch.exp(-log_scale)) ** 2 + log_scale + 0.5 * math.log(2 * math.pi)
