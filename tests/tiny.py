"""What several test files need: a data set of 8-pixel images, a network that trains in seconds, no zero weights."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn

from causaldiffae.config import Config, DiffusionConfig, LossConfig, ModelConfig, TrainConfig
from causaldiffae.datasets.images import ImageData
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.graphs import CausalGraph

COMPONENTS = {"model": ModelConfig, "diffusion": DiffusionConfig, "loss": LossConfig, "train": TrainConfig}
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
    "tensorboard": False,
}


def randomise(module: nn.Module, seed: int = 0, scale: float = 0.2) -> nn.Module:
    """Replaces every parameter that is all zero, so that nothing is hidden behind a zero-initialised layer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module


def small_config(**changes: Any) -> Config:
    """`SMALL` with changes, every field by its flat name."""
    values = SMALL | changes
    parts = {}
    for name, component in COMPONENTS.items():
        known = {field.name for field in dataclasses.fields(component)}
        parts[name] = component(**{key: value for key, value in values.items() if key in known})
    known_names = {field.name for component in COMPONENTS.values() for field in dataclasses.fields(component)}
    assert set(values) <= known_names, set(values) - known_names
    return Config(**parts)


def squares_spec(num_classes: int | None = None) -> DatasetSpec:
    """size -> grey, with units that a forgotten normalisation would show."""
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
