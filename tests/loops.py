"""Small training runs on squares, and the comparison of two of them."""

from pathlib import Path
from typing import Any

import torch
from tiny import small_config, squares

from causaldiffae.logger import Logger
from causaldiffae.train_util import TrainLoop
from causaldiffae.training.stopping import StopRequest

STOCHASTIC = {
    "dropout": 0.3,
    "drop_prob": 0.3,
    "schedule_sampler": "loss-second-moment",
    "noise_schedule": "cosine",
    "diffusion_steps": 4,
}
"""Options that draw random numbers of every kind; with few steps, the sampler soon leaves its uniform start."""


def loop(
    folder: Path,
    *,
    preview: bool = False,
    images: int = 8,
    num_classes: int | None = None,
    stop: StopRequest | None = None,
    **changes: Any,
) -> TrainLoop:
    """A training loop on squares, in `folder`."""
    config = small_config(**({"channel_mult": "1", "attention_resolutions": ""} | changes))
    data = squares(images, num_classes)
    return TrainLoop(config, data, Logger(folder, use_tensorboard=False), data if preview else None, stop)


def state_of(trained: TrainLoop) -> dict[str, torch.Tensor]:
    """Weights, moving averages, optimizer state and sampler state, by name."""
    found = {f"model.{key}": value for key, value in trained.model.state_dict().items()}
    for rate, ema in trained.emas.items():
        found |= {f"ema {rate}.{key}": value for key, value in ema.items()}
    for i, state in trained.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{i}.{key}": torch.as_tensor(value) for key, value in state.items()}
    return found | {f"sampler.{key}": value for key, value in trained.sampler.state_dict().items()}


def assert_same(a: TrainLoop, b: TrainLoop) -> None:
    """Both loops are at the same step with bitwise equal states."""
    left, right = state_of(a), state_of(b)
    assert a.step == b.step and left.keys() == right.keys()
    assert not [key for key in left if not torch.equal(left[key], right[key])]
