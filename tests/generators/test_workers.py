"""Worker processes use one thread each and do not outlive the process that started them."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from paths import TESTS
from threadpoolctl import threadpool_info

from causaldiffae.generators.workers import worker_pool

STARTER = """
import sys
sys.path[:0] = sys.argv[1:]
from test_workers import wait
from causaldiffae.generators.workers import worker_pool

if __name__ == "__main__":
    with worker_pool(2) as pool:
        list(pool.map(wait, [600, 600]))
"""
INTERRUPTED = """
import signal, sys
sys.path[:0] = sys.argv[3:]
from test_workers import wait
from causaldiffae.generators.workers import worker_pool

if __name__ == "__main__":
    if sys.argv[1] == "survive":
        signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with worker_pool(2) as pool:
            running = [pool.submit(wait, float(sys.argv[2])) for _ in range(2)]
            print("started", flush=True)
            input()
            for each in running:
                each.result()
            print("idle", flush=True)
            input()
            print(pool.submit(abs, -3).result())
    except KeyboardInterrupt:
        sys.exit("interrupted")
"""


class Interrupted:
    """Runs `INTERRUPTED` in a process group, as a terminal does."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        script, self.errors = folder / "script.py", folder / "errors"
        script.write_text(INTERRUPTED)
        command = [sys.executable, str(script), *arguments, str(TESTS), str(TESTS / "generators")]
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command, start_new_session=True, preexec_fn=restore_interrupts, bufsize=0,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        assert self.process.stdout is not None and self.process.stdin is not None
        self.read, self.write = self.process.stdout.readline, self.process.stdin.write

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> tuple[int, bytes, str]:
        """Exit code, the rest of the output, and the errors."""
        try:
            out, _ = self.process.communicate(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.returncode, out, self.errors.read_text()


def restore_interrupts() -> None:
    """A background process ignores Ctrl-C, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait(seconds: float) -> None:
    """Writes a byte to standard output, which the worker keeps open as long as it lives."""
    os.write(1, b".")
    select.select([], [], [], seconds)


def threads(_: int) -> int:
    import numpy as np

    np.ones((2, 2)) @ np.ones((2, 2))
    return max(pool["num_threads"] for pool in threadpool_info())


def test_a_worker_uses_one_thread() -> None:
    with worker_pool(1) as pool:
        assert list(pool.map(threads, [0])) == [1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "starter.py"
    script.write_text(STARTER)
    command = [sys.executable, str(script), str(TESTS), str(TESTS / "generators")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.read(2) == b"..", "both workers are busy"
        parent.send_signal(number)
        try:
            assert parent.communicate(timeout=60)[0] == b"", "the pipe ends when the last worker has ended"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)


def test_workers_ignore_interrupts(tmp_path: Path) -> None:
    """While they start, and while they wait for work."""
    script = Interrupted(tmp_path, "survive", "0")
    assert script.read() == b"started\n"
    script.interrupt()
    script.write(b"\n")
    assert script.read().lstrip(b".") == b"idle\n"
    script.interrupt()
    script.write(b"\n")
    assert script.end() == (0, b"3\n", "")


def test_an_interrupt_ends_workers_in_their_work(tmp_path: Path) -> None:
    script = Interrupted(tmp_path, "stop", "600")
    assert script.read() == b"started\n"
    script.interrupt()
    code, _, errors = script.end()
    assert (code, errors) == (1, "interrupted\n")
