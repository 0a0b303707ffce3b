"""Latent space for score networks: an autoencoder in diffusers' format (Rombach et al., 2022).

Images (B, 3, S, S) in [-1, 1] become codes (B, C, S / 8, S / 8): the mean of the autoencoder's posterior times its
`scaling_factor`, so that codes have about unit variance. Counterfactuals should be compared with the autoencoder's own
reconstruction, which loses detail too. The autoencoder is diffusers' `AutoencoderKL` (extra `imagenet`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from causaldiffae.errors import DataError, InputError
from causaldiffae.published.dit import find_weights


class LatentSpace:
    """Encodes images to latent codes and decodes them.

    Args:
        vae: an `AutoencoderKL`.

    Attributes:
        channels: C of the codes.
        downsampling: pixels per entry of a code along each axis.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.scale = float(vae.config.scaling_factor)
        self.shift = float(vae.config.shift_factor or 0.0)
        self.channels = int(vae.config.latent_channels)
        self.downsampling: int = 2 ** (len(vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [-1, 1] -> codes (B, C, S / downsampling, S / downsampling)."""
        return (self.vae.encode(images).latent_dist.mean - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes -> images, not clipped."""
        return self.vae.decode(codes / self.scale + self.shift).sample


def load_latent_space(path: str | Path, device: torch.device | str = "cpu") -> LatentSpace:
    """Opens an autoencoder's folder (config.json and weights), or a folder that has one as its subfolder `vae`.

    Raises:
        InputError: if diffusers is not installed.
        DataError: if there is no such folder, or it holds another model.
    """
    try:
        from diffusers import AutoencoderKL
        from diffusers.utils import logging
    except ImportError as error:
        raise InputError("vae_path: diffusers is not installed; pip install -e '.[imagenet]'") from error
    folder = Path(path) / "vae" if (Path(path) / "vae").is_dir() else Path(path)
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: expected the folder of an AutoencoderKL, got no config.json")
    logging.set_verbosity_error()  # the exceptions below say what is wrong
    weights = find_weights(folder)
    try:
        vae, info = AutoencoderKL.from_pretrained(
            folder,
            local_files_only=True,
            low_cpu_mem_usage=False,
            use_safetensors=weights.suffix == ".safetensors",
            output_loading_info=True,
        )
    except Exception as error:  # diffusers passes on what its readers raise
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{folder}: expected an AutoencoderKL ({reason})") from error
    if info["missing_keys"]:
        raise DataError(f"{folder}: expected an AutoencoderKL, tensor {min(info['missing_keys'])} is missing")
    return LatentSpace(vae.to(device).eval().requires_grad_(False))
