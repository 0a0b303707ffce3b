"""Hints at properties of images that are likely mistakes: black images, crops that lose much, further frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from causaldiffae.datasets.folder.content import Content
from causaldiffae.datasets.folder.probe import probe_images
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.files.storage import Folder

_SAMPLE: Final = 256
_DARK: Final = 24
"""Largest value of an image, of 255, up to which it is nearly black."""
_MUCH: Final = 0.25
_BLOCK: Final = 1024


def hint_pixels(names: Sequence[str], images: np.ndarray, split: str, problems: Problems) -> None:
    """Hints at images (N, C, H, W) uint8 without contrast, and at nearly black ones."""
    colours = images[:, :3] if images.shape[1] == 4 else images
    blocks = [colours[start : start + _BLOCK] for start in range(0, len(images), _BLOCK)]
    low = np.concatenate([block.min((1, 2, 3)) for block in blocks])
    high = np.concatenate([block.max((1, 2, 3)) for block in blocks])
    _hint_some(names, low == high, f"split {split}: % without contrast", problems)
    dark = (low < high) & (high <= _DARK)
    _hint_some(names, dark, f"split {split}: % nearly black (at most {_DARK} of 255)", problems)


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
