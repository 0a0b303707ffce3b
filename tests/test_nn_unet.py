"""Layers, the U-Net and its encoder half: shapes, conditioning, the null token, gradients, attention, messages."""

import itertools
import math

import numpy as np
import pytest
import torch
from tiny import randomise
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from causaldiffae.errors import InputError
from causaldiffae.nn import (
    AttentionBlock,
    GroupNorm32,
    count_parameters,
    mean_flat,
    mlp,
    normalization,
    self_attention,
    sum_flat,
    timestep_embedding,
    update_ema,
    zero_module,
)
from causaldiffae.unet import EncoderUNetModel, UNetModel


def unet(**changes: object) -> UNetModel:
    torch.manual_seed(0)
    settings = {
        "image_size": 8,
        "in_channels": 2,
        "model_channels": 32,
        "out_channels": 2,
        "num_res_blocks": 1,
        "attention_resolutions": {2},
        "channel_mult": (1, 2),
        "num_heads": 2,
        "use_scale_shift_norm": True,
    }
    return UNetModel(**(settings | changes))  # type: ignore[arg-type]


def inputs(size: int = 8, batch: int = 3, channels: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, size, size, generator=generator), torch.tensor([0, 5, 999])[:batch]


def gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    loss.backward()
    found = {}
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.isfinite().all(), name
        found[name] = parameter.grad.clone()
    return found


# ---------------------------------------------------------------------- layers


def test_group_norm_is_per_group() -> None:
    x = 3 + 2 * torch.randn(4, 64, 5, 5)
    y = normalization(64)(x).reshape(4, 32, -1)
    torch.testing.assert_close(y.mean(-1), torch.zeros(4, 32), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.var(-1, unbiased=False), torch.ones(4, 32), rtol=0, atol=1e-3)


def test_group_norm_takes_low_precision_activations() -> None:
    norm = GroupNorm32(32, 32)
    x = torch.randn(2, 32, 4, 4)
    low = norm(x.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), norm(x), rtol=0.05, atol=0.05)


def test_timestep_embedding_is_its_formula() -> None:
    t = np.array([0.0, 1.0, 17.5, 999.0])
    frequencies = 10_000.0 ** (-np.arange(4) / 4)
    expected = np.concatenate([np.cos(t[:, None] * frequencies), np.sin(t[:, None] * frequencies)], axis=1)
    embedding = timestep_embedding(torch.from_numpy(t), 8)
    assert embedding.dtype == torch.float32
    np.testing.assert_allclose(embedding.numpy(), expected, atol=1e-4)
    odd = timestep_embedding(torch.tensor([3]), 9)
    assert odd.shape == (1, 9)
    assert odd[0, -1] == 0


def test_mlp_has_activations_between_layers_only() -> None:
    network = mlp([3, 5, 7, 2])
    assert [type(layer).__name__ for layer in network] == ["Linear", "SiLU", "Linear", "SiLU", "Linear"]
    assert network(torch.zeros(4, 3)).shape == (4, 2)


def test_zero_module_and_counting() -> None:
    layer = nn.Linear(3, 2)
    assert zero_module(layer) is layer
    assert not layer.weight.any()
    assert count_parameters(layer) == 8
    layer.bias.requires_grad_(False)
    assert count_parameters(layer) == 6


def test_flat_reductions() -> None:
    x = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert mean_flat(x).tolist() == [5.5, 17.5]
    assert sum_flat(x).tolist() == [66.0, 210.0]


def test_moving_average() -> None:
    target, source = [torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 0.0])]
    update_ema(target, source, 0.9)
    torch.testing.assert_close(target[0], torch.tensor([1.2, 1.8]))
    update_ema(target, source, 0.0)
    assert torch.equal(target[0], source[0])


# ---------------------------------------------------------------------- the U-Net


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        (8, {}),
        (12, {"channel_mult": (1, 2, 2), "attention_resolutions": {4}}),
        (28, {"channel_mult": (1, 1, 1)}),
        (6, {"num_res_blocks": 2}),
        (8, {"resblock_updown": True}),
        (8, {"conv_resample": False}),
        (8, {"use_scale_shift_norm": False, "use_new_attention_order": True, "num_head_channels": 16}),
        (5, {"channel_mult": (2,), "attention_resolutions": {1}}),
        (8, {"out_channels": 4}),
        (8, {"patch_size": 2}),
        (20, {"patch_size": 4, "channel_mult": (1,), "attention_resolutions": set(), "out_channels": 4}),
    ],
)
def test_shapes_zero_start_and_gradients(size: int, changes: dict[str, object]) -> None:
    network = unet(image_size=size, **changes)
    x, t = inputs(size)
    out = network(x, t)
    assert out.shape == (3, network.out_channels, size, size)
    assert not out.any(), "a fresh network predicts zero"
    out = randomise(network)(x, t)
    assert out.std() > 0.01
    found = gradients(network, (out**2).mean())
    still = [name for name, gradient in found.items() if not gradient.any()]
    assert not still, f"no gradient reaches {still}"


def test_time_matters() -> None:
    network = randomise(unet())
    x, _ = inputs()
    same = x[:1].expand(2, -1, -1, -1)
    a, b = network(same, torch.tensor([3, 400]))
    assert (a - b).abs().max() > 1e-3


def test_images_do_not_mix() -> None:
    network = randomise(unet()).eval()
    x, t = inputs()
    torch.testing.assert_close(network(x, t)[1:2], network(x[1:2], t[1:2]), rtol=1e-4, atol=1e-5)


def test_class_conditioning() -> None:
    network = randomise(unet(num_classes=4))
    x, t = inputs()
    a, b = (network(x, t, torch.tensor(y)) for y in ([0, 1, 2], [0, 3, 2]))
    assert torch.equal(a[0], b[0])
    assert (a[1] - b[1]).abs().max() > 1e-3
    gradients(network, a.square().mean())


@pytest.mark.parametrize(("learned", "hidden"), list(itertools.product([False, True], [0, 16])))
def test_null_token(learned: bool, hidden: int) -> None:
    network = randomise(unet(cond_dim=4, cond_hidden=hidden, learned_null=learned)).eval()
    x, t = inputs()
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    with_z, without = network(x, t, z=z), network(x, t, z=None)
    assert (with_z - without).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(network(x, t, z=z, keep=torch.tensor([False] * 3)), without, **close)
    torch.testing.assert_close(network(x, t, z=z, keep=torch.tensor([True] * 3)), with_z, **close)
    mixed = network(x, t, z=z, keep=torch.tensor([True, False, True]))
    torch.testing.assert_close(mixed, torch.stack([with_z[0], without[1], with_z[2]]), **close)
    from_zero = network(x, t, z=torch.zeros(3, 4))
    assert torch.allclose(from_zero, without, rtol=1e-5, atol=1e-6) != learned


@pytest.mark.parametrize("learned", [False, True])
def test_gradients_through_conditioning(learned: bool) -> None:
    network = randomise(unet(cond_dim=4, cond_hidden=8, learned_null=learned, num_classes=3))
    x, t = inputs()
    z = torch.randn(3, 4, requires_grad=True)
    out = network(x, t, torch.tensor([0, 1, 2]), z, keep=torch.tensor([True, False, True]))
    found = gradients(network, (out**2).mean())
    assert all(gradient.any() for gradient in found.values())
    assert z.grad is not None
    assert z.grad[0].any()
    assert z.grad[2].any()
    assert not z.grad[1].any(), "a dropped z must not be trained"


def test_fresh_learned_null_is_zero() -> None:
    network = unet(cond_dim=4, learned_null=True)
    assert not network.embed_condition(None, None, 2).any()
    assert unet(cond_dim=4).null_emb is None


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_gives_the_same_gradients(dropout: float) -> None:
    x, t = inputs()
    found = []
    for use_checkpoint in (False, True):
        network = randomise(unet(use_checkpoint=use_checkpoint, dropout=dropout)).train()
        torch.manual_seed(3)
        found.append(gradients(network, (network(x, t) ** 2).mean()))
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-5, atol=1e-7)


def test_dropout_is_only_for_training() -> None:
    network = randomise(unet(dropout=0.5))
    x, t = inputs()
    assert not torch.equal(network.train()(x, t), network(x, t))
    assert torch.equal(network.eval()(x, t), network(x, t))


def test_half_precision_is_near() -> None:
    network = randomise(unet(cond_dim=4), scale=0.05).eval()
    x, t = inputs()
    z = torch.randn(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = network(x, t, z=z)
    full = network(x, t, z=z)
    assert low.isfinite().all()
    assert (low.float() - full).norm() < 0.1 * full.norm()


def test_patches_are_rearranged_pixels() -> None:
    """The first convolution sees (channel, row, column) of each patch, and the last one writes the same way."""
    network = randomise(unet(patch_size=2))
    seen: dict[str, Tensor] = {}
    network.input_blocks[0].register_forward_hook(lambda module, args, out: seen.update(x=args[0]))
    network.out.register_forward_hook(lambda module, args, out: seen.update(out=out))
    x, t = inputs()
    result = network(x, t)
    for channel, row, column in itertools.product(range(2), repeat=3):
        place = 4 * channel + 2 * row + column
        assert torch.equal(seen["x"][:, place], x[:, channel, row::2, column::2])
        assert torch.equal(seen["out"][:, place], result[:, channel, row::2, column::2])


# ---------------------------------------------------------------------- attention


def projections(width: int, dtype: torch.dtype = torch.float32) -> tuple[nn.Conv1d, nn.Conv1d]:
    torch.manual_seed(0)
    return nn.Conv1d(width, 3 * width, 1, dtype=dtype), nn.Conv1d(width, width + 1, 1, dtype=dtype)


@pytest.mark.parametrize("new_order", [False, True])
def test_attention_against_einsum(new_order: bool) -> None:
    heads, width, length = 3, 4, 7
    to_qkv, proj = projections(heads * width, torch.float64)
    x = torch.randn(2, heads * width, length, dtype=torch.float64)
    qkv = to_qkv(x)
    attended = torch.zeros(2, heads * width, length, dtype=torch.float64)
    for head in range(heads):
        # first channel of q, k and v of this head
        starts = [(part * heads + head if new_order else 3 * head + part) * width for part in range(3)]
        q, k, v = (qkv[:, start : start + width] for start in starts)
        weights = torch.softmax(torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(width), dim=-1)
        attended[:, head * width : (head + 1) * width] = torch.einsum("bqk,bck->bcq", weights, v)
    found = self_attention(x, to_qkv, proj, heads, new_order)
    torch.testing.assert_close(found, proj(attended), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("new_order", [False, True])
def test_attention_takes_the_fused_kernel(layout: torch.memory_format, new_order: bool) -> None:
    """Heads whose channels do not lie side by side would be attended to with all L x L weights in memory."""
    to_qkv, proj = projections(32)
    x = torch.randn(2, 32, 4, 4).contiguous(memory_format=layout).flatten(2)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # anything else is an error
        self_attention(x, to_qkv, proj, 4, new_order).sum().backward()


def test_attention_block_starts_as_identity_and_commutes_with_permutations() -> None:
    torch.manual_seed(0)
    block, x = AttentionBlock(32, num_heads=4), torch.randn(2, 32, 3, 3)
    assert torch.equal(block(x), x)
    randomise(block)
    order = torch.randperm(9)
    permuted = x.flatten(2)[:, :, order].reshape_as(x)
    torch.testing.assert_close(block(permuted), block(x).flatten(2)[:, :, order].reshape_as(x), rtol=1e-4, atol=1e-5)


def test_head_channels_decide_the_number_of_heads() -> None:
    assert AttentionBlock(64, num_heads=1, num_head_channels=16).num_heads == 4
    assert AttentionBlock(64, num_heads=2).num_heads == 2


# ---------------------------------------------------------------------- the encoder half


def half(pool: str, **changes: object) -> EncoderUNetModel:
    torch.manual_seed(0)
    settings = {
        "image_size": 8,
        "in_channels": 2,
        "model_channels": 32,
        "out_channels": 5,
        "num_res_blocks": 1,
        "attention_resolutions": {2},
        "channel_mult": (1, 2),
        "num_head_channels": 16,
        "pool": pool,
    }
    return EncoderUNetModel(**(settings | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("pool", EncoderUNetModel.POOLS)
def test_pools(pool: str) -> None:
    network = randomise(half(pool))
    x, t = inputs()
    out = network(x, t)
    assert out.shape == (3, 5)
    found = gradients(network, (out**2).mean())
    assert all(gradient.any() for gradient in found.values())
    torch.testing.assert_close(network.eval()(x, t)[:1], network(x[:1], t[:1]), rtol=1e-4, atol=1e-4)


def test_adaptive_pool_starts_at_zero_and_takes_other_sizes() -> None:
    network = half("adaptive")
    assert not network(*inputs()).any()
    assert network(*inputs(16)).shape == (3, 5)


# ---------------------------------------------------------------------- messages


def test_messages() -> None:
    with pytest.raises(InputError, match="num_channels: expected a multiple of 32, got 48"):
        unet(model_channels=48)
    with pytest.raises(InputError, match="image_size: expected a multiple of 4 for 3 levels, got 10"):
        unet(image_size=10, channel_mult=(1, 2, 2))
    with pytest.raises(InputError, match="image_size: expected a multiple of 8 for 2 levels, got 12"):
        unet(image_size=12, patch_size=4)
    with pytest.raises(InputError, match="num_heads: expected a divisor of 64 channels, got 5"):
        unet(num_heads=5)
    with pytest.raises(InputError, match="num_heads: expected a divisor of 32 channels, got 0"):
        AttentionBlock(32, 1, num_head_channels=64)
    x, t = inputs()
    with pytest.raises(InputError, match="y: expected "):
        unet(num_classes=3)(x, t)
    with pytest.raises(InputError, match="y: expected "):
        unet()(x, t, y=torch.tensor([0, 1, 2]))
    with pytest.raises(InputError, match="z: expected none for a network without conditioning"):
        unet()(x, t, z=torch.zeros(3, 4))
    with pytest.raises(InputError, match="pool: expected one of adaptive, attention, spatial, spatial_v2, got 'max'"):
        half("max")
    with pytest.raises(InputError, match="num_head_channels: expected a positive number for attention pooling"):
        half("attention", num_head_channels=-1)
