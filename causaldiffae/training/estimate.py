"""Estimates of the memory and time of a training run.

Weights, gradients and AdamW's two moments take 16 bytes per parameter in float32, each moving average another 4. The
training images are stored on the device if they fit (`data_on_device`). Activations, which grow with the microbatch,
are not included.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from causaldiffae.config import Config
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.model import trial_draws
from causaldiffae.nn import count_parameters
from causaldiffae.script_util import create_model_and_diffusion, model_entry

TRAINING_BYTES = 16
AVERAGE_BYTES = 4
TRIAL_IMAGES = 4


class Estimate(NamedTuple):
    """Memory of the training state and the images (0 if their number is unknown), speed and duration of one process."""

    state_mib: float
    data_mib: float
    images_per_second: float
    hours: float

    def lines(self) -> list[str]:
        """Formats the estimate."""
        kept = "in host memory with --data_on_device never"
        data = f", training images {self.data_mib:,.0f} MiB ({kept})" if self.data_mib else ""
        return [
            f"memory: weights, gradients, optimizer, moving averages {self.state_mib:,.0f} MiB{data}, plus activations",
            f"time: {self.hours:,.1f} hours at {self.images_per_second:,.1f} images/s (measured on {TRIAL_IMAGES})",
        ]


def estimate(config: Config, spec: DatasetSpec, device: torch.device | str = "cpu") -> Estimate:
    """Creates the model and measures a training step on a few random images."""
    model, diffusion = create_model_and_diffusion(config, spec)
    model.to(device)
    step = model_entry(config.model.model_type).training_step(model, diffusion, config.loss)
    x_start = torch.randn(TRIAL_IMAGES, spec.channels, spec.image_size, spec.image_size, device=device).clamp(-1, 1)
    labels = torch.zeros(TRIAL_IMAGES, len(spec.graph), device=device)
    zeros = torch.zeros(TRIAL_IMAGES, dtype=torch.long, device=device)
    draws = trial_draws(x_start, zeros, model.latent_shape)
    for _ in range(2):  # the first step is a warm-up
        start = time.perf_counter()
        loss, _ = step(x_start, labels, zeros if config.model.class_cond else None, draws.keep, draws, 1.0)
        loss.backward()
        float(loss.detach())  # synchronises with the device
        seconds = time.perf_counter() - start
    speed = TRIAL_IMAGES / seconds
    bytes_each = TRAINING_BYTES + AVERAGE_BYTES * len(config.ema_rates())
    return Estimate(
        state_mib=count_parameters(model) * bytes_each / 2**20,
        data_mib=config.train.num_images * spec.channels * spec.image_size**2 / 2**20,
        images_per_second=speed,
        hours=config.train.total_steps * config.train.batch_size / speed / 3600,
    )
