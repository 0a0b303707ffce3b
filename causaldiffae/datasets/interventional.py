"""True pictures off the observational distribution: every label drawn by itself, the picture drawn by the generator.

In the data sets labels go together (thick digits are bright). A predictor that has seen only those may read one label
by way of another, and is then wrong exactly where a counterfactual is asked for. Here all variables are set at once,
each uniform over its range and independent of the others: do(all := independent values) on images of the split.
Digits are also drawn from bent base digits: the generator then draws the exact label of a digit never seen before.
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
    """(count, n) float64, every label uniform over its training range and independent of the others.

    Labels are drawn again where a picture would not show all of them, like a shadow outside of it.
    """
    labels, shows_all = np.empty((0, len(spec.graph))), find_dataset(spec.name).shows_all
    while len(labels) < count:
        drawn = rng.uniform(spec.low, spec.high, (count, len(spec.graph)))
        labels = np.concatenate([labels, drawn if shows_all is None else drawn[shows_all(drawn)]])
    return labels[:count]


def interventional(
    data: ImageData, repeats: int, seed: int, bend: bool, workers: int = 1, progress: bool = False
) -> ImageData:
    """True pictures with independent labels: `repeats` of every image of `data`.

    Args:
        data: the split, or a part of it; what the labels do not say (the digit) comes from it.
        seed: of the labels and bends.
        bend: bend base digits before they are drawn.

    Returns:
        The images (N * repeats), ordered by chunks of `data`; the labels are exact.
    """
    starts = range(0, len(data), _CHUNK)
    parts = [data.subset(range(start, min(start + _CHUNK, len(data)))) for start in starts]
    draw = partial(_draw_chunk, repeats=repeats, seed=seed, bend=bend)
    drawn = list(
        parallel_map(
            draw, list(enumerate(parts)), workers=workers, description="interventional images", progress=progress
        )
    )
    classes = [part.classes for part in drawn if part.classes is not None]
    return replace(
        drawn[0],
        images=np.concatenate([part.images for part in drawn]),
        labels=np.concatenate([part.labels for part in drawn]),
        classes=np.concatenate(classes) if classes else None,
        ids=[name for part in drawn for name in part.ids],
        base_images=None,
    )


def _draw_chunk(numbered: tuple[int, ImageData], repeats: int, seed: int, bend: bool) -> ImageData:
    number, part = numbered
    rng = np.random.Generator(np.random.Philox(key=[seed, number]))
    deformed = find_dataset(part.spec.name).deformed
    if bend and part.base_images is not None and deformed is not None:
        part = replace(part, base_images=np.stack([deformed(image, rng) for image in part.base_images]))
    images, labels = [], []
    for _ in range(repeats):
        wanted = independent_labels(part.spec, len(part), rng)
        columns = {name: wanted[:, i] for i, name in enumerate(part.spec.graph.names)}
        true, pictures = true_counterfactual(part, columns)
        images.append(pictures)
        labels.append(true)
    rows = list(range(len(part))) * repeats
    return replace(
        part.subset(rows), images=np.concatenate(images), labels=np.concatenate(labels), base_images=None, labelled=None
    )


def cached_interventional(
    data: ImageData, folder: str | Path, repeats: int, seed: int, bend: bool, workers: int = 1, progress: bool = False
) -> ImageData:
    """`interventional`, kept as one .npz in `folder` and read from there the next time."""
    digest = hashlib.sha256(np.ascontiguousarray(data.labels).tobytes() + data.images.tobytes()).hexdigest()[:12]
    name = f"interventional_v{VERSION}_{data.spec.image_size}_{len(data)}x{repeats}_{digest}_seed{seed}_bend{int(bend)}"
    path = Path(folder) / f"{name}.npz"
    if path.is_file():
        return _read(path, data, repeats)
    drawn = interventional(data, repeats, seed, bend, workers, progress)
    named = {"images": drawn.images, "labels": drawn.labels}
    if drawn.classes is not None:
        named["classes"] = drawn.classes
    packed = io.BytesIO()
    np.savez_compressed(packed, **named)  # type: ignore[arg-type]
    try:
        replace_file(path, packed.getvalue())
    except OSError as error:
        warnings.warn(f"{path}: the images cannot be kept ({error.strerror}); they are drawn anew", stacklevel=2)
    return drawn


def _read(path: Path, data: ImageData, repeats: int) -> ImageData:
    count = len(data) * repeats
    try:
        with NpzFile(path) as kept:
            images = kept.array("images", (count, *data.images.shape[1:]), "u")
            labels = kept.array("labels", (count, *data.labels.shape[1:]), "f")
            classes = kept.array("classes", (count,), "i") if data.classes is not None else None
    except DataError as error:
        raise DataError(f"{error}; delete it to draw the images anew") from None
    if images.dtype != np.uint8 or not np.isfinite(labels).all() or not _are_classes(classes, data.spec.num_classes):
        raise DataError(f"{path}: it holds other images than its name says; delete it to draw the images anew")
    ids = [str(i) for i in range(count)]
    labels, classes = labels.astype(np.float32), None if classes is None else classes.astype(np.int64)
    return ImageData(data.spec, data.split, images, labels, classes, ids)


def _are_classes(classes: np.ndarray | None, number: int | None) -> bool:
    return classes is None or bool(((classes >= 0) & (classes < (number or 0))).all())
