"""Weak supervision: which training images have labels.

A share of the training images keeps its labels; the others are images only (CausalDiffAE, section 4.4). The choice is
a random order of the images that follows from a seed, cut at the wanted share: it is drawn once, the labels of 10 %
are among those of 50 %, and it is written beside the data, so that other models and later runs see the same ones.
(The published code drew it anew at every step: in the end every label had been seen.)
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from causaldiffae.datasets.images import ImageData
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import file_size


def choose_labelled(count: int, fraction: float, seed: int) -> np.ndarray:
    """(count,) bool: `fraction` of the places, rounded, at least one unless it is 0; shares of one seed are nested."""
    if not 0.0 <= fraction <= 1.0:
        raise InputError(f"label_fraction: {fraction} given, a share between 0 and 1 is needed")
    wanted = max(round(fraction * count), 1) if fraction > 0 else 0
    order = np.random.Generator(np.random.Philox(key=[seed, 0x6C6162656C])).permutation(count)
    labelled = np.zeros(count, bool)
    labelled[order[:wanted]] = True
    return labelled


def list_path(folder: Path, data: ImageData, fraction: float, seed: int) -> Path:
    """Where the labelled images of a split are listed, one name a line."""
    return folder / f"labelled_{data.split}_{len(data)}_fraction{fraction:g}_seed{seed}.txt"


def with_labels_of(data: ImageData, fraction: float, seed: int, folder: str | Path, write: bool = True) -> ImageData:
    """The split with labels on a share of its images only.

    The list of labelled images in `folder` is read where there is one, else drawn and, with `write`, kept there. An
    image that had no label before gets none.

    Raises:
        InputError: for a share outside [0, 1].
        DataError: if the list names images that are not in the split, or another number of them.
    """
    labelled = choose_labelled(len(data), fraction, seed)
    if fraction < 1.0:
        path = list_path(Path(folder), data, fraction, seed)
        if path.is_file():
            labelled = _read_list(path, data, int(labelled.sum()))
        elif write:
            _write_list(path, [name for name, chosen in zip(data.ids, labelled, strict=True) if chosen])
    if data.labelled is not None:
        labelled &= data.labelled
    return replace(data, labelled=labelled)


def _read_list(path: Path, data: ImageData, wanted: int) -> np.ndarray:
    limit = sum(len(name.encode("utf-8", "replace")) + 2 for name in data.ids)  # every name once
    if file_size(path) > limit:
        raise DataError(f"{path}: it has {file_size(path)} bytes, {limit} are allowed; delete the list to draw it anew")
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: it is no UTF-8 text") from error
    places = {name: i for i, name in enumerate(data.ids)}
    unknown = [name for name in names if name not in places]
    if unknown:
        raise DataError(f"{path}: {unknown[0][:80]!r} is no image of the split; delete the list to draw it anew")
    if len(set(names)) != len(names) or len(names) != wanted:
        raise DataError(f"{path}: {len(set(names))} different names, {wanted} are needed; delete the list to draw anew")
    labelled = np.zeros(len(data), bool)
    labelled[[places[name] for name in names]] = True
    return labelled


def _write_list(path: Path, names: list[str]) -> None:
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".labelled-", dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(f"{name}\n" for name in names)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:  # a folder that is read-only or shared; the checkpoint holds the choice too
        warnings.warn(f"{path}: the labelled images cannot be listed beside the data ({error.strerror})", stacklevel=2)


def digest(labelled: np.ndarray) -> str:
    """Twelve hexadecimal digits that tell one choice from another."""
    return hashlib.sha256(np.packbits(labelled).tobytes() + str(len(labelled)).encode()).hexdigest()[:12]
