"""Weak supervision: which training images have labels.

A share of the training images keeps its labels (CausalDiffAE, section 4.4). The images are put in a random order that
depends on a seed only, and the order is cut at the share: the images of 10 % are among those of 50 %. The choice is
made once and written beside the data, so that other models and later runs use the same labels. (The published code
draws the choice at every step, so that every label is used in the end.)
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
    """The split with labels on a share of its images.

    The list of labelled images in `folder` is used if there is one. Otherwise the images are chosen and, with `write`,
    listed there. Images without labels in `data` stay without.

    Raises:
        InputError: for a share outside 0..1.
        DataError: if the list does not name the right number of images of the split.
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
            except OSError as error:  # a read-only folder; the checkpoint holds the choice too
                warnings.warn(f"{path}: the list of labelled images cannot be written ({error.strerror})", stacklevel=2)
    if data.labelled is not None:
        labelled &= data.labelled
    return replace(data, labelled=labelled)


def _read_list(path: Path, data: ImageData, count: int) -> np.ndarray:
    try:
        names = read_file(path, sum(len(name.encode("utf-8", "replace")) + 2 for name in data.ids)).decode()
    except UnicodeDecodeError:
        raise DataError(f"{path}: expected UTF-8 text; delete the file to choose the images again") from None
    rows = {name: i for i, name in enumerate(data.ids)}
    listed = names.splitlines()
    unknown = [name for name in listed if name not in rows]
    if unknown:
        raise DataError(f"{path}: {unknown[0]!r:.80} is not in the split; delete the file to choose the images again")
    labelled = np.zeros(len(data), bool)
    labelled[[rows[name] for name in listed]] = True
    if len(listed) != count or labelled.sum() != count:
        different = int(labelled.sum())
        raise DataError(f"{path}: expected {count} different names, got {different}; delete the file to choose again")
    return labelled


def digest(labelled: np.ndarray) -> str:
    """Twelve hexadecimal digits that identify a choice of labelled images."""
    return hashlib.sha256(np.packbits(labelled).tobytes() + str(len(labelled)).encode()).hexdigest()[:12]
