"""Checks a long training run of a mini model for leaks of memory and open files.

    OMP_NUM_THREADS=1 python tools/soak.py --data_dir data/pendulum --run_dir /tmp/soak --minutes 60

Trains with frequent checkpoints, previews and log rows, so that leaks accumulate quickly, and prints resident memory
and open files every 10 seconds. At the end, SIGTERM stops the run, which must exit with code 0. The mean memory of the
last 10 % of the samples is compared with that of the first 10 % after a warm-up of 20 %.
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
    "--sample_interval=20",
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
    """Number of file descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def watch(process: subprocess.Popen[bytes], minutes: float, every: float) -> list[tuple[float, int, int]]:
    """Samples (seconds, KiB, file descriptors) until the time has elapsed or the process ends."""
    begun, found = time.monotonic(), []
    while (seconds := time.monotonic() - begun) < 60 * minutes and process.poll() is None:
        time.sleep(every)
        try:
            found.append((seconds, resident_kib(process.pid), open_files(process.pid)))
        except OSError:
            break
        print(f"{found[-1][0]:7.0f} s  {found[-1][1]:9d} KiB  {found[-1][2]:4d} files", flush=True)
    return found


def compare(found: list[tuple[float, int, int]]) -> tuple[float, int]:
    """Returns relative memory growth and increase of file descriptors from the first to the last samples."""
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
    parser.add_argument("--every", type=float, default=10.0, help="seconds between samples")
    options = parser.parse_args()
    command = [sys.executable, str(REPO / "scripts" / "image_train.py")]
    command += ["--config", str(REPO / "configs" / f"{options.dataset}_causaldae_mini.yaml"), *OFTEN]
    command += ["--data_dir", options.data_dir, "--run_dir", options.run_dir]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    found = watch(process, options.minutes, options.every)
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=300)
    growth, gained = compare(found)
    passed = code == 0 and growth < ALLOWED_GROWTH and gained <= 0
    outcome = "passed" if passed else "FAILED"
    print(f"exit code {code}, memory {growth:+.2%} after the warm-up, {gained:+d} files: {outcome}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
