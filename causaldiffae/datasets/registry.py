"""The data set registry: reading, true counterfactuals, measurements and examples by data set name.

To add a data set, add a file to this folder that calls `register(Dataset(...))`, or call `register` in your own code.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from causaldiffae.datasets.dataset import DATASETS, Dataset
from causaldiffae.datasets.folder.image_folder import folder_spec, is_image_folder, read_image_folder
from causaldiffae.datasets.images import ImageData, resize_area
from causaldiffae.datasets.spec import CheckedDo, DatasetSpec
from causaldiffae.datasets.variables import is_integer
from causaldiffae.errors import DataError, InputError

SPLITS: Final = ("train", "test")
MAX_EXAMPLES: Final = 64


def find_dataset(name: str) -> Dataset:
    """Looks up a data set by name."""
    if name not in DATASETS:
        raise InputError(f"dataset: expected one of {', '.join(DATASETS)}, got {name!r}")
    return DATASETS[name]


def dataset_spec(
    dataset: str,
    image_size: int | None = None,
    channels: int | None = None,
    *,
    data_dir: str | Path | None = None,
    graph: str | Path | None = None,
) -> DatasetSpec:
    """Returns the spec of a data set, by default at the published image size.

    Args:
        data_dir, graph: only for data set "folder"; see `folder_spec`.

    Raises:
        InputError: for an unknown name, or an image size or number of channels that is not available.
    """
    entry = find_dataset(dataset)
    if entry.spec is None and data_dir:
        return folder_spec(data_dir, graph, image_size, channels)
    if graph and entry.spec is not None:
        raise InputError(f"graph: expected none, got {graph}; data set {dataset} has its own graph")
    return entry.spec_at(image_size, channels)


def read_split(
    dataset: str,
    data_dir: str | Path,
    split: str,
    image_size: int | None = None,
    channels: int | None = None,
    limit: int | None = None,
    *,
    graph: str | Path | None = None,
    spec: DatasetSpec | None = None,
) -> ImageData:
    """Reads one split into memory.

    Args:
        dataset: a key of `DATASETS`.
        data_dir: the folder as published or as written by `scripts/make_dataset.py`; or a folder with a `labels.csv`
            (folder/image_folder.py), which may be an address like gs://bucket/set.
        split: "train" or "test"; in a folder with a `labels.csv` also "val".
        image_size, channels: by default as published.
        limit: maximum number of images: the first ones or, if files are sorted by a label, evenly spaced ones.
        graph: the graph file of data set "folder"; by default `graph.yaml` in the folder.
        spec: the spec of a model, instead of `image_size`, `channels` and `graph`.

    Raises:
        InputError: for an unknown name or an invalid argument.
        DataError: for a missing or invalid file or folder.
    """
    entry = find_dataset(dataset)
    if limit is not None and not (is_integer(limit) and limit > 0):
        raise InputError(f"limit: expected a positive integer, got {limit!r}")
    if spec is not None and (image_size, channels, graph) != (None, None, None):
        raise InputError("spec: expected no image_size, channels or graph together with spec")
    if entry.spec is None:
        return read_image_folder(spec, data_dir, split, limit, graph, image_size, channels)
    spec = spec or dataset_spec(dataset, image_size, channels, graph=graph)
    if is_image_folder(data_dir):
        return read_image_folder(spec, data_dir, split, limit)
    if split not in SPLITS:
        raise InputError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if not Path(data_dir).is_dir():
        raise DataError(f"{data_dir}: expected a folder, got none")
    return entry.read(spec, Path(data_dir), split, limit)


def truth_is_known(data: ImageData, do: Mapping[str, Any] | None = None) -> bool:
    """Whether `true_counterfactual` supports the data: it has a generator, and the folder contains its inputs.

    Args:
        do: an intervention; if it changes the class of an image, the true image is unknown. Without a generator, the
            truth is known if the folder contains it for every image.
    """
    if do is not None and data.pairs is not None and find_dataset(data.spec.name).counterfactual is None:
        return bool((data.pairs.find(data.spec.check_do(do, len(data), warn=False), len(data)) >= 0).all())
    return find_dataset(data.spec.name).has_truth(data) and not _changes_class(data, do or {})


def _changes_class(data: ImageData, do: Mapping[str, Any]) -> bool:
    classes = data.spec.classes_of(data.spec.check_do(do, len(data), warn=False), len(data))
    return classes is not None and (data.classes is None or bool((classes.numpy() != data.classes).any()))


def labels_are_known(data: ImageData) -> bool:
    """Whether `true_labels` supports the data; the true images may be unknown."""
    return find_dataset(data.spec.name).counterfactual_labels is not None or truth_is_known(data)


def true_labels(data: ImageData, do: Mapping[str, Any]) -> np.ndarray:
    """True counterfactual labels (N, n) float32 in label units, also where the true image is unknown.

    That is the case where the class is changed, which has no causes and no effects among the variables, and for
    MorphoMNIST without base digits.
    """
    checked = data.spec.check_do(do, len(data))
    on_variables = CheckedDo({name: checked[name] for name in data.spec.names_of(checked)})
    labels_of = find_dataset(data.spec.name).counterfactual_labels
    if labels_of is not None:
        return labels_of(data, dict(on_variables)).astype(np.float32)
    return true_counterfactual(data, on_variables)[0]


def known_truth(data: ImageData, do: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """`true_counterfactual`, or None if the truth is unknown or the generator cannot draw this intervention."""
    try:
        return true_counterfactual(data, do) if truth_is_known(data, do) else None
    except InputError:
        return None


def true_counterfactual(data: ImageData, do: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Renders true counterfactuals, or takes them from the folder of the data set.

    Args:
        do: variable -> one number, or (N,) numbers, one per image.

    Returns:
        Labels (N, n) float32 in label units and images (N, C, H, W) uint8.

    Raises:
        InputError: for an invalid intervention, or if the truth is unknown.
    """
    entry, checked = find_dataset(data.spec.name), data.spec.check_do(do, len(data))
    if entry.counterfactual is None and data.pairs is not None:
        found = data.pairs.find(checked, len(data))
        if (found >= 0).all():
            return data.pairs.labels[found], data.pairs.images[found]
        raise InputError(f"true counterfactual: expected a pair for every image, got none for {int((found < 0).sum())}")
    if entry.counterfactual is None:
        raise InputError(f"true counterfactual: expected a data set with a generator, got {data.spec.name}")
    if _changes_class(data, checked):
        name = data.spec.class_name
        raise InputError(f"do: {name}: expected the class of the image, as the true image of another is unknown")
    labels, images = entry.counterfactual(data, {name: checked[name] for name in data.spec.names_of(checked)})
    return labels.astype(np.float32), resize_area(images, data.spec.image_size)


def measure(spec: DatasetSpec, images: np.ndarray) -> np.ndarray:
    """Measures labels (N, n) float64 in images (N, C, S, S) uint8; NaN if the measurement fails."""
    is_bytes = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4
    if not is_bytes or images.shape[1] != spec.channels or images.shape[2] != images.shape[3]:
        given = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise InputError(f"images: expected a uint8 array (N, {spec.channels}, S, S), got {given}")
    measured = find_dataset(spec.name).measure
    return np.full((len(images), len(spec.graph)), np.nan) if measured is None else measured(images)


def can_measure(spec: DatasetSpec) -> bool:
    """Whether labels can be measured in images of this data set."""
    return find_dataset(spec.name).measure is not None


def has_examples(spec: DatasetSpec) -> bool:
    """Whether `example_images` supports this data set."""
    return spec.name in DATASETS and DATASETS[spec.name].examples is not None


def example_images(spec: DatasetSpec, count: int = 8) -> ImageData:
    """Returns a fixed set of test images with labels; no data files are needed.

    Args:
        count: number of images in 1..64; the circuit has only twelve.

    Raises:
        InputError: for a data set without examples or an invalid count.
        DataError: if the `assets` folder is missing, as after an installation without a clone.
    """
    examples = DATASETS[spec.name].examples if spec.name in DATASETS else None
    if examples is None:
        known = ", ".join(name for name, entry in DATASETS.items() if entry.examples is not None)
        advice = "; a model does not hold images of its data set, read them with read_split or from their files"
        raise InputError(f"examples: expected a data set among {known}, got {spec.name!r}{advice}")
    if not (isinstance(count, int) and 1 <= count <= MAX_EXAMPLES):
        raise InputError(f"examples: expected an integer in 1..{MAX_EXAMPLES}, got {count!r}")
    return examples(spec, count)


for _module in pkgutil.iter_modules([str(Path(__file__).parent)]):
    importlib.import_module(f"causaldiffae.datasets.{_module.name}")
