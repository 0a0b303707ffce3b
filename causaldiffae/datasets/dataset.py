"""What a data set is to the package: `Dataset`. Each file beside this one describes one, `registry.py` lists them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from causaldiffae.datasets.images import ImageData
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError
from causaldiffae.files.places import ASSETS


@dataclass(frozen=True)
class PredictorDefaults:
    """How an anti-causal predictor of the data set is trained.

    Attributes:
        shift: how many pixels an image may be moved without another label.
        head_weights: weights of variables' losses; 1 for those that are not named.
    """

    shift: int = 0
    head_weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """Everything that is particular to one data set.

    Attributes:
        name: its key in `DATASETS`.
        spec: (image_size or None, channels or None) -> the spec; None stands for the published one.
        read: (spec, folder, split, limit) -> one split.
        source: where the images come from and under which licence; for the model card.
        counterfactual: (data, checked do) -> true labels (N, n) float64 and images (N, C, H, W) uint8 of any size;
            None where no generator is known.
        has_truth: whether `counterfactual` can answer for these data.
        measure: images (N, C, H, W) uint8 -> labels (N, n) float64 read off the picture, NaN where nothing is found;
            None where nothing can.
        examples: (spec, count) -> test images that need no files beside `assets/`.
        exact_labels: the labels (N, n) that the pictures show, where those on disk are rounded.
        shows_all: labels (N, n) -> (N,) bool, whether a picture of them shows all of them.
        deformed: (base image, random numbers) -> another base image of the same kind, for interventional images.
        predictor: how a predictor is trained on it.
        light_on_dark: whether images show light things on a dark background; photographs are inverted to fit.
        published_channels, published_steps: of the published CausalDiffAE's networks: by number of variables and
            channels its checkpoints are told apart, and T is not written in them. None where there is none.
    """

    name: str
    spec: Callable[[int | None, int | None], DatasetSpec]
    read: Callable[[DatasetSpec, Path, str, int | None], ImageData]
    source: str
    counterfactual: Callable[[ImageData, dict[str, Any]], tuple[np.ndarray, np.ndarray]] | None = None
    has_truth: Callable[[ImageData], bool] = lambda data: False
    measure: Callable[[np.ndarray], np.ndarray] | None = None
    examples: Callable[[DatasetSpec, int], ImageData] | None = None
    exact_labels: Callable[[ImageData], np.ndarray] | None = None
    shows_all: Callable[[np.ndarray], np.ndarray] | None = None
    deformed: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None
    predictor: PredictorDefaults = PredictorDefaults()
    light_on_dark: bool = False
    published_channels: int | None = None
    published_steps: int = 1000


DATASETS: Final[dict[str, Dataset]] = {}
"""The data sets by name; `registry.py` imports those that come with the package."""


def register(dataset: Dataset) -> Dataset:
    """Makes a data set known by its name."""
    DATASETS[dataset.name] = dataset
    return dataset


def asset(name: str) -> Path:
    """A folder of `assets/`, which comes with a clone of the repository."""
    folder = ASSETS / name
    if not folder.is_dir():
        raise DataError(
            f"{folder}: the folder is missing; examples come with a clone of the repository (pip install -e CLONE)"
        )
    return folder
