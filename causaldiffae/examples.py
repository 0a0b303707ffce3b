"""A handful of test images of each built-in data set, without its files.

Pendulums are drawn on the spot; MorphoMNIST's digits are drawn from the share of MNIST in `assets/`; the circuit's
stand-in lies there as it is, because its renderer is an extra. They know their true counterfactuals (the
circuit's where MuJoCo can draw), plain MNIST digits do not. A folder of images has none: its owner has the images.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from causaldiffae.errors import DataError, InputError
from causaldiffae.image_datasets import DatasetSpec, ImageData, read_split, resize_area

ASSETS: Final = Path(__file__).resolve().parent.parent / "assets"
MOST: Final = 64
_SEED: Final = 0


def example_images(spec: DatasetSpec, count: int = 8) -> ImageData:
    """Test images as a model of `spec` sees them, always the same ones, with labels, classes and true counterfactuals.

    Args:
        count: how many are wanted; the circuit has twelve.

    Raises:
        InputError: for a data set without examples, or a count outside 1..64.
        DataError: if the clone's `assets` folder is missing, as it is where only the package was installed.
    """
    if spec.name not in _MAKERS:
        raise InputError(f"examples: data set {spec.name!r} has none, there are some of {', '.join(_MAKERS)}")
    if not (isinstance(count, int) and 1 <= count <= MOST):
        raise InputError(f"examples: {count!r} asked for, 1..{MOST} are there")
    return _MAKERS[spec.name](spec, count)


def has_examples(spec: DatasetSpec) -> bool:
    """Whether `example_images` knows the data set."""
    return spec.name in _MAKERS


def _asset(name: str) -> Path:
    folder = ASSETS / name
    if not folder.is_dir():
        raise DataError(
            f"{folder}: the folder is missing; examples come with a clone of the repository (pip install -e CLONE)"
        )
    return folder


def _pendulums(spec: DatasetSpec, count: int) -> ImageData:
    from causaldiffae.generators import pendulum

    rng = np.random.default_rng(_SEED)
    # away from the corners, where sun and shadow leave the picture
    angle, light = rng.integers(-35, 40, count), rng.integers(70, 138, count)
    light = np.where(light == 100, 101, light)
    pictures = np.stack([pendulum.render(a, b) for a, b in zip(angle, light, strict=True)])
    images = resize_area(np.ascontiguousarray(pictures[..., : spec.channels].transpose(0, 3, 1, 2)), spec.image_size)
    labels = pendulum.file_labels(angle, light)
    names = [pendulum.file_name(row) for row in labels]
    return ImageData(spec, "test", images, labels.astype(np.float32), None, names)


def _digits(spec: DatasetSpec, count: int) -> ImageData:
    from causaldiffae.generators import morphomnist

    bases, digits = morphomnist.read_digits(_asset("mnist_share"), morphomnist.SPLITS["test"])
    labels = morphomnist.sample_labels(len(bases), np.random.default_rng(_SEED))
    chosen = _one_of_each(digits, count)
    bases, digits, labels = bases[chosen], digits[chosen], labels[chosen].astype(np.float32)
    images = morphomnist.MorphoMnistGenerator().counterfactual_images(bases, labels, {})[:, None]
    names = [f"MNIST test {place}" for place in chosen]
    resized = resize_area(images, spec.image_size)
    return ImageData(spec, "test", resized, labels, digits.astype(np.int64), names, base_images=bases)


def _one_of_each(digits: np.ndarray, count: int) -> np.ndarray:
    """Places of the first digit of every class, then of the second ones, and so on."""
    rank = np.array([np.count_nonzero(digits[:i] == digit) for i, digit in enumerate(digits)])
    return np.lexsort((digits, rank))[:count]


def _plain_digits(spec: DatasetSpec, count: int) -> ImageData:
    data = read_split(spec.name, _asset("mnist_share"), "test", spec=spec)
    return data.subset(_one_of_each(data.labels[:, 0], count))


def _circuits(spec: DatasetSpec, count: int) -> ImageData:
    return read_split("circuit", _asset("circuit_share"), "test", limit=count, spec=spec)


_MAKERS: Final[dict[str, Callable[[DatasetSpec, int], ImageData]]] = {
    "morphomnist": _digits,
    "pendulum": _pendulums,
    "circuit": _circuits,
    "mnist": _plain_digits,
}
