"""Weak supervision: selects the training images that keep their labels.

A fraction of the training images keeps its labels (CausalDiffAE, section 4.4). The images are shuffled with a seed and
the first ones are selected, so the labelled images at 10 % are a subset of those at 50 %. The selection is written to
the data folder, so that other models and later runs use the same labels. (The published code samples a new selection at
every step and so eventually uses every label.)
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from causaldiffae.datasets.images import ImageData
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import read_file, replace_file


def choose_labelled(count: int, fraction: float, seed: int) -> np.ndarray:
    """(count,) bool with round(fraction * count) true entries, at least one unless `fraction` is 0."""
    if not 0.0 <= fraction <= 1.0:
        raise InputError(f"label_fraction: expected a number in 0..1, got {fraction}")
    chosen = max(round(fraction * count), 1) if fraction > 0 else 0
    order = np.random.Generator(np.random.Philox(key=[seed, 0x6C6162656C])).permutation(count)
    labelled = np.zeros(count, bool)
    labelled[order[:chosen]] = True
    return labelled


def list_path(folder: Path, data: ImageData, fraction: float, seed: int) -> Path:
    """The file that lists the labelled images of a split, one name per line."""
    return folder / f"labelled_{data.split}_{len(data)}_fraction{fraction:g}_seed{seed}.txt"


def with_labels_of(data: ImageData, fraction: float, seed: int, folder: str | Path, write: bool = True) -> ImageData:
    """Returns the split with labels on a fraction of its images.

    Uses the list of labelled images in `folder` if it exists; otherwise selects the images and, with `write`, writes
    the list. Images without labels in `data` stay unlabelled.

    Raises:
        InputError: for a fraction outside 0..1.
        DataError: if the list does not contain the expected number of images of the split.
    """
    labelled = choose_labelled(len(data), fraction, seed)
    if fraction < 1.0:
        path = list_path(Path(folder), data, fraction, seed)
        if path.is_file():
            labelled = _read_list(path, data, int(labelled.sum()))
        elif write:
            names = "".join(f"{name}\n" for name, chosen in zip(data.ids, labelled, strict=True) if chosen)
            try:
                replace_file(path, names.encode())
            except OSError as error:  # a read-only folder; the checkpoint also stores the selection
                warnings.warn(f"{path}: cannot write the list of labelled images ({error.strerror})", stacklevel=2)
    if data.labelled is not None:
        labelled &= data.labelled
    return replace(data, labelled=labelled)


def labelled_only(data: ImageData) -> ImageData:
    """Returns the labelled images of a split; an `InputError` if there are none."""
    if data.labelled is None or data.labelled.all():
        return data
    if not data.labelled.any():
        raise InputError(f"data set {data.spec.name}: expected labelled images in split {data.split}, got none")
    return data.subset(np.flatnonzero(data.labelled))


def _read_list(path: Path, data: ImageData, count: int) -> np.ndarray:
    try:
        names = read_file(path, sum(len(name.encode("utf-8", "replace")) + 2 for name in data.ids)).decode()
    except UnicodeDecodeError:
        raise DataError(f"{path}: expected UTF-8 text; delete the file to reset it") from None
    rows = {name: i for i, name in enumerate(data.ids)}
    listed = names.splitlines()
    unknown = [name for name in listed if name not in rows]
    if unknown:
        raise DataError(f"{path}: expected images of the split, got {unknown[0]!r:.80}; delete the file to reset it")
    labelled = np.zeros(len(data), bool)
    labelled[[rows[name] for name in listed]] = True
    if len(listed) != count or labelled.sum() != count:
        different = int(labelled.sum())
        raise DataError(f"{path}: expected {count} distinct names, got {different}; delete the file to reset it")
    return labelled


def digest(labelled: np.ndarray) -> str:
    """Digest of a selection of labelled images, 12 hexadecimal digits."""
    return hashlib.sha256(np.packbits(labelled).tobytes() + str(len(labelled)).encode()).hexdigest()[:12]
