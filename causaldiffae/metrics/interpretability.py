"""IM1 and IM2: resemblance of a counterfactual to its new class (Van Looveren and Klaise, 2021, arXiv 1907.02584).

    IM1 = |x - AE_new(x)|^2 / (|x - AE_old(x)|^2 + e)          reconstruction by the new class's autoencoder
    IM2 = |AE_new(x) - AE_all(x)|^2 / (|x|_1 + e)              against that by the autoencoder of all classes

Lower is better. Images are in [0, 1], on which IM2 depends; e = 1e-7. `im2` is the published form; `im2_old` uses
AE_old in place of AE_new, as printed in the report on Diff-SCM. Layers and training are those of that report. One model
folder holds all autoencoders.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from causaldiffae.checkpoints.checkpoint import build_with_weights
from causaldiffae.datasets.images import ImageData
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.metrics.effectiveness import nearest_category
from causaldiffae.predictors.common import open_folder, save_folder

MODEL_TYPE: Final = "class_autoencoders"
EPSILON: Final = 1e-7
CLASS_EPOCHS: Final = 30
ALL_EPOCHS: Final = 4
_BATCH: Final = 128


def _conv(fan_in: int, fan_out: int) -> nn.Conv2d:
    return nn.Conv2d(fan_in, fan_out, 3, padding=1)


def class_autoencoder(channels: int = 1) -> nn.Sequential:
    """Autoencoder of one class: 16-pool-8-pool-8 / 8-up-16-up-C; image sides must be multiples of 4."""
    return nn.Sequential(
        *(_conv(channels, 16), nn.ReLU(), nn.MaxPool2d(2), _conv(16, 8), nn.ReLU(), nn.MaxPool2d(2)),
        *(_conv(8, 8), nn.ReLU(), _conv(8, 8), nn.ReLU(), nn.Upsample(scale_factor=2)),
        *(_conv(8, 16), nn.ReLU(), nn.Upsample(scale_factor=2), _conv(16, channels)),
    )


def all_class_autoencoder(channels: int = 1) -> nn.Sequential:
    """Autoencoder of all classes: 16-16-pool-C / 16-up-16-C."""
    return nn.Sequential(
        *(_conv(channels, 16), nn.ReLU(), _conv(16, 16), nn.ReLU(), nn.MaxPool2d(2), _conv(16, channels)),
        *(_conv(channels, 16), nn.ReLU(), nn.Upsample(scale_factor=2), _conv(16, 16), nn.ReLU(), _conv(16, channels)),
    )


class Interpretability(NamedTuple):
    """Per image, (N,) float64 each, as in the module's docstring."""

    im1: np.ndarray
    im2: np.ndarray
    im2_old: np.ndarray


class ClassAutoencoders(nn.Module):
    """An autoencoder for each category of a data set's only variable, and one for all.

    Args:
        spec: the data set, whose graph has one variable, a categorical one.
    """

    def __init__(self, spec: DatasetSpec) -> None:
        super().__init__()
        values = spec.category_values(0)
        if len(spec.graph) != 1 or not values:
            raise InputError(f"dataset: expected one categorical variable for IM1 and IM2, got {spec.name}")
        if spec.image_size % 4:
            raise InputError(f"image_size: expected a multiple of 4 for IM1 and IM2, got {spec.image_size}")
        self.spec = spec
        self.of_class = nn.ModuleList([class_autoencoder(spec.channels) for _ in values])
        self.of_all = all_class_autoencoder(spec.channels)

    @torch.inference_mode()
    def score(self, images: np.ndarray, target: np.ndarray, given: np.ndarray) -> Interpretability:
        """IM1 and IM2 of counterfactuals.

        Args:
            images: (N, C, S, S) uint8.
            target, given: (N,) class indices after and before the intervention.
        """
        device = next(self.parameters()).device
        columns = []
        for start in range(0, len(images), _BATCH):
            rows = slice(start, start + _BATCH)
            x = _to_unit_range(torch.from_numpy(np.ascontiguousarray(images[rows])).to(device))
            by_class, by_all = torch.stack([network(x) for network in self.of_class]), self.of_all(x)
            new, old = (by_class[classes[rows].astype(int), np.arange(len(x))] for classes in (target, given))
            size = x.abs().flatten(1).sum(dim=1) + EPSILON
            im1 = _squared(x - new) / (_squared(x - old) + EPSILON)
            im2, im2_old = (_squared(part - by_all) / size for part in (new, old))
            columns.append(torch.stack([im1, im2, im2_old]).cpu().double().numpy())
        return Interpretability(*np.concatenate(columns, axis=1))


def _squared(difference: Tensor) -> Tensor:
    return (difference**2).flatten(1).sum(dim=1)


def _to_unit_range(images: Tensor) -> Tensor:
    return images.float() / 255.0


def train_autoencoder(
    network: nn.Module, images: np.ndarray, epochs: int, seed: int, on_step: Callable[[], object] | None = None
) -> float:
    """Minimises the squared error on images (N, C, S, S) uint8 by Adam; returns the last epoch's mean loss."""
    generator = torch.Generator().manual_seed(seed)
    pixels, device = torch.from_numpy(images), next(network.parameters()).device
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses: list[float] = []
    for _ in range(epochs):
        losses = []
        for indices in torch.randperm(len(pixels), generator=generator).split(_BATCH):
            x = _to_unit_range(pixels[indices].to(device))
            loss = F.mse_loss(network(x), x)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            if on_step is not None:
                on_step()
    return float(np.mean(losses)) if losses else float("nan")


def train_class_autoencoders(
    train: ImageData,
    class_epochs: int = CLASS_EPOCHS,
    all_epochs: int = ALL_EPOCHS,
    seed: int = 0,
    on_step: Callable[[], object] | None = None,
    device: torch.device | str = "cpu",
) -> tuple[ClassAutoencoders, dict[str, Any]]:
    """Trains all autoencoders on a training split; returns them and figures with their last losses.

    Raises:
        InputError: for a data set without classes, or a class without images.
    """
    torch.manual_seed(seed)
    networks = ClassAutoencoders(train.spec).to(device)
    indices = class_numbers(train.spec, train.labels)
    losses = []
    for k, network in enumerate(networks.of_class):
        members = train.images[indices == k]
        if not len(members):
            raise InputError(f"num_images: expected training images of every class, got none of class {k}")
        losses.append(train_autoencoder(network, members, class_epochs, seed + k, on_step))
    of_all = train_autoencoder(networks.of_all, train.images, all_epochs, seed, on_step)
    return networks.eval(), {"class_losses": losses, "all_loss": of_all, "images": len(train), "seed": seed}


def class_numbers(spec: DatasetSpec, labels: np.ndarray) -> np.ndarray:
    """Class indices (N,) of labels (N, 1) of a data set with one categorical variable.

    Raises:
        InputError: if a label is missing.
    """
    missing = int(np.isnan(labels[:, 0]).sum())
    if missing:
        raise InputError(f"{spec.graph.names[0]}: expected the class of every image, got none for {missing}")
    return nearest_category(labels[:, 0], spec.category_values(0)).astype(np.int64)


def steps_to_train(train: ImageData, class_epochs: int = CLASS_EPOCHS, all_epochs: int = ALL_EPOCHS) -> int:
    """The number of times that `train_class_autoencoders` calls `on_step`."""
    counts = np.bincount(class_numbers(train.spec, train.labels))
    return int((-(-counts // _BATCH)).sum() * class_epochs + -(-len(train) // _BATCH) * all_epochs)


def save_autoencoders(folder: str | Path, networks: ClassAutoencoders, figures: dict[str, Any]) -> Path:
    """Writes a model folder; `figures` are plain types for config.json."""
    return save_folder(folder, networks, MODEL_TYPE, dataset=networks.spec.to_dict(), figures=figures)


def load_autoencoders(path: str | Path, device: torch.device | str = "cpu") -> ClassAutoencoders:
    """Opens a folder of `save_autoencoders`; `DataError` if there is none, or it holds another model."""
    found, spec = open_folder(path, MODEL_TYPE, "classifiers/class_autoencoders.py")
    return build_with_weights(lambda: ClassAutoencoders(spec), found.model_state, str(path)).to(device)
