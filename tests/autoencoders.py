"""Small autoencoders of diffusers."""

from pathlib import Path

import pytest
import torch


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
