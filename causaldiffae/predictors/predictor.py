"""Anti-causal predictors: from an image back to its labels, p(y | x); the judges of counterfactual images.

One network for all variables of a data set, with a head for each: one number for a continuous variable, a score for
each category of a categorical one, and a score for each class where images have classes (the digit).

    x (B,C,S,S) -> 2x2 patches -> three stages of residual convolutions -> all places -> hidden features -> heads

Places are kept (no average pooling), so that positions can be read to a fraction of a pixel; ordered grey levels join
the features, among all pixels and among the bright ones, because brightness is a matter of ranks. A
predictor is a model folder: config.json and weights.

Beside the heads, and trained apart from them, a predictor carries the encoder of a small VAE of the images: CLD
compares its posteriors (metrics/realism.py), and models can only be compared where they have one and the same judge.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from causaldiffae.checkpoints.checkpoint import build_with_weights, export_weights, load_checkpoint
from causaldiffae.datasets.images import to_model_range
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.encoder import CausalEncoder, Posterior
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.places import CLONE

MODEL_TYPE: Final = "predictor"
CLASS: Final = "class"
_RANKS: Final = (0.0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.13, 0.17, 0.22, 0.3, 0.45, 0.7, 1.0)
_BRIGHT_RANKS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
_BATCH: Final = 256
VAE_LATENTS: Final = 12
_VAE_WIDTHS: Final = (16, 32, 32)


@dataclass(frozen=True)
class PredictorConfig:
    """The network.

    Attributes:
        widths: of the three stages; each one after the first halves the resolution.
        patch_size: the first convolution works on patches of so many pixels a side.
        features: width of the layer below the heads, whose activations FID-own compares.
    """

    widths: tuple[int, ...] = (32, 64, 96)
    patch_size: int = 2
    features: int = 96


def config_for(spec: DatasetSpec) -> PredictorConfig:
    """The network for a data set: patches grow with the images, so that the first stage has about 16 places a side."""
    wanted = max(2, spec.image_size // 16)
    return PredictorConfig(patch_size=next(size for size in range(wanted, 0, -1) if spec.image_size % size == 0))


class Head(NamedTuple):
    """One variable's share of the last layer: a number (`values` is empty) or a score for each of its values."""

    name: str
    start: int
    size: int
    values: tuple[float, ...]


class Readings(NamedTuple):
    """What is read off N images.

    Attributes:
        labels: (N, n) float64 in label units; of a categorical variable the likeliest category.
        classes: (N,) int64, or None where there are no classes.
        features: (N, F) float32, the activations below the heads.
    """

    labels: np.ndarray
    classes: np.ndarray | None
    features: np.ndarray


def heads_of(spec: DatasetSpec) -> list[Head]:
    """The heads that a data set needs, variables in the graph's order, then the class."""
    heads: list[Head] = []
    for i, name in enumerate(spec.graph.names):
        values = spec.category_values(i)
        heads.append(Head(name, heads[-1].start + heads[-1].size if heads else 0, len(values) or 1, values))
    if spec.num_classes is not None:
        last = heads[-1]
        heads.append(Head(CLASS, last.start + last.size, spec.num_classes, tuple(map(float, range(spec.num_classes)))))
    return heads


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _convolution(width, width), _convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.second(functional.relu(self.first(x))))


def _convolution(fan_in: int, fan_out: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(fan_out))


def grey_levels(images: Tensor) -> Tensor:
    """Grey levels of each channel by rank, brightest first: images (B, C, S, S) -> (B, C * 21).

    Sixteen ranks among all pixels, five among those above the middle of the channel's own range: the median of these
    is the ink's brightness, however thin the strokes are.
    """
    ordered = images.flatten(2).sort(dim=2, descending=True).values
    among_all = ordered[:, :, [round(rank * (ordered.shape[2] - 1)) for rank in _RANKS]]
    middle = (ordered[:, :, :1] + ordered[:, :, -1:]) / 2
    last_bright = (ordered > middle).sum(dim=2, keepdim=True).sub(1).clamp(min=0)
    bright = (last_bright * torch.tensor(_BRIGHT_RANKS, device=images.device)).round().long()
    return torch.cat([among_all, ordered.gather(2, bright)], dim=2).flatten(1)


class Predictor(nn.Module):
    """Reads all labels off an image.

    Args:
        spec: the data set's sizes, variables and label statistics.
        config: the network's sizes.
    """

    def __init__(self, spec: DatasetSpec, config: PredictorConfig | None = None) -> None:
        super().__init__()
        self.spec, self.config = spec, config or PredictorConfig()
        patch, widths = self.config.patch_size, self.config.widths
        if spec.image_size % patch:
            raise InputError(f"patch_size: {patch} given, a divisor of the image size {spec.image_size} is needed")
        self.heads = heads_of(spec)
        layers: list[nn.Module] = [nn.PixelUnshuffle(patch)]
        fan_in, side = spec.channels * patch**2, spec.image_size // patch
        for number, width in enumerate(widths):
            layers += [_convolution(fan_in, width, 2 if number else 1), nn.ReLU(), _Residual(width)]
            side = -(-side // 2) if number else side
            fan_in = width
        self.layers = nn.Sequential(*layers, nn.Flatten())
        ranked = spec.channels * (len(_RANKS) + len(_BRIGHT_RANKS))
        self.hidden = nn.Linear(widths[-1] * side**2 + ranked, self.config.features)
        self.last = nn.Linear(self.config.features + ranked, self.heads[-1].start + self.heads[-1].size)
        self.vae_encoder = CausalEncoder(spec.image_size, spec.channels, 1, VAE_LATENTS, _VAE_WIDTHS, "none")

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, S, S) in [-1, 1] -> activations (B, F) below the heads, and ordered grey levels (B, C * 21)."""
        levels = grey_levels(images)
        return functional.relu(self.hidden(torch.cat([self.layers(images), levels], dim=1))), levels

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [-1, 1] -> every head's output (B, outputs); numbers are normalised labels."""
        return self.last(torch.cat(self.features(images), dim=1))

    @torch.inference_mode()
    def read(self, images: np.ndarray) -> Readings:
        """Reads uint8 images (N, C, S, S); the network must be in evaluation mode."""
        wanted = (self.spec.channels, self.spec.image_size, self.spec.image_size)
        if images.dtype != np.uint8 or images.shape[1:] != wanted:
            raise InputError(f"images: {images.dtype} {images.shape} given, uint8 (N, {wanted}) is needed")
        device = self.last.weight.device
        outputs, features = [], []
        for start in range(0, len(images), _BATCH):
            activations, levels = self.features(to_model_range(images[start : start + _BATCH]).to(device))
            outputs.append(self.last(torch.cat([activations, levels], dim=1)).double().cpu().numpy())
            features.append(activations.float().cpu().numpy())
        if not outputs:
            return Readings(np.empty((0, len(self.spec.graph))), None, np.empty((0, self.config.features), np.float32))
        labels, classes = self.labels_of(np.concatenate(outputs))
        return Readings(labels, classes, np.concatenate(features))

    @torch.inference_mode()
    def posteriors(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and log-variance, (N, 12) float64 each, of the VAE's posteriors of uint8 images (N, C, S, S)."""
        device = self.last.weight.device
        found: list[Posterior] = []
        for start in range(0, len(images), _BATCH):
            found.append(self.vae_encoder(to_model_range(images[start : start + _BATCH]).to(device)))
        mean, logvar = (torch.cat([part[i] for part in found])[:, 0].double().cpu().numpy() for i in range(2))
        return mean, logvar

    def labels_of(self, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Labels (N, n) in label units and classes (N,) or None, from the heads' outputs (N, outputs)."""
        labels, classes = np.empty((len(outputs), len(self.spec.graph))), None
        for i, head in enumerate(self.heads):
            found = outputs[:, head.start : head.start + head.size]
            if head.name == CLASS and i == len(self.spec.graph):
                classes = found.argmax(axis=1).astype(np.int64)
            elif head.values:
                labels[:, i] = np.asarray(head.values)[found.argmax(axis=1)]
            else:
                labels[:, i] = found[:, 0] * self.spec.scale[i] + self.spec.shift[i]
        return labels, classes


class LoadedPredictor(NamedTuple):
    """A trained predictor, where it came from, and the figures that it was saved with."""

    predictor: Predictor
    path: str
    figures: dict[str, Any]


def save_predictor(folder: str | Path, predictor: Predictor, figures: dict[str, Any]) -> Path:
    """Writes a model folder with weights in half precision; `figures` are plain types that go into its config.json."""
    described = {
        "model_type": MODEL_TYPE,
        "network": {**asdict(predictor.config), "widths": list(predictor.config.widths)},
        "dataset": predictor.spec.to_dict(),
        "figures": figures,
    }
    return export_weights(folder, predictor.state_dict(), described, torch.float16)


def load_predictor(path: str | Path, device: torch.device | str = "cpu") -> LoadedPredictor:
    """Opens a model folder that `save_predictor` wrote.

    Raises:
        DataError: if there is none, it is damaged, or holds another kind of model.
    """
    found = load_checkpoint(path)
    if found.config.get("model_type") != MODEL_TYPE:
        kind = found.config.get("model_type")
        raise DataError(f"{path}: a {kind!r} model, a predictor is needed (classifiers/ train them)")
    network, spec = found.config.get("network"), DatasetSpec.from_dict(found.config.get("dataset"))
    config = read_network(network, str(path))
    predictor = build_with_weights(lambda: Predictor(spec, config), found.model_state, str(path))
    figures = found.config.get("figures")
    return LoadedPredictor(predictor.to(device), str(path), figures if isinstance(figures, dict) else {})


def read_network(network: Any, where: str) -> PredictorConfig:
    """The network's sizes from a config.json; anything else is a `DataError`."""
    if not isinstance(network, dict) or set(network) != {"widths", "patch_size", "features"}:
        raise DataError(f"{where}: network is {str(network)[:80]}, widths, patch_size and features are needed")
    widths = network["widths"]
    sizes = [*widths, network["patch_size"], network["features"]] if isinstance(widths, list) and widths else [0]
    if len(sizes) > 12 or not all(type(size) is int and 0 < size <= 4096 for size in sizes):
        raise DataError(f"{where}: network is {str(network)[:80]}, whole numbers in 1..4096 are needed")
    return PredictorConfig(tuple(widths), network["patch_size"], network["features"])


def find_predictor(spec: DatasetSpec, given: str = "") -> str:
    """The predictor's folder: the one given, or `weights/NAME_SIZE_predictor` beside the package or in this folder.

    Raises:
        InputError: if none is given and there is none for this data set and size.
    """
    if given:
        return given
    return find_shipped(spec, "predictor")


def find_shipped(spec: DatasetSpec, kind: str) -> str:
    """`weights/NAME_SIZE_KIND` beside the package or in this folder; `InputError` if there is none."""
    shipped = _shipped(spec, kind)
    if shipped is None:
        name = f"{spec.name}_{spec.image_size}_{kind}"
        raise InputError(f"{kind}: none is given and there is no weights/{name}; train one (classifiers/)")
    return shipped


def predictor_is_shipped(spec: DatasetSpec) -> bool:
    """Whether `find_predictor` finds one that is not named."""
    return _shipped(spec, "predictor") is not None


def _shipped(spec: DatasetSpec, kind: str) -> str | None:
    name = f"{spec.name}_{spec.image_size}_{kind}"
    for root in (Path.cwd(), CLONE):
        if (root / "weights" / name / "config.json").is_file():
            return str(root / "weights" / name)
    return None


def check_fits(predictor: Predictor, spec: DatasetSpec, where: str) -> None:
    """`InputError` where a predictor is for other images or other variables than those of `spec`."""
    theirs = predictor.spec
    for what in ("name", "image_size", "channels"):
        given, needed = getattr(theirs, what), getattr(spec, what)
        if given != needed:
            raise InputError(f"predictor: {where} is for {what} {given!r}, {needed!r} is needed")
    if theirs.graph.names != spec.graph.names:
        raise InputError(f"predictor: {where} reads {', '.join(theirs.graph.names)}, not {', '.join(spec.graph.names)}")
