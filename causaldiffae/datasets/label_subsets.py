"""Weak supervision: selects the training images that keep their labels.

A fraction of the training images keeps its labels (CausalDiffAE, section 4.4). The images are shuffled with a seed and
the first ones are selected, so the labelled images at 10 % are a subset of those at 50 %. The selection is written to
the data folder, so that other models and later runs use the same labels. (The published code samples a new selection at
every step and so eventually uses every label.)

A selection by variable hides the labels of every variable on images of its own. Labels may also be missing in the data.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from causaldiffae.datasets.images import ImageData
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import file_stem, read_file, replace_file
from causaldiffae.graphs import CausalGraph


def choose_labelled(count: int, fraction: float, seed: int, variable: str = "") -> np.ndarray:
    """(count,) bool with round(fraction * count) true entries, at least one unless `fraction` is 0.

    Args:
        variable: the variable whose labels are selected, by itself; empty for images.
    """
    if not 0.0 <= fraction <= 1.0:
        raise InputError(f"label_fraction: expected a number in 0..1, got {fraction}")
    chosen = max(round(fraction * count), 1) if fraction > 0 else 0
    stream = int.from_bytes(b"label" if not variable else hashlib.sha256(variable.encode()).digest()[:8], "big")
    order = np.random.Generator(np.random.Philox(key=[seed, stream])).permutation(count)
    labelled = np.zeros(count, bool)
    labelled[order[:chosen]] = True
    return labelled


def list_path(folder: Path, data: ImageData, fraction: float, seed: int, variable: str = "") -> Path:
    """The file that lists the labelled images of a split, or those with the label of a variable, one name per line."""
    end = f"_{file_stem(variable)}" if variable else ""
    return folder / f"labelled_{data.split}_{len(data)}_fraction{fraction:g}_seed{seed}{end}.txt"


def with_labels_of(
    data: ImageData, fraction: float, seed: int, folder: str | Path, write: bool = True, by_variable: bool = False
) -> ImageData:
    """Returns the split with labels on a fraction of its images.

    Uses the list of labelled images in `folder` if it exists; otherwise selects the images and, with `write`, writes
    the list. Labels that are missing in `data` stay missing.

    Args:
        by_variable: select the images for each variable by itself, with one list each.

    Raises:
        InputError: for a fraction outside 0..1.
        DataError: if a list does not contain the expected number of images of the split.
    """
    variables = data.spec.graph.names if by_variable else ("",)
    masks = [_selection(data, fraction, seed, Path(folder), write, variable) for variable in variables]
    labelled = np.stack(masks, axis=1) if by_variable else masks[0]
    if data.labelled is not None:
        labelled = labelled_mask(_by_label(labelled) & _by_label(data.labelled))
    return replace(data, labelled=labelled)


def _selection(data: ImageData, fraction: float, seed: int, folder: Path, write: bool, variable: str) -> np.ndarray:
    labelled = choose_labelled(len(data), fraction, seed, variable)
    if fraction == 1.0:
        return labelled
    path = list_path(folder, data, fraction, seed, variable)
    if path.is_file():
        return _read_list(path, data, int(labelled.sum()))
    if write:
        names = "".join(f"{name}\n" for name, chosen in zip(data.ids, labelled, strict=True) if chosen)
        try:
            replace_file(path, names.encode())
        except OSError as error:  # a read-only folder; the checkpoint also stores the selection
            warnings.warn(f"{path}: cannot write the list of labelled images ({error.strerror})", stacklevel=3)
    return labelled


def _by_label(labelled: np.ndarray) -> np.ndarray:
    return labelled if labelled.ndim == 2 else labelled[:, None]


def labelled_only(data: ImageData) -> ImageData:
    """Returns the images of a split with at least one label; an `InputError` if there are none."""
    some = data.observed.any(axis=1)
    if not some.any():
        raise InputError(f"data set {data.spec.name}: expected labelled images in split {data.split}, got none")
    return data if some.all() else data.subset(np.flatnonzero(some))


def labelled_mask(observed: np.ndarray) -> np.ndarray:
    """The mask (N, n) of observed labels, or that of labelled images (N,) if every image has all labels or none."""
    images: np.ndarray = np.any(observed, axis=1)
    return images if np.array_equal(images, np.all(observed, axis=1)) else observed


def never_together(graph: CausalGraph, observed: np.ndarray) -> list[str]:
    """Variables that are never labelled together with all their parents, so that their mechanism has no likelihood.

    Args:
        observed: (N, n) bool, which labels of the training images are known.
    """
    return [
        name
        for name, parents in graph.parents.items()
        if parents and not observed[:, [graph.index(each) for each in (name, *parents)]].all(axis=1).any()
    ]


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
    """Digest of a selection of labelled images (N,) or of a mask of observed labels (N, n), 12 hexadecimal digits."""
    mask = labelled_mask(_by_label(labelled))
    return hashlib.sha256(np.packbits(mask).tobytes() + str(len(mask)).encode()).hexdigest()[:12]
