"""A stand-in for blobfile whose bucket is a local folder."""

import shutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


class FakeBlobfile(types.ModuleType):
    """Serves gs://bucket/ from a folder.

    Attributes:
        calls: (function, address) of each call.
        fails: whether the call of this number, function and address fails.
    """

    def __init__(self, bucket: Path) -> None:
        super().__init__("blobfile")
        self.bucket = bucket
        self.calls: list[tuple[str, str]] = []
        self.fails: Callable[[int, str, str], bool] = lambda number, name, address: False

    def create_context(self, **options: Any) -> "FakeBlobfile":
        assert options["retry_limit"] is not None, "the library's default is to retry for ever"
        return self

    def count(self, name: str) -> int:
        """The number of calls of a function."""
        return sum(called == name for called, _ in self.calls)

    def _local(self, address: str) -> Path:
        if address.startswith("s3://"):
            raise RuntimeError(f"Unrecognized path: '{address}'")
        return self.bucket / address.removeprefix("gs://bucket/") if "://" in address else Path(address)

    def _call(self, name: str, address: str) -> Path:
        self.calls.append((name, address))
        if self.fails(len(self.calls), name, address):
            raise RuntimeError("503 service\nunavailable")
        return self._local(address)

    def BlobFile(self, address: str, mode: str) -> Any:
        path = self._call("BlobFile", address)
        if "w" in mode:
            path.parent.mkdir(parents=True, exist_ok=True)
        return path.open(mode)

    def scandir(self, address: str) -> Iterator[Any]:
        for path in self._call("scandir", address).iterdir():
            found = path.stat()
            stat = types.SimpleNamespace(size=found.st_size, mtime=found.st_mtime)
            yield types.SimpleNamespace(name=path.name, is_file=path.is_file(), stat=stat)

    def isdir(self, address: str) -> bool:
        return self._call("isdir", address).is_dir()

    def exists(self, address: str) -> bool:
        return self._call("exists", address).exists()

    def listdir(self, address: str) -> list[str]:
        return [path.name + ("/" if path.is_dir() else "") for path in self._call("listdir", address).iterdir()]

    def stat(self, address: str) -> Any:
        found = self._call("stat", address).stat()
        return types.SimpleNamespace(size=found.st_size, mtime=found.st_mtime)

    def copy(self, source: str, target: str, overwrite: bool) -> None:
        assert overwrite
        path = self._call("copy", target if "://" in target else source)
        to = path if "://" in target else Path(target)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._local(source), to)

    def remove(self, address: str) -> None:
        self._call("remove", address).unlink()

    def rmtree(self, address: str) -> None:
        shutil.rmtree(self._call("rmtree", address))


def install_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBlobfile:
    """Replaces blobfile by a service whose bucket and local cache are in a folder of the test."""
    fake = FakeBlobfile(tmp_path / "bucket")
    monkeypatch.setitem(sys.modules, "blobfile", fake)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return fake
