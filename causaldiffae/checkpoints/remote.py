"""Checkpoints in object storage: a run directory such as gs://BUCKET/PATH or az://ACCOUNT/CONTAINER/PATH.

The run works in a local folder that belongs to the address, and every checkpoint that is whole there is copied up.
Object storage cannot rename a folder, but shows each file whole or not at all: so a step counts when its manifest is
there, and the manifest goes up last and is deleted first. What the storage refuses is tried again, with longer and
longer pauses. On the way back every file is checked against the manifest before the step takes its place.

The address is the truth: a local step that never arrived there does not count when a run is resumed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from causaldiffae.checkpoints.checkpoint import (
    MANIFEST,
    STEP_NAME,
    newest_whole,
    read_manifest,
    steps_to_remove,
    verify,
)
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import sync_to_disk
from causaldiffae.files.storage import is_remote

T = TypeVar("T")

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each further attempt."""


def run_folder(run_dir: str | os.PathLike[str]) -> Path:
    """The local folder of a run directory: itself, or for an address one in the user's cache."""
    if not is_remote(str(run_dir)):
        return Path(run_dir)
    address = str(run_dir).rstrip("/")
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return user / "causaldiffae" / "runs" / hashlib.sha256(address.encode()).hexdigest()[:16]


def local_checkpoint(path: str | os.PathLike[str]) -> Path:
    """A local path as it is; of an address, a local copy of the step it names, or of its newest whole step.

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
        raise DataError(f"{path}: it holds no checkpoint")
    return newest


class RemoteRun:
    """The checkpoints at an address.

    Args:
        address: of the run directory.
        keep_last, keep_every: which steps stay there, as of `save_checkpoint`.
    """

    def __init__(self, address: str, keep_last: int | None = None, keep_every: int | None = None) -> None:
        import blobfile

        self.address, self.keep_last, self.keep_every = address.rstrip("/"), keep_last, keep_every
        self.folder = run_folder(address)
        # By itself the library tries for ever, and a run would hang.
        self._service: Any = blobfile.create_context(retry_limit=1, connect_timeout=10)

    def _try(self, what: str, action: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """The result of `action(...)`, tried again after each pause; `OSError` with its last words in the end."""
        for pause in (*PAUSES, None):
            try:
                return action(*arguments, **options)
            except FileNotFoundError:
                raise
            except Exception as error:  # whatever the service and the network answer
                words = " ".join(str(error).split())[:300]
                if words.startswith(("Unrecognized path", "Invalid path")):
                    raise InputError(f"run_dir: {self.address} is no address that can be served ({words})") from error
                if pause is None:
                    raise OSError(f"{self.address}: {what}: {words}") from error
            time.sleep(pause)
        raise AssertionError

    def _listed(self) -> list[int]:
        """Steps of which anything is there, newest first."""

        def listed() -> list[int]:
            if not self._service.isdir(self.address):
                return []
            names = (name.rstrip("/") for name in self._service.listdir(self.address))
            return sorted((int(name[5:]) for name in names if STEP_NAME.fullmatch(name)), reverse=True)

        return self._try("list", listed)

    def steps(self) -> list[int]:
        """Steps whose manifest is there, newest first."""
        return [step for step in self._listed() if self._try("look for a manifest", self._has, step)]

    def _has(self, step: int) -> bool:
        return bool(self._service.exists(self._place(step, MANIFEST)))

    def _place(self, step: int, name: str = "") -> str:
        return f"{self.address}/step_{step:07d}" + (f"/{name}" if name else "")

    def upload(self, folder: Path) -> None:
        """Copies a whole step folder up, then removes the steps that need not stay.

        Raises:
            OSError: if the storage refused again and again; the steps before stay.
        """
        step = int(folder.name[5:])
        self._remove(step)
        for name in (*sorted(set(read_manifest(folder).files) - {MANIFEST}), MANIFEST):
            self._try(f"write {folder.name}/{name}", self._upload_file, folder / name, self._place(step, name))
        try:
            whole = self.steps()
            halves = [old for old in self._listed() if old < step and old not in whole]
            for old in [*halves, *steps_to_remove(whole, step, self.keep_last, self.keep_every)]:
                self._remove(old)
        except OSError as error:  # the new one is there, that is what counts
            warnings.warn(f"an old checkpoint could not be removed: {error}", stacklevel=2)

    def _upload_file(self, source: Path, target: str) -> None:
        self._service.copy(str(source), target, overwrite=True)
        size = self._service.stat(target).size
        if size != source.stat().st_size:
            raise OSError(f"{size} bytes of {source.stat().st_size} arrived")

    def _remove(self, step: int) -> None:
        """Manifest first, so that no half of a step ever counts."""

        def remove() -> None:
            place = self._place(step)
            if not self._service.isdir(place):
                return
            if self._has(step):
                self._service.remove(self._place(step, MANIFEST))
            self._service.rmtree(place)

        self._try(f"remove step {step}", remove)

    def fetch(self, step: int) -> Path:
        """A local copy of a step; one that is there already and is the same is taken as it is.

        Raises:
            DataError: if files are missing, or not what the manifest says.
            OSError: if the storage does not answer.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"step_{step:07d}"
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=self.folder))
        try:
            temporary.chmod(0o755)
            self._download(step, MANIFEST, temporary)
            if self._is_same(target, temporary):
                return target
            for name in read_manifest(temporary).files:
                self._download(step, name, temporary)
            if verify(temporary) != step:
                raise DataError(f"{self._place(step)}: its manifest is of another step")
            shutil.rmtree(target, ignore_errors=True)
            sync_to_disk(temporary)
            temporary.rename(target)
            sync_to_disk(self.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return target

    def _download(self, step: int, name: str, folder: Path) -> None:
        place = self._place(step, name)
        try:
            self._try(f"read step {step}'s {name}", self._service.copy, place, str(folder / name), overwrite=True)
        except FileNotFoundError:
            raise DataError(f"{place}: it is missing") from None

    @staticmethod
    def _is_same(folder: Path, other: Path) -> bool:
        try:
            same = (folder / MANIFEST).read_bytes() == (other / MANIFEST).read_bytes()
            return same and verify(folder) >= 0
        except (DataError, OSError):
            return False

    def fetch_newest(self) -> Path | None:
        """A local copy of the newest step that is whole; warns about newer ones that are not. `None` without steps.

        Raises:
            DataError: if there are steps and none is whole.
        """
        return newest_whole(self.address, self.steps(), self.fetch)

    def fetch_logs(self, names: Sequence[str]) -> None:
        """Copies these files of the run directory down where they are not there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            place, target = f"{self.address}/{name}", self.folder / name
            if not target.exists() and self._try("look for logs", self._service.exists, place):
                self._try(f"read {name}", self._service.copy, place, str(target), overwrite=True)

    def upload_logs(self, names: Sequence[str]) -> None:
        """Copies these files up; a warning if that fails."""
        for name in names:
            source, place = self.folder / name, f"{self.address}/{name}"
            if source.is_file():
                try:
                    self._try(f"write {name}", self._service.copy, str(source), place, overwrite=True)
                except OSError as error:
                    warnings.warn(str(error), stacklevel=2)
