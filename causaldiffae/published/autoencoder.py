"""The latent space in which a score network may work: an autoencoder in diffusers' format (Rombach et al., 2022).

Images (B, 3, S, S) in [-1, 1] become codes (B, C, S / 8, S / 8): the mean of the autoencoder's posterior, times its
`scaling_factor`, so that codes have about unit variance. What the autoencoder loses is lost in every answer, so the
reconstruction to compare with is its own. The autoencoder is diffusers' `AutoencoderKL` (extra `imagenet`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from causaldiffae.errors import DataError, InputError

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


class LatentSpace:
    """Encodes images to latent codes and decodes them.

    Args:
        vae: an `AutoencoderKL`.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.scale = float(vae.config.scaling_factor)
        self.shift = float(vae.config.shift_factor or 0.0)

    @property
    def channels(self) -> int:
        """C of the codes."""
        return int(self.vae.config.latent_channels)

    @property
    def downsampling(self) -> int:
        """Pixels a side for each entry of a code."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [-1, 1] -> codes (B, C, S / downsampling, S / downsampling)."""
        return (self.vae.encode(images).latent_dist.mean - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes -> images, not clipped."""
        return self.vae.decode(codes / self.scale + self.shift).sample


def load_latent_space(path: str | Path, device: torch.device | str = "cpu") -> LatentSpace:
    """Opens an autoencoder's folder (config.json and weights), or a folder with such a folder `vae` in it.

    Raises:
        InputError: if diffusers is not installed.
        DataError: if there is no such folder, or it holds something else.
    """
    try:
        from diffusers import AutoencoderKL
        from diffusers.utils import logging
    except ImportError as error:
        raise InputError("vae_path: diffusers is not installed; pip install -e '.[imagenet]' brings it") from error
    folder = Path(path) / "vae" if (Path(path) / "vae").is_dir() else Path(path)
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: there is no config.json; the folder of an AutoencoderKL is needed")
    logging.set_verbosity_error()  # what is wrong is said below, in one line
    weights = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise DataError(f"{folder}: it holds no weights; {' or '.join(WEIGHTS)} is needed")
    try:
        vae, info = AutoencoderKL.from_pretrained(
            folder,
            local_files_only=True,
            low_cpu_mem_usage=False,
            use_safetensors=weights.endswith(".safetensors"),
            output_loading_info=True,
        )
    except Exception as error:  # diffusers raises whatever its readers met
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{folder}: it cannot be opened as an AutoencoderKL ({reason})") from error
    if info["missing_keys"]:
        raise DataError(f"{folder}: no AutoencoderKL, tensor {min(info['missing_keys'])} is missing")
    return LatentSpace(vae.to(device).eval().requires_grad_(False))
