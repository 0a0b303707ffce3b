"""Checkpoints in object storage: run directories such as gs://BUCKET/PATH or az://ACCOUNT/CONTAINER/PATH.

A run writes to a local folder derived from the URL, and uploads every complete checkpoint. Object storage cannot rename
folders, but writes each file atomically. The manifest of a step is uploaded last and deleted first, so a step is
complete if its manifest exists. blobfile retries failed requests with exponential backoff; what still fails is a
`StorageError`. Downloaded steps are verified.

The remote copy is authoritative: a run resumes from the newest remote step. A local record names the step whose upload
began last and the newest remote step before. If the upload did not end, and nobody else has changed the run since, a
resumed run completes it first. Other local steps do not count.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from causaldiffae.checkpoints.checkpoint import (
    MANIFEST,
    STEP_NAME,
    newest_intact,
    read_manifest,
    steps_to_remove,
    verify,
)
from causaldiffae.checkpoints.folder_layout import BESIDE_STEPS, BEST, CONFIG, HUB_FILES, MODEL
from causaldiffae.checkpoints.lease import LOCK_FOLDER, OWN_NAME, take_lease
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import read_json, sync_to_disk, write_json
from causaldiffae.files.storage import is_remote, object_storage

RECORD: Final = "uploads.json"
_SAME_TIME: Final = 1e-3
"""Seconds by which file systems round times."""


class StorageError(InputError, OSError):
    """A request to a storage service failed after its retries; one line, exit code 2.

    It is no `DataError`, so that an older step is not taken in place of one that cannot be fetched, and it is an
    `OSError`, so that `CheckpointWriter` tries to upload again.
    """


def run_folder(run_dir: str | os.PathLike[str]) -> Path:
    """Returns the local folder of a run directory: the path itself, or a folder in the user cache for a URL."""
    if not is_remote(str(run_dir)):
        return Path(run_dir)
    url = str(run_dir).rstrip("/")
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return user / "causaldiffae" / "runs" / hashlib.sha256(url.encode()).hexdigest()[:16]


def local_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Returns a local path unchanged; for a URL, a local copy of what `load_checkpoint` reads there.

    That is a step, the newest intact step of a run, or a model folder such as RUN/best. The copy lies in `run_folder`,
    with the files `BESIDE_STEPS` of the run.

    Raises:
        DataError: If there is no checkpoint, or it is damaged.
        StorageError: If the storage service cannot be reached.
    """
    if not is_remote(str(path)):
        return Path(path)
    url, _, name = str(path).rstrip("/").rpartition("/")
    given = STEP_NAME.fullmatch(name)
    run = RemoteRun(url if given else str(path))
    found = run.fetch(int(given[1])) if given else run.fetch_newest()
    if found is None:
        return run.fetch_model()
    run.fetch_logs(BESIDE_STEPS)
    return found


class RemoteRun:
    """Checkpoints of a remote run directory.

    Args:
        url: URL of the run directory.
        keep_last, keep_every: remote steps to keep, as in `save_checkpoint`.
    """

    def __init__(self, url: str, keep_last: int | None = None, keep_every: int | None = None) -> None:
        self.url, self.keep_last, self.keep_every = url.rstrip("/"), keep_last, keep_every
        self.folder = run_folder(url)
        self._storage = object_storage()

    def _call(self, name: str, *arguments: str, **options: Any) -> Any:
        """Calls a function of blobfile; errors after its retries become a `StorageError`."""
        try:
            return getattr(self._storage, name)(*arguments, **options)
        except FileNotFoundError:
            raise
        except Exception as error:  # storage services raise various errors
            reason = " ".join(str(error).split())[:300]
            if reason.startswith(("Unrecognized path", "Invalid path")):
                raise InputError(f"run_dir: expected a gs:// or az:// URL, got {self.url}") from error
            raise StorageError(f"{self.url}: request to the storage service failed ({name}): {reason}") from error

    def _step_url(self, step: int, name: str = "") -> str:
        return f"{self.url}/step_{step:07d}" + (f"/{name}" if name else "")

    def _listed(self) -> list[int]:
        """Returns complete and partial steps, newest first."""
        names = self._call("listdir", self.url) if self._call("isdir", self.url) else []
        matches = (STEP_NAME.fullmatch(name.rstrip("/")) for name in names)
        return sorted((int(match[1]) for match in matches if match), reverse=True)

    def steps(self) -> list[int]:
        """Returns complete steps, newest first."""
        return [step for step in self._listed() if self._call("exists", self._step_url(step, MANIFEST))]

    def upload(self, folder: Path) -> None:
        """Uploads a step folder, then removes old steps.

        Raises:
            StorageError: If the upload fails.
            InputError: If the lease of this process has expired and another process holds it.
        """
        step, files = read_manifest(folder)
        self._write_record(self._read_record()[0], step)
        self._check_lease()
        self._remove(step)
        for name in (*sorted({*files} - {MANIFEST}), MANIFEST):
            self._call("copy", str(folder / name), self._step_url(step, name), overwrite=True)
            size, expected = self._call("stat", self._step_url(step, name)).size, (folder / name).stat().st_size
            if size != expected:
                raise StorageError(f"{self._step_url(step, name)}: expected {expected} bytes, got {size}")
        self._write_record(step, None)
        try:
            complete = self.steps()
            partial = [old for old in self._listed() if old < step and old not in complete]
            for old in [*partial, *steps_to_remove(complete, step, self.keep_last, self.keep_every)]:
                self._remove(old)
        except OSError as error:  # the new checkpoint is complete
            warnings.warn(f"failed to remove an old checkpoint: {error}", stacklevel=2)

    def upload_pending(self) -> None:
        """Uploads the step whose upload was interrupted, unless the run has been changed since; raises as `upload`."""
        newest, pending = self._read_record()
        complete = self.steps()
        found = complete[0] if complete else None
        if pending is not None and found == newest and (found is None or pending > found):
            folder = self.folder / f"step_{pending:07d}"
            try:
                verify(folder)
            except (DataError, OSError) as error:
                warnings.warn(
                    f"{self.url}: step {pending} is not uploaded, and its local copy is gone ({error})", stacklevel=2
                )
            else:
                warnings.warn(f"{self.url}: step {pending} is not uploaded yet, uploading {folder}", stacklevel=2)
                self.upload(folder)
                return
        self._write_record(found, None)

    def _read_record(self) -> tuple[int | None, int | None]:
        """Returns the newest remote step before the last upload, and the step of that upload, None if it ended."""
        try:
            record = read_json(self.folder / RECORD)
        except (DataError, OSError):
            return None, None
        newest, pending = (value if type(value) is int else None for value in map(record.get, ("newest", "pending")))
        return newest, pending

    def _write_record(self, newest: int | None, pending: int | None) -> None:
        with contextlib.suppress(OSError):  # a full disk must not prevent an upload; a record of the past has no effect
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / RECORD, {"newest": newest, "pending": pending})

    def _check_lease(self) -> None:
        leases = f"{self.url}/{LOCK_FOLDER}"
        if self._call("isdir", leases) and OWN_NAME not in self._call("listdir", leases):
            try:
                take_lease(self.url)
            except DataError as error:
                raise StorageError(f"{self.url}: {error}") from error

    def _remove(self, step: int) -> None:
        """Removes a step, its manifest first, so that a partially deleted step is not complete."""
        if self._call("isdir", self._step_url(step)):
            if self._call("exists", self._step_url(step, MANIFEST)):
                self._call("remove", self._step_url(step, MANIFEST))
            self._call("rmtree", self._step_url(step))

    def fetch(self, step: int) -> Path:
        """Downloads a step unless an identical local copy exists, and returns its folder.

        Raises:
            DataError: If files are missing or damaged.
            StorageError: If a request fails.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder.with_suffix(".lock")):  # another process would replace a folder that this one reads
            return self._fetch(step, self.folder / f"step_{step:07d}")

    def _fetch(self, step: int, target: Path) -> Path:
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=self.folder))
        try:
            temporary.chmod(0o755)
            self._download(step, MANIFEST, temporary)
            if self._is_same(target, temporary):
                return target
            for name in read_manifest(temporary)[1]:
                self._download(step, name, temporary)
            if (found := verify(temporary)) != step:
                raise DataError(f"{self._step_url(step)}: expected step {step}, got {found}")
            shutil.rmtree(target, ignore_errors=True)
            sync_to_disk(temporary)
            temporary.rename(target)
            sync_to_disk(self.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return target

    def _download(self, step: int, name: str, folder: Path) -> None:
        try:
            self._call("copy", self._step_url(step, name), str(folder / name), overwrite=True)
        except FileNotFoundError:
            raise DataError(f"{self._step_url(step, name)}: file not found") from None

    @staticmethod
    def _is_same(folder: Path, other: Path) -> bool:
        try:
            same = (folder / MANIFEST).read_bytes() == (other / MANIFEST).read_bytes()
            return same and verify(folder) >= 0
        except (DataError, OSError):
            return False

    def fetch_newest(self) -> Path | None:
        """Downloads the newest intact step, see `newest_intact`."""
        return newest_intact(self.url, self.steps(), self.fetch)

    def fetch_model(self) -> Path:
        """Downloads the files of a model folder that have changed, and returns the local folder.

        `RUN/best` gets the files `BESIDE_STEPS` of its run.

        Raises:
            DataError: If the URL is that of no model folder.
            StorageError: If a request fails.
        """
        urls = {name: f"{self.url}/{name}" for name in HUB_FILES}
        if not all(self._call("exists", urls[name]) for name in (CONFIG, MODEL)):
            raise DataError(f"{self.url}: expected a checkpoint, found none")
        run, _, last = self.url.rpartition("/")
        if last == BEST:
            urls |= {name: f"{run}/{name}" for name in BESIDE_STEPS}
        folder = self.folder / "model"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder.with_suffix(".lock")):  # other processes use the same copy
            for name, url in urls.items():
                self._refresh(url, folder / name)
        return folder

    def _refresh(self, url: str, target: Path) -> None:
        """Downloads a file whose local copy has another size or time, or removes the copy of a missing one."""
        try:
            found = self._call("stat", url)
        except FileNotFoundError:
            target.unlink(missing_ok=True)
            return
        local = target.stat() if target.is_file() else None
        if local is None or local.st_size != found.size or abs(local.st_mtime - found.mtime) > _SAME_TIME:
            self._fetch_file(url, target, found.mtime)

    def _fetch_file(self, url: str, target: Path, changed: float | None = None) -> None:
        """Downloads a file, which appears when it is complete, and sets its time of change."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as temporary:
            part = Path(temporary, target.name)
            self._call("copy", url, str(part), overwrite=True)
            if changed is not None:
                os.utime(part, (changed, changed))
            part.replace(target)

    def fetch_logs(self, names: Sequence[str]) -> None:
        """Downloads files of the run directory unless they exist locally."""
        for name in names:
            url, target = f"{self.url}/{name}", self.folder / name
            if not target.exists() and self._call("exists", url):
                self._fetch_file(url, target)

    def upload_logs(self, names: Sequence[str]) -> None:
        """Uploads files of the run directory; failures are warnings."""
        for name in names:
            try:
                if (self.folder / name).is_file():
                    self._call("copy", str(self.folder / name), f"{self.url}/{name}", overwrite=True)
            except OSError as error:
                warnings.warn(str(error), stacklevel=2)
