"""Anti-causal predictors p(y | x): labels from images, for the evaluation of counterfactuals.

One network predicts all variables of a data set: one output for a continuous variable, a logit for each category of a
categorical one, and a logit for each class where images have classes (the digit).

    x (B,C,S,S) -> patches -> three stages of residual convolutions -> all positions -> hidden features -> heads

Positions are not averaged, so that labels of position can be predicted to a fraction of a pixel. Sorted grey levels
join the features, because brightness depends on the ranks of pixels. A predictor is a model folder: config.json and
weights. It also contains the encoder of a small VAE of the images, trained separately, whose posteriors CLD compares
(metrics/realism.py): models can only be compared with the same predictor.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import replace_all_batch_norm_modules_
from torch.nn import functional

from causaldiffae.checkpoints.checkpoint import build_with_weights
from causaldiffae.datasets.images import to_model_range
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.encoder import CausalEncoder
from causaldiffae.errors import InputError
from causaldiffae.files.paths import CLONE
from causaldiffae.predictors.common import Head, check_same, make_heads, open_folder, read_network, save_folder

MODEL_TYPE: Final = "predictor"
CLASS: Final = "class"
_RANKS: Final = (0.0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.13, 0.17, 0.22, 0.3, 0.45, 0.7, 1.0)
_BRIGHT_RANKS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
_BATCH: Final = 256
VAE_LATENTS: Final = 12
_VAE_WIDTHS: Final = (16, 32, 32)


@dataclass(frozen=True)
class PredictorConfig:
    """Sizes of the network.

    Attributes:
        widths: channels of the three stages; each one after the first halves the resolution.
        patch_size: pixels per side of the patches that the first convolution works on.
        features: width of the layer below the heads, whose activations FID-own compares.
    """

    widths: tuple[int, ...] = (32, 64, 96)
    patch_size: int = 2
    features: int = 96


def config_for(spec: DatasetSpec) -> PredictorConfig:
    """The network for a data set; larger images get larger patches, about 16 per side."""
    largest = max(2, spec.image_size // 16)
    return PredictorConfig(patch_size=next(size for size in range(largest, 0, -1) if spec.image_size % size == 0))


class Readings(NamedTuple):
    """Predictions for N images.

    Attributes:
        labels: (N, n) float64 in label units; the most likely category of a categorical variable.
        classes: (N,) int64, or None without classes.
        features: (N, F) float32, the activations below the heads.
    """

    labels: np.ndarray
    classes: np.ndarray | None
    features: np.ndarray


def heads_of(spec: DatasetSpec) -> list[Head]:
    """The heads of a data set: its variables in the graph's order, then the class."""
    variables = list(zip(spec.graph.names, spec.all_category_values(), strict=True))
    if spec.num_classes is not None:
        variables.append((CLASS, tuple(map(float, range(spec.num_classes)))))
    return make_heads(variables, continuous_size=1)


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
    """Sorted grey levels of each channel, brightest first: images (B, C, S, S) -> (B, C * 21).

    Sixteen ranks of all pixels, and five of the pixels above the middle of the channel's range, whose median is the
    brightness of a stroke of any width.
    """
    ordered = images.flatten(2).sort(dim=2, descending=True).values
    among_all = ordered[:, :, [round(rank * (ordered.shape[2] - 1)) for rank in _RANKS]]
    middle = (ordered[:, :, :1] + ordered[:, :, -1:]) / 2
    last_bright = (ordered > middle).sum(dim=2, keepdim=True).sub(1).clamp(min=0)
    bright = (last_bright * torch.tensor(_BRIGHT_RANKS, device=images.device)).round().long()
    return torch.cat([among_all, ordered.gather(2, bright)], dim=2).flatten(1)


class Predictor(nn.Module):
    """Predicts all labels of an image.

    Args:
        spec: image sizes, variables and label statistics of the data set.
        config: sizes of the network.
    """

    def __init__(self, spec: DatasetSpec, config: PredictorConfig | None = None) -> None:
        super().__init__()
        self.spec, self.config = spec, config or PredictorConfig()
        patch, widths = self.config.patch_size, self.config.widths
        if spec.image_size % patch:
            raise InputError(f"patch_size: expected a divisor of the image size {spec.image_size}, got {patch}")
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
        """Images (B, C, S, S) in [-1, 1] -> activations (B, F) below the heads, and sorted grey levels (B, C * 21)."""
        levels = grey_levels(images)
        return functional.relu(self.hidden(torch.cat([self.layers(images), levels], dim=1))), levels

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [-1, 1] -> outputs (B, outputs); those of continuous variables are normalised."""
        return self.last(torch.cat(self.features(images), dim=1))

    @torch.inference_mode()
    def read(self, images: np.ndarray, batch_statistics: bool = False) -> Readings:
        """Predictions for uint8 images (N, C, S, S); the network must be in evaluation mode.

        Args:
            batch_statistics: normalise by mean and variance of these N images, one batch, and not by the running
                statistics of the training images, which stay as they are.
        """
        shape = (self.spec.channels, self.spec.image_size, self.spec.image_size)
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise InputError(
                f"images: expected uint8 (N, {', '.join(map(str, shape))}), got {images.dtype} {images.shape}"
            )
        device = self.last.weight.device
        network, size = (_without_running_statistics(self), max(len(images), 1)) if batch_statistics else (self, _BATCH)
        outputs, features = [], []
        for start in range(0, len(images), size):
            activations, levels = network.features(to_model_range(images[start : start + size]).to(device))
            outputs.append(self.last(torch.cat([activations, levels], dim=1)).cpu().double().numpy())
            features.append(activations.float().cpu().numpy())
        if not outputs:
            return Readings(np.empty((0, len(self.spec.graph))), None, np.empty((0, self.config.features), np.float32))
        labels, classes = self.labels_of(np.concatenate(outputs))
        return Readings(labels, classes, np.concatenate(features))

    @torch.inference_mode()
    def posteriors(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and log-variance, (N, 12) float64 each, of the VAE's posteriors of uint8 images (N, C, S, S)."""
        device = self.last.weight.device
        starts = range(0, len(images), _BATCH)
        found = [self.vae_encoder(to_model_range(images[start : start + _BATCH]).to(device)) for start in starts]
        mean, logvar = (torch.cat([part[i] for part in found])[:, 0].cpu().double().numpy() for i in range(2))
        return mean, logvar

    def labels_of(self, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Labels (N, n) in label units and classes (N,) or None for outputs (N, outputs)."""
        labels, classes = np.empty((len(outputs), len(self.spec.graph))), None
        for i, head in enumerate(self.heads):
            found = head.outputs(outputs)
            if head.name == CLASS and i == len(self.spec.graph):
                classes = found.argmax(axis=1).astype(np.int64)
            elif head.values:
                labels[:, i] = np.asarray(head.values)[found.argmax(axis=1)]
            else:
                labels[:, i] = found[:, 0] * self.spec.scale[i] + self.spec.shift[i]
        return labels, classes


def _without_running_statistics(predictor: Predictor) -> Predictor:
    """A copy whose layers normalise every batch by its own mean and variance, also in evaluation mode."""
    copied = deepcopy(predictor)
    replace_all_batch_norm_modules_(copied.layers)
    return copied


class LoadedPredictor(NamedTuple):
    """A trained predictor, its folder, and the figures that were saved with it."""

    predictor: Predictor
    path: str
    figures: dict[str, Any]


def save_predictor(folder: str | Path, predictor: Predictor, figures: dict[str, Any]) -> Path:
    """Writes a model folder with weights in half precision; `figures` are plain types for config.json."""
    described = {"network": asdict(predictor.config), "dataset": predictor.spec.to_dict(), "figures": figures}
    return save_folder(folder, predictor, MODEL_TYPE, **described)


def load_predictor(path: str | Path, device: torch.device | str = "cpu") -> LoadedPredictor:
    """Opens a folder of `save_predictor`.

    Raises:
        DataError: if there is none, it is damaged, or it holds another type of model.
    """
    found, spec = open_folder(path, MODEL_TYPE, "a script in classifiers/")
    config = read_network(PredictorConfig, found.config.get("network"), str(path))
    predictor = build_with_weights(lambda: Predictor(spec, config), found.model_state, str(path))
    figures = found.config.get("figures")
    return LoadedPredictor(predictor.to(device), str(path), figures if isinstance(figures, dict) else {})


def find_predictor(spec: DatasetSpec, given: str = "") -> str:
    """The folder `given`, or else the shipped predictor; `InputError` if there is neither."""
    return given or find_shipped(spec, "predictor")


def find_shipped(spec: DatasetSpec, kind: str) -> str:
    """`weights/NAME_SIZE_KIND` beside the package or in the current folder; `InputError` if there is none."""
    shipped = shipped_folder(spec, kind)
    if shipped is None:
        name = f"{spec.name}_{spec.image_size}_{kind}"
        if spec.name == "folder" and kind == "predictor":
            raise InputError(
                f"predictor: expected a folder, got none and found no weights/{name}; train one with python "
                "classifiers/folder_classifier.py --data_dir DATA --out OUT, and name OUT"
            )
        raise InputError(
            f"{kind}: expected a folder, got none and found no weights/{name}; scripts in classifiers/ train it"
        )
    return shipped


def predictor_is_shipped(spec: DatasetSpec) -> bool:
    """Whether `find_predictor` finds a predictor without being given one."""
    return shipped_folder(spec, "predictor") is not None


def shipped_sizes(name: str) -> list[int]:
    """Sizes of the images for which a predictor of a data set is shipped."""
    found = (path.parent.name for root in (Path.cwd(), CLONE) for path in (root / "weights").glob("*/config.json"))
    sizes = {each.removeprefix(f"{name}_").removesuffix("_predictor") for each in found if each.endswith("_predictor")}
    return sorted(int(size) for size in sizes if size.isdecimal())


def shipped_folder(spec: DatasetSpec, kind: str) -> str | None:
    """`weights/NAME_SIZE_KIND` beside the package or in the current folder, None if there is none."""
    for root in (Path.cwd(), CLONE):
        folder = root / "weights" / f"{spec.name}_{spec.image_size}_{kind}"
        if (folder / "config.json").is_file():
            return str(folder)
    return None


def open_predictor(spec: DatasetSpec, given: str = "", device: torch.device | str = "cpu") -> LoadedPredictor:
    """Opens the predictor of `find_predictor`; raises as `load_predictor`, `find_predictor` and `check_fits`."""
    loaded = load_predictor(find_predictor(spec, given), device)
    check_fits(loaded.predictor, spec, loaded.path)
    return loaded


def check_fits(predictor: Predictor, spec: DatasetSpec, where: str) -> None:
    """`InputError` if a predictor is for other images or variables than those of `spec`."""
    check_same(predictor.spec, spec, ("name", "image_size", "channels", "categories"), where)
