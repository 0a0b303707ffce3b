"""The lock on a run directory: one holder, told apart from a dead one's file."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPO

from causaldiffae.errors import InputError
from causaldiffae.training.run_lock import LOCK, lock_run_dir

HOLDER = """
import sys, time
from causaldiffae.training.run_lock import lock_run_dir
with lock_run_dir(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_holder_is_refused_and_a_dead_one_does_not_block(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"in use by process {holder.pid} on .*; wait for it, or give another"):
            lock_run_dir(tmp_path).__enter__()
        holder.send_signal(signal.SIGKILL)
    assert (tmp_path / LOCK).read_text().startswith(f"process {holder.pid} ")
    with lock_run_dir(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} ")
        with pytest.raises(InputError, match=f"process {os.getpid()}"):
            lock_run_dir(tmp_path).__enter__()
    with lock_run_dir(tmp_path):
        pass


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.warns(UserWarning, match="its file system has no locks; start one trainer only"):
        lock_run_dir(tmp_path / "new").__enter__()


@pytest.mark.parametrize("name", [LOCK, "config.yaml", "progress.csv"])
def test_links_in_a_strangers_run_are_not_written_through(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine.txt").write_text("untouched")
    (tmp_path / "run").mkdir()
    (tmp_path / "old_step").mkdir()
    (tmp_path / "run" / "step_0000001").symlink_to(tmp_path / "old_step")
    with lock_run_dir(tmp_path / "run"):
        pass
    (tmp_path / "run" / name).unlink(missing_ok=True)
    (tmp_path / "run" / name).symlink_to(tmp_path / "mine.txt")
    with (
        pytest.raises(InputError, match=f"run/{name} is a link to a file, which a run would write through"),
        lock_run_dir(tmp_path / "run"),
    ):
        pass
    assert (tmp_path / "mine.txt").read_text() == "untouched"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"run_dir: .*file/run cannot be written \(Not a directory\)"):
        lock_run_dir(tmp_path / "file" / "run").__enter__()
