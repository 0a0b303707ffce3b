"""Where no cache can be written, the processes of a machine decode once, and leave nothing behind."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from processes import plain_environment

from causaldiffae.datasets.folder import shared_cache
from causaldiffae.datasets.folder.image_files import ImageRule
from causaldiffae.datasets.folder.shared_cache import shared_folder
from causaldiffae.datasets.registry import read_split

READER = """
import sys, warnings
from causaldiffae.datasets.folder.image_files import ImageRule
from causaldiffae.datasets.registry import read_split

warnings.simplefilter("ignore")
counts = []
decode = ImageRule.decode
ImageRule.decode = lambda *a, **k: (counts.append(1), decode(*a, **k))[1]
images = read_split("folder", sys.argv[1], "train").images
print(len(counts), int(images.sum()), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def temporary(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of a machine on which neither the data nor the user's cache can be written."""
    (folder / ".cache").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "labels.csv"))
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


def start(folder: Path) -> "subprocess.Popen[str]":
    """A process that reads the folder and ends with its standard input."""
    command = [sys.executable, "-c", READER, str(folder)]
    return subprocess.Popen(command, env=plain_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def decoded(process: "subprocess.Popen[str]") -> int:
    """How many images a process has decoded, once it has read them."""
    assert process.stdout is not None
    return int(process.stdout.readline().split()[0])


def arrays(temporary: Path) -> list[Path]:
    return list(temporary.rglob("*.npy"))


def test_several_processes_decode_once_and_the_last_one_removes_the_images(temporary: Path, folder: Path) -> None:
    processes = [start(folder) for _ in range(3)]
    assert sorted(decoded(process) for process in processes) == [0, 0, 12]
    for process in processes:
        assert len(arrays(temporary)) == 1
        process.communicate("\n", timeout=60)
        assert process.returncode == 0
    assert arrays(temporary) == []


def test_the_images_of_a_killed_process_are_removed_by_the_next_one(temporary: Path, folder: Path) -> None:
    killed = start(folder)
    assert decoded(killed) == 12
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert len(arrays(temporary)) == 1
    shutil.copytree(folder, folder.with_name("other"))
    shutil.rmtree(folder / "im")  # the leftover is not that of the data set which is read next
    following = start(folder.with_name("other"))
    (temporary.parent / "other" / ".cache").touch()
    assert decoded(following) == 12 and len(arrays(temporary)) == 1
    following.communicate("\n", timeout=60)
    assert arrays(temporary) == []


def in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the folder is decoded at every call."""
    counts: list[int] = []
    decode = ImageRule.decode
    monkeypatch.setattr(ImageRule, "decode", lambda *a, **k: (counts.append(1), decode(*a, **k))[1])
    with pytest.warns(UserWarning, match="cannot write a cache"):
        images = [read_split("folder", folder, "train").images for _ in range(2)]
    np.testing.assert_array_equal(*images)
    return len(counts) == 24


def test_without_room_the_images_are_decoded_into_memory(
    temporary: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(temporary)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=12 * 3 * 8 * 8 - 1))
    assert in_memory(folder, monkeypatch) and arrays(temporary) == []


@pytest.mark.parametrize("kind", ["writable by others", "link", "file"])
def test_a_folder_that_others_may_have_made_is_not_used(
    temporary: Path, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = temporary / f"causaldiffae-{os.getuid()}"
    if kind == "link":
        (temporary / "elsewhere").mkdir(mode=0o700)
        planted.symlink_to(temporary / "elsewhere")
    elif kind == "file":
        planted.touch()
    else:
        planted.mkdir()
        planted.chmod(0o777)
    assert in_memory(folder, monkeypatch) and arrays(temporary) == []


def test_without_locks_there_is_no_shared_folder(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_cache, "fcntl", None)
    assert shared_folder("data", 1) is None and list(temporary.iterdir()) == []
