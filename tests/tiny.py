"""What several test files share: small data, a small configuration, reproducible numbers, checks of networks."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from causaldiffae.config import COMPONENTS, Config
from causaldiffae.datasets.images import ImageData
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.graphs import CausalGraph
from causaldiffae.model import TrainingDraws

SMALL = {
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,2",
    "attention_resolutions": "4",
    "num_heads": 2,
    "rep_dim": 4,
    "encoder_channels": "8,8",
    "encoder_norm": "none",
    "mechanism_width": 16,
    "diffusion_steps": 100,
    "dataset": "squares",
    "batch_size": 8,
    "total_steps": 6,
    "lr": 1e-3,
    "kl_anneal_steps": 1,
    "log_interval": 1,
    "save_interval": 3,
    "sample_interval": 1000,
    "ema_rate": "0.9",
    "use_bf16": False,
    "compile": False,
    "tensorboard": False,
}
PART_OF = {field.name: part for part, component in COMPONENTS.items() for field in dataclasses.fields(component)}


def small_config(**changes: Any) -> Config:
    """`SMALL` with changes, every field by its flat name."""
    parts: dict[str, dict[str, Any]] = {part: {} for part in COMPONENTS}
    for name, value in (SMALL | changes).items():
        parts[PART_OF[name]][name] = value
    return Config.from_dict(parts)


def squares_spec(num_classes: int | None = None) -> DatasetSpec:
    """size -> grey, in units in which a missing normalisation shows."""
    return DatasetSpec(
        name="squares",
        image_size=8,
        channels=1,
        graph=CausalGraph(("size", "grey"), (("size", "grey"),)),
        shift=(4.0, 150.0),
        scale=(2.0, 50.0),
        low=(1.0, 50.0),
        high=(7.0, 250.0),
        num_classes=num_classes,
    )


def squares(count: int = 8, num_classes: int | None = None) -> ImageData:
    """Images of one grey square, brighter where it is larger."""
    rng = np.random.default_rng(0)
    size = rng.integers(2, 7, count)
    grey = np.clip(30 * size + rng.normal(0, 10, count), 50, 250)
    images = np.zeros((count, 1, 8, 8), np.uint8)
    for i in range(count):
        images[i, 0, : size[i], : size[i]] = np.uint8(grey[i])
    classes = None if num_classes is None else rng.integers(0, num_classes, count)
    labels = np.stack([size, grey], axis=1).astype(np.float32)
    return ImageData(squares_spec(num_classes), "train", images, labels, classes, [str(i) for i in range(count)])


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Reproducible draws from N(0, 1)."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def training_draws(t: Tensor, latent_shape: tuple[int, int], **changes: Tensor) -> TrainingDraws:
    """The random numbers of a training step on images (1, 8, 8), with all latents kept, and with changes."""
    everyone, (n, d) = torch.ones(len(t), dtype=torch.bool), latent_shape
    draws = TrainingDraws(
        t=t,
        weights=torch.ones(len(t)),
        noise=normal(len(t), 1, 8, 8, seed=5, dtype=torch.float32),
        latent_noise=normal(len(t), n, d, seed=6, dtype=torch.float32),
        keep=everyone,
        keep_blocks=everyone[:, None].expand(-1, n),
        forced=~everyone,
    )
    return dataclasses.replace(draws, **changes)


def randomise(module: nn.Module, seed: int = 0, scale: float = 0.2) -> nn.Module:
    """Replaces every parameter that is all zero, so that nothing is hidden behind a zero-initialised layer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module


def gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Gradients by parameter name; fails where one is missing or not finite."""
    network.zero_grad()
    loss.backward()
    found = {}
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        found[name] = parameter.grad.clone()
    return found
