"""A cache in the temporary folder, where no other can be written: one copy for all processes on a machine.

The first process decodes the images while the others wait, and all map the same file. Every process holds a shared lock
on the folder, which the system releases when the process ends; the last one removes the folder. Folders of processes
that were killed are removed by the next process that needs one.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import IO, Final

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LOCK: Final = "lock"
_USERS: Final = "users"
_EXIT_TIMEOUT: Final = 10.0  # seconds
_held: Final[dict[Path, IO[bytes]]] = {}


def shared_folder(address: str, size: int) -> Path | None:
    """Returns the folder for decoded images of a data set, which is kept until this process ends.

    Args:
        address: path or URL of the data set.
        size: number of bytes of the images.

    Returns:
        None without room for the images, or if other users can write to the folder.
    """
    if fcntl is None:
        return None
    root = Path(tempfile.gettempdir()) / f"causaldiffae-{os.getuid()}"
    folder = root / hashlib.sha256(address.encode()).hexdigest()[:16]
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        found = root.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            return None
        with FileLock(root / _LOCK):
            if folder not in _held:
                _remove_unused(root)
            there = any(path.stat().st_size >= size for path in folder.glob("*.npy"))
            if not there and shutil.disk_usage(root).free < size:
                return None
            folder.mkdir(mode=0o700, exist_ok=True)
            if folder not in _held:
                users = (folder / _USERS).open("wb")
                fcntl.flock(users, fcntl.LOCK_SH)
                if not _held:
                    atexit.register(_release)
                _held[folder] = users
    except OSError:
        return None
    return folder


def _release() -> None:
    """Removes the folders that no other process uses."""
    for folder, users in _held.items():
        with users, contextlib.suppress(OSError, Timeout), FileLock(folder.parent / _LOCK, timeout=_EXIT_TIMEOUT):
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    _held.clear()


def _remove_unused(root: Path) -> None:
    for folder in root.iterdir():
        with contextlib.suppress(OSError), (folder / _USERS).open("rb") as users:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
