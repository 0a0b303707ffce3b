"""Checkpoints in object storage: run directories such as gs://BUCKET/PATH or az://ACCOUNT/CONTAINER/PATH.

The run works in a local folder that belongs to the address, and every complete checkpoint there is uploaded. Object
storage cannot rename a folder, but each file appears completely or not at all. A step therefore counts if its manifest
exists; the manifest is uploaded last and deleted first. blobfile retries failed requests with growing pauses. A
downloaded step is verified before it is used.

The address is authoritative: a local step that was not uploaded does not count when a run is resumed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from causaldiffae.checkpoints.checkpoint import (
    MANIFEST,
    STEP_NAME,
    newest_intact,
    read_manifest,
    steps_to_remove,
    verify,
)
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import sync_to_disk
from causaldiffae.files.storage import is_remote, object_storage


def run_folder(run_dir: str | os.PathLike[str]) -> Path:
    """The local folder of a run directory: itself, or for an address a folder in the user's cache."""
    if not is_remote(str(run_dir)):
        return Path(run_dir)
    address = str(run_dir).rstrip("/")
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return user / "causaldiffae" / "runs" / hashlib.sha256(address.encode()).hexdigest()[:16]


def local_checkpoint(path: str | os.PathLike[str]) -> Path:
    """A local path unchanged; for an address, a local copy of its step or of its newest intact step.

    Raises:
        DataError: if there is none, or it is damaged.
    """
    if not is_remote(str(path)):
        return Path(path)
    address, _, name = str(path).rstrip("/").rpartition("/")
    if STEP_NAME.fullmatch(name):
        return RemoteRun(address).fetch(int(name.removeprefix("step_")))
    newest = RemoteRun(str(path)).fetch_newest()
    if newest is None:
        raise DataError(f"{path}: expected a checkpoint, found none")
    return newest


class RemoteRun:
    """The checkpoints at an address.

    Args:
        address: of the run directory.
        keep_last, keep_every: which steps are kept there, as in `save_checkpoint`.
    """

    def __init__(self, address: str, keep_last: int | None = None, keep_every: int | None = None) -> None:
        self.address, self.keep_last, self.keep_every = address.rstrip("/"), keep_last, keep_every
        self.folder = run_folder(address)
        self._storage = object_storage()

    def _call(self, name: str, *arguments: str, **options: Any) -> Any:
        """Calls a function of blobfile; what it raises after its retries becomes an `OSError` of one line."""
        try:
            return getattr(self._storage, name)(*arguments, **options)
        except FileNotFoundError:
            raise
        except Exception as error:  # services and networks raise many kinds
            reason = " ".join(str(error).split())[:300]
            if reason.startswith(("Unrecognized path", "Invalid path")):
                raise InputError(f"run_dir: expected a gs:// or az:// address, got {self.address}") from error
            raise OSError(f"{self.address}: {name} failed: {reason}") from error

    def _url(self, step: int, name: str = "") -> str:
        return f"{self.address}/step_{step:07d}" + (f"/{name}" if name else "")

    def _listed(self) -> list[int]:
        """Steps of which any file exists, newest first."""
        names = self._call("listdir", self.address) if self._call("isdir", self.address) else []
        matches = (STEP_NAME.fullmatch(name.rstrip("/")) for name in names)
        return sorted((int(match[1]) for match in matches if match), reverse=True)

    def steps(self) -> list[int]:
        """Complete steps, newest first."""
        return [step for step in self._listed() if self._call("exists", self._url(step, MANIFEST))]

    def upload(self, folder: Path) -> None:
        """Uploads a step folder, then removes steps that need not be kept; `OSError` if the storage fails."""
        step, files = read_manifest(folder)
        self._remove(step)
        for name in (*sorted({*files} - {MANIFEST}), MANIFEST):
            self._call("copy", str(folder / name), self._url(step, name), overwrite=True)
            size, expected = self._call("stat", self._url(step, name)).size, (folder / name).stat().st_size
            if size != expected:
                raise OSError(f"{self._url(step, name)}: expected {expected} bytes, got {size}")
        try:
            complete = self.steps()
            partial = [old for old in self._listed() if old < step and old not in complete]
            for old in [*partial, *steps_to_remove(complete, step, self.keep_last, self.keep_every)]:
                self._remove(old)
        except OSError as error:  # the new checkpoint is safe
            warnings.warn(f"an old checkpoint could not be removed: {error}", stacklevel=2)

    def _remove(self, step: int) -> None:
        """Removes a step, its manifest first, so that a partly deleted step does not count."""
        if self._call("isdir", self._url(step)):
            if self._call("exists", self._url(step, MANIFEST)):
                self._call("remove", self._url(step, MANIFEST))
            self._call("rmtree", self._url(step))

    def fetch(self, step: int) -> Path:
        """Downloads a step unless an identical local copy exists, and returns its folder.

        Raises:
            DataError: if files are missing or damaged.
            OSError: if the storage fails.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"step_{step:07d}"
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=self.folder))
        try:
            temporary.chmod(0o755)
            self._download(step, MANIFEST, temporary)
            if self._is_same(target, temporary):
                return target
            for name in read_manifest(temporary)[1]:
                self._download(step, name, temporary)
            if (found := verify(temporary)) != step:
                raise DataError(f"{self._url(step)}: expected step {step}, got {found}")
            shutil.rmtree(target, ignore_errors=True)
            sync_to_disk(temporary)
            temporary.rename(target)
            sync_to_disk(self.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return target

    def _download(self, step: int, name: str, folder: Path) -> None:
        try:
            self._call("copy", self._url(step, name), str(folder / name), overwrite=True)
        except FileNotFoundError:
            raise DataError(f"{self._url(step, name)}: file not found") from None

    @staticmethod
    def _is_same(folder: Path, other: Path) -> bool:
        try:
            same = (folder / MANIFEST).read_bytes() == (other / MANIFEST).read_bytes()
            return same and verify(folder) >= 0
        except (DataError, OSError):
            return False

    def fetch_newest(self) -> Path | None:
        """Downloads the newest intact step; returns, warns and raises as `newest_intact`."""
        return newest_intact(self.address, self.steps(), self.fetch)

    def fetch_logs(self, names: Sequence[str]) -> None:
        """Downloads these files of the run directory unless they exist locally."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            url, target = f"{self.address}/{name}", self.folder / name
            if not target.exists() and self._call("exists", url):
                self._call("copy", url, str(target), overwrite=True)

    def upload_logs(self, names: Sequence[str]) -> None:
        """Uploads these files; a failure is a warning."""
        for name in names:
            try:
                if (self.folder / name).is_file():
                    self._call("copy", str(self.folder / name), f"{self.address}/{name}", overwrite=True)
            except OSError as error:
                warnings.warn(str(error), stacklevel=2)
