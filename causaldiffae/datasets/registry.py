"""The data sets by name, and what can be asked of any of them.

Adding one is a file beside this one that registers a `Dataset`, and its line in `BUILT_IN`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from causaldiffae.datasets.circuit import CIRCUIT
from causaldiffae.datasets.dataset import DATASETS, Dataset, register
from causaldiffae.datasets.folder.image_folder import folder_spec, is_image_folder, read_image_folder
from causaldiffae.datasets.images import ImageData, resize_area
from causaldiffae.datasets.mnist import FASHION_MNIST, MNIST
from causaldiffae.datasets.morphomnist import MORPHOMNIST
from causaldiffae.datasets.pendulum import PENDULUM
from causaldiffae.datasets.spec import DatasetSpec, is_whole
from causaldiffae.errors import DataError, InputError

SPLITS: Final = ("train", "test")
MAX_EXAMPLES: Final = 64


def _no_folder_spec(image_size: int | None, channels: int | None) -> DatasetSpec:
    raise InputError("data_dir: it is not given; what a folder of images holds can only be read there")


def _read_folder(spec: DatasetSpec, data_dir: Path, split: str, limit: int | None) -> ImageData:
    return read_image_folder(data_dir, split=split, limit=limit, spec=spec)


FOLDER: Final = register(
    Dataset(
        name="folder",
        spec=_no_folder_spec,
        read=_read_folder,
        source="a folder of images of the user's own; their licence is not known here.",
    )
)
BUILT_IN: Final = (PENDULUM, MORPHOMNIST, CIRCUIT, MNIST, FASHION_MNIST, FOLDER)


def find_dataset(name: str) -> Dataset:
    """The entry of a data set; an unknown name is an `InputError`."""
    if name not in DATASETS:
        raise InputError(f"dataset: {name!r} given, known are {', '.join(DATASETS)}")
    return DATASETS[name]


def dataset_spec(
    dataset: str,
    image_size: int | None = None,
    channels: int | None = None,
    *,
    data_dir: str | Path | None = None,
    graph: str | Path | None = None,
) -> DatasetSpec:
    """The spec of a data set at an image size; an unknown name, size or channel count is an `InputError`.

    A folder of images ("folder") has no spec of its own: `data_dir` and `graph` are read for it (`folder_spec`).
    """
    if dataset != "folder" or not data_dir:
        _refuse_graph(dataset, graph)
        return find_dataset(dataset).spec(image_size, channels)
    return folder_spec(data_dir, graph, image_size, channels)


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
        data_dir: the folder as published or as `scripts/make_dataset.py` writes it; or any folder with a `labels.csv`
            (image_folder.py), which may also be an address like gs://bucket/set.
        split: "train" or "test", and "val" where there is one.
        image_size, channels: as wanted; left out, as published.
        limit: read so many images only: the first or, where the files are sorted by a label, evenly spread ones.
        graph: the graph's file, of data set "folder"; left out, `graph.yaml` in the folder.
        spec: a model's, in place of `image_size`, `channels` and `graph`: the data are read as those it learned from.

    Raises:
        InputError: for an unknown name or a value that cannot be served.
        DataError: naming the file or folder whose content is not what it should be.
    """
    entry = find_dataset(dataset)
    if limit is not None and not (is_whole(limit) and limit > 0):
        raise InputError(f"limit: {limit!r} given, a whole number above 0 is needed")
    if spec is not None and (image_size, channels, graph) != (None, None, None):
        raise InputError("spec: it is given, so image_size, channels and graph must not be")
    if dataset == "folder" and spec is None:
        return read_image_folder(data_dir, graph, split, image_size, channels, limit)
    spec = spec or dataset_spec(dataset, image_size, channels, graph=graph)
    if dataset == "folder" or is_image_folder(data_dir):
        return read_image_folder(data_dir, split=split, limit=limit, spec=spec)
    if split not in SPLITS:
        raise InputError(f"split: {split!r} given, allowed are {', '.join(SPLITS)}")
    folder = Path(data_dir)
    if not folder.is_dir():
        raise DataError(f"{folder}: the folder is missing")
    return entry.read(spec, folder, split, limit)


def truth_is_known(data: ImageData) -> bool:
    """Whether `true_counterfactual` can answer: the generator is known and the folder carries what it draws from."""
    return find_dataset(data.spec.name).has_truth(data)


def true_counterfactual(data: ImageData, do: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The truth after an intervention: labels (N, n) float32, label units, and images (N, C, H, W) uint8 as `data`'s.

    Args:
        do: variable -> a number, or (N,) numbers, one for each image.

    Raises:
        InputError: for an intervention that `DatasetSpec.check_do` refuses or that cannot be drawn, or where the
            truth is not known (base digits are missing).
    """
    entry, checked = find_dataset(data.spec.name), data.spec.check_do(do, len(data))
    if entry.counterfactual is None:
        raise InputError(f"true counterfactual: data set {data.spec.name} has no generator, so the truth is not known")
    labels, images = entry.counterfactual(data, checked)
    return labels.astype(np.float32), resize_area(images, data.spec.image_size)


def measure(spec: DatasetSpec, images: np.ndarray) -> np.ndarray:
    """Reads labels off pictures (N, C, H, W) uint8 by geometry: (N, n) float64, NaN where nothing is found."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4:
        raise InputError("images: a numpy uint8 array (N, C, H, W) is needed")
    if images.shape[1] != spec.channels or images.shape[2] != images.shape[3]:
        raise InputError(f"images: shape {images.shape} given, (N, {spec.channels}, S, S) is needed")
    measured = find_dataset(spec.name).measure
    return np.full((len(images), len(spec.graph)), np.nan) if measured is None else measured(images)


def can_measure(spec: DatasetSpec) -> bool:
    """Whether `measure` can read any label off a picture of this data set."""
    return find_dataset(spec.name).measure is not None


def _refuse_graph(dataset: str, graph: str | Path | None) -> None:
    if graph and dataset != "folder":
        raise InputError(f"graph: {graph} given, but data set {dataset} has its own; a graph is for --dataset folder")


def exact_labels(data: ImageData) -> np.ndarray:
    """The labels (N, n) float32 that the pictures show: those on disk, or exact ones where the disk's are rounded."""
    exact = find_dataset(data.spec.name).exact_labels
    return data.labels if exact is None or not truth_is_known(data) else exact(data)


def has_examples(spec: DatasetSpec) -> bool:
    """Whether `example_images` knows the data set."""
    return spec.name in DATASETS and DATASETS[spec.name].examples is not None


def example_images(spec: DatasetSpec, count: int = 8) -> ImageData:
    """Test images as a model of `spec` sees them, always the same ones, with labels, classes and, where the data set
    has them, true counterfactuals; no data files are needed.

    Args:
        count: how many are wanted; the circuit has twelve.

    Raises:
        InputError: for a data set without examples, or a count outside 1..64.
        DataError: if the clone's `assets` folder is missing, as it is where only the package was installed.
    """
    examples = DATASETS[spec.name].examples if spec.name in DATASETS else None
    if examples is None:
        known = ", ".join(name for name, entry in DATASETS.items() if entry.examples is not None)
        raise InputError(f"examples: data set {spec.name!r} has none, there are some of {known}")
    if not (isinstance(count, int) and 1 <= count <= MAX_EXAMPLES):
        raise InputError(f"examples: {count!r} asked for, 1..{MAX_EXAMPLES} are there")
    return examples(spec, count)
