"""Codes of the training images in the latent space of an autoencoder, computed once and cached beside the images.

The networks of a model in latent space take codes alone; the encoder of the causal variables reads them, too. What is
missing in a code can be shown by no counterfactual, so pixels would only add labels that cannot be drawn, and batches
would have to contain images of several times the size of the codes.

Codes (N, C, h, w) are stored in float16 (their relative error is below 0.05 %), in the cache folder of the data set
(folder/image_cache.py). The name of the file contains a hash of the images and the SHA-256 of the autoencoder, so that
codes of others are never used.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from filelock import FileLock

from causaldiffae import dist_util
from causaldiffae.config import TrainConfig
from causaldiffae.datasets.folder.image_cache import cache_folder
from causaldiffae.datasets.images import ImageData, to_model_range
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.files.array_cache import BLOCK, block_checksum, open_array, write_array
from causaldiffae.files.storage import open_folder
from causaldiffae.logger import progress_bar
from causaldiffae.published.autoencoder import LatentSpace, load_latent_space

FORMAT: Final = 1
DTYPE: Final = np.float16
_PIXELS: Final = 1 << 20
"""Pixels that are encoded at once."""


@dataclass(frozen=True)
class Codes:
    """Codes (N, C, h, w) float16 of the images of a split, and the autoencoder that made them."""

    array: np.ndarray
    codec: LatentSpace


def open_codec(train: TrainConfig, spec: DatasetSpec, device: torch.device | str = "cpu") -> LatentSpace | None:
    """Opens the autoencoder `vae_path` and checks that it fits the images; None for a model of pixels."""
    if not train.vae_path:
        return None
    codec = load_latent_space(train.vae_path, device)
    codec.code_spec(spec)
    return codec


def encode_split(data: ImageData, codec: LatentSpace, data_dir: str | Path) -> Codes:
    """Returns the codes of a split, from the cache where it has them.

    In several processes, the first one that locks the cache computes them, and the others wait. Without a writable
    cache, every process computes them.
    """
    spec = codec.code_spec(data.spec)
    shape = (len(data), spec.channels, spec.image_size, spec.image_size)
    folder = dist_util.once_per_machine(lambda: cache_folder(open_folder(data_dir)))
    prefix = f"codes-{data.split}-{'x'.join(map(str, shape))}-"

    def fill(codes: np.ndarray) -> list[int]:
        _encode(data.images, codec, codes)
        return [block_checksum(codes[start : start + BLOCK]) for start in range(0, len(codes), BLOCK)]

    opened: list[np.ndarray] = []

    def read_or_write() -> None:
        if folder is None:
            opened.append(np.empty(shape, DTYPE))
            _encode(data.images, codec, opened[0])
            return
        path = folder / f"{prefix}{_key(data.images, codec)}.npy"
        with FileLock(folder / "lock"):  # others wait here, where no collective operation times out
            array = open_array(path, shape, DTYPE, "the images are encoded again")
            if array is None:
                array = write_array(path, prefix, shape, DTYPE, fill, "codes of the images")
            opened.append(array)

    dist_util.from_all(read_or_write)  # also where only some machines have a cache
    return Codes(opened[0], codec)


def _key(images: np.ndarray, codec: LatentSpace) -> str:
    """A hash of everything that determines the codes."""
    digest = hashlib.sha256(f"{FORMAT}/{codec.digest}/{images.shape}/{images.dtype}".encode())
    for start in range(0, len(images), BLOCK):
        digest.update(np.ascontiguousarray(images[start : start + BLOCK]).data)
    return digest.hexdigest()[:24]


@torch.inference_mode()
def _encode(images: np.ndarray, codec: LatentSpace, codes: np.ndarray) -> None:
    """Fills `codes` from images (N, C, S, S) uint8.

    Raises:
        InputError: for codes that are not finite in float16.
    """
    device = next(codec.vae.parameters()).device
    step = max(_PIXELS // images[0, 0].size, 1)
    with progress_bar(total=len(images), desc="encoding images", unit="image", delay=2) as bar:
        for start in range(0, len(images), step):
            batch = codec.encode(to_model_range(images[start : start + step]).to(device)).cpu().numpy()
            codes[start : start + step] = batch
            if not np.isfinite(codes[start : start + step]).all():
                raise InputError(f"vae_path: expected finite codes, got others from image {start} on")
            bar.update(len(batch))
