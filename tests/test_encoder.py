"""The causal encoder: shapes, gradients, variance, order of the blocks, and the effect of normalisation."""

import pytest
import torch
from tiny import gradients, normal

from causaldiffae.encoder import MIN_VARIANCE, CausalEncoder, Posterior
from causaldiffae.errors import InputError


def encoder(size: int = 8, norm: str = "none", channels: tuple[int, ...] = (8, 16)) -> CausalEncoder:
    torch.manual_seed(0)
    return CausalEncoder(size, 3, num_variables=2, block_size=5, channels=channels, norm=norm)


def images(size: int = 8) -> torch.Tensor:
    return normal(4, 3, size, size, dtype=torch.float32)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize(("size", "channels"), [(8, (8, 16)), (28, (4, 4, 4, 4)), (9, (8,)), (7, (4, 4, 4, 4, 4))])
def test_images_map_to_a_block_per_variable_and_all_gradients_are_finite(
    size: int, channels: tuple[int, ...], norm: str
) -> None:
    network = encoder(size, norm, channels)
    posterior = network(images(size))
    assert posterior.mean.shape == posterior.logvar.shape == (4, 2, 5)
    gradients(network, posterior.mean.square().sum() + posterior.logvar.square().sum())


@pytest.mark.parametrize(("bias", "expected"), [(0.0, 0.6931472), (2.0, 2.126928), (-1000.0, MIN_VARIANCE)])
def test_variance_is_softplus_with_a_floor(bias: float, expected: float) -> None:
    network = encoder()
    with torch.no_grad():
        network.fc_var.weight.zero_()
        network.fc_var.bias.fill_(bias)
        variance = network(images()).logvar.exp()
    torch.testing.assert_close(variance, torch.full_like(variance, expected), rtol=1e-5, atol=1e-12)


def test_latents_are_split_into_contiguous_blocks() -> None:
    network = encoder()
    with torch.no_grad():
        network.fc_mu.weight.zero_()
        network.fc_mu.bias.copy_(torch.arange(10.0))
    assert network(images()).mean[0].tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0, 9.0]]


def test_sample_scales_noise_by_the_standard_deviation() -> None:
    noise = normal(2, 1, 3)
    posterior = Posterior(torch.ones_like(noise), torch.full_like(noise, -0.6))
    torch.testing.assert_close(posterior.sample(noise), 1.0 + 0.7408182206817179 * noise)


@pytest.mark.parametrize(("norm", "training"), [("none", True), ("batch", True), ("batch", False)])
def test_images_of_a_batch_mix_only_in_training_with_batch_normalisation(norm: str, training: bool) -> None:
    network = encoder(norm=norm).train(training)
    together, alone = network(images()).mean[:2], network(images()[:2]).mean
    assert torch.allclose(together, alone, atol=1e-6) is not (norm == "batch" and training)


def test_unknown_norm_is_refused() -> None:
    with pytest.raises(InputError, match="encoder_norm: expected one of batch, none, got 'layer'"):
        encoder(norm="layer")
