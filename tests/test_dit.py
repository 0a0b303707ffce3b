"""The transformer: positions, patches, the null token, adaLN-Zero, gradients. Golden figures: test_parity.py."""

import numpy as np
import pytest
import torch
from tiny import gradients, normal, randomise
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from causaldiffae.dit import Attention, DiT, position_embedding
from causaldiffae.errors import InputError

SETTINGS = {"image_size": 8, "patch_size": 2, "in_channels": 3, "hidden_size": 32, "depth": 2, "num_heads": 4}
SETTINGS |= {"num_classes": 5, "learn_sigma": False}
X, T, Y = normal(3, 3, 8, 8, dtype=torch.float32), torch.tensor([0, 5, 999]), torch.tensor([0, 1, 4])


def dit(fresh: bool = False, **changes: object) -> DiT:
    torch.manual_seed(0)
    network = DiT(**(SETTINGS | changes))  # type: ignore[arg-type]
    return network if fresh else randomise(network)  # type: ignore[return-value]


def test_positions_are_sines_and_cosines_of_columns_then_rows() -> None:
    side, width = 3, 16
    expected = np.empty((side, side, width))
    for row, column, i in np.ndindex(side, side, 4):
        for half, position in enumerate((column, row)):
            angle = position / 10_000 ** (i / 4)
            expected[row, column, half * 8 + i], expected[row, column, half * 8 + 4 + i] = np.sin(angle), np.cos(angle)
    np.testing.assert_allclose(position_embedding(side, width).numpy(), expected.reshape(9, width), atol=1e-7)


def test_tokens_are_patches_row_by_row_and_outputs_return_to_their_pixels() -> None:
    """With an embedding and a last layer that copy, and blocks that are the identity, the network is the identity."""
    network = dit(fresh=True, image_size=4, hidden_size=12, num_heads=1, depth=1)
    with torch.no_grad():
        network.x_embedder.proj.weight.copy_(torch.eye(12).reshape(12, 3, 2, 2))  # token = (channel, row, column)
        network.pos_embed.zero_()
        pixels = torch.eye(12).reshape(3, 2, 2, 12).permute(1, 2, 0, 3)  # outputs are (row, column, channel)
        network.final_layer.linear.weight.copy_(pixels.reshape(12, 12))
    network.final_layer.norm_final = torch.nn.Identity()
    x = X[:, :, :4, :4]
    torch.testing.assert_close(network(x, T), x)
    torch.testing.assert_close(network.x_embedder(x)[0, 1].reshape(3, 2, 2), x[0, :, :2, 2:])


def test_a_fresh_network_outputs_zero_and_its_blocks_are_the_identity() -> None:
    network, tokens = dit(fresh=True), normal(3, 16, 32, dtype=torch.float32)
    assert not network(X, T, Y).any()
    assert torch.equal(network.blocks[0](tokens, tokens[:, 0]), tokens)


def test_initial_weights_are_distributed_as_published() -> None:
    network = dit(fresh=True, hidden_size=128)
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
        assert not module.weight.any() and not module.bias.any()


@pytest.mark.parametrize("one_hot", [False, True])
def test_the_null_token_replaces_classes_that_are_not_kept(one_hot: bool) -> None:
    network = dit()
    condition = {"z": torch.nn.functional.one_hot(Y, 5).float()} if one_hot else {"y": Y}
    given, null = network(X, T, **condition), network(X, T)
    assert network.cond_dim == 5 and ((given - null).abs().amax(dim=(1, 2, 3)) > 1e-4).all()
    torch.testing.assert_close(given, network(X, T, Y))
    torch.testing.assert_close(network(X, T, torch.full((3,), 5)), null, rtol=0, atol=0)
    kept = network(X, T, **condition, keep=torch.tensor([True, False, True]))
    torch.testing.assert_close(kept, torch.stack([given[0], null[1], given[2]]))


def test_a_network_without_classes_has_only_the_null_token() -> None:
    network = dit(num_classes=0)
    assert network.cond_dim is None and network.y_embedder.embedding_table.weight.shape == (1, 32)
    assert network(X, T).isfinite().all()


def test_time_is_continuous_and_has_an_effect() -> None:
    network = dit()
    one, near, far = (network(X, torch.full((3,), t)) for t in (10.0, 10.01, 400.0))
    assert (one - far).norm() > 1e-2 * one.norm() and 0 < (one - near).norm() < 1e-2 * (one - far).norm()
    torch.testing.assert_close(network(X, torch.full((3,), 10)), one)


@pytest.mark.parametrize(("changes", "channels"), [({"learn_sigma": True}, 6), ({"patch_size": 4, "depth": 1}, 3)])
def test_output_has_the_size_of_the_image(changes: dict[str, object], channels: int) -> None:
    network = dit(**changes)
    assert network(X, T).shape == (3, channels, 8, 8) and network.out_channels == channels
    assert (network.in_channels, network.num_classes, network.image_size) == (3, 5, 8)


def test_images_of_a_batch_do_not_mix() -> None:
    network = dit()
    alone = torch.cat([network(X[i : i + 1], T[i : i + 1], Y[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(X, T, Y), alone, rtol=1e-4, atol=1e-5)


def test_every_parameter_and_the_image_have_gradients_and_positions_are_fixed() -> None:
    network, x = dit(), X.clone().requires_grad_()
    found = gradients(network, network(x, T, Y).square().sum())
    assert all(gradient.any() for gradient in found.values())
    assert x.grad is not None and x.grad.isfinite().all()
    assert "pos_embed" in network.state_dict() and "pos_embed" not in found


def test_attention_uses_the_fused_kernel() -> None:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises for any other kernel
        Attention(16, 4)(torch.randn(2, 5, 16)).sum().backward()


def test_embeddings_keep_full_precision_under_autocast() -> None:
    network, dtypes = dit(), []
    network.t_embedder.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    full: Tensor = network(X, T)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = network(X, T)
    assert dtypes == [torch.float32] * 2 and (low.float() - full).norm() < 0.05 * full.norm()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 3}, "patch_size: expected a divisor of the image size 8, got 3"),
        ({"hidden_size": 30}, "hidden_size: expected a multiple of 4 and of 4 heads, got 30"),
        ({"hidden_size": 6, "num_heads": 3}, "hidden_size: expected a multiple of 4 and of 3 heads, got 6"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dit(**changes)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"z": torch.zeros(3, 4)}, "z: expected 5 weights per image and no y"),
        ({"y": Y, "z": torch.zeros(3, 5)}, "z: expected 5 weights per image and no y"),
        ({"x": X[:, :, :4]}, r"x: expected images of shape \(3, 8, 8\), got \(3, 4, 8\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs: dict[str, Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dit()(**({"x": X, "timesteps": T} | inputs))
