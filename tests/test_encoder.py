"""The causal encoder: shapes, a proper variance, gradients, and what its normalisation means."""

import pytest
import torch
from torch.distributions import Normal

from causaldiffae.encoder import MIN_VARIANCE, CausalEncoder, Posterior
from causaldiffae.errors import InputError


def encoder(size: int = 8, norm: str = "none", channels: tuple[int, ...] = (8, 16)) -> CausalEncoder:
    torch.manual_seed(0)
    return CausalEncoder(size, 3, num_variables=2, block_size=5, channels=channels, norm=norm)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize(("size", "channels"), [(8, (8, 16)), (28, (4, 4, 4, 4)), (9, (8,)), (7, (4, 4, 4, 4, 4))])
def test_shapes(size: int, channels: tuple[int, ...], norm: str) -> None:
    posterior = encoder(size, norm, channels)(torch.randn(4, 3, size, size))
    assert posterior.mean.shape == posterior.logvar.shape == (4, 2, 5)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_every_parameter_has_a_finite_gradient(norm: str) -> None:
    network = encoder(norm=norm)
    posterior = network(torch.randn(4, 3, 8, 8))
    (posterior.mean.square().sum() + posterior.logvar.square().sum()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_variance_is_softplus_with_a_floor() -> None:
    network = encoder()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        network.fc_var.weight.zero_()
        for bias, expected in ((0.0, 0.6931472), (2.0, 2.126928), (-1000.0, MIN_VARIANCE)):
            network.fc_var.bias.fill_(bias)
            variance = network(x).logvar.exp()
            torch.testing.assert_close(variance, torch.full_like(variance, expected), rtol=1e-5, atol=1e-12)


def test_blocks_lie_one_after_the_other() -> None:
    network = encoder()
    with torch.no_grad():
        network.fc_mu.weight.zero_()
        network.fc_mu.bias.copy_(torch.arange(10.0))
    mean = network(torch.randn(1, 3, 8, 8)).mean
    assert mean[0].tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0, 9.0]]


def test_sample_is_the_gaussian() -> None:
    posterior = Posterior(torch.tensor([[[1.0]]]).expand(1, 1, 50_000), torch.tensor(-0.6).expand(1, 1, 50_000))
    noise = torch.randn(1, 1, 50_000, generator=torch.Generator().manual_seed(0))
    drawn = posterior.sample(noise)
    assert torch.equal(posterior.sample(torch.zeros_like(noise)), posterior.mean)
    torch.testing.assert_close(
        drawn, Normal(1.0, torch.tensor(-0.3).exp()).icdf(Normal(0.0, 1.0).cdf(noise)), rtol=1e-3, atol=1e-3
    )
    assert abs(float(drawn.std()) - 0.7408) < 0.01


def test_without_normalisation_images_do_not_mix() -> None:
    network, x = encoder().train(), torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(network(x).mean[:1], network(x[:1]).mean)


def test_batch_normalisation_mixes_only_in_training() -> None:
    network, x = encoder(norm="batch"), torch.randn(4, 3, 8, 8)
    assert not torch.allclose(network.train()(x).mean[:2], network(x[:2]).mean)
    network.eval()
    torch.testing.assert_close(network(x).mean[:2], network(x[:2]).mean)


def test_message() -> None:
    with pytest.raises(InputError, match="encoder_norm: expected one of batch, none, got 'layer'"):
        encoder(norm="layer")
