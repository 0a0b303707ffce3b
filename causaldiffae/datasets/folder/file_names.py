"""Finds the image files that a table means by other names than theirs.

Tables often have identifiers without extension or folder (NIH, CelebA), paths from another folder, another Unicode form
(macOS) or another case (Windows). A name that does not exist stands for the one file whose path agrees with it in the
composed form (NFC), or else without the extension, or else in another case, or else both, or else without leading zeros
too, which spreadsheets remove. Paths agree if they are equal or if one ends with the other.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from causaldiffae.files.storage import FileStamp, Folder

EXTENSIONS: Final = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")


class FoundFiles(NamedTuple):
    """Files of a folder by the names in its table.

    Attributes:
        names: actual name of each file; the name in the table where there is none.
        stamps: stamp of each file, or the reason why it cannot be read.
    """

    names: list[str]
    stamps: list[FileStamp | str]


def _composed(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def is_image_name(name: str) -> bool:
    """Whether a file name has the extension of an image."""
    return name.lower().endswith(EXTENSIONS)


def _stem(name: str) -> str:
    """A name without the extension of an image; other dots are part of the name."""
    return name.rpartition(".")[0] if is_image_name(name) else name


_FORMS: Final[tuple[Callable[[str], str], ...]] = (
    _composed,
    lambda name: _stem(_composed(name)),
    lambda name: _composed(name).casefold(),
    lambda name: _stem(_composed(name)).casefold(),
    lambda name: re.sub(r"(?<!\d)0+(?=\d)", "", _stem(_composed(name)).casefold()),
)


def find_files(folder: Folder, names: Sequence[str]) -> FoundFiles:
    """Finds the files of the names in a table, which are not empty."""
    stamps, found = folder.stamps(names), list(names)
    missing = [i for i, stamp in enumerate(stamps) if stamp == "file not found"]
    if not missing:
        return FoundFiles(found, stamps)
    existing = [name for name in folder.all_names(names) if is_image_name(name)]
    used = {name for i, name in enumerate(names) if not isinstance(stamps[i], str)}
    reasons: dict[int, str] = {}
    for form in _FORMS:
        index = _Index(existing, form)
        for i in missing:
            candidates = index.find(names[i])
            if len(candidates) == 1 and candidates[0] not in used:
                found[i] = candidates[0]
                used.add(candidates[0])
            elif len(candidates) > 1:
                reasons.setdefault(i, f"expected one file of this name, got {', '.join(candidates[:3])[:300]}")
        missing = [i for i in missing if found[i] == names[i]]
        if not missing:
            break
    renamed = [i for i, name in enumerate(names) if found[i] != name]
    for i, stamp in zip(renamed, folder.stamps([found[i] for i in renamed]), strict=True):
        stamps[i] = stamp
    for i in missing:
        stamps[i] = reasons.get(i, "file not found")
    return FoundFiles(found, stamps)


class _Index:
    """The files of a folder by one form of their last path components."""

    def __init__(self, existing: Iterable[str], form: Callable[[str], str]) -> None:
        self._form, self._names = form, [(form(name), name) for name in existing]
        self._by_depth: dict[int, dict[str, list[str]]] = {}

    def _by_end(self, depth: int) -> dict[str, list[str]]:
        """Files by their last `depth` path components; by all of them for 0."""
        if depth not in self._by_depth:
            groups: dict[str, list[str]] = {}
            for key, name in self._names:
                groups.setdefault("/".join(key.split("/")[-depth:]), []).append(name)
            self._by_depth[depth] = groups
        return self._by_depth[depth]

    def find(self, name: str) -> list[str]:
        """Files of a path, or that end with it, or with which it ends."""
        parts = self._form(name).split("/")
        whole = self._by_end(0)
        if "/".join(parts) in whole:
            return whole["/".join(parts)]
        if longer := self._by_end(len(parts)).get("/".join(parts)):
            return longer
        shorter = ("/".join(parts[i:]) for i in range(1, len(parts)))
        return next((whole[end] for end in shorter if end in whole), [])
