"""The transformer: positions, patches, the null token, adaLN-Zero, gradients, messages. Golden figures: test_parity."""

import numpy as np
import pytest
import torch
from test_nn_unet import gradients
from tiny import randomise
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from causaldiffae.dit import Attention, DiT, PatchEmbed, modulate, position_embedding
from causaldiffae.errors import InputError


def dit(**changes: object) -> DiT:
    torch.manual_seed(0)
    settings = {
        "image_size": 8,
        "patch_size": 2,
        "in_channels": 3,
        "hidden_size": 32,
        "depth": 2,
        "num_heads": 4,
        "num_classes": 5,
        "learn_sigma": False,
    }
    return DiT(**(settings | changes))  # type: ignore[arg-type]


def inputs(batch: int = 3, channels: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, 8, 8, generator=generator), torch.tensor([0, 5, 999])[:batch]


def test_positions_are_sines_and_cosines_of_columns_then_rows() -> None:
    side, width = 3, 16
    wanted = np.empty((side * side, width))
    for row in range(side):
        for column in range(side):
            for half, place in enumerate((column, row)):
                for i in range(4):
                    angle = place / 10_000 ** (i / 4)
                    wanted[row * side + column, half * 8 + i] = np.sin(angle)
                    wanted[row * side + column, half * 8 + 4 + i] = np.cos(angle)
    np.testing.assert_allclose(position_embedding(side, width).numpy(), wanted, atol=1e-7)


def test_tokens_are_patches_row_by_row_and_pixels_come_back_to_their_place() -> None:
    """With the embedding, the blocks and the last layer made to copy, the network is the identity."""
    network = dit(image_size=4, hidden_size=12, num_heads=1, depth=1)
    last = network.final_layer.linear
    with torch.no_grad():
        network.x_embedder.proj.weight.copy_(torch.eye(12).reshape(12, 3, 2, 2))  # token = (channel, row, column)
        network.pos_embed.zero_()
        # the last layer's width is laid out as (row, column, channel)
        last.weight.copy_(torch.eye(12).reshape(3, 2, 2, 12).permute(1, 2, 0, 3).reshape(12, 12))
    network.final_layer.norm_final = torch.nn.Identity()
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(network(x, torch.zeros(2)), x)
    tokens = network.x_embedder(x)
    torch.testing.assert_close(tokens[0, 1].reshape(3, 2, 2), x[0, :, :2, 2:])


def test_a_fresh_network_is_silent_and_its_blocks_are_the_identity() -> None:
    network, (x, t) = dit(), inputs()
    assert not network(x, t, torch.tensor([0, 1, 2])).any()
    tokens = torch.randn(3, 16, 32)
    torch.testing.assert_close(network.blocks[0](tokens, torch.randn(3, 32)), tokens, rtol=0, atol=0)


def test_the_start_is_the_published_one() -> None:
    network = dit(hidden_size=128)
    block = network.blocks[1]
    for weight, fan_in, fan_out in (
        (network.x_embedder.proj.weight, 12, 128),
        (block.attn.qkv.weight, 128, 384),
        (block.mlp.fc2.weight, 512, 128),
    ):
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.9 * bound < weight.abs().max() <= bound
    for weight in (network.y_embedder.embedding_table.weight, network.t_embedder.mlp[2].weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    for module in (block.adaLN_modulation[1], network.final_layer.adaLN_modulation[1], network.final_layer.linear):
        assert not module.weight.any()
        assert not module.bias.any()


def test_the_null_token() -> None:
    network, (x, t) = randomise(dit()), inputs()
    y, null = torch.tensor([0, 1, 4]), torch.tensor([5, 5, 5])
    given, without = network(x, t, y), network(x, t)
    torch.testing.assert_close(network(x, t, null), without, rtol=0, atol=0)
    assert all((given - without).abs().amax(dim=(1, 2, 3)) > 1e-4)
    kept = network(x, t, y, keep=torch.tensor([True, False, True]))
    torch.testing.assert_close(kept[[0, 2]], given[[0, 2]], rtol=0, atol=0)
    torch.testing.assert_close(kept[1], without[1], rtol=0, atol=0)


def test_classes_may_be_weights() -> None:
    network, (x, t) = randomise(dit()), inputs()
    y = torch.tensor([0, 1, 4])
    one_of_k = torch.nn.functional.one_hot(y, 5).float()
    torch.testing.assert_close(network(x, t, z=one_of_k), network(x, t, y))
    kept = network(x, t, z=one_of_k, keep=torch.tensor([False, True, False]))
    torch.testing.assert_close(kept[[0, 2]], network(x, t)[[0, 2]])
    torch.testing.assert_close(kept[1], network(x, t, y)[1])
    assert network.cond_dim == 5


def test_a_network_without_classes() -> None:
    network, (x, t) = randomise(dit(num_classes=0)), inputs()
    assert network.cond_dim is None
    assert network.y_embedder.embedding_table.weight.shape == (1, 32)
    assert network(x, t).isfinite().all()


def test_time_is_continuous_and_matters() -> None:
    network, (x, _) = randomise(dit()), inputs()
    one, between, other = (network(x, torch.full((3,), t)) for t in (10.0, 10.01, 400.0))
    assert (one - other).norm() > 1e-2 * one.norm()
    assert 0 < (one - between).norm() < 1e-2 * (one - other).norm()
    torch.testing.assert_close(network(x, torch.full((3,), 10)), one)


def test_channels_and_sizes() -> None:
    network, (x, t) = randomise(dit(learn_sigma=True)), inputs()
    assert network(x, t).shape == (3, 6, 8, 8)
    assert (network.in_channels, network.out_channels, network.num_classes, network.image_size) == (3, 6, 5, 8)
    assert dit(patch_size=4, depth=1)(x, t).shape == (3, 3, 8, 8)
    assert PatchEmbed(4, 3, 8)(x).shape == (3, 4, 8)


def test_images_of_a_batch_do_not_mix() -> None:
    network, (x, t) = randomise(dit()), inputs()
    y = torch.tensor([0, 1, 4])
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(x, t, y), alone, rtol=1e-4, atol=1e-5)


def test_every_parameter_and_the_image_have_gradients() -> None:
    network, (x, t) = randomise(dit()), inputs()
    x.requires_grad_()
    found = gradients(network, network(x, t, torch.tensor([0, 1, 4])).square().sum())
    assert all(gradient.any() for gradient in found.values())
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert "pos_embed" not in found
    assert "pos_embed" in network.state_dict()


def test_attention_takes_the_fused_kernel() -> None:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # anything else is an error
        Attention(16, 4)(torch.randn(2, 5, 16)).sum().backward()


def test_modulation() -> None:
    x = torch.ones(2, 3, 4)
    shift, scale = torch.tensor([0.0, 1.0])[:, None].expand(2, 4), torch.tensor([1.0, 2.0])[:, None].expand(2, 4)
    torch.testing.assert_close(modulate(x, shift, scale)[:, 0, 0], torch.tensor([2.0, 4.0]))


def test_the_embedding_keeps_full_precision_under_autocast() -> None:
    network, (x, t) = randomise(dit()), inputs()
    seen: list[torch.dtype] = []
    network.t_embedder.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = network(x, t)
    assert seen == [torch.float32]
    assert (low.float() - network(x, t)).norm() < 0.05 * network(x, t).norm()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 3}, "patch_size: expected a divisor of the image size 8, got 3"),
        ({"hidden_size": 30}, "hidden_size: expected a multiple of 4 and of 4 heads, got 30"),
        ({"hidden_size": 6, "num_heads": 3}, "hidden_size: expected a multiple of 4 and of 3 heads, got 6"),
    ],
)
def test_sizes_that_do_not_fit(changes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dit(**changes)


def test_inputs_that_do_not_fit() -> None:
    network, (x, t) = dit(), inputs()
    message = "z: expected 5 weights per image and no y"
    with pytest.raises(InputError, match=message):
        network(x, t, z=torch.zeros(3, 4))
    with pytest.raises(InputError, match=message):
        network(x, t, torch.zeros(3, dtype=torch.long), torch.zeros(3, 5))
    with pytest.raises(InputError, match=r"x: expected images of shape \(3, 8, 8\), got \(3, 4, 8\)"):
        network(x[:, :, :4], t)
