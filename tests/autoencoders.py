"""Small autoencoders of random weights in the layouts of diffusers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from causaldiffae.published.tiny_autoencoder import TinyAutoencoder, TinyConfig
from causaldiffae.training.autoencoder import save_autoencoder


def save_vae(folder: Path, **changes: object) -> Path:
    """Writes a small autoencoder of diffusers that halves the resolution."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(2)
    sizes = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "latent_channels": 4,
        "sample_size": 16,
    }
    diffusers.AutoencoderKL(**(sizes | changes)).save_pretrained(folder)
    return folder


def save_tiny(folder: Path, seed: int = 3, **changes: Any) -> Path:
    """Writes a small autoencoder in the layout of diffusers' AutoencoderTiny that halves the resolution."""
    torch.manual_seed(seed)
    sizes = {"encoder_width": 8, "decoder_width": 8, "encoder_blocks": (0, 1), "decoder_blocks": (1, 1)}
    network = TinyAutoencoder(TinyConfig(**{**sizes, "scaling_factor": 2.0, "shift_factor": 0.25, **changes}))
    return save_autoencoder(folder, network, {})
