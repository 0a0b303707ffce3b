"""Costs of a training step that are counted, not timed: parameters, arithmetic, memory.

Weights, gradients and AdamW's two moments take 16 bytes per parameter in float32, each moving average another 4.
Arithmetic is counted by torch's FlopCounterMode; activations are the distinct tensors that autograd keeps for the
backward pass.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from causaldiffae.config import Config
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.nn import count_parameters
from causaldiffae.script_util import create_model_and_diffusion
from causaldiffae.training.distillation import create_training_step
from causaldiffae.training.random_draws import trial_draws

TRAINING_BYTES: Final = 16
AVERAGE_BYTES: Final = 4
IMAGES: Final = 2
"""Images of the counted step."""


class Costs(NamedTuple):
    """Costs of training a model; `gflop` and `activation_mib` are per image."""

    parameters: int
    gflop: float
    state_mib: float
    activation_mib: float


def state_mib(parameters: int, averages: int) -> float:
    """Memory of weights, gradients, optimizer and moving averages in MiB."""
    return parameters * (TRAINING_BYTES + AVERAGE_BYTES * averages) / 2**20


def training_costs(
    config: Config, spec: DatasetSpec, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Costs:
    """Counts the costs in one training step.

    Args:
        device: where the step is computed; affects the duration of the count only.
        dtype: that of autocast, None for float32; bfloat16 activations take half of the memory.
    """
    model, diffusion = create_model_and_diffusion(config, spec)
    model.to(device)
    step = create_training_step(config, model, diffusion)
    x_start = torch.randn(IMAGES, spec.channels, spec.image_size, spec.image_size, device=device).clamp(-1, 1)
    labels = torch.zeros(IMAGES, len(spec.graph), device=device)
    zeros = torch.zeros(IMAGES, dtype=torch.long, device=device)
    draws = trial_draws(x_start, zeros, model.latent_shape)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    shapes = {tuple(parameter.shape) for parameter in model.parameters()} if dtype else set()
    casts = shapes | {shape[::-1] for shape in shapes if len(shape) == 2}  # copies of weights in the dtype of autocast
    kept: dict[int, int] = {}
    alive = []  # so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tuple(tensor.shape) not in casts:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    counter, kind = FlopCounterMode(display=False), torch.device(device).type
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast(kind, dtype=dtype, enabled=dtype is not None):
            loss, _ = step(x_start, labels, zeros if config.model.class_cond else None, draws.keep, draws, 1.0)
        activations = sum(kept.values())  # checkpointing saves others again in the backward pass, not all at once
        loss.backward()
    parameters = count_parameters(model)
    return Costs(
        parameters=parameters,
        gflop=counter.get_total_flops() / IMAGES / 1e9,
        state_mib=state_mib(parameters, len(config.ema_rates())),
        activation_mib=activations / IMAGES / 2**20,
    )
