"""Lock of a run directory: two trainers in one directory would delete each other's checkpoints."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import warnings
from collections.abc import Iterator

from filelock import FileLock, Timeout

from causaldiffae.checkpoints.lease import hold_lease
from causaldiffae.checkpoints.remote import run_folder
from causaldiffae.errors import InputError
from causaldiffae.files.storage import is_remote

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


@contextlib.contextmanager
def lock_run_dir(run_dir: str | os.PathLike[str]) -> Iterator[None]:
    """Creates the run directory if necessary and holds its lock; the system releases the lock of a killed process.

    For a URL, locks its local folder and holds the lease of the remote directory. On a file system without locks,
    issues a warning and continues without one.

    Raises:
        InputError: If another process holds the lock, the directory is not writable, or it contains links to files.
    """
    folder = run_folder(run_dir)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        links = sorted(path.name for path in folder.iterdir() if path.is_symlink() and not path.is_dir())
        if links:  # in an untrusted run, config.yaml may be a link to any file of the user
            raise InputError(f"run_dir: expected no links to files, got {folder / links[0][:80]}")
        lock.acquire()
    except Timeout:
        holder = (folder / LOCK).read_bytes()[:200].decode("utf-8", "replace").strip() or "another process"
        raise InputError(f"run_dir: {folder} is in use by {holder}; wait or choose another run_dir") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise InputError(f"run_dir: expected a writable folder, got {folder} ({error.strerror})") from error
        warnings.warn(f"run_dir: {folder} does not support locks; do not start a second trainer", stacklevel=3)
    try:
        with contextlib.suppress(OSError):  # informative only; a full disk must not prevent training
            (folder / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        with hold_lease(str(run_dir)) if is_remote(str(run_dir)) else contextlib.nullcontext():
            yield
    finally:
        lock.release()
