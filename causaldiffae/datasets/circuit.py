"""CausalCircuit: `train.npz` (or its parts `train-0.npz`, `train-1.npz`, ...), `val.npz` and `test.npz`.

Each file contains pairs of samples before and after an intervention; only those before it (index 0 of the second axis)
are used.

    original_latents (N, 2, 4) float64    red, green, blue, arm, in 0..1
    imgs             (N, 2)               JPEG files: byte strings, or Python objects of type bytes as published
    epsilon (N, 2, 4), pressed (N, 2, 3), intervention_labels (N,), intervention_masks (N, 4)    ignored
    stand_in                              JSON, only in files rendered by this package

Images are decoded and resized in small blocks to limit memory. The true counterfactual is known only for images
rendered by this package; it is rendered and JPEG-encoded in the same way.
"""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from causaldiffae.datasets.dataset import Dataset, asset, register
from causaldiffae.datasets.images import ImageData, resize_area
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.images import open_image, without_size_warnings
from causaldiffae.files.npz import NpzFile
from causaldiffae.generators.circuit import FILE_ORDER, GRAPH, CircuitGenerator
from causaldiffae.generators.circuit_scene import can_render
from causaldiffae.generators.circuit_writer import STAND_IN, encode_jpeg

MAX_JPEG_BYTES: Final = 4 << 20
MAX_SIDE: Final = 2048

_COLUMNS: Final = [FILE_ORDER.index(name) for name in GRAPH.names]
_BLOCK: Final = 64


@dataclass
class CircuitData(ImageData):
    """A split of CausalCircuit.

    Attributes:
        rendered_size: side in pixels at which this package rendered the images; None for the published files.
    """

    rendered_size: int | None = None


def split_files(data_dir: Path, split: str) -> list[Path]:
    """`split.npz`, or its parts `split-0.npz`, `split-1.npz`, ...; raises `DataError` if any is missing."""
    whole = data_dir / f"{split}.npz"
    if whole.exists():
        return [whole]
    parts = list(itertools.takewhile(Path.exists, (data_dir / f"{split}-{i}.npz" for i in itertools.count())))
    found = len(list(data_dir.glob(f"{split}-*.npz")))
    if not parts:
        raise DataError(f"{data_dir}: expected {split}.npz, or {split}-0.npz, {split}-1.npz, ..., got neither")
    if found != len(parts):
        raise DataError(f"{data_dir}: expected {split}-{len(parts)}.npz, got {found} files {split}-*.npz without it")
    return parts


def read_circuit(spec: DatasetSpec, data_dir: Path, split: str, limit: int | None) -> ImageData:
    """Reads the first `limit` images of one split.

    Raises:
        DataError: naming the file and member, for content that differs from the module docstring.
    """
    paths = split_files(data_dir, split)
    labels, sizes = [], []
    for path in paths:
        with NpzFile(path) as file:
            labels.append(_read_labels(path, file))
            sizes.append(_rendered_size(path, file))
    counts = [len(part) for part in labels]
    total = min(sum(counts), limit or sum(counts))
    if not total:
        raise DataError(f"{paths[0]}: expected at least one image, got none")
    try:
        images = np.empty((total, spec.channels, spec.image_size, spec.image_size), np.uint8)
    except MemoryError:
        raise DataError(f"{paths[0]}: {total} images of {spec.image_size} pixels do not fit into memory") from None
    start, ids = 0, []
    for path, count in zip(paths, counts, strict=True):
        rows = min(count, total - start)
        if rows > 0:
            _read_images(path, count, images[start : start + rows])
        start += rows
        ids += [f"{path.stem}:{row}" for row in range(rows)]
    rendered_size = sizes[0] if len(set(sizes)) == 1 else None
    table = np.concatenate(labels)[:total].astype(np.float32)
    return CircuitData(spec, split, images, table, None, ids, rendered_size=rendered_size)


def _read_labels(path: Path, file: NpzFile) -> np.ndarray:
    """(N, 4) float64 in the graph's order."""
    latents = file.array("original_latents", (None, 2, len(GRAPH)))[:, 0]
    for row, column in np.argwhere(~np.isfinite(latents))[:1]:
        where = f"{path}: original_latents: row {row}, {FILE_ORDER[column]}"
        raise DataError(f"{where}: expected a finite number, got {latents[row, column]:g}")
    return latents[:, _COLUMNS].astype(np.float64)


def _rendered_size(path: Path, file: NpzFile) -> int | None:
    """The size in the member `stand_in`; None if it is absent or written by another version of this package."""
    if "stand_in" not in file.names:
        return None
    text = file.array("stand_in", (), "S").item()
    try:
        note = json.loads(text.decode())
        size = note["image_size"]
        known = all(note[key] == value for key, value in STAND_IN.items())
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{path}: stand_in: expected the note of make_dataset.py, got {text!r:.60}") from None
    return size if known and type(size) is int and 16 <= size <= MAX_SIDE else None


def _read_images(path: Path, count: int, images: np.ndarray) -> None:
    """Fills `images` (n, 3, S, S) from the first n of the file's `count` rows."""
    size = images.shape[-1]
    with NpzFile(path) as file, ThreadPoolExecutor() as pool, without_size_warnings():
        shape = file.header("imgs").shape
        if shape != (count, 2):
            raise DataError(f"{path}: imgs: expected shape {(count, 2)} to match original_latents, got {shape}")
        strings = itertools.islice(file.byte_strings("imgs", count, MAX_JPEG_BYTES), 0, 2 * len(images), 2)
        for start in range(0, len(images), _BLOCK):
            block = list(itertools.islice(strings, _BLOCK))
            where = [f"{path}: imgs: row {row}" for row in range(start, start + len(block))]
            # Pillow releases the GIL while it decodes
            images[start : start + len(block)] = list(pool.map(decode_jpeg, block, [size] * len(block), where))


def decode_jpeg(content: bytes, size: int, where: str) -> np.ndarray:
    """Decodes one square JPEG image to (3, size, size) uint8, resized by area averaging.

    The header is checked first. An image of at least twice the size is decoded at 1/2, 1/4 or 1/8 of its resolution, as
    the JPEG format allows, which takes a third of the time.
    """
    with open_image(content, ("JPEG",), where, MAX_SIDE**2) as image:
        width, height = image.size
        if image.mode != "RGB" or width != height or not 8 <= width <= MAX_SIDE:
            given = f"{width}x{height} {image.mode}"
            raise DataError(f"{where}: expected a square RGB image of 8..{MAX_SIDE} pixels per side, got {given}")
        image.draft("RGB", (size, size))
        pixels = np.asarray(image)
    return resize_area(pixels.transpose(2, 0, 1)[None], size)[0]


def _rendered(data: ImageData) -> int | None:
    return getattr(data, "rendered_size", None)


def _counterfactual(data: ImageData, do: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    rendered_size, size = _rendered(data), data.spec.image_size
    if rendered_size is None:
        raise InputError("true counterfactual: expected images rendered by scripts/make_dataset.py circuit, got others")
    generator = CircuitGenerator()
    labels = generator.counterfactual_labels(data.labels, do)
    images = np.empty((len(labels), 3, size, size), np.uint8)
    for i, row in enumerate(labels):
        image = generator.counterfactual_images(row[None], {}, rendered_size)[0]
        images[i] = decode_jpeg(encode_jpeg(image), size, f"image {i}")
    return labels, images


register(
    Dataset(
        name="circuit",
        spec=DatasetSpec(
            name="circuit",
            image_size=128,  # the published images have 512 pixels
            channels=3,
            graph=GRAPH,
            # mean and standard deviation under the structural model
            shift=(0.5, 0.311, 0.311, 0.638),
            scale=(0.289, 0.265, 0.265, 0.249),
            low=(0.0, 0.0, 0.0, 0.0),
            high=(1.0, 1.0, 1.0, 1.0),
            units=("share of the sweep", "share of full light", "share of full light", "share of full light"),
        ),
        read=read_circuit,
        source="a stand-in for CausalCircuit rendered by this package, unless the published files were used.",
        counterfactual=_counterfactual,
        has_truth=lambda data: _rendered(data) is not None and can_render(),
        measure=lambda images: CircuitGenerator().measure(images.transpose(0, 2, 3, 1)),
        # rendered in advance, because the renderer is an optional dependency
        examples=lambda spec, count: read_circuit(spec, asset("circuit_share"), "test", count),
        published_channels=3,
        published_steps=2000,
    )
)
