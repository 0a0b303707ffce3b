"""Latent space for score networks: an autoencoder in diffusers' format (Rombach et al., 2022).

Images (B, 3, S, S) in [-1, 1] become codes (B, C, S / f, S / f): for an `AutoencoderKL` the mean of its posterior,
minus its shift and times its scale, so that codes have about unit variance. Counterfactuals should be compared with the
autoencoder's own reconstruction, which loses detail too. `AutoencoderKL` is that of diffusers (extra `imagenet`),
`AutoencoderTiny` is tiny_autoencoder.py.

A model in latent space works with one autoencoder only. Its checkpoint contains the SHA-256 of the autoencoder, whose
files lie in the folder `autoencoder` of the run or model folder, or, if they are large, at the path in the checkpoint.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from causaldiffae.checkpoints.checkpoint import CONFIG, build_with_weights
from causaldiffae.checkpoints.model_folders import AUTOENCODER_FOLDER
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import file_sha256, file_size, read_json, sync_to_disk
from causaldiffae.files.weights import Weights
from causaldiffae.published.dit import find_weights
from causaldiffae.published.tiny_autoencoder import CLASS as TINY
from causaldiffae.published.tiny_autoencoder import TinyAutoencoder, TinyConfig

DESCRIPTION: Final = "autoencoder"
"""Key of `LatentSpace.describe` in the config.json of a checkpoint."""
MAX_COPIED_BYTES: Final = 64 << 20
"""Larger autoencoders are not copied into a run directory."""
_TINY_KEYS: Final = ("encoder.layers.0.weight", "decoder.layers.0.weight")


class LatentSpace:
    """Encodes images to latent codes and decodes them.

    Args:
        vae: an `AutoencoderKL` or a `TinyAutoencoder`.
        folder: folder with its files.

    Attributes:
        channels: C of the codes.
        image_channels: channels of the images.
        downsampling: pixels per entry of a code along each axis.
        scale, shift: code = (output of the encoder - shift) * scale.
    """

    def __init__(self, vae: Any, folder: Path | None = None) -> None:
        self.vae, self.folder = vae, folder
        self.scale = float(vae.config.scaling_factor)
        self.shift = float(vae.config.shift_factor or 0.0)
        self.channels = int(vae.config.latent_channels)
        if isinstance(vae, TinyAutoencoder):
            self.image_channels, levels = vae.config.channels, len(vae.config.encoder_blocks)
        else:
            self.image_channels, levels = int(vae.config.in_channels), len(vae.config.block_out_channels)
        self.downsampling: int = 2 ** (levels - 1)
        self._digest = ""

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [-1, 1] -> codes (B, C, S / downsampling, S / downsampling)."""
        encoded = self.vae.encode(images)
        codes = encoded if isinstance(encoded, Tensor) else encoded.latent_dist.mean
        return (codes - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes -> images, not clipped."""
        decoded = self.vae.decode(codes / self.scale + self.shift)
        return decoded if isinstance(decoded, Tensor) else decoded.sample

    @property
    def digest(self) -> str:
        """SHA-256 of the configuration and the weights, as they are on disk."""
        if not self._digest:
            if self.folder is None:
                raise InputError("autoencoder: expected one that was read from a folder, got one in memory")
            self._digest = folder_digest(self.folder)
        return self._digest

    def describe(self) -> dict[str, Any]:
        """What a checkpoint contains of the autoencoder."""
        names = ("channels", "image_channels", "downsampling", "scale", "shift")
        return {"sha256": self.digest, **{name: getattr(self, name) for name in names}}

    def code_spec(self, spec: DatasetSpec) -> DatasetSpec:
        """The spec of a data set with the size and channels of the codes, from which networks are built.

        Raises:
            InputError: if the autoencoder does not fit the images.
        """
        if spec.channels != self.image_channels:
            raise InputError(
                f"vae_path: expected an autoencoder of images with {spec.channels} channels, got one of "
                f"{self.image_channels}; set --channels {self.image_channels} where the data set allows it, or train "
                "one with scripts/train_autoencoder.py"
            )
        if spec.image_size % self.downsampling:
            raise InputError(
                f"image_size: expected a multiple of {self.downsampling}, the downsampling of the autoencoder, got "
                f"{spec.image_size}"
            )
        return replace(spec, image_size=spec.image_size // self.downsampling, channels=self.channels)


def network_spec(spec: DatasetSpec, codec: LatentSpace | None) -> DatasetSpec:
    """The spec from which the networks of a model are built: of the codes, or of the images without an autoencoder."""
    return spec if codec is None else codec.code_spec(spec)


def _folder_of(path: str | Path) -> Path:
    folder = Path(path) / "vae" if (Path(path) / "vae").is_dir() else Path(path)
    if not (folder / CONFIG).is_file():
        raise DataError(f"{folder}: expected the folder of an AutoencoderKL or AutoencoderTiny, got no {CONFIG}")
    return folder


def folder_digest(path: str | Path) -> str:
    """SHA-256 of the SHA-256 sums of configuration and weights in the folder of an autoencoder."""
    folder = _folder_of(path)
    files = (folder / CONFIG, find_weights(folder))
    for file in files:
        file_size(file)  # rejects links
    return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()


def load_latent_space(path: str | Path, device: torch.device | str = "cpu") -> LatentSpace:
    """Opens an autoencoder's folder (config.json and weights), or a folder that has one as its subfolder `vae`.

    Raises:
        InputError: if diffusers is not installed, for an `AutoencoderKL`.
        DataError: if there is no such folder, or it holds another model.
    """
    folder = _folder_of(path)
    config = read_json(folder / CONFIG)
    if config.get("_class_name") == TINY:
        sizes = TinyConfig.from_dict(config, str(folder / CONFIG))
        state = Weights(find_weights(folder)).state(_TINY_KEYS, f"the weights of an {TINY}")
        vae: Any = build_with_weights(lambda: TinyAutoencoder(sizes), state, str(folder))
    else:
        vae = _load_kl(folder)
    return LatentSpace(vae.to(device).eval().requires_grad_(False), folder)


def _load_kl(folder: Path) -> Any:
    try:
        from diffusers import AutoencoderKL
        from diffusers.utils import logging
    except ImportError as error:
        raise InputError("vae_path: diffusers is not installed; pip install -e '.[imagenet]'") from error
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
    return vae


@contextmanager
def complete_copy(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target`, renamed to it at the end, or removed if anything fails.

    Raises:
        DataError: if it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
            part = Path(temporary, target.name)
            part.mkdir()
            yield part
            sync_to_disk(part)
            part.replace(target)
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error.strerror or error})") from None


def copy_autoencoder(source: Path, target: Path) -> None:
    """Copies configuration and weights into a folder, which appears when it is complete."""
    with complete_copy(target) as part:
        for file in (source / CONFIG, find_weights(source)):
            file_size(file)  # rejects links
            shutil.copyfile(file, part / file.name)


def keep_in_run(codec: LatentSpace, run_dir: Path) -> None:
    """Copies a small autoencoder into the run directory that needs it.

    Raises:
        InputError: if the run was started with another autoencoder.
    """
    target, source = run_dir / AUTOENCODER_FOLDER, codec.folder
    assert source is not None
    if target.exists():
        if folder_digest(target) != codec.digest:
            raise InputError(f"vae_path: expected the autoencoder in {target}, got another one; set another run_dir")
    elif file_size(find_weights(source)) <= MAX_COPIED_BYTES:
        copy_autoencoder(source, target)


def keep_with_model(codec: LatentSpace | None, folder: Path) -> None:
    """Copies the autoencoder of a model, of any size, into its model folder, in place of an older one."""
    if codec is None:
        return
    target, source = folder / AUTOENCODER_FOLDER, codec.folder
    assert source is not None
    if source.resolve() != target.resolve():
        shutil.rmtree(target, ignore_errors=True)
        copy_autoencoder(source, target)


def check_same_autoencoder(description: Mapping[str, Any], codec: LatentSpace | None, where: str) -> None:
    """Raises `InputError` unless a checkpoint was trained with this autoencoder, or both without one."""
    needed, found = description.get(DESCRIPTION), None if codec is None else codec.describe()
    if needed == found:
        return
    if needed is None or found is None:
        expected = "none" if needed is None else "an autoencoder"
        raise InputError(f"vae_path: expected {expected} as for {where}, got {'none' if found is None else 'one'}")
    sums = [str(each.get("sha256"))[:12] if isinstance(each, Mapping) else "?" for each in (needed, found)]
    raise InputError(f"vae_path: expected the autoencoder of {where}, SHA-256 {sums[0]}..., got {sums[1]}...")


def autoencoder_of_model(
    description: Mapping[str, Any], folders: Iterable[Path], recorded: str, where: str, device: torch.device | str
) -> LatentSpace | None:
    """Opens the autoencoder that a checkpoint needs; None for a model of pixels.

    Args:
        description: config.json of the checkpoint.
        folders: model folder or step, and run directory.
        recorded: path of the autoencoder in training.

    Raises:
        DataError: if the autoencoder is not found, or is another one.
    """
    needed = description.get(DESCRIPTION)
    if needed is None:
        return None
    if not isinstance(needed, Mapping) or not isinstance(needed.get("sha256"), str):
        raise DataError(f"{where}: {DESCRIPTION}: expected a mapping with sha256, got {str(needed)[:60]!r}")
    own = [folder / AUTOENCODER_FOLDER for folder in dict.fromkeys(folders)]
    candidates = [path for path in (*own, *([Path(recorded)] if recorded else [])) if path.is_dir()]
    for path in candidates:
        digest = ""
        with suppress(DataError):  # of a folder without an autoencoder
            digest = folder_digest(path)
        if digest == needed["sha256"]:
            return load_latent_space(path, device)
    found = f"another one in {candidates[0]}" if candidates else "none"
    raise DataError(
        f"{where}: expected the autoencoder with SHA-256 {needed['sha256'][:12]}... that this model was trained with, "
        f"got {found}; put its {CONFIG} and weights into {own[0]}"
    )
