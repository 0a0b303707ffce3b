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
