"""Training loop of the predictors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from causaldiffae.errors import InputError

VALIDATION_SHARE: Final = 1 / 16
_VALIDATIONS: Final = 20
_MAX_GRADIENT_NORM: Final = 5.0


def split_validation(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits off a random sixteenth for validation; returns the sorted indices of training and validation images."""
    if count < 2:
        raise InputError(f"training images: expected 2 or more for a validation split, got {count}")
    order = np.random.Generator(np.random.Philox(key=[seed, 0x7072])).permutation(count)
    held_out = max(int(count * VALIDATION_SHARE), 1)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def fit(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[int], Tensor],
    validation_loss: Callable[[], float],
    *,
    steps: int,
    warmup: float,
    on_step: Callable[[], object] | None = None,
) -> float:
    """Trains with the one-cycle policy and restores the weights with the lowest validation loss.

    The network is in evaluation mode on return.

    Args:
        loss: returns the training loss of a step (from 0).
        validation_loss: returns the validation loss; called twenty times and at the end.
        warmup: fraction of the steps in which the learning rate increases to that of the optimizer.

    Returns:
        The lowest validation loss.

    Raises:
        InputError: If no validation loss is finite.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if warmup * steps == 1:  # one step of warm-up, for which OneCycleLR divides by zero
        warmup = 1.5 / steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, optimizer.defaults["lr"], steps, pct_start=warmup)
    best, best_state = math.inf, network.state_dict()
    for step in range(steps):
        network.train()
        optimizer.zero_grad(set_to_none=True)
        loss(step).backward()
        nn.utils.clip_grad_norm_(parameters, _MAX_GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        if (step + 1) % max(steps // _VALIDATIONS, 1) == 0 or step + 1 == steps:
            score = validation_loss()
            if score < best:
                best, best_state = score, {key: value.clone() for key, value in network.state_dict().items()}
        if on_step is not None:
            on_step()
    if not math.isfinite(best):
        raise InputError(f"lr: expected a finite validation loss, got {score}; try a smaller learning rate")
    network.load_state_dict(best_state)
    network.eval()
    return best
