"""Hints at properties of images that are likely mistakes: black images, copies in several splits, crops that lose much,
further frames; and notes on grey and transparent images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np

from causaldiffae.datasets.folder.content import Content
from causaldiffae.datasets.folder.probe import probe_images
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.datasets.images import evenly_spread
from causaldiffae.files.storage import Folder

_SAMPLE: Final = 256
_DARK: Final = 24
"""Largest value of an image, of 255, up to which it is nearly black."""
_MUCH: Final = 0.25
_BLOCK: Final = 1024
_ALIKE: Final = 2
"""Largest difference of the channels of a grey image, which JPEG files may have."""


def hint_pixels(names: Sequence[str], images: np.ndarray, split: str, problems: Problems) -> None:
    """Hints at images (N, C, H, W) uint8 without contrast, and at nearly black ones."""
    colours = images[:, :3] if images.shape[1] == 4 else images
    blocks = [colours[start : start + _BLOCK] for start in range(0, len(images), _BLOCK)]
    low = np.concatenate([block.min((1, 2, 3)) for block in blocks])
    high = np.concatenate([block.max((1, 2, 3)) for block in blocks])
    _hint_some(names, low == high, f"split {split}: % without contrast", problems)
    dark = (low < high) & (high <= _DARK)
    _hint_some(names, dark, f"split {split}: % nearly black (at most {_DARK} of 255)", problems)


def note_grey(images: np.ndarray, problems: Problems) -> None:
    """Notes that the training images (N, 3, H, W) uint8 are grey."""
    sample = images[evenly_spread(min(_SAMPLE, len(images)), len(images))].astype(np.int16)
    if sample.shape[1] == 3 and int(np.abs(np.diff(sample, axis=1)).max()) <= _ALIKE:
        problems.note("split train: the images are grey; with `channels: 1` in the graph file, counterfactuals are too")


class Copies:
    """Finds images that have an identical one in another split."""

    def __init__(self) -> None:
        self._first: dict[bytes, tuple[str, str]] = {}
        self._found: list[str] = []

    def add(self, names: Sequence[str], images: np.ndarray, split: str) -> None:
        """Adds the images (N, C, H, W) uint8 of a split; those of one colour are left out."""
        for name, image in zip(names, images, strict=True):
            if (image != image[:, :1, :1]).any():
                key = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
                other, its_split = self._first.setdefault(key, (name, split))
                if its_split != split:
                    self._found.append(f"{name} of split {split} and {other} of split {its_split}")

    def hint(self, problems: Problems) -> None:
        """Hints at the copies."""
        if self._found:
            count = len(self._found)
            problems.hint(
                f"{count} image{' has' if count == 1 else 's have'} a copy in another split, such as {self._found[0]}; "
                "scores on copies of training images are too good"
            )


def _hint_some(names: Sequence[str], affected: np.ndarray, text: str, problems: Problems) -> None:
    count = int(affected.sum())
    if count:
        images = "image is" if count == 1 else "images are"
        problems.hint(f"{text.replace('%', f'{count} {images}')}, such as {names[int(np.argmax(affected))]}")


def hint_files(folder: Folder, content: Content, problems: Problems) -> None:
    """Hints at properties of a sample of the files."""
    probes = probe_images(folder, content.table.files, _SAMPLE)
    if not probes:
        return
    rule, count = content.rule, len(probes)
    clear = [probe for probe in probes if probe.mode in ("RGBA", "LA", "PA", "La", "RGBa")]
    if clear and rule.channels != 4:
        problems.note(
            f"{folder.where}: {len(clear)} of {count} images have an alpha channel, such as {clear[0].name}; "
            "transparent pixels become white"
        )
    lost = [1 - min(probe.size) / max(probe.size) for probe in probes]
    if rule.resize != "pad" and float(np.mean(lost)) > _MUCH:
        worst = probes[int(np.argmax(lost))]
        problems.hint(
            f"{folder.where}: the centre crop leaves out {100 * float(np.mean(lost)):.2g} % of the pixels on average, "
            f"{100 * max(lost):.2g} % of {worst.name} ({worst.size[0]}x{worst.size[1]}); `resize: pad` keeps them"
        )
    for affected, text in (
        ([probe for probe in probes if probe.is_animated], "have several frames or pages, of which the first is read"),
        (
            [probe for probe in probes if probe.has_deep_colours],
            "have 16 bits per colour, of which the upper 8 are read",
        ),
    ):
        if affected:
            problems.hint(f"{folder.where}: {len(affected)} of {count} images {text}, such as {affected[0].name}")
