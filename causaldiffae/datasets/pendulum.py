"""Pendulum (Yang et al., 2021, CausalVAE): PNG files whose names hold the labels; the generator knows the truth."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np

from causaldiffae.datasets.dataset import Dataset, register
from causaldiffae.datasets.images import ImageData, evenly_spread, resize_area
from causaldiffae.datasets.spec import DatasetSpec, check_size
from causaldiffae.errors import DataError
from causaldiffae.files.images import open_image, without_size_warnings
from causaldiffae.files.reading import read_file
from causaldiffae.generators import pendulum

_SHADOW_ROOM: Final = (-0.25, 20.25)  # axes units; what lies further out is cut off and cannot be read
_EXAMPLE_SEED: Final = 0
_PENDULUM_NAME: Final = re.compile(r"a_(-?\d{1,6})_(-?\d{1,6})_(-?\d{1,6})_(-?\d{1,6})\.png", re.ASCII)
_MAX_PNG_BYTES: Final = 1 << 20


def _spec(image_size: int | None, channels: int | None) -> DatasetSpec:
    image_size, channels = image_size or pendulum.IMAGE_SIZE, channels or 4
    check_size("pendulum", image_size, channels, (3, 4))
    return DatasetSpec(
        name="pendulum",
        image_size=image_size,
        channels=channels,
        graph=pendulum.GRAPH,
        shift=(2.0, 104.0, 7.5, 11.0),
        scale=(42.0, 44.0, 4.5, 8.0),
        low=(-40.0, 60.0, 3.0, 2.0),
        high=(43.0, 147.0, 12.58, 19.61),
        units=("pi/200 rad", "pi/200 rad", "axes units", "axes units"),
    )


def parse_pendulum_name(name: str) -> tuple[int, int, int, int]:
    """Labels (angle, light, length, position) in a file name `a_{angle}_{light}_{length}_{position}.png`.

    Raises:
        DataError: if the name has another form.
    """
    match = _PENDULUM_NAME.fullmatch(name)
    if not match:
        raise DataError(f"{name}: the file name must be a_ANGLE_LIGHT_LENGTH_POSITION.png with whole numbers")
    angle, light, length, position = (int(part) for part in match.groups())
    return angle, light, length, position


def _read(spec: DatasetSpec, data_dir: Path, split: str, limit: int | None) -> ImageData:
    folder = data_dir / split
    if not folder.is_dir():
        raise DataError(f"{folder}: the folder is missing")
    labelled = sorted((_name_labels(path), path) for path in folder.glob("*.png"))
    if not labelled:
        raise DataError(f"{folder}: the folder has no PNG images")
    if limit is not None and limit < len(labelled):  # the first ones would all have one angle
        labelled = [labelled[i] for i in evenly_spread(limit, len(labelled))]
    images = np.empty((len(labelled), spec.channels, spec.image_size, spec.image_size), np.uint8)
    with ThreadPoolExecutor() as pool, without_size_warnings():  # Pillow decodes outside Python's lock
        for start in range(0, len(labelled), 256):  # small pieces: the full-size pictures need not all be in memory
            pictures = list(pool.map(_read_png, [path for _, path in labelled[start : start + 256]]))
            block = np.stack(pictures)[..., : spec.channels].transpose(0, 3, 1, 2)
            images[start : start + 256] = resize_area(block, spec.image_size)
    labels = np.array([row for row, _ in labelled], dtype=np.float32)
    return ImageData(spec, split, images, labels, None, [path.name for _, path in labelled])


def _name_labels(path: Path) -> tuple[int, int, int, int]:
    try:
        return parse_pendulum_name(path.name)
    except DataError as error:
        raise DataError(f"{path.parent}/{error}") from None


def _read_png(path: Path) -> np.ndarray:
    """One (96, 96, 4) uint8 picture. Size and mode are checked in the header, before anything is decoded."""
    with open_image(read_file(path, _MAX_PNG_BYTES), ("PNG",), str(path)) as picture:
        if picture.size != (96, 96) or picture.mode != "RGBA":
            width, height = picture.size
            raise DataError(f"{path}: it is {width}x{height} {picture.mode}, 96x96 RGBA is needed")
        return np.array(picture)


def _counterfactual(data: ImageData, do: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    generator = pendulum.PendulumGenerator()
    images = generator.counterfactual_images(data.labels, do)[..., : data.spec.channels].transpose(0, 3, 1, 2)
    return generator.counterfactual_labels(data.labels, do), images


def _measure(images: np.ndarray) -> np.ndarray:
    return pendulum.PendulumGenerator().measure(images.transpose(0, 2, 3, 1))


def _exact_labels(data: ImageData) -> np.ndarray:
    """The labels that the pictures show: on disk the shadow's are truncated to whole numbers."""
    return pendulum.true_labels(data.labels[:, 0], data.labels[:, 1]).astype(np.float32)


def _shows_all(labels: np.ndarray) -> np.ndarray:
    """(N,) bool: whether the shadow of labels (N, 4) lies in the picture."""
    length, position = labels[:, 2], labels[:, 3]
    low, high = _SHADOW_ROOM
    return (position - length / 2 >= low) & (position + length / 2 <= high)


def _examples(spec: DatasetSpec, count: int) -> ImageData:
    """Pendulums drawn on the spot."""
    rng = np.random.default_rng(_EXAMPLE_SEED)
    # away from the corners, where sun and shadow leave the picture
    angle, light = rng.integers(-35, 40, count), rng.integers(70, 138, count)
    light = np.where(light == 100, 101, light)
    pictures = np.stack([pendulum.render(a, b) for a, b in zip(angle, light, strict=True)])
    images = resize_area(np.ascontiguousarray(pictures[..., : spec.channels].transpose(0, 3, 1, 2)), spec.image_size)
    labels = pendulum.file_labels(angle, light)
    names = [pendulum.file_name(row) for row in labels]
    return ImageData(spec, "test", images, labels.astype(np.float32), None, names)


PENDULUM: Final = register(
    Dataset(
        name="pendulum",
        spec=_spec,
        read=_read,
        source="pictures of a pendulum, a light and its shadow, drawn by this package's generator.",
        counterfactual=_counterfactual,
        has_truth=lambda data: True,
        measure=_measure,
        examples=_examples,
        exact_labels=_exact_labels,
        shows_all=_shows_all,
        published_channels=4,
    )
)
