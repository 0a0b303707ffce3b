"""Properties of image files that decide how they are converted: size, mode, and the range of values.

A sample of the files is probed by their headers. If some have more than 8 bits, the values of all training images are
measured once and stored in the cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from causaldiffae.datasets.folder import image_cache
from causaldiffae.datasets.folder.file_names import find_files
from causaldiffae.datasets.folder.image_files import FORMATS, MAX_FILE_BYTES
from causaldiffae.datasets.folder.value_range import ValueRange, covering_range, is_deep, limits
from causaldiffae.datasets.images import evenly_spread
from causaldiffae.errors import DataError
from causaldiffae.files.images import open_image, without_size_warnings
from causaldiffae.files.reading import read_json, write_json
from causaldiffae.files.storage import FileStamp, Folder

SAMPLE: Final = 64
_THREADS: Final = 4
_CACHE: Final = "value_range.json"


class Probe(NamedTuple):
    """The header of an image file.

    Attributes:
        name: path in the folder.
        mode: Pillow's mode.
        size: width and height in pixels.
        is_animated: whether there are several frames or pages.
        has_deep_colours: whether colours have 16 bits per channel, which Pillow reads by their upper 8 bits.
    """

    name: str
    mode: str
    size: tuple[int, int]
    is_animated: bool
    has_deep_colours: bool


def probe_images(folder: Folder, names: Sequence[str], count: int = SAMPLE) -> list[Probe]:
    """Probes up to `count` files, evenly spread; those that cannot be read are left out."""
    found = find_files(folder, [names[i] for i in _spread(len(names), count) if names[i]])
    pairs = zip(found.names, found.stamps, strict=True)
    return _probe(folder, [(name, stamp) for name, stamp in pairs if isinstance(stamp, FileStamp)], count)


def _spread(total: int, count: int) -> list[int]:
    return evenly_spread(min(count, total), total).tolist() if total else []


def _probe(folder: Folder, files: Sequence[tuple[str, FileStamp]], count: int = SAMPLE) -> list[Probe]:
    def probe(name: str) -> Probe | None:
        try:
            with open_image(folder.read(name, MAX_FILE_BYTES), FORMATS, name) as image:
                deep_colours = not is_deep(image.mode) and ";16" in str(getattr(image, "tile", ""))
                return Probe(name, image.mode, image.size, getattr(image, "is_animated", False), deep_colours)
        except DataError:
            return None

    sample = [files[i][0] for i in _spread(len(files), count)]
    with without_size_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        return [found for found in pool.map(probe, sample) if found is not None]


def measure_value_range(folder: Folder, names: Sequence[str]) -> ValueRange | None:
    """The range of values of images with more than 8 bits; None if there are none in the sample.

    Files that cannot be decoded are left out; they are reported when the images are read.
    """
    found = find_files(folder, [name for name in names if name])
    pairs = zip(found.names, found.stamps, strict=True)
    files = [(name, stamp) for name, stamp in pairs if isinstance(stamp, FileStamp)]
    cache = image_cache.cache_folder(folder)
    key = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:24]
    for stored in _read_cached(cache / _CACHE, key) if cache is not None else ():
        return stored
    value_range = _measure(folder, files) if any(is_deep(probe.mode) for probe in _probe(folder, files)) else None
    if cache is not None:
        write_json(cache / _CACHE, {"files": key, "value_range": value_range})
    return value_range


def _measure(folder: Folder, files: Sequence[tuple[str, FileStamp]]) -> ValueRange | None:
    def measure(file: tuple[str, FileStamp]) -> tuple[ValueRange, bool] | None:
        try:
            with open_image(folder.read(file[0], MAX_FILE_BYTES), FORMATS, file[0]) as image:
                return (limits(image), image.mode == "F") if is_deep(image.mode) else None
        except DataError:
            return None

    with without_size_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        measured = [each for each in pool.map(measure, files) if each is not None]
    if not measured:
        return None
    return covering_range([each for each, _ in measured], any(is_float for _, is_float in measured))


def _read_cached(path: Path, key: str) -> list[ValueRange | None]:
    """The stored range, or None if there are no such images, in a list; an empty list if nothing is stored."""
    try:
        stored = read_json(path)
        if stored["files"] != key or stored["value_range"] is None:
            return [] if stored["files"] != key else [None]
        low, high = map(float, stored["value_range"])
        return [(low, high)] if low < high else []
    except (DataError, KeyError, TypeError, ValueError):
        return []
