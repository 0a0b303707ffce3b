"""`Dataset`, everything specific to one data set, and `DATASETS`, the registered data sets by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from causaldiffae.datasets.images import ImageData
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.datasets.variables import is_integer
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.paths import ASSETS

MIN_SIZE, MAX_SIZE = 8, 512


@dataclass(frozen=True)
class PredictorDefaults:
    """Training settings of the data set's anti-causal predictor.

    Attributes:
        shift: maximum random shift of training images, in pixels, that does not change the labels.
        head_weights: loss weights by variable; 1 by default.
    """

    shift: int = 0
    head_weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """A data set, registered by its own file in this folder; see docs/extending.md.

    Attributes:
        name: key in `DATASETS`.
        spec: the spec at the published image size; None if the spec is read from the data.
        read: (spec, folder, split, limit) -> the split.
        source: origin and licence of the images, for the model card.
        channels: supported numbers of channels; empty if only those of `spec` are supported.
        counterfactual: (data, checked do) -> true labels (N, n) float64 and images (N, C, H, W) uint8 of any size;
            None without a generator.
        has_truth: whether `counterfactual` supports the data.
        counterfactual_labels: the labels of `counterfactual` alone, if they follow from factual labels without what
            its images need; None otherwise.
        measure: images (N, C, H, W) uint8 -> labels (N, n) float64 measured in the images, NaN if that fails; None if
            labels cannot be measured.
        examples: (spec, count) -> test images that require no files except `assets/`.
        shows_all: labels (N, n) -> (N,) bool, whether all labels are visible in the image.
        deformed: (base image, generator) -> another base image of the same class, for interventional images.
        predictor: training settings of predictors.
        light_on_dark: whether images show light objects on a dark background; files and PIL images with a light border
            are then inverted, see image_input.py.
        published_channels, published_steps: channels and T of the published CausalDiffAE networks. Their checkpoints
            are identified by the numbers of variables and channels and do not contain T. None without such networks.
    """

    name: str
    spec: DatasetSpec | None
    read: Callable[[DatasetSpec, Path, str, int | None], ImageData]
    source: str
    channels: tuple[int, ...] = ()
    counterfactual: Callable[[ImageData, dict[str, Any]], tuple[np.ndarray, np.ndarray]] | None = None
    has_truth: Callable[[ImageData], bool] = lambda data: False
    counterfactual_labels: Callable[[ImageData, dict[str, Any]], np.ndarray] | None = None
    measure: Callable[[np.ndarray], np.ndarray] | None = None
    examples: Callable[[DatasetSpec, int], ImageData] | None = None
    shows_all: Callable[[np.ndarray], np.ndarray] | None = None
    deformed: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None
    predictor: PredictorDefaults = PredictorDefaults()
    light_on_dark: bool = False
    published_channels: int | None = None
    published_steps: int = 1000

    def spec_at(self, image_size: int | None, channels: int | None) -> DatasetSpec:
        """The spec at an image size and a number of channels, by default the published ones."""
        if self.spec is None:
            raise InputError(f"data_dir: expected the folder with the spec of data set {self.name}, got none")
        image_size, channels = image_size or self.spec.image_size, channels or self.spec.channels
        check_form(image_size, channels, self.channels or (self.spec.channels,), f" for data set {self.name}")
        return replace(self.spec, image_size=image_size, channels=channels)


def check_form(image_size: int, channels: int, allowed: tuple[int, ...], reason: str = "", where: str = "") -> None:
    """Raises `DataError` for an image size out of range or a number of channels that is not in `allowed`."""
    if not (is_integer(image_size) and MIN_SIZE <= image_size <= MAX_SIZE):
        raise DataError(f"{where}image_size: expected an integer in {MIN_SIZE}..{MAX_SIZE}, got {image_size!r}")
    if channels not in allowed:
        numbers = " or ".join(map(str, allowed))
        raise DataError(f"{where}channels: expected {numbers}{reason}, got {channels!r}")


DATASETS: Final[dict[str, Dataset]] = {}
"""The data sets by name. `registry.py` imports every file of this folder, which registers its data set."""


def register(dataset: Dataset) -> Dataset:
    """Adds a data set to `DATASETS`."""
    DATASETS[dataset.name] = dataset
    return dataset


def asset(name: str) -> Path:
    """Path of a folder in `assets/` of the cloned repository."""
    folder = ASSETS / name
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder, got none; clone the repository and run pip install -e")
    return folder
