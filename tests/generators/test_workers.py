"""Processes that share work must not outlive the one that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paths import TESTS
from threadpoolctl import threadpool_info

from causaldiffae.generators.workers import worker_pool

STARTER = """
import sys, time
sys.path[:0] = sys.argv[1:]
from test_workers import busy
from causaldiffae.generators.workers import worker_pool

if __name__ == "__main__":
    with worker_pool(2) as pool:
        print(*pool.map(busy, [0, 0]), flush=True)
        list(pool.map(busy, [600, 600]))
"""


def busy(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def threads(_: int) -> int:
    import numpy as np

    np.ones((2, 2)) @ np.ones((2, 2))
    return max(pool["num_threads"] for pool in threadpool_info())


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_process_uses_one_thread() -> None:
    with worker_pool(1) as pool:
        assert list(pool.map(threads, [0])) == [1]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see whether a process lives")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_starter(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "starter.py"
    script.write_text(STARTER)
    starter = subprocess.Popen(
        [sys.executable, str(script), str(TESTS), str(TESTS / "generators")], stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    workers = {int(pid) for pid in starter.stdout.readline().split()}
    assert workers and all(map(lives, workers))
    starter.send_signal(how)
    starter.wait(timeout=60)
    limit = time.monotonic() + 60
    while any(map(lives, workers)) and time.monotonic() < limit:
        time.sleep(0.1)
    left = [pid for pid in workers if lives(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
