"""The small autoencoder: diffusers' layers and files, and refusals of other configurations."""

from pathlib import Path
from typing import Any

import pytest
import torch
from autoencoders import save_tiny

from causaldiffae.errors import DataError
from causaldiffae.published.autoencoder import load_latent_space
from causaldiffae.published.tiny_autoencoder import TinyAutoencoder, TinyConfig


def test_it_computes_what_diffusers_computes(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(12, 12, 12),
        num_encoder_blocks=(1, 2, 0),
        num_decoder_blocks=(2, 1, 1),
        scaling_factor=0.5,
        shift_factor=0.1,
    ).eval()
    theirs.save_pretrained(tmp_path)
    space, images = load_latent_space(tmp_path), torch.rand(2, 3, 16, 16) * 2 - 1
    assert (space.channels, space.image_channels, space.downsampling) == (4, 3, 4)
    assert (space.scale, space.shift) == (0.5, 0.1)
    codes = theirs.encode(images).latents
    torch.testing.assert_close(space.encode(images), (codes - 0.1) * 0.5)
    torch.testing.assert_close(space.decode((codes - 0.1) * 0.5), theirs.decode(codes).sample)


def test_diffusers_opens_its_files(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    ours = load_latent_space(save_tiny(tmp_path / "tiny")).vae
    theirs = diffusers.AutoencoderTiny.from_pretrained(tmp_path / "tiny", low_cpu_mem_usage=False)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    torch.testing.assert_close(theirs.encode(images).latents, ours.encode(images))
    codes = ours.encode(images)
    torch.testing.assert_close(theirs.decode(codes).sample, ours.decode(codes))


def test_the_configuration_survives_its_file() -> None:
    config = TinyConfig(1, 2, 8, 16, (0, 1, 2), (2, 1, 1), 1.5, -0.5)
    assert TinyConfig.from_dict(config.to_dict(), "x") == config
    published = {"_class_name": "AutoencoderTiny"}  # all defaults: TAESD
    assert TinyConfig.from_dict(published, "x") == TinyConfig()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "silu"}, "act_fn: expected 'relu', got 'silu'"),
        ({"in_channels": 1}, "out_channels: expected 1"),
        ({"latent_channels": True}, "latent_channels: expected an integer"),
        ({"num_encoder_blocks": [1] * 9}, "num_encoder_blocks: expected a list"),
        ({"num_decoder_blocks": [1, 1, 1]}, "num_decoder_blocks: expected 2 numbers"),
        ({"encoder_block_out_channels": [8, 16]}, "encoder_block_out_channels: expected 2 equal widths"),
        ({"decoder_block_out_channels": [0, 0]}, "decoder_block_out_channels: expected 2 equal widths"),
        ({"scaling_factor": 0}, "scaling_factor: expected a finite number, positive"),
        ({"shift_factor": "1"}, "shift_factor: expected a finite number"),
    ],
)
def test_other_configurations_are_refused(change: dict[str, Any], message: str) -> None:
    config = TinyConfig(3, 4, 8, 8, (0, 1), (1, 1))
    with pytest.raises(DataError, match=f"x: {message}"):
        TinyConfig.from_dict({**config.to_dict(), **change}, "x")


def test_all_parameters_get_gradients() -> None:
    network = TinyAutoencoder(TinyConfig(1, 2, 8, 8, (0, 1), (1, 1)))
    network(torch.rand(2, 1, 8, 8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
