"""Training of a small autoencoder on the images of a data set, for models in its latent space.

The network is a `TinyAutoencoder`, trained on random crops: it is convolutional, so what it learns on crops holds for
whole images. The loss is the L1 error of pixels and of differences of neighbouring pixels, which keeps edges sharp
without a perceptual network or a discriminator. Noise on the codes makes the decoder robust to the errors of a score
network; a small penalty on their size keeps the encoder from evading it. Together they are the KL term of a variational
autoencoder whose posterior has a constant variance.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from causaldiffae import dist_util
from causaldiffae.checkpoints.checkpoint import CONFIG
from causaldiffae.checkpoints.model_folders import AUTOENCODER_FILES
from causaldiffae.config import DEVICE_HELP, Auto, flag, with_help
from causaldiffae.datasets.images import ImageData, to_model_range, to_uint8
from causaldiffae.datasets.registry import dataset_spec, read_split
from causaldiffae.errors import InputError, check_given, check_least, check_local
from causaldiffae.files.reading import write_json, write_tensors
from causaldiffae.logger import progress_bar
from causaldiffae.metrics.intervals import mean_figure
from causaldiffae.metrics.truth import l1_errors
from causaldiffae.published.autoencoder import LatentSpace, complete_copy
from causaldiffae.published.tiny_autoencoder import TinyAutoencoder, TinyConfig
from causaldiffae.training.acceleration import activation_dtype
from causaldiffae.training.devices import use_device
from causaldiffae.training.fitting import fit, split_validation
from causaldiffae.training.preflight import check_platform

CODE_NOISE: Final = 0.1
"""Standard deviation of the noise on codes, which the penalty keeps at a standard deviation of about 1."""
CODE_PENALTY: Final = 1e-3
EDGE_WEIGHT: Final = 1.0
FACTORS: Final = (2, 4, 8, 16)
FIGURES: Final = "training.json"
_CODE_SIDE: Final = 32
_MEASURED: Final = 256
"""Images from which mean and spread of the codes, and the error of reconstructions, are computed."""
_BATCH: Final = 16


@with_help
@dataclass(frozen=True)
class AutoencoderSettings:
    """Options of the training run."""

    dataset: str = flag("folder", "name of the data set")
    data_dir: str = flag("", "folder of the data set")
    graph: str = flag("", "causal graph file of a folder data set; default: graph.yaml in data_dir")
    out: str = flag("", "output folder; RUN/autoencoder for the model in RUN")
    image_size: int = flag(0, "resize images to this size; 0 keeps the size of the data set")
    channels: int = flag(0, "convert images to this number of channels; 0 keeps the channels of the data set")
    num_images: int = flag(0, "use only the first num_images training images; 0 for all")
    downsampling: int = flag(
        0, "pixels per entry of a code along each axis: 2, 4, 8 or 16; 0 takes the first that gives codes of 32 or less"
    )
    latent_channels: int = flag(4, "channels of the codes")
    width: int = flag(32, "channels of the layers")
    blocks: int = flag(1, "residual blocks per resolution; the encoder has none at full resolution")
    crop: int = flag(64, "side of the random crops, a multiple of downsampling; 0 for whole images")
    iterations: int = flag(4000, "training steps")
    batch_size: int = flag(16, "crops per step")
    lr: float = flag(2e-3, "peak learning rate, reached after 5 % of the steps, followed by cosine annealing")
    use_bf16: Auto = flag("auto", "compute activations in bfloat16; auto: where the hardware supports it")
    device: str = flag("auto", DEVICE_HELP)
    seed: int = flag(0, "random seed")

    def __post_init__(self) -> None:
        check_given(self, "dataset", "data_dir", "out")
        check_local(out=self.out)
        names = ("latent_channels", "width", "iterations", "batch_size")
        check_least(self, **dict.fromkeys(names, 1), blocks=0, crop=0, num_images=0, seed=0)
        if self.downsampling not in (0, *FACTORS):
            raise InputError(f"downsampling: expected 2, 4, 8, 16 or 0, got {self.downsampling}")
        if self.crop % (self.downsampling or FACTORS[-1]):
            raise InputError(f"crop: expected a multiple of {self.downsampling or FACTORS[-1]}, got {self.crop}")
        if not 0 < self.lr < 1:
            raise InputError(f"lr: expected a number between 0 and 1, got {self.lr:g}")

    def network(self, channels: int, image_size: int) -> TinyConfig:
        """The sizes of the network for images (channels, image_size, image_size).

        Raises:
            InputError: if the size of the images is not a multiple of `downsampling`.
        """
        fitting = [factor for factor in FACTORS if image_size <= factor * _CODE_SIDE]
        factor = self.downsampling or (fitting or FACTORS[-1:])[0]
        if image_size % factor:
            raise InputError(f"image_size: expected a multiple of {factor} (downsampling), got {image_size}")
        levels = factor.bit_length()
        return TinyConfig(
            channels=channels,
            latent_channels=self.latent_channels,
            encoder_width=self.width,
            decoder_width=self.width,
            encoder_blocks=(0, *[self.blocks] * (levels - 1)),
            decoder_blocks=(*[self.blocks] * (levels - 1), max(self.blocks, 1)),
        )


def reconstruction_loss(images: Tensor, found: Tensor) -> Tensor:
    """L1 error of pixels, plus `EDGE_WEIGHT` times that of differences between neighbours; images (B, C, H, W)."""
    error = found.float() - images
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + EDGE_WEIGHT * edges


def random_crops(images: np.ndarray, count: int, size: int, rng: np.random.Generator) -> Tensor:
    """Draws `count` crops (count, C, size, size) in [-1, 1] of images (N, C, S, S) uint8; 0 for whole images."""
    side = images.shape[-1]
    size = min(size or side, side)
    rows = rng.integers(0, len(images), count)
    corners = rng.integers(0, side - size + 1, (count, 2))
    crops = [images[row, :, y : y + size, x : x + size] for row, (y, x) in zip(rows, corners, strict=True)]
    return to_model_range(np.stack(crops))


def train_autoencoder(
    config: AutoencoderSettings,
    train: np.ndarray,
    validation: np.ndarray,
    device: torch.device | str = "cpu",
    on_step: Callable[[], object] | None = None,
) -> tuple[TinyAutoencoder, float]:
    """Trains on images (N, C, S, S) uint8; returns the network of lowest validation loss, and that loss.

    The scale and the shift of the network's configuration give its codes mean 0 and variance 1.
    """
    torch.manual_seed(config.seed)
    network = TinyAutoencoder(config.network(train.shape[1], train.shape[-1])).to(
        device, memory_format=torch.channels_last
    )  # type: ignore[call-overload]
    rng, autocast = np.random.default_rng(config.seed), activation_dtype(config.use_bf16, device)
    held_out = random_crops(validation, min(4 * config.batch_size, 64), config.crop, np.random.default_rng(1)).to(
        device
    )

    def loss(step: int) -> Tensor:
        images = random_crops(train, config.batch_size, config.crop, rng).to(device)
        with torch.autocast(images.device.type, dtype=autocast, enabled=autocast is not None):
            codes = network.encode(images)
            found = network.decode(codes + CODE_NOISE * torch.randn_like(codes))
        return reconstruction_loss(images, found) + CODE_PENALTY * codes.float().square().mean()

    @torch.no_grad()
    def score() -> float:
        network.eval()
        with torch.autocast(held_out.device.type, dtype=autocast, enabled=autocast is not None):
            found = network(held_out)
        return float(reconstruction_loss(held_out, found))

    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=0.0, fused=True)
    best = fit(network, optimizer, loss, score, steps=config.iterations, warmup=0.05, on_step=on_step)
    codes = torch.cat([network.encode(batch).detach().float().cpu() for batch in _batches(train, device)])
    spread = float(codes.std())
    if not spread > 1e-6:
        raise InputError(f"lr: expected codes that differ, got a standard deviation of {spread:g}; try a smaller one")
    network.config = replace(network.config, shift_factor=float(codes.mean()), scaling_factor=1.0 / spread)
    return network, best


def _batches(images: np.ndarray, device: torch.device | str) -> list[Tensor]:
    """Up to `_MEASURED` images, evenly spread, in batches in [-1, 1]."""
    few = images[np.linspace(0, len(images) - 1, min(_MEASURED, len(images))).round().astype(np.int64)]
    return [to_model_range(few[start : start + _BATCH]).to(device) for start in range(0, len(few), _BATCH)]


@torch.inference_mode()
def reconstruction_errors(codec: LatentSpace, images: np.ndarray) -> np.ndarray:
    """Mean absolute error (N,) of reconstructions on 0..255, of up to `_MEASURED` images (N, C, S, S) uint8."""
    device, errors = next(codec.vae.parameters()).device, []
    for batch in _batches(images, device):
        found = codec.decode(codec.encode(batch))
        errors.append(l1_errors(to_uint8(found).cpu().numpy(), to_uint8(batch).cpu().numpy()))
    return np.concatenate(errors)


def save_autoencoder(folder: Path, network: TinyAutoencoder, figures: dict[str, Any]) -> Path:
    """Writes config.json, weights and figures; the folder appears when it is complete."""
    config, weights = AUTOENCODER_FILES
    with complete_copy(folder) as part:
        write_tensors(part / weights, network.state_dict())
        write_json(part / config, network.config.to_dict())
        write_json(part / FIGURES, figures)
    return folder


def run_training(config: AutoencoderSettings) -> str:
    """Trains and saves an autoencoder; returns the lines to print."""
    check_platform()
    out = Path(config.out)
    if (out / CONFIG).exists() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise InputError(f"out: expected a new folder, got {out}, which exists; delete it to train it again")
    use_device(config.device)
    size, channels, limit = config.image_size or None, config.channels or None, config.num_images or None
    spec = dataset_spec(config.dataset, size, channels, data_dir=config.data_dir, graph=config.graph or None)
    config.network(spec.channels, spec.image_size)  # reports sizes that do not fit before data are read
    whole = read_split(config.dataset, config.data_dir, "train", limit=limit, spec=spec)
    test = read_split(config.dataset, config.data_dir, "test", limit=_MEASURED, spec=spec)
    parts: list[ImageData] = list(map(whole.subset, split_validation(len(whole), config.seed)))
    start = time.monotonic()
    with progress_bar(total=config.iterations, desc="autoencoder", unit="step") as bar:
        network, best = train_autoencoder(config, parts[0].images, parts[1].images, dist_util.dev(), bar.update)
    codec = LatentSpace(network)
    figure = mean_figure(reconstruction_errors(codec, test.images))
    figures = {
        "reconstruction_l1": asdict(figure),
        "validation_loss": best,
        "training": {key: value for key, value in asdict(config).items() if key not in ("data_dir", "out", "device")},
        "training_seconds": round(time.monotonic() - start, 1),
    }
    folder = save_autoencoder(out, network, figures)
    side = spec.image_size // codec.downsampling
    shapes = f"{spec.channels}x{spec.image_size}x{spec.image_size} -> {codec.channels}x{side}x{side}"
    return (
        f"codes: {shapes}\nL1 of reconstructions (0..255): {figure.mean:.2f} on {figure.images} test images\n"
        f"written to {folder}"
    )
