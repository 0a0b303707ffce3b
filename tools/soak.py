"""A long run at mini size, watched from outside: does its memory stay flat, are files left open?

    OMP_NUM_THREADS=1 python tools/soak.py --data_dir data/pendulum --run_dir /tmp/soak --minutes 60

Trains with checkpoints, pictures, TensorBoard and log lines far more often than a user would, so that whatever leaks
there leaks often. Every 10 seconds one line tells the time, the resident memory and the open files of the trainer; at
the end the run is stopped by SIGTERM, which it must answer with exit code 0. Memory is compared between the mean of
the first tenth after the warm-up (a fifth of the time) and that of the last tenth.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
OFTEN = [
    "--save_interval=25",
    "--sample_interval=100",
    "--log_interval=5",
    "--keep_every=1000",
    "--total_steps=10000000",
]
WARM_UP, TENTH = 0.2, 0.1
ALLOWED_GROWTH = 0.01


def resident_kib(pid: int) -> int:
    """Resident memory of a process in KiB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) if found else 0


def open_files(pid: int) -> int:
    """File descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def watch(process: subprocess.Popen[bytes], minutes: float, every: float) -> list[tuple[float, int, int]]:
    """(seconds, KiB, descriptors) every so often until the time is over or the process ends."""
    begun, found = time.monotonic(), []
    while (seconds := time.monotonic() - begun) < 60 * minutes and process.poll() is None:
        time.sleep(every)
        try:
            found.append((seconds, resident_kib(process.pid), open_files(process.pid)))
        except OSError:
            break
        print(f"{found[-1][0]:7.0f} s  {found[-1][1]:9d} KiB  {found[-1][2]:4d} files", flush=True)
    return found


def verdict(found: list[tuple[float, int, int]]) -> tuple[float, int]:
    """Relative growth of memory after the warm-up, and descriptors gained; both compare tenths of the time."""
    size = max(int(len(found) * TENTH), 1)
    start = int(len(found) * WARM_UP)
    first, last = found[start : start + size], found[-size:]
    growth = sum(row[1] for row in last) / sum(row[1] for row in first) - 1
    return growth, max(row[2] for row in last) - max(row[2] for row in first)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--run_dir", required=True)
    parser.add_argument("--dataset", default="pendulum")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two looks")
    options = parser.parse_args()
    command = [sys.executable, str(REPO / "scripts" / "image_train.py")]
    command += ["--config", str(REPO / "configs" / f"{options.dataset}_causaldae_mini.yaml"), *OFTEN]
    command += ["--data_dir", options.data_dir, "--run_dir", options.run_dir]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    found = watch(process, options.minutes, options.every)
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=300)
    growth, gained = verdict(found)
    passed = code == 0 and growth < ALLOWED_GROWTH and gained <= 0
    outcome = "passed" if passed else "FAILED"
    print(f"exit code {code}, memory {growth:+.2%} after the warm-up, {gained:+d} files: {outcome}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
