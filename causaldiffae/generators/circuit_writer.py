"""Writes the CausalCircuit stand-in in the publisher's format (see `causaldiffae.datasets.circuit`).

A pair shares its exogenous noise. One of five interventions happens between its two images, all equally likely: none,
or one of red, green, blue and arm is set to a value drawn uniformly from 0..1 (`intervention_labels` 0, or 1 to 4;
`intervention_masks` in the same order). `epsilon` after it is the noise that leads to that value.

Pairs are drawn in chunks by several processes. Finished chunks are kept in a hidden folder beside the data set, so an
interrupted call resumes; when all are there, they are joined and the data set's folder appears.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from PIL import Image

from causaldiffae.errors import InputError
from causaldiffae.generators.circuit import FILE_ORDER, GRAPH, abduct, predict, sample_noise
from causaldiffae.generators.circuit_scene import SIZES, check_size, pressed, render
from causaldiffae.generators.common import complete_folder, is_finished
from causaldiffae.generators.workers import parallel_map

STAND_IN: Final = {"dataset": "circuit", "stand_in": True, "version": 1}
SPLITS: Final = ("train", "val", "test")
CHUNK: Final = 50  # pairs
_JPEG: Final = {"quality": 92, "subsampling": 0}  # 0: colours at full resolution
_TO_FILE: Final = [GRAPH.index(name) for name in FILE_ORDER]
_KEYS: Final = ("original_latents", "epsilon", "pressed", "intervention_labels", "intervention_masks", "imgs")


class _Chunk(NamedTuple):
    """The pairs `number` * CHUNK, ... of a split, `pairs` of them, which are one piece of work."""

    folder: Path
    split: str
    number: int
    pairs: int
    seed: int
    image_size: int

    @property
    def path(self) -> Path:
        return self.folder / f"{self.split}-{self.number:06d}-{self.pairs}.npz"

    def is_finished(self) -> bool:
        try:
            with np.load(self.path, allow_pickle=False) as file:
                return sorted(file.files) == sorted(_KEYS) and all(len(file[key]) == self.pairs for key in _KEYS)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return False


def encode_jpeg(image: np.ndarray) -> bytes:
    """A JPEG file of an image (S, S, 3) uint8, the same bytes for the same image."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=_JPEG["quality"], subsampling=_JPEG["subsampling"])
    return buffer.getvalue()


def sample_pairs(count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draws all members of the files for `count` pairs, except `imgs`."""
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
        out: a new or empty folder, or one that the same call has written before: then nothing is done.
        num_train: pairs of the training split.
        num_val, num_test: pairs of the other splits; by default a tenth of `num_train`, as published.
        image_size: pixels per side; 512 as published.
        seed: of everything that is drawn.
        workers: processes.
    """
    out = Path(out)
    tenth = max(num_train // 10, 1)
    counts = {
        "train": num_train,
        "val": tenth if num_val is None else num_val,
        "test": tenth if num_test is None else num_test,
    }
    for split, count in counts.items():
        if not 1 <= count <= 1_000_000:
            raise InputError(f"num{'' if split == 'train' else '_' + split}: expected 1..1000000, got {count}")
    if seed < 0:
        raise InputError(f"seed: expected 0 or more, got {seed}")
    check_size(image_size)
    note = {
        **STAND_IN,
        "note": "drawn by causaldiffae with MuJoCo; not the CausalCircuit files that Qualcomm AI Research publishes",
        "image_size": image_size,
        "seed": seed,
        "jpeg": _JPEG,
    }
    recipe = {**note, "num": counts}
    if is_finished(out, recipe):
        return out
    render(np.zeros(len(GRAPH)), SIZES[0])  # fails at once where a library is missing
    folder = _chunk_folder(out, note)
    chunks = [
        _Chunk(folder, split, start // CHUNK, min(CHUNK, count - start), seed, image_size)
        for split, count in counts.items()
        for start in range(0, count, CHUNK)
    ]
    paths = list(parallel_map(_draw_chunk, chunks, workers=workers, description="circuit", progress=progress))
    with complete_folder(out, recipe) as complete:
        for split in SPLITS:
            parts = [path for path, chunk in zip(paths, chunks, strict=True) if chunk.split == split]
            _join(complete / f"{split}.npz", parts, note)
    shutil.rmtree(folder)
    return out


def _draw_chunk(chunk: _Chunk) -> Path:
    """Draws one chunk, unless its file is there already; returns the file."""
    if chunk.is_finished():
        return chunk.path
    rng = np.random.default_rng([chunk.seed, SPLITS.index(chunk.split), chunk.number])
    # Whole chunks are drawn, so that a smaller set is the start of a larger one.
    members: dict[str, Any] = {key: values[: chunk.pairs] for key, values in sample_pairs(CHUNK, rng).items()}
    labels = members["original_latents"][..., np.argsort(_TO_FILE)]
    members["imgs"] = np.array([[encode_jpeg(render(row, chunk.image_size)) for row in pair] for pair in labels])
    partial = chunk.path.with_suffix(f".partial-{os.getpid()}")
    with partial.open("wb") as file:
        np.savez(file, **members)
    partial.replace(chunk.path)
    return chunk.path


def _chunk_folder(out: Path, note: dict[str, Any]) -> Path:
    """The folder of finished chunks: one for each `out`, size and seed, whatever the number of pairs."""
    digest = hashlib.sha256(json.dumps(note, sort_keys=True).encode()).hexdigest()[:8]
    out = out.absolute()
    folder = out.parent / f".{out.name}.chunks-{digest}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: expected a writable place, cannot create it ({error.strerror})") from None
    return folder


def _join(path: Path, parts: list[Path], note: dict[str, Any]) -> None:
    """Writes one split, the same bytes each time; the images pass through a file, as they may not fit in memory."""
    members: dict[str, list[np.ndarray]] = {key: [] for key in _KEYS if key != "imgs"}
    width = 1
    for part in parts:
        with np.load(part, allow_pickle=False) as file:
            width = max(width, file["imgs"].dtype.itemsize)
            for key, values in members.items():
                values.append(file[key])
    arrays = {key: np.concatenate(values) for key, values in members.items()}
    arrays["stand_in"] = np.array(json.dumps(note, sort_keys=True).encode())
    count = len(arrays["intervention_labels"])
    with tempfile.TemporaryFile(dir=path.parent) as scratch:
        images = np.memmap(scratch, f"S{width}", "w+", shape=(count, 2))
        for start, part in zip(range(0, count, CHUNK), parts, strict=True):
            with np.load(part, allow_pickle=False) as file:
                images[start : start + CHUNK] = file["imgs"]
        np.savez(path, **arrays, imgs=images)  # type: ignore[arg-type]
