"""CausalCircuit's files: `train.npz` (or its parts `train-0.npz`, `train-1.npz`, ...), `val.npz`, `test.npz`.

Each holds pairs before and after an intervention; index 0 of the second axis is before, and only that is used here.

    original_latents (N, 2, 4) float64    red, green, blue, arm, in 0..1
    imgs             (N, 2)               JPEG files: byte strings, or Python objects of type bytes as published
    epsilon (N, 2, 4), pressed (N, 2, 3), intervention_labels (N,), intervention_masks (N, 4)    not read
    stand_in                              ours alone: JSON that says what drew the pictures

Pictures are decoded in small blocks and resized at once: neither all files nor all full-size pictures are ever in
memory. For our stand-in the truth is known: its pictures are drawn and packed again under an intervention.
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
from causaldiffae.datasets.spec import DatasetSpec, check_size
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.images import open_image, without_size_warnings
from causaldiffae.files.npz import NpzFile
from causaldiffae.generators.circuit import FILE_ORDER, GRAPH, IMAGE_SIZE, CircuitGenerator
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
        rendered_size: pixels a side that the pictures were drawn at where our own scene drew them, else None.
    """

    rendered_size: int | None = None


def circuit_spec(image_size: int | None, channels: int | None) -> DatasetSpec:
    """The spec; published 512 px pictures are used at 128 px."""
    image_size, channels = image_size or IMAGE_SIZE, channels or 3
    check_size("circuit", image_size, channels, (3,))
    return DatasetSpec(
        name="circuit",
        image_size=image_size,
        channels=channels,
        graph=GRAPH,
        # mean and standard deviation under the structural model
        shift=(0.5, 0.311, 0.311, 0.638),
        scale=(0.289, 0.265, 0.265, 0.249),
        low=(0.0, 0.0, 0.0, 0.0),
        high=(1.0, 1.0, 1.0, 1.0),
        units=("share of the sweep", "share of full light", "share of full light", "share of full light"),
    )


def split_files(data_dir: Path, split: str) -> list[Path]:
    """`split.npz`, or else the parts `split-0.npz`, `split-1.npz`, ... without a gap; `DataError` if there are none."""
    whole = data_dir / f"{split}.npz"
    if whole.exists():
        return [whole]
    parts = list(itertools.takewhile(Path.exists, (data_dir / f"{split}-{i}.npz" for i in itertools.count())))
    found = len(list(data_dir.glob(f"{split}-*.npz")))
    if not parts:
        raise DataError(f"{data_dir}: {split}.npz (or {split}-0.npz, {split}-1.npz, ...) is missing")
    if found != len(parts):
        raise DataError(f"{data_dir}: {found} files {split}-*.npz, but {split}-{len(parts)}.npz is missing")
    return parts


def read_circuit(spec: DatasetSpec, data_dir: Path, split: str, limit: int | None) -> ImageData:
    """One split, the pictures before the intervention; with `limit`, the first so many.

    Raises:
        DataError: naming file and member, for whatever is not as the module's text says.
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
        raise DataError(f"{paths[0]}: it holds no pictures")
    try:
        images = np.empty((total, spec.channels, spec.image_size, spec.image_size), np.uint8)
    except MemoryError:
        raise DataError(f"{paths[0]}: {total} pictures of {spec.image_size} px are too many for the memory") from None
    start, ids = 0, []
    for path, count in zip(paths, counts, strict=True):
        wanted = min(count, total - start)
        if wanted > 0:
            _read_images(path, count, images[start : start + wanted])
        start += wanted
        ids += [f"{path.stem}:{row}" for row in range(wanted)]
    drawn = sizes[0] if len(set(sizes)) == 1 else None
    table = np.concatenate(labels)[:total].astype(np.float32)
    return CircuitData(spec, split, images, table, None, ids, rendered_size=drawn)


def _read_labels(path: Path, file: NpzFile) -> np.ndarray:
    """(N, 4) float64 in the graph's order."""
    latents = file.array("original_latents", (None, 2, len(GRAPH)))[:, 0]
    wrong = np.argwhere(~np.isfinite(latents))
    if len(wrong):
        row, column = wrong[0]
        raise DataError(f"{path}: original_latents: {FILE_ORDER[column]} of row {row} is {latents[row, column]:g}")
    return latents[:, _COLUMNS].astype(np.float64)


def _rendered_size(path: Path, file: NpzFile) -> int | None:
    """What the member `stand_in` says about the size, None where there is none or another version of us drew."""
    if "stand_in" not in file.names:
        return None
    text = file.array("stand_in", (), "S").item()
    try:
        said = json.loads(text.decode())
        size = said["image_size"]
        known = all(said[key] == value for key, value in STAND_IN.items())
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{path}: stand_in: {text[:60]!r} is not what make_dataset.py writes") from None
    return size if known and type(size) is int and 16 <= size <= MAX_SIDE else None


def _read_images(path: Path, count: int, images: np.ndarray) -> None:
    """Fills `images` (n, 3, S, S) from the first n of the file's `count` rows."""
    size = images.shape[-1]
    with NpzFile(path) as file, ThreadPoolExecutor() as pool, without_size_warnings():
        shape = file.header("imgs").shape
        if shape != (count, 2):
            raise DataError(f"{path}: imgs: its shape is {shape}, {(count, 2)} is needed as original_latents has it")
        strings = itertools.islice(file.byte_strings("imgs", count, MAX_JPEG_BYTES), 0, 2 * len(images), 2)
        for start in range(0, len(images), _BLOCK):
            block = list(itertools.islice(strings, _BLOCK))
            places = [f"{path}: imgs: row {row}" for row in range(start, start + len(block))]
            # Pillow decodes outside Python's lock
            images[start : start + len(block)] = list(pool.map(decode_jpeg, block, [size] * len(block), places))


def decode_jpeg(content: bytes, size: int, where: str) -> np.ndarray:
    """One picture, (3, size, size) uint8, averaged over areas from its own size; `DataError` beginning with `where`.

    The header is checked before anything is decoded. A picture that is at least twice too large is decoded at half,
    a quarter or an eighth of its size, which the JPEG format allows for, and takes a third of the time.
    """
    with open_image(content, ("JPEG",), where, MAX_SIDE**2) as picture:
        width, height = picture.size
        if picture.mode != "RGB" or width != height or not 8 <= width <= MAX_SIDE:
            given = f"{width}x{height} {picture.mode}"
            raise DataError(f"{where}: it is {given}, a square RGB of 8..{MAX_SIDE} is needed")
        picture.draft("RGB", (size, size))
        image = np.asarray(picture)
    return resize_area(image.transpose(2, 0, 1)[None], size)[0]


def truth_is_known(data: ImageData) -> bool:
    """Whether our own scene drew these pictures, and can draw here."""
    return getattr(data, "rendered_size", None) is not None and can_render()


def counterfactual(data: ImageData, do: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """True labels (N, 4) float64 and pictures (N, 3, S, S) uint8: drawn, packed as JPEG and read as the factual ones.

    Raises:
        InputError: if the pictures are not our stand-in's, or MuJoCo is missing.
    """
    drawn_at = getattr(data, "rendered_size", None)
    if drawn_at is None:
        raise InputError(
            "true counterfactual: these pictures are not drawn by our scene (scripts/make_dataset.py circuit), so the "
            "truth is not known"
        )
    generator, size = CircuitGenerator(), data.spec.image_size
    labels = generator.counterfactual_labels(data.labels, do)
    images = np.empty((len(labels), 3, size, size), np.uint8)
    for i, row in enumerate(labels):
        image = generator.counterfactual_images(row[None], {}, drawn_at)[0]
        images[i] = decode_jpeg(encode_jpeg(image), size, f"picture {i}")
    return labels, images


def measure(images: np.ndarray) -> np.ndarray:
    """Labels (N, 4) read off pictures (N, 3, S, S) uint8 of our scene; see `CircuitGenerator.measure`."""
    return CircuitGenerator().measure(images.transpose(0, 2, 3, 1))


def _examples(spec: DatasetSpec, count: int) -> ImageData:
    """The stand-in's pictures in `assets/`, since its renderer is an extra."""
    return read_circuit(spec, asset("circuit_share"), "test", count)


CIRCUIT: Final = register(
    Dataset(
        name="circuit",
        spec=circuit_spec,
        read=read_circuit,
        source="a stand-in for CausalCircuit drawn by this package, unless the publisher's files were given.",
        counterfactual=counterfactual,
        has_truth=truth_is_known,
        measure=measure,
        examples=_examples,
        published_channels=3,
        published_steps=2000,
    )
)
