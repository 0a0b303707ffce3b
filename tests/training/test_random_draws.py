"""The random numbers of a step reach the device in one copy, for which the host does not wait."""

from collections.abc import Sequence

import pytest
import torch
from device_copies import META, Copies

from causaldiffae.config import LossConfig
from causaldiffae.resample import UniformSampler
from causaldiffae.training import random_draws
from causaldiffae.training.random_draws import copy_together, draw_for_step

DRAWS = [
    torch.tensor([0, 999, 2**31 + 1]),
    torch.tensor([1 / 3, 1e-30, 7.0]),
    torch.tensor([True, False, True]),
    torch.tensor([[True, False], [False, False], [True, True]]),
]


def test_draws_are_copied_together() -> None:
    with Copies() as copies:
        found = copy_together(DRAWS, META)
    assert copies.other == ["to"] and not copies.waiting
    assert [(each.shape, each.dtype) for each in found] == [(each.shape, each.dtype) for each in DRAWS]


def test_a_step_copies_its_draws_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn on the host: all but the noise, which is drawn on the device."""
    copied: list[list[torch.Tensor]] = []

    def copy(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        copied.append(list(tensors))
        return [tensor.clone() for tensor in tensors]

    monkeypatch.setattr(random_draws, "copy_together", copy)
    draws = draw_for_step(0, 5, torch.zeros(3, 1, 8, 8), (2, 4), UniformSampler(100), LossConfig(block_drop_prob=0.5))
    names = ("t", "weights", "keep", "keep_blocks", "forced")
    (ours,) = copied
    assert len(ours) == len(names)
    for name, drawn in zip(names, ours, strict=True):
        found = getattr(draws, name)
        assert torch.equal(found, drawn) and found is not drawn, name


def test_draws_on_the_cpu_are_unchanged() -> None:
    assert all(found is draw for found, draw in zip(copy_together(DRAWS, torch.device("cpu")), DRAWS, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_draws_arrive_exactly() -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = copy_together(DRAWS, torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(each.cpu(), draw) for each, draw in zip(found, DRAWS, strict=True))
