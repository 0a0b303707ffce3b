"""Random numbers of a training step, determined by seed and step.

Every process draws the numbers of the whole batch and uses its share, so they depend neither on interruptions nor on
the number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from causaldiffae import dist_util
from causaldiffae.config import LossConfig
from causaldiffae.image_datasets import Batch
from causaldiffae.model import TrainingDraws
from causaldiffae.nn import float_for_tables
from causaldiffae.resample import UniformSampler


def stream_seed(seed: int, step: int, stream: str) -> int:
    """Returns the seed (63 bits) of a stream of random numbers in a step."""
    digest = hashlib.sha256(f"{seed}/{step}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw_for_step(
    seed: int, step: int, images: Tensor, latent_shape: tuple[int, ...], sampler: UniformSampler, config: LossConfig
) -> TrainingDraws:
    """Draws the random numbers of a batch and returns the share of this process, on the device of its `images`."""
    device, local = images.device, len(images)
    total = local * dist_util.world_size()
    share = slice(dist_util.rank() * local, (dist_util.rank() + 1) * local)

    def normal(stream: str, *shape: int) -> Tensor:
        generator = torch.Generator(device).manual_seed(stream_seed(seed, step, stream))
        return torch.randn(total, *shape, generator=generator, device=device)[share]

    generator = torch.Generator().manual_seed(stream_seed(seed, step, "steps"))
    drawn = sampler.sample(total, generator)
    keep = torch.rand(total, generator=generator) >= config.drop_prob
    forced = torch.rand(total, generator=generator) < config.label_forcing
    keep_blocks = torch.rand(total, latent_shape[0], generator=generator) >= config.block_drop_prob
    ours = [each[share] for each in (drawn.t, drawn.weights, keep, keep_blocks, forced)]
    t, weights, keep, keep_blocks, forced = copy_together(ours, device)
    return TrainingDraws(
        t=t,
        weights=weights,
        noise=normal("image", *images.shape[1:]),
        latent_noise=normal("latent", *latent_shape),
        keep=keep,
        keep_blocks=keep_blocks,
        forced=forced,
    )


def step_arguments(batch: Batch, draws: TrainingDraws, piece: slice, kl_weight: float) -> tuple[Any, ...]:
    """Returns the arguments of `TrainingStep.forward` for a part of a batch."""
    part = TrainingDraws(**{name: value[piece] for name, value in vars(draws).items()})
    classes = None if batch.classes is None else batch.classes[piece]
    images, labels, labelled = batch.images[piece], batch.labels[piece], batch.labelled[piece]
    return images, labels, classes, labelled, part, kl_weight, batch.labelled_of_batch


def trial_draws(x_start: Tensor, t: Tensor, latent_shape: tuple[int, int]) -> TrainingDraws:
    """Returns draws for a trial step on images (B, C, H, W) at time steps t (B,), with all latents kept."""
    everything = torch.ones(len(x_start), dtype=torch.bool, device=x_start.device)
    return TrainingDraws(
        t=t,
        weights=torch.ones(len(x_start), device=x_start.device),
        noise=torch.randn_like(x_start),
        latent_noise=torch.randn(len(x_start), *latent_shape, device=x_start.device),
        keep=everything,
        keep_blocks=everything[:, None].expand(-1, latent_shape[0]),
        forced=~everything,
    )


def copy_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copies tensors (B, ...) from the CPU to a device in one transfer, for which the host does not wait.

    They travel as float64, which holds float32, bool, and integers up to 2^53 exactly; where a device has no float64,
    as float32, which holds integers up to 2^24.
    """
    if device.type == "cpu":
        return list(tensors)
    flat = [tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None] for tensor in tensors]
    table = torch.cat([each.to(float_for_tables(device)) for each in flat], 1)
    if device.type == "cuda":
        table = table.pin_memory()
    columns = table.to(device, non_blocking=True).split([tensor[0].numel() for tensor in tensors], dim=1)
    return [column.reshape(tensor.shape).to(tensor.dtype) for column, tensor in zip(columns, tensors, strict=True)]
