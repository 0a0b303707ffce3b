"""Pendulum (Yang et al., 2021, CausalVAE): PNG files with labels in their names.

The file names hold the labels of the shadow truncated to integers: .5 too low on average in position and .3 in length.
A model that is trained on them and given an exact value in an intervention is off by that much. The reader therefore
replaces them by the exact values, which angle and light determine.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np

from causaldiffae.datasets.dataset import Dataset, register
from causaldiffae.datasets.images import ImageData, evenly_spread, resize_area
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError
from causaldiffae.files.images import open_image, without_size_warnings
from causaldiffae.files.reading import read_file
from causaldiffae.generators import pendulum

_SHADOW_LIMITS: Final = (-0.25, 20.25)  # axes units; a shadow beyond them is cut off and cannot be measured
_EXAMPLE_SEED: Final = 0
_PENDULUM_NAME: Final = re.compile(r"a_(-?\d{1,6})_(-?\d{1,6})_(-?\d{1,6})_(-?\d{1,6})\.png", re.ASCII)
_MAX_PNG_BYTES: Final = 1 << 20


def parse_pendulum_name(name: str) -> tuple[int, ...]:
    """Parses the labels in a file name `a_{angle}_{light}_{length}_{position}.png`."""
    match = _PENDULUM_NAME.fullmatch(name)
    if not match:
        raise DataError(f"{name}: expected a file name a_ANGLE_LIGHT_LENGTH_POSITION.png with integers")
    return tuple(int(part) for part in match.groups())


def _read(spec: DatasetSpec, data_dir: Path, split: str, limit: int | None) -> ImageData:
    folder = data_dir / split
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder, got none")
    try:
        labelled = sorted((parse_pendulum_name(path.name), path) for path in folder.glob("*.png"))
    except DataError as error:
        raise DataError(f"{folder}/{error}") from None
    if not labelled:
        raise DataError(f"{folder}: expected PNG images, got none")
    if limit is not None and limit < len(labelled):  # the first ones all have the same angle
        labelled = [labelled[i] for i in evenly_spread(limit, len(labelled))]
    images = np.empty((len(labelled), spec.channels, spec.image_size, spec.image_size), np.uint8)
    with ThreadPoolExecutor() as pool, without_size_warnings():  # Pillow releases the GIL while it decodes
        for start in range(0, len(labelled), 256):  # in blocks, to limit memory
            decoded = list(pool.map(_read_png, [path for _, path in labelled[start : start + 256]]))
            block = np.stack(decoded)[..., : spec.channels].transpose(0, 3, 1, 2)
            images[start : start + 256] = resize_area(block, spec.image_size)
    labels = exact_labels(np.array([row for row, _ in labelled]))
    return ImageData(spec, split, images, labels.astype(np.float32), None, [path.name for _, path in labelled])


def exact_labels(labels: np.ndarray) -> np.ndarray:
    """Labels (N, 4) float64 of the images whose file names hold `labels` (N, 4), integers.

    Where truncation of the generator's shadow gives the integers of the name, the generator's values; elsewhere (files
    of another generator) the centres of the bins that the integers stand for.
    """
    labels = labels.astype(np.float64)
    light = np.clip(labels[:, 1], 1.0, 199.0)  # above the floor, where the shadow is defined
    exact = pendulum.true_labels(labels[:, 0], light)
    centre = labels + np.array([0.0, 0.0, 0.5, 0.5]) * np.where(labels < 0, -1.0, 1.0)
    return np.where((np.trunc(exact) == labels) & (light == labels[:, 1])[:, None], exact, centre)


def _read_png(path: Path) -> np.ndarray:
    """Decodes one image (96, 96, 4) uint8, after a check of size and mode in its header."""
    with open_image(read_file(path, _MAX_PNG_BYTES), ("PNG",), str(path)) as image:
        if image.size != (96, 96) or image.mode != "RGBA":
            raise DataError(f"{path}: expected 96x96 RGBA, got {image.width}x{image.height} {image.mode}")
        return np.array(image)


def _counterfactual(data: ImageData, do: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    generator = pendulum.PendulumGenerator()
    images = generator.counterfactual_images(data.labels, do)[..., : data.spec.channels].transpose(0, 3, 1, 2)
    return generator.counterfactual_labels(data.labels, do), images


def _shows_all(labels: np.ndarray) -> np.ndarray:
    """(N,) bool: whether the shadow of labels (N, 4) lies inside the image."""
    length, position = labels[:, 2], labels[:, 3]
    low, high = _SHADOW_LIMITS
    return (position - length / 2 >= low) & (position + length / 2 <= high)


def _examples(spec: DatasetSpec, count: int) -> ImageData:
    """Pendulums rendered at the call."""
    rng = np.random.default_rng(_EXAMPLE_SEED)
    # ranges for which sun and shadow lie inside the image
    angle, light = rng.integers(-35, 40, count), rng.integers(70, 138, count)
    light = np.where(light == 100, 101, light)
    rendered = np.stack([pendulum.render(a, b) for a, b in zip(angle, light, strict=True)])
    images = resize_area(np.ascontiguousarray(rendered[..., : spec.channels].transpose(0, 3, 1, 2)), spec.image_size)
    labels = pendulum.true_labels(angle, light)
    names = [pendulum.file_name(row) for row in labels]
    return ImageData(spec, "test", images, labels.astype(np.float32), None, names)


PENDULUM: Final = register(
    Dataset(
        name="pendulum",
        spec=DatasetSpec(
            name="pendulum",
            image_size=96,
            channels=4,
            graph=pendulum.GRAPH,
            shift=(2.0, 104.0, 7.5, 11.0),
            scale=(42.0, 44.0, 4.5, 8.0),
            low=(-40.0, 60.0, 3.0, 2.0),
            high=(43.0, 147.0, 12.58, 19.61),
            units=("pi/200 rad", "pi/200 rad", "axes units", "axes units"),
        ),
        channels=(3, 4),
        read=_read,
        source="images of a pendulum, a light and its shadow, rendered by this package.",
        counterfactual=_counterfactual,
        has_truth=lambda data: True,
        measure=lambda images: pendulum.PendulumGenerator().measure(images.transpose(0, 2, 3, 1)),
        examples=_examples,
        shows_all=_shows_all,
        published_channels=4,
    )
)
