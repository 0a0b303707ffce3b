"""Interventional images: labels are sampled independently, and the generator renders the images.

Labels of a data set are correlated (thick digits are bright). A predictor trained only on such data can infer one label
from another, and then fails on counterfactuals. Here an intervention sets all variables to independent values, each
uniform over its range. Digits can also be rendered from deformed base digits, with exact labels.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from causaldiffae.datasets.images import ImageData
from causaldiffae.datasets.registry import find_dataset, true_counterfactual
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError
from causaldiffae.files.npz import NpzFile
from causaldiffae.files.reading import replace_file
from causaldiffae.generators.workers import parallel_map

VERSION: Final = 1
_CHUNK: Final = 32


def independent_labels(spec: DatasetSpec, count: int, rng: np.random.Generator) -> np.ndarray:
    """Samples labels (count, n) float64, independent and uniform over their training ranges.

    Labels that are not visible in the image, such as a shadow outside it, are rejected.
    """
    labels, shows_all = np.empty((0, len(spec.graph))), find_dataset(spec.name).shows_all
    while len(labels) < count:
        drawn = rng.uniform(spec.low, spec.high, (count, len(spec.graph)))
        labels = np.concatenate([labels, drawn if shows_all is None else drawn[shows_all(drawn)]])
    return labels[:count]


def interventional(
    data: ImageData, repeats: int, seed: int, bend: bool, workers: int = 1, progress: bool = False
) -> ImageData:
    """Renders `repeats` images with independent labels from every image of `data`.

    Args:
        data: source images; they determine what the labels do not (the digit).
        seed: seed of labels and deformations.
        bend: deform base digits first.

    Returns:
        N * repeats images with exact labels, in chunks of the order of `data`.
    """
    parts = [data.subset(range(start, min(start + _CHUNK, len(data)))) for start in range(0, len(data), _CHUNK)]
    draw, name = partial(_draw_chunk, repeats=repeats, seed=seed, bend=bend), "interventional images"
    drawn = list(parallel_map(draw, list(enumerate(parts)), workers=workers, description=name, progress=progress))
    classes = [part.classes for part in drawn if part.classes is not None]
    return replace(
        drawn[0],
        images=np.concatenate([part.images for part in drawn]),
        labels=np.concatenate([part.labels for part in drawn]),
        classes=np.concatenate(classes) if classes else None,
        ids=[name for part in drawn for name in part.ids],
    )


def _draw_chunk(numbered: tuple[int, ImageData], repeats: int, seed: int, bend: bool) -> ImageData:
    number, part = numbered
    rng = np.random.Generator(np.random.Philox(key=[seed, number]))
    deformed = find_dataset(part.spec.name).deformed
    if bend and part.base_images is not None and deformed is not None:
        part = replace(part, base_images=np.stack([deformed(image, rng) for image in part.base_images]))
    drawn = []
    for _ in range(repeats):
        values = independent_labels(part.spec, len(part), rng)
        do = {name: values[:, i] for i, name in enumerate(part.spec.graph.names)}
        drawn.append(true_counterfactual(part, do))
    labels, images = (np.concatenate(arrays) for arrays in zip(*drawn, strict=True))
    repeated = part.subset(list(range(len(part))) * repeats)
    return replace(repeated, images=images, labels=labels, base_images=None, labelled=None)


def cached_interventional(
    data: ImageData, folder: str | Path, repeats: int, seed: int, bend: bool, workers: int = 1, progress: bool = False
) -> ImageData:
    """`interventional`, cached as an .npz file in `folder`."""
    digest = hashlib.sha256(np.ascontiguousarray(data.labels).tobytes() + data.images.tobytes()).hexdigest()[:12]
    name = f"interventional_v{VERSION}_{data.spec.image_size}_{len(data)}x{repeats}_{digest}_seed{seed}_bend{int(bend)}"
    path = Path(folder) / f"{name}.npz"
    if path.is_file():
        return _read(path, data, repeats)
    drawn = interventional(data, repeats, seed, bend, workers, progress)
    arrays = {"images": drawn.images, "labels": drawn.labels}
    if drawn.classes is not None:
        arrays["classes"] = drawn.classes
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    try:
        replace_file(path, packed.getvalue())
    except OSError as error:
        warnings.warn(f"{path}: cannot cache the images ({error.strerror})", stacklevel=2)
    return drawn


def _read(path: Path, data: ImageData, repeats: int) -> ImageData:
    count, spec = len(data) * repeats, data.spec
    try:
        with NpzFile(path) as kept:
            images = kept.array("images", (count, *data.images.shape[1:]), "u")
            labels = kept.array("labels", (count, *data.labels.shape[1:]), "f")
            classes = kept.array("classes", (count,), "i") if data.classes is not None else None
    except DataError as error:
        raise DataError(f"{error}; delete it to render the images again") from None
    valid = classes is None or ((classes >= 0) & (classes < (spec.num_classes or 0))).all()
    if images.dtype != np.uint8 or not np.isfinite(labels).all() or not valid:
        raise DataError(f"{path}: expected the images of its name, got others; delete it to render them again")
    classes = None if classes is None else classes.astype(np.int64)
    return ImageData(spec, data.split, images, labels.astype(np.float32), classes, [str(i) for i in range(count)])
