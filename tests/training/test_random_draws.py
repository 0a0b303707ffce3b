"""The random numbers of a step reach the device in one copy, for which the host does not wait."""

import pytest
import torch
from device_copies import META, Copies

from causaldiffae.training.random_draws import copy_together

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
