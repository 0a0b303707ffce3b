"""One trainer per run directory.

Two trainers in one directory would delete each other's checkpoints. The lock is the system's (`flock`) on a file in the
directory: it ends with the process that holds it, however that dies, so a file that was left behind blocks nobody.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

from causaldiffae.errors import InputError

LOCK = ".lock"
NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


@contextlib.contextmanager
def lock_run_dir(run_dir: str | os.PathLike[str]) -> Iterator[None]:
    """Holds the directory's lock; makes the directory if it is missing.

    Where the file system knows no locks, a warning says so and training goes on.

    Raises:
        InputError: if another process holds the lock (it is named), the directory cannot be written, or it holds links
            to files.
    """
    folder = Path(run_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        links = sorted(path.name for path in folder.iterdir() if path.is_symlink() and not path.is_dir())
        if links:  # a run of somebody else's: what is written to config.yaml would go wherever its link leads
            raise InputError(f"run_dir: {folder / links[0][:80]} is a link to a file, which a run would write through")
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise InputError(f"run_dir: {folder} cannot be written ({error.strerror})") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = " ".join(os.pread(descriptor, 200, 0).decode("utf-8", "replace").split()) or "another process"
        os.close(descriptor)
        raise InputError(f"run_dir: {folder} is in use by {holder}; wait for it, or give another run_dir") from None
    except OSError as error:
        if error.errno not in NO_LOCKS_HERE:
            os.close(descriptor)
            raise InputError(f"run_dir: {folder} cannot be locked ({error.strerror})") from error
        warnings.warn(f"{folder}: its file system has no locks; start one trainer only", stacklevel=3)
    try:
        with contextlib.suppress(OSError):  # the name is for people; a full disk must not keep training from starting
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
