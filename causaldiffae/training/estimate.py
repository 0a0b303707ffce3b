"""Estimates of the memory and time of a training run.

Weights, gradients and AdamW's two moments take 16 bytes per parameter in float32, each moving average another 4. The
training images are stored on the device if they fit (`data_on_device`). Activations, which grow with the microbatch,
are not included.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple, cast

import torch

from causaldiffae.config import Config
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.model import TrainingStep
from causaldiffae.nn import count_parameters
from causaldiffae.script_util import create_model_and_diffusion, model_entry
from causaldiffae.training.acceleration import activation_dtype
from causaldiffae.training.random_draws import trial_draws

TRAINING_BYTES = 16
AVERAGE_BYTES = 4
MAX_TRIAL_IMAGES: Final = 16
"""More images per step are hardly faster on the CPU. On an accelerator the trial takes a whole microbatch."""


class Estimate(NamedTuple):
    """Memory of the training state and the images (0 if their number is unknown), speed and duration of one process.

    `trial_images` is the number of images of the measured step.
    """

    state_mib: float
    data_mib: float
    images_per_second: float
    hours: float
    trial_images: int

    def lines(self) -> list[str]:
        """Formats the estimate."""
        kept = "in host memory with --data_on_device never"
        data = f", training images {self.data_mib:,.0f} MiB ({kept})" if self.data_mib else ""
        return [
            f"memory: weights, gradients, optimizer, moving averages {self.state_mib:,.0f} MiB{data}, plus activations",
            f"time: {self.hours:,.1f} hours at {self.images_per_second:,.1f} images/s (measured on {self.trial_images} "
            "images, not compiled)",
        ]


class Trial:
    """Training steps on random images, without an optimizer; buffers are restored, gradients are discarded.

    Args:
        training_step: the loss of the model, on `device`.
        count: images of a step.
    """

    def __init__(
        self, training_step: TrainingStep, config: Config, spec: DatasetSpec, device: torch.device | str, count: int
    ) -> None:
        self.training_step, self.device = training_step, torch.device(device)
        images = torch.randn(count, spec.channels, spec.image_size, spec.image_size, device=device).clamp(-1, 1)
        labels = torch.zeros(count, len(spec.graph), device=device)
        zeros = torch.zeros(count, dtype=torch.long, device=device)
        draws = trial_draws(images, zeros, cast("tuple[int, int]", training_step.model.latent_shape))
        self._batch = (images, labels, zeros if config.model.class_cond else None, draws.keep, draws, 1.0)

    def run(self, dtype: torch.dtype | None, repeats: int = 1) -> float:
        """Returns the seconds of a step, the least of `repeats` after one that is not counted."""
        model, durations = self.training_step.model, []
        buffers = [buffer.clone() for buffer in model.buffers()]
        self.training_step.train()
        try:
            for _ in range(repeats + 1):
                start = time.perf_counter()
                with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
                    loss, _ = self.training_step(*self._batch)
                loss.backward()
                float(loss.detach())  # synchronises with the device
                durations.append(time.perf_counter() - start)
        finally:  # a compiler may fail halfway, and training goes on without it
            model.zero_grad(set_to_none=True)
            with torch.no_grad():
                for buffer, before in zip(model.buffers(), buffers, strict=True):
                    buffer.copy_(before)
        return min(durations[1:])


def estimate(config: Config, spec: DatasetSpec, device: torch.device | str = "cpu") -> Estimate:
    """Creates the model and measures a training step on a few random images."""
    model, diffusion = create_model_and_diffusion(config, spec)
    model.to(device)
    step = model_entry(config.model.model_type).training_step(model, diffusion, config.loss)
    count = config.train.microbatch if config.train.microbatch > 0 else config.train.batch_size
    if torch.device(device).type == "cpu":
        count = min(count, MAX_TRIAL_IMAGES)
    dtype = activation_dtype(config.train.use_bf16, device)
    seconds = Trial(step, config, spec, device, count).run(dtype)
    speed = count / seconds
    bytes_each = TRAINING_BYTES + AVERAGE_BYTES * len(config.ema_rates())
    return Estimate(
        state_mib=count_parameters(model) * bytes_each / 2**20,
        data_mib=config.train.num_images * spec.channels * spec.image_size**2 / 2**20,
        images_per_second=speed,
        hours=config.train.total_steps * config.train.batch_size / speed / 3600,
        trial_images=count,
    )
