"""What a training run will need, before it is started: memory that is certain, and time by trying a step.

Weights, gradients and AdamW's two moments take 16 bytes a parameter in float32, each moving average 4 more, and the
whole training set lies on the device. Activations come on top, and grow with the microbatch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from causaldiffae.config import Config
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.model import trial_draws
from causaldiffae.nn import count_parameters
from causaldiffae.script_util import create_model_and_diffusion, model_entry

BYTES_TRAINED = 16
BYTES_AVERAGED = 4
TRIED_IMAGES = 4


@dataclass(frozen=True)
class Estimate:
    """What a run needs on this machine.

    Attributes:
        parameters: that are trained.
        state_mib: weights, gradients, optimizer and moving averages.
        data_mib: the training images, where their number is known; else 0.
        images_per_second: of forward and backward on a few images.
        hours: of all steps at that speed, by one process.
    """

    parameters: int
    state_mib: float
    data_mib: float
    images_per_second: float
    hours: float

    def lines(self) -> list[str]:
        """For people."""
        data = f", training images {self.data_mib:,.0f} MiB" if self.data_mib else ""
        return [
            f"memory: weights, gradients, optimizer, averages {self.state_mib:,.0f} MiB{data}; activations on top",
            f"time: {self.images_per_second:,.1f} images/s, tried on {TRIED_IMAGES}; {self.hours:,.1f} hours in all",
        ]


def estimate(config: Config, spec: DatasetSpec, device: torch.device | str = "cpu") -> Estimate:
    """Builds the model, tries two training steps on a few images of noise, and works out the rest."""
    model, diffusion = create_model_and_diffusion(config, spec)
    model.to(device)
    parameters = count_parameters(model)
    step = model_entry(config.model.model_type).training_step(model, diffusion, config.loss)
    shape = (TRIED_IMAGES, spec.channels, spec.image_size, spec.image_size)
    x_start = torch.randn(shape, device=device).clamp(-1, 1)
    labels = torch.zeros(TRIED_IMAGES, len(spec.graph), device=device)
    classes = torch.zeros(TRIED_IMAGES, dtype=torch.long, device=device) if config.model.class_cond else None
    draws = trial_draws(x_start, torch.zeros(TRIED_IMAGES, dtype=torch.long, device=device), model.latent_shape)
    for _ in range(2):  # the first one warms up
        begin = time.perf_counter()
        loss, _ = step(x_start, labels, classes, draws.keep, draws, 1.0)
        loss.backward()
        float(loss.detach())  # waits for the device
        seconds = time.perf_counter() - begin
    speed = TRIED_IMAGES / seconds
    pixels = spec.channels * spec.image_size**2
    return Estimate(
        parameters=parameters,
        state_mib=parameters * (BYTES_TRAINED + BYTES_AVERAGED * len(config.ema_rates())) / 2**20,
        data_mib=config.train.num_images * pixels / 2**20,
        images_per_second=speed,
        hours=config.train.total_steps * config.train.batch_size / speed / 3600,
    )
