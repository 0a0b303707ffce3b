"""Writes the CausalCircuit stand-in in the publisher's format (see `causaldiffae.datasets.circuit`).

A pair shares its exogenous noise. One of five interventions happens between its two halves, each as likely: none, or
one of red, green, blue and arm is set to a value drawn uniformly from 0..1 (`intervention_labels` 0, or 1 to 4;
`intervention_masks` in the same order). `epsilon` after it is the noise that leads to that value.

Pairs are drawn in chunks, by several processes. A finished chunk is kept in a hidden folder beside the data set until
all are there, so an interrupted run goes on where it was; then they are put together and the folder takes its name.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from PIL import Image

from causaldiffae.errors import InputError
from causaldiffae.generators import complete_folder, is_finished, parallel_map
from causaldiffae.generators.circuit import FILE_ORDER, GRAPH, abduct, predict, sample_noise
from causaldiffae.generators.circuit_scene import SIZES, pressed, render

STAND_IN: Final = {"dataset": "circuit", "stand_in": True, "version": 1}
_JPEG: Final = {"quality": 92, "subsampling": 0}  # 0: colours at full resolution
SPLITS: Final = ("train", "val", "test")
CHUNK: Final = 50  # pairs
_TO_FILE: Final = [GRAPH.index(name) for name in FILE_ORDER]
_KEYS: Final = ("original_latents", "epsilon", "pressed", "intervention_labels", "intervention_masks", "imgs")


class Chunk(NamedTuple):
    """One piece of work: from `number` * CHUNK on, so many pairs of a split."""

    folder: Path
    split: str
    number: int
    pairs: int
    seed: int
    image_size: int

    @property
    def path(self) -> Path:
        return self.folder / f"{self.split}-{self.number:06d}-{self.pairs}.npz"


def stand_in_note(image_size: int, seed: int) -> dict[str, Any]:
    """What the member `stand_in` and recipe.json say about the pictures."""
    return {
        **STAND_IN,
        "note": "drawn by causaldiffae with MuJoCo; not the CausalCircuit files that Qualcomm AI Research publishes",
        "image_size": image_size,
        "seed": seed,
        "jpeg": _JPEG,
    }


def encode_jpeg(image: np.ndarray) -> bytes:
    """A JPEG file of a picture (S, S, 3) uint8, the same bytes for the same picture."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=_JPEG["quality"], subsampling=_JPEG["subsampling"])
    return buffer.getvalue()


def sample_pairs(count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Everything about `count` pairs but the pictures: the members of the files, without `imgs`."""
    noise = sample_noise(count, rng)
    before = predict(noise, {})
    kind = rng.integers(0, len(GRAPH) + 1, count)
    value = rng.random(count)
    after = before.copy()
    for number, name in enumerate(FILE_ORDER, start=1):
        rows = kind == number
        if rows.any():
            after[rows] = predict(noise[rows], {name: value[rows]})
    labels = np.stack([before, after], axis=1)
    epsilon = np.stack([noise, np.where((kind == 0)[:, None], noise, abduct(after))], axis=1)
    return {
        "original_latents": labels[..., _TO_FILE],
        "epsilon": epsilon[..., _TO_FILE],
        "pressed": pressed(labels[..., GRAPH.index("arm")]),
        "intervention_labels": kind,
        "intervention_masks": kind[:, None] == np.arange(1, len(GRAPH) + 1),
    }


def draw_chunk(chunk: Chunk) -> Path:
    """Draws one chunk and keeps it as a file, unless it is there already; returns the file."""
    if _chunk_is_whole(chunk):
        return chunk.path
    rng = np.random.default_rng([chunk.seed, SPLITS.index(chunk.split), chunk.number])
    # Always a whole chunk's numbers, so that a smaller set is the start of a larger one.
    members: dict[str, Any] = {key: values[: chunk.pairs] for key, values in sample_pairs(CHUNK, rng).items()}
    labels = members["original_latents"][..., np.argsort(_TO_FILE)]
    members["imgs"] = np.array([[encode_jpeg(render(row, chunk.image_size)) for row in pair] for pair in labels])
    partial = chunk.path.with_suffix(f".partial-{os.getpid()}")
    with partial.open("wb") as file:
        np.savez(file, **members)
    partial.replace(chunk.path)
    return chunk.path


def _chunk_is_whole(chunk: Chunk) -> bool:
    try:
        with np.load(chunk.path, allow_pickle=False) as file:
            return sorted(file.files) == sorted(_KEYS) and all(len(file[key]) == chunk.pairs for key in _KEYS)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return False


def write_dataset(
    out: str | Path,
    *,
    num_train: int,
    num_val: int | None = None,
    num_test: int | None = None,
    image_size: int = 512,
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> Path:
    """Draws `out/train.npz`, `out/val.npz` and `out/test.npz`. The folder appears when complete.

    Args:
        out: a new or empty folder, or one that this very call has written: then nothing is done.
        num_train: pairs to train on.
        num_val, num_test: pairs of the other splits; left out, a tenth of `num_train`, as published.
        image_size: pixels a side; 512 as published.
        seed: of everything that is drawn.
        workers: processes.

    Raises:
        InputError: if an argument cannot be served, `out` holds anything else, or MuJoCo cannot draw here.
    """
    out = Path(out)
    tenth = max(num_train // 10, 1)
    counts = {"train": num_train, "val": tenth if num_val is None else num_val}
    counts["test"] = tenth if num_test is None else num_test
    for split, count in counts.items():
        if not 1 <= count <= 1_000_000:
            raise InputError(f"num{'' if split == 'train' else '_' + split}: {count} given, 1..1000000 are allowed")
    if seed < 0:
        raise InputError(f"seed: {seed} given, 0 or more is needed")
    if not SIZES[0] <= image_size <= SIZES[1]:
        raise InputError(f"image_size: {image_size} given, {SIZES[0]}..{SIZES[1]} can be drawn")
    recipe = {**stand_in_note(image_size, seed), "num": counts}
    if is_finished(out, recipe):
        return out
    render(np.zeros(len(GRAPH)), SIZES[0])  # says at once what is missing
    chunks = _chunks(_chunk_folder(out, recipe), counts, seed, image_size)
    paths = parallel_map(draw_chunk, chunks, workers=workers, description="circuit", progress=progress)
    for _ in paths:
        pass
    with complete_folder(out, recipe) as folder:
        for split in SPLITS:
            parts = [chunk.path for chunk in chunks if chunk.split == split]
            _join(folder / f"{split}.npz", parts, stand_in_note(image_size, seed))
    shutil.rmtree(chunks[0].folder)
    return out


def _chunk_folder(out: Path, recipe: dict[str, Any]) -> Path:
    """Where finished chunks wait: one place for each `out` and each way of drawing, however many are wanted."""
    way = {key: value for key, value in recipe.items() if key != "num"}
    digest = hashlib.sha256(json.dumps(way, sort_keys=True).encode()).hexdigest()[:8]
    out = out.absolute()
    folder = out.parent / f".{out.name}.chunks-{digest}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be created ({error.strerror}), a writable place is needed") from None
    return folder


def _chunks(folder: Path, counts: dict[str, int], seed: int, image_size: int) -> list[Chunk]:
    return [
        Chunk(folder, split, start // CHUNK, min(CHUNK, count - start), seed, image_size)
        for split, count in counts.items()
        for start in range(0, count, CHUNK)
    ]


def _join(path: Path, parts: list[Path], note: dict[str, Any]) -> None:
    """Writes one split, the same bytes each time; the pictures pass through memory chunk by chunk."""
    small: dict[str, list[np.ndarray]] = {key: [] for key in _KEYS if key != "imgs"}
    width = 1
    for part in parts:
        with np.load(part, allow_pickle=False) as file:
            width = max(width, file["imgs"].dtype.itemsize)
            for key, values in small.items():
                values.append(file[key])
    arrays = {key: np.concatenate(values) for key, values in small.items()}
    arrays["stand_in"] = np.array(json.dumps(note, sort_keys=True).encode())
    count = len(arrays["intervention_labels"])
    with zipfile.ZipFile(path, "w") as archive:
        for key, array in arrays.items():
            _write_member(archive, key, array.dtype, array.shape, [array])
        _write_member(archive, "imgs", np.dtype(f"S{width}"), (count, 2), (_images(part) for part in parts))


def _images(part: Path) -> np.ndarray:
    with np.load(part, allow_pickle=False) as file:
        return file["imgs"]


def _write_member(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], blocks: Iterable[np.ndarray]
) -> None:
    entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(entry, "w", force_zip64=True) as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for block in blocks:
            stream.write(np.ascontiguousarray(block, dtype).tobytes())
