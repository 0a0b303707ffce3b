"""One trainer per run directory; the lock of a dead process does not count."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import plain_environment

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
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, env=plain_environment(), stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        message = rf"run_dir: .* is in use by process {holder.pid} on .*; wait or choose another run_dir"
        with pytest.raises(InputError, match=message), lock_run_dir(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
    for _ in range(2):
        with lock_run_dir(tmp_path), pytest.raises(InputError, match=f"process {os.getpid()}"), lock_run_dir(tmp_path):
            pass


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.warns(UserWarning, match="run_dir: .* does not support locks"), lock_run_dir(tmp_path / "new"):
        pass


@pytest.mark.parametrize("name", [LOCK, "config.yaml", "progress.csv"])
def test_links_in_an_untrusted_run_are_not_written_through(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine.txt").write_text("untouched")
    (tmp_path / "run").mkdir()
    (tmp_path / "old_step").mkdir()
    (tmp_path / "run" / "step_0000001").symlink_to(tmp_path / "old_step")
    with lock_run_dir(tmp_path / "run"):
        pass
    (tmp_path / "run" / name).unlink(missing_ok=True)
    (tmp_path / "run" / name).symlink_to(tmp_path / "mine.txt")
    message = f"run_dir: expected no links to files, got .*run/{name}"
    with pytest.raises(InputError, match=message), lock_run_dir(tmp_path / "run"):
        pass
    assert (tmp_path / "mine.txt").read_text() == "untouched"


def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = r"run_dir: expected a writable folder, got .*file/run \(Not a directory\)"
    with pytest.raises(InputError, match=message), lock_run_dir(tmp_path / "file" / "run"):
        pass
