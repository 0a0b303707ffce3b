"""MorphoMNIST thickness-intensity (Pawlowski et al., 2020): IDX files of digits and a CSV file of their labels.

The true counterfactual of an image is known if the folder also contains the base digits of the images; its labels
follow from the factual labels.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy import ndimage

from causaldiffae.datasets.dataset import Dataset, PredictorDefaults, asset, register
from causaldiffae.datasets.images import ImageData, resize_area
from causaldiffae.datasets.mnist import one_of_each_class
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.idx import NUM_CLASSES, SPLIT_FILES, find_file, read_digits, read_idx
from causaldiffae.generators import morphomnist
from causaldiffae.generators.morphology import check_drawable

_EXAMPLE_SEED: Final = 0


def _read(spec: DatasetSpec, data_dir: Path, split: str, limit: int | None) -> ImageData:
    name = SPLIT_FILES[split]
    images, digits = read_digits(data_dir, name)
    table = find_file(data_dir, f"{name}-morpho.csv")
    index, labels = morphomnist.read_morpho_csv(table)
    if len(index) != len(images):
        raise DataError(f"{table}: expected {len(images)} rows as in {name}-images-idx3-ubyte, got {len(index)}")
    if not len(images):
        raise DataError(f"{data_dir}: {name}-images-idx3-ubyte: expected at least one image, got none")
    bases = None
    if any((data_dir / f"{name}-base-idx3-ubyte{ending}").exists() for ending in (".gz", "")):
        base_file = find_file(data_dir, f"{name}-base-idx3-ubyte")
        bases = read_idx(base_file)
        if bases.shape != images.shape:
            raise DataError(f"{base_file}: expected shape {images.shape}, got {bases.shape}")
        bases = bases[:limit]
    return ImageData(
        spec=spec,
        split=split,
        images=resize_area(images[:limit, None], spec.image_size),
        labels=labels[:limit].astype(np.float32),
        classes=digits[:limit].astype(np.int64),
        ids=[str(i) for i in index[:limit]],
        base_images=bases,
    )


@cache
def _generator() -> morphomnist.MorphoMnistGenerator:
    """The shared generator, which caches prepared digits."""
    return morphomnist.MorphoMnistGenerator()


def _counterfactual(data: ImageData, do: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    if data.base_images is None:
        raise InputError(
            "true counterfactual: expected base digits ({train,t10k}-base-idx3-ubyte.gz), got none; write the data set "
            "with scripts/make_dataset.py"
        )
    labels = _counterfactual_labels(data, do)
    return labels, _generator().counterfactual_images(data.base_images, data.labels, do)[:, None]


def _counterfactual_labels(data: ImageData, do: dict[str, Any]) -> np.ndarray:
    labels = _generator().counterfactual_labels(data.labels, do)
    for thickness, intensity in labels:
        check_drawable(thickness, intensity)
    return labels


def deformed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Slightly rotates, shears, scales, shifts and bends a digit (28, 28) uint8; never returns an empty image."""
    angle, shear = rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2)
    stretch = rng.uniform(0.88, 1.12, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1.0, shear], [0.0, 1.0]]) @ np.diag(stretch)
    centred = np.indices((28, 28)).reshape(2, -1) - 13.5
    bends = ndimage.gaussian_filter(rng.standard_normal((2, 28, 28)), (0, 4.0, 4.0)) * 8.0
    source = (matrix @ centred + 13.5 + rng.uniform(-1.5, 1.5, (2, 1))).reshape(2, 28, 28) + bends
    grey = ndimage.map_coordinates(image.astype(np.float64), source, order=1)
    result = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return result if result.max() > 64 else image


def _examples(spec: DatasetSpec, count: int) -> ImageData:
    """MNIST digits of `assets/`, rendered with sampled labels."""
    bases, digits = read_digits(asset("mnist_share"), SPLIT_FILES["test"])
    labels = morphomnist.sample_labels(len(bases), np.random.default_rng(_EXAMPLE_SEED))
    chosen = one_of_each_class(digits, count)
    bases, digits, labels = bases[chosen], digits[chosen], labels[chosen].astype(np.float32)
    images = resize_area(_generator().counterfactual_images(bases, labels, {})[:, None], spec.image_size)
    names = [f"MNIST test {i}" for i in chosen]
    return ImageData(spec, "test", images, labels, digits.astype(np.int64), names, base_images=bases)


register(
    Dataset(
        name="morphomnist",
        spec=DatasetSpec(
            name="morphomnist",
            image_size=28,
            channels=1,
            graph=morphomnist.GRAPH,
            # mean and standard deviation of the published training labels
            shift=(2.50325, 158.01584),
            scale=(0.63176, 48.37930),
            low=(0.875, 66.6),
            high=(6.256, 254.91),
            num_classes=NUM_CLASSES,
            units=("pixels", "grey levels"),
            class_name="digit",
        ),
        read=_read,
        source="MNIST digits (CC BY-SA 3.0), rendered by this package with sampled thickness and intensity.",
        counterfactual=_counterfactual,
        has_truth=lambda data: data.base_images is not None,
        counterfactual_labels=_counterfactual_labels,
        measure=lambda images: _generator().measure(resize_area(images, 28)[:, 0]),
        examples=_examples,
        deformed=deformed,
        # intensity must be predicted to a smaller fraction of its spread than thickness
        predictor=PredictorDefaults(shift=2, head_weights={"intensity": 5.0}),
        light_on_dark=True,
        published_channels=1,
    )
)
