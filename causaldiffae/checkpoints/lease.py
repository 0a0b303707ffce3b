"""Lease of a remote run directory: two trainers in one directory would delete each other's checkpoints.

Object storage has no locks. A trainer writes an object of its own, RUN/lock/NAME.json, and then lists the folder. The
listing contains every object that was written before, so if two trainers start at the same time, at least one sees the
other and withdraws. A lease is renewed every minute and expires ten minutes after the last renewal.

Ages are differences between times of the storage service, so the clocks of the machines do not matter. The lease of a
process that has died on this machine, or of the same Slurm job before it was requeued, does not count.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import threading
from collections.abc import Iterator
from typing import Any, Final

from causaldiffae import dist_util
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.storage import RemoteFolder

LOCK_FOLDER: Final = "lock"
OWN_NAME: Final = (
    re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname())[:60] + f"-{os.getpid()}-{secrets.token_hex(4)}.json"
)
RENEWED_EVERY: Final = 60.0  # seconds
EXPIRES_AFTER: Final = 600.0
_MAX_BYTES: Final = 10_000


@contextlib.contextmanager
def hold_lease(url: str) -> Iterator[None]:
    """Holds the lease of a run directory and renews it in a thread; raises as `take_lease`."""
    folder, ended = _lock_folder(url), threading.Event()
    take_lease(url)
    renewal = threading.Thread(target=_renew, args=(folder, ended), name="lease", daemon=True)
    renewal.start()
    try:
        yield
    finally:
        ended.set()
        renewal.join()  # a late renewal must not write the object again
        with contextlib.suppress(DataError):  # it expires
            folder.remove(OWN_NAME)


def take_lease(url: str) -> None:
    """Takes the lease of a run directory, or takes it again after it has expired.

    Raises:
        InputError: If another process holds the lease.
        DataError: If the storage service cannot be reached.
    """
    folder = _lock_folder(url)
    _write(folder)
    try:
        _refuse_others(url, folder)
    except InputError:
        with contextlib.suppress(DataError):
            folder.remove(OWN_NAME)
        raise


def _lock_folder(url: str) -> RemoteFolder:
    return RemoteFolder(f"{url.rstrip('/')}/{LOCK_FOLDER}")


def _write(folder: RemoteFolder) -> None:
    owner = {"process": os.getpid(), "host": socket.gethostname(), "machine": _machine(), "job": _job()}
    folder.write(OWN_NAME, json.dumps(owner).encode())


def _renew(folder: RemoteFolder, ended: threading.Event) -> None:
    while not ended.wait(RENEWED_EVERY):
        with contextlib.suppress(DataError):  # the next renewal tries again
            if folder.has(OWN_NAME):  # otherwise it expired while this process was suspended, see `take_lease`
                _write(folder)


def _refuse_others(url: str, folder: RemoteFolder) -> None:
    """Removes leases that do not count; raises `InputError` if another process holds the lease."""
    found = folder.files()
    now = max(stamp.changed for stamp in found.values())  # that of the own object, or a later renewal
    for name, stamp in found.items():
        if name == OWN_NAME:
            continue
        age, owner = now - stamp.changed, _read_owner(folder, name)
        if age > EXPIRES_AFTER or owner is None or _has_ended(owner):
            with contextlib.suppress(DataError):
                folder.remove(name)
            continue
        holder = f"process {owner.get('process')} on {str(owner.get('host'))[:80]}"
        raise InputError(
            f"run_dir: {url} is in use by {holder}, which renewed its lease {age:.0f} seconds ago; wait or choose "
            f"another run_dir; if that process no longer runs, its lease expires after {EXPIRES_AFTER / 60:.0f} "
            f"minutes, or remove {folder.where}/{name}"
        )


def _read_owner(folder: RemoteFolder, name: str) -> dict[str, Any] | None:
    """The owner of a lease; None if it was removed since it was listed."""
    try:
        owner = json.loads(folder.read(name, _MAX_BYTES))
    except DataError:
        if folder.has(name):
            raise
        return None
    except ValueError:
        owner = {}
    return owner if isinstance(owner, dict) else {}


def _machine() -> str:
    """Machine and namespace in which process numbers are comparable."""
    try:
        return f"{dist_util.machine()} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 - not a path
    except OSError:
        return dist_util.machine()


def _job() -> list[Any]:
    """Number of the Slurm job, and how often it was requeued."""
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    return [os.environ.get("SLURM_JOB_ID"), int(restarts) if restarts.isdecimal() else 0]


def _has_ended(owner: dict[str, Any]) -> bool:
    job, (number, restarts) = owner.get("job"), _job()
    before = job[1] if number and isinstance(job, list) and len(job) == 2 and job[0] == number else None
    if isinstance(before, int) and before < restarts:
        return True
    process = owner.get("process")
    if owner.get("machine") != _machine() or not isinstance(process, int) or process < 1:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        return False
    return process == os.getpid()  # an earlier process with this number
