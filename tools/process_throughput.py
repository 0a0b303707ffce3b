"""Compares the training speed of two processes with one thread each to that of one process with two threads.

    python tools/process_throughput.py --data_dir data/pendulum --rounds 3

Both train the same mini model on the same batches, alternately; with two processes, each takes half of the batch.
Speeds are read from progress.csv, without the first ten steps. `mpiexec` is that of the Python environment.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
MPIEXEC = Path(sys.executable).with_name("mpiexec")


def images_per_second(run_dir: Path, data_dir: str, dataset: str, processes: int, batch: int, lines: int) -> float:
    """Trains for a few log rows and returns the median speed, without the first row."""
    command = [sys.executable, str(REPO / "scripts" / "image_train.py"), f"--data_dir={data_dir}"]
    command += ["--config", str(REPO / "configs" / f"{dataset}_causaldae_mini.yaml"), f"--run_dir={run_dir}"]
    command += [f"--batch_size={batch // processes}", "--num_images=2000", "--log_interval=10", "--tensorboard=False"]
    command += [f"--total_steps={10 * (lines + 1)}", "--save_interval=1000000", "--sample_interval=1000000"]
    if processes > 1:
        command = [str(MPIEXEC), "-n", str(processes), *command]
    environment = {**os.environ, "OMP_NUM_THREADS": str(2 // processes), "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
    with (run_dir / "progress.csv").open() as file:
        speeds = [float(row["images_per_second"]) for row in csv.DictReader(file)]
    return statistics.median(speeds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--dataset", default="pendulum")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lines", type=int, default=8, help="log rows, of ten steps each")
    parser.add_argument("--batch_size", type=int, default=32, help="images per step, over all processes")
    options = parser.parse_args()
    found: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for processes in (1, 2) if number % 2 == 0 else (2, 1):
                run_dir = Path(folder) / f"{number}_{processes}"
                speed = images_per_second(
                    run_dir, options.data_dir, options.dataset, processes, options.batch_size, options.lines
                )
                found[processes].append(speed)
                print(f"{processes} process(es) of {2 // processes} thread(s): {speed:7.1f} images/s", flush=True)
    ratio = statistics.median(found[2]) / statistics.median(found[1])
    print(f"speed of two processes relative to one: {ratio:.2f}")


if __name__ == "__main__":
    main()
