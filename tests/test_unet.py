"""The U-Net and its encoder half: shapes, gradients, conditioning, the null token, patches and refusals."""

import itertools
from typing import Any

import pytest
import torch
from tiny import gradients, normal, randomise
from torch import Tensor

from causaldiffae.errors import InputError
from causaldiffae.unet import EncoderUNetModel, UNetModel

SETTINGS: dict[str, Any] = {"image_size": 8, "in_channels": 2, "model_channels": 32, "num_res_blocks": 1}
SETTINGS |= {"attention_resolutions": {2}, "channel_mult": (1, 2)}
T, Z = torch.tensor([0, 5, 999]), normal(3, 4, seed=2, dtype=torch.float32)


def unet(fresh: bool = False, **changes: Any) -> UNetModel:
    torch.manual_seed(0)
    own = {"out_channels": 2, "num_heads": 2, "use_scale_shift_norm": True}
    network = UNetModel(**(SETTINGS | own | changes))
    return network if fresh else randomise(network)  # type: ignore[return-value]


def encoder_half(pool: str, **changes: Any) -> EncoderUNetModel:
    torch.manual_seed(0)
    return EncoderUNetModel(**(SETTINGS | {"out_channels": 5, "num_head_channels": 16, "pool": pool} | changes))


def images(size: int = 8) -> Tensor:
    return normal(3, 2, size, size, seed=1, dtype=torch.float32)


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
def test_a_fresh_network_outputs_zero_and_all_parameters_have_gradients(size: int, changes: dict[str, Any]) -> None:
    network, x = unet(fresh=True, image_size=size, **changes), images(size)
    assert not network(x, T).any()
    out = randomise(network)(x, T)
    assert out.shape == (3, network.out_channels, size, size) and out.std() > 0.01
    assert all(gradient.any() for gradient in gradients(network, (out**2).mean()).values())


def test_time_has_an_effect_and_images_of_a_batch_do_not_mix() -> None:
    network, x = unet().eval(), images()
    early, late = network(x[:1].expand(2, -1, -1, -1), torch.tensor([3, 400]))
    assert (early - late).abs().max() > 1e-3
    torch.testing.assert_close(network(x, T)[1:2], network(x[1:2], T[1:2]), rtol=1e-4, atol=1e-5)


def test_a_class_affects_its_own_image_only() -> None:
    network = unet(num_classes=4)
    a, b = (network(images(), T, torch.tensor(y)) for y in ([0, 1, 2], [0, 3, 2]))
    assert torch.equal(a[0], b[0]) and (a[1] - b[1]).abs().max() > 1e-3


@pytest.mark.parametrize(("learned", "hidden"), list(itertools.product([False, True], [0, 16])))
def test_the_null_token_replaces_z_where_it_is_not_kept(learned: bool, hidden: int) -> None:
    network, x = unet(cond_dim=4, cond_hidden=hidden, learned_null=learned).eval(), images()
    with_z, null = network(x, T, z=Z), network(x, T, z=None)
    assert (with_z - null).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    for keep in ([False] * 3, [True] * 3, [True, False, True]):
        expected = torch.stack([(with_z if kept else null)[i] for i, kept in enumerate(keep)])
        torch.testing.assert_close(network(x, T, z=Z, keep=torch.tensor(keep)), expected, rtol=1e-5, atol=1e-6)
    from_zero = network(x, T, z=torch.zeros(3, 4))
    assert torch.allclose(from_zero, null, rtol=1e-5, atol=1e-6) != learned
    assert not learned or not unet(fresh=True, cond_dim=4, learned_null=True).embed_condition(None, None, 2).any()


@pytest.mark.parametrize(("blocks", "separate"), [(1, False), (2, True)])
def test_blocks_with_their_own_layers_are_embedded_independently(blocks: int, separate: bool) -> None:
    """The effect of one block on the embedding is the same for any value of the other."""
    network = unet(cond_dim=4, cond_hidden=16, cond_blocks=blocks)
    z, other = Z.clone(), Z.clone()
    other[:, 2:] += 2.0
    changed, other_changed = z.clone(), other.clone()
    changed[:, :2] -= 1.0
    other_changed[:, :2] -= 1.0
    embed = network.up_emb
    effect, elsewhere = embed(changed) - embed(z), embed(other_changed) - embed(other)
    assert effect.abs().max() > 1e-3 and (embed(other) - embed(z)).abs().max() > 1e-3
    assert torch.allclose(effect, elsewhere, rtol=1e-4, atol=1e-5) == separate


@pytest.mark.parametrize("learned", [False, True])
def test_gradients_reach_z_only_where_it_is_kept(learned: bool) -> None:
    network, z = unet(cond_dim=4, cond_hidden=8, learned_null=learned, num_classes=3), Z.clone().requires_grad_()
    out = network(images(), T, torch.tensor([0, 1, 2]), z, keep=torch.tensor([True, False, True]))
    assert all(gradient.any() for gradient in gradients(network, (out**2).mean()).values())
    assert z.grad is not None and z.grad.any(dim=1).tolist() == [True, False, True]


def test_activation_checkpointing_keeps_the_gradients() -> None:
    found = []
    for use_checkpoint in (False, True):
        network = unet(use_checkpoint=use_checkpoint, dropout=0.3).train()
        torch.manual_seed(3)
        found.append(gradients(network, (network(images(), T) ** 2).mean()))
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-5, atol=1e-7)


def test_bfloat16_is_near_float32() -> None:
    network, x = randomise(unet(fresh=True, cond_dim=4), scale=0.05).eval(), images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = network(x, T, z=Z)
    full = network(x, T, z=Z)
    assert low.isfinite().all() and (low.float() - full).norm() < 0.1 * full.norm()


def test_patches_are_rearranged_pixels() -> None:
    """The first convolution reads (channel, row, column) of each patch, and the last one writes the same order."""
    network, x = unet(patch_size=2), images()
    seen: dict[str, Tensor] = {}
    network.input_blocks[0].register_forward_hook(lambda module, args, out: seen.update(x=args[0]))
    network.out.register_forward_hook(lambda module, args, out: seen.update(out=out))
    result = network(x, T)
    for channel, row, column in itertools.product(range(2), repeat=3):
        position = 4 * channel + 2 * row + column
        assert torch.equal(seen["x"][:, position], x[:, channel, row::2, column::2])
        assert torch.equal(seen["out"][:, position], result[:, channel, row::2, column::2])


@pytest.mark.parametrize("pool", EncoderUNetModel.POOLS)
def test_every_pool_of_the_encoder_half_has_gradients_and_does_not_mix_images(pool: str) -> None:
    network, x = randomise(encoder_half(pool)), images()
    out = network(x, T)
    assert out.shape == (3, 5)
    assert all(gradient.any() for gradient in gradients(network, (out**2).mean()).values())
    torch.testing.assert_close(network.eval()(x, T)[:1], network(x[:1], T[:1]), rtol=1e-4, atol=1e-4)


def test_adaptive_pooling_starts_at_zero_and_takes_other_sizes() -> None:
    network = encoder_half("adaptive")
    assert not network(images(), T).any() and network(images(16), T).shape == (3, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_channels": 48}, "num_channels: expected a multiple of 32, got 48"),
        ({"image_size": 10, "channel_mult": (1, 2, 2)}, "image_size: expected a multiple of 4 for 3 levels, got 10"),
        ({"image_size": 12, "patch_size": 4}, "image_size: expected a multiple of 8 for 2 levels, got 12"),
        ({"num_heads": 5}, "num_heads: expected a divisor of 64 channels, got 5"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        unet(**changes)


@pytest.mark.parametrize(
    ("changes", "condition", "message"),
    [
        ({"num_classes": 3}, {}, "y: expected class labels for this network, got none"),
        ({}, {"y": torch.tensor([0, 1, 2])}, "y: expected none for this network, got class labels"),
        ({}, {"z": torch.zeros(3, 4)}, "z: expected none for an unconditional network, got shape"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(
    changes: dict[str, Any], condition: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        unet(**changes)(images(), T, **condition)


def test_pools_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="pool: expected one of adaptive, attention, spatial, spatial_v2, got 'max'"):
        encoder_half("max")
    with pytest.raises(InputError, match="num_head_channels: expected a positive number for attention pooling, got -1"):
        encoder_half("attention", num_head_channels=-1)
