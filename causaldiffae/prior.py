"""Exogenous noise from its prior: what a trained model draws new images from.

The label term of the training ties all d entries of a block to one label, so u_i is one number repeated d times (on
test images the entries of a block differ by less than 0.01, where labels vary by about 1; independent entries would be
no block that the decoder has ever seen): N(0, 1) for roots, truncated to the training labels' range, and
N(0, sigma_i^2) with the mechanism's learned sigma_i for children.
"""

from __future__ import annotations

import torch
from torch import Tensor

from causaldiffae.image_datasets import DatasetSpec
from causaldiffae.scm import LatentSCM


def sample_noise(scm: LatentSCM, spec: DatasetSpec, count: int, generator: torch.Generator) -> Tensor:
    """u (count, n, d), on the CPU, of a model over `spec`'s variables; `generator` lives there too."""
    names = spec.graph.names
    noise = torch.randn(count, len(names), generator=generator) * scm.log_scale.detach().exp().cpu()
    low, high = (spec.normalise(torch.tensor([end])) for end in (spec.low, spec.high))
    is_root = torch.tensor([not scm.graph.parents[name] for name in names])
    noise = torch.where(is_root, _truncated_normal(count, low, high, generator), noise)
    return noise[:, :, None].expand(-1, -1, scm.block_size)


def _truncated_normal(count: int, low: Tensor, high: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1) between low and high (1, n): (count, n), by the inverse of its distribution function."""
    normal = torch.distributions.Normal(0.0, 1.0)
    from_share, to_share = normal.cdf(low), normal.cdf(high)
    shares = torch.rand(count, low.shape[1], generator=generator)
    return normal.icdf(from_share + (to_share - from_share) * shares)
