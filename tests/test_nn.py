"""Layers and small functions: normalisation, embeddings, reductions, and attention against its definition."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tiny import normal, randomise
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from causaldiffae.errors import InputError
from causaldiffae.nn import (
    AttentionBlock,
    GroupNorm32,
    TensorFields,
    count_parameters,
    normalization,
    self_attention,
    timestep_embedding,
    update_ema,
    zero_module,
)


def test_group_norm_standardises_each_group() -> None:
    y = normalization(64)(3 + 2 * normal(4, 64, 5, 5, dtype=torch.float32)).reshape(4, 32, -1)
    torch.testing.assert_close(y.mean(-1), torch.zeros(4, 32), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.var(-1, unbiased=False), torch.ones(4, 32), rtol=0, atol=1e-3)


def test_group_norm_takes_low_precision_activations() -> None:
    norm, x = GroupNorm32(32, 32), normal(2, 32, 4, 4, dtype=torch.float32)
    low = norm(x.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), norm(x), rtol=0.05, atol=0.05)


def test_timestep_embedding_is_cosines_then_sines_and_pads_odd_widths() -> None:
    t = np.array([0.0, 1.0, 17.5, 999.0])
    angles = t[:, None] * 10_000.0 ** (-np.arange(4) / 4)
    expected = np.concatenate([np.cos(angles), np.sin(angles), np.zeros((4, 1))], axis=1)
    for width in (8, 9):
        embedding = timestep_embedding(torch.from_numpy(t), width)
        assert embedding.dtype == torch.float32
        np.testing.assert_allclose(embedding.numpy(), expected[:, :width], atol=1e-4)


def test_trainable_parameters_are_counted() -> None:
    layer = nn.Linear(3, 2)
    assert zero_module(layer) is layer and not layer.weight.any() and count_parameters(layer) == 8
    layer.bias.requires_grad_(False)
    assert count_parameters(layer) == 6


def test_moving_average_moves_the_target_towards_the_source() -> None:
    target, source = [torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 0.0])]
    update_ema(target, source, 0.9)
    torch.testing.assert_close(target[0], torch.tensor([1.2, 1.8]))
    update_ema(target, source, 0.0)
    assert torch.equal(target[0], source[0])


def test_moving_average_of_trained_parameters_records_no_graph() -> None:
    target, source = [torch.zeros(2)], [nn.Parameter(torch.ones(2))]
    update_ema(target, source, 0.5)
    assert not target[0].requires_grad and target[0].tolist() == [0.5, 0.5]


# ---------------------------------------------------------------------- attention


def projections(width: int, dtype: torch.dtype) -> tuple[nn.Conv1d, nn.Conv1d]:
    torch.manual_seed(0)
    return nn.Conv1d(width, 3 * width, 1, dtype=dtype), nn.Conv1d(width, width + 1, 1, dtype=dtype)


@pytest.mark.parametrize("new_order", [False, True])
def test_attention_equals_its_definition(new_order: bool) -> None:
    heads, width, length = 3, 4, 7
    to_qkv, proj = projections(heads * width, torch.float64)
    x = normal(2, heads * width, length)
    qkv, attended = to_qkv(x), torch.zeros_like(x)
    for head in range(heads):
        # first channel of q, k and v of this head
        starts = [(part * heads + head if new_order else 3 * head + part) * width for part in range(3)]
        q, k, v = (qkv[:, start : start + width] for start in starts)
        weights = torch.softmax(torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(width), dim=-1)
        attended[:, head * width : (head + 1) * width] = torch.einsum("bqk,bck->bcq", weights, v)
    torch.testing.assert_close(self_attention(x, to_qkv, proj, heads, new_order), proj(attended), rtol=0, atol=1e-10)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("new_order", [False, True])
def test_attention_uses_the_fused_kernel(layout: torch.memory_format, new_order: bool) -> None:
    """Otherwise, all L x L weights would be stored."""
    to_qkv, proj = projections(32, torch.float32)
    x = torch.randn(2, 32, 4, 4).contiguous(memory_format=layout).flatten(2)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises for any other kernel
        self_attention(x, to_qkv, proj, 4, new_order).sum().backward()


def test_attention_block_starts_as_the_identity_and_commutes_with_permutations() -> None:
    torch.manual_seed(0)
    block, x, order = AttentionBlock(32, num_heads=4), torch.randn(2, 32, 3, 3), torch.randperm(9)
    assert torch.equal(block(x), x)
    randomise(block)
    permuted, expected = (each.flatten(2)[:, :, order].reshape_as(x) for each in (x, block(x)))
    torch.testing.assert_close(block(permuted), expected, rtol=1e-4, atol=1e-5)


def test_channels_per_head_determine_the_number_of_heads() -> None:
    assert AttentionBlock(64, num_heads=1, num_head_channels=16).num_heads == 4
    assert AttentionBlock(64, num_heads=2).num_heads == 2
    for channels, heads, per_head, got in ((64, 5, -1, 5), (32, 1, 64, 0)):
        with pytest.raises(InputError, match=f"num_heads: expected a divisor of {channels} channels, got {got}"):
            AttentionBlock(channels, heads, per_head)


def test_tensors_are_printed_as_shapes() -> None:
    @dataclass(frozen=True, repr=False)
    class Pair(TensorFields):
        x: torch.Tensor
        stop: float = 1.0
        y: torch.Tensor | None = None

    assert repr(Pair(torch.zeros(2, 3))) == "Pair(x=[2, 3] float32, stop=1.0)"
