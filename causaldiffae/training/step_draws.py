"""The random numbers of a training step, which follow from (seed, step) alone.

Every process draws those of the whole batch and keeps its share: so they depend neither on how often a run was
interrupted nor on how many processes share the batch.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from causaldiffae import dist_util
from causaldiffae.config import LossConfig
from causaldiffae.model import TrainingDraws
from causaldiffae.resample import UniformSampler


def step_seed(seed: int, step: int, stream: str) -> int:
    """A 63-bit seed for one stream of random numbers in one step."""
    digest = hashlib.sha256(f"{seed}/{step}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw_step(
    seed: int,
    step: int,
    images: Tensor,
    latent_shape: tuple[int, ...],
    sampler: UniformSampler,
    config: LossConfig,
) -> TrainingDraws:
    """This process's share of the random numbers of the whole batch, on the device of its images (B, C, H, W)."""
    device, local = images.device, len(images)
    whole = local * dist_util.world_size()
    mine = slice(dist_util.rank() * local, (dist_util.rank() + 1) * local)

    def normal(stream: str, *shape: int) -> Tensor:
        generator = torch.Generator(device).manual_seed(step_seed(seed, step, stream))
        return torch.randn(whole, *shape, generator=generator, device=device)[mine]

    generator = torch.Generator().manual_seed(step_seed(seed, step, "steps"))
    drawn = sampler.sample(whole, generator)
    keep = torch.rand(whole, generator=generator) >= config.drop_prob
    forced = torch.rand(whole, generator=generator) < config.label_forcing
    keep_blocks = torch.rand(whole, latent_shape[0], generator=generator) >= config.block_drop_prob
    return TrainingDraws(
        t=drawn.t[mine].to(device),
        weights=drawn.weights[mine].to(device),
        noise=normal("image", *images.shape[1:]),
        latent_noise=normal("latent", *latent_shape),
        keep=keep[mine].to(device),
        keep_blocks=keep_blocks[mine].to(device),
        forced=forced[mine].to(device),
    )
