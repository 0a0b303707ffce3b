"""Measures the overhead of writing checkpoints in the background and between steps.

    OMP_NUM_THREADS=1 python tools/save_overhead.py --data_dir data/pendulum

Blocks of `--steps` training steps of a mini model alternate between no checkpoint, one written in the background, and
one written between steps. The time of a block includes its checkpoint. The tool compares medians of wall-clock time and
of the CPU time of the training thread, which depends less on other processes. The last column distributes the overhead
over the `save_interval` of the configuration.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from causaldiffae.datasets.registry import read_split
from causaldiffae.logger import Logger
from causaldiffae.script_util import parse_config
from causaldiffae.train_util import TrainLoop

REPO = Path(__file__).resolve().parents[1]
KINDS = ("none", "background", "between")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = parse_config(["--config", str(REPO / "configs" / "pendulum_causaldae_mini.yaml"), "--dataset=pendulum"])
    train = config.train
    data = read_split("pendulum", options.data_dir, "train", train.image_size, train.channels, limit=256)
    with tempfile.TemporaryDirectory() as folder:
        trained = TrainLoop(config, data, Logger(folder, use_tensorboard=False))
        clock: dict[str, list[float]] = {kind: [] for kind in KINDS}
        thread: dict[str, list[float]] = {kind: [] for kind in KINDS}
        trained.run_step()
        for number in range(options.rounds):
            for kind in KINDS[number % 3 :] + KINDS[: number % 3]:
                trained.writer.finish()
                trained.writer.background = kind == "background"
                begun = time.perf_counter(), time.thread_time()
                if kind != "none":
                    trained.save()
                for _ in range(options.steps):
                    trained.run_step()
                clock[kind].append(time.perf_counter() - begun[0])
                thread[kind].append(time.thread_time() - begun[1])
        trained.writer.finish()
        trained.writer.check()
    for name, times in (("clock", clock), ("training thread", thread)):
        base = statistics.median(times["none"])
        for kind in KINDS:
            middle = statistics.median(times[kind])
            share = (middle / base - 1) * options.steps / train.save_interval
            print(
                f"{name:16s} {kind:11s} {middle:7.2f} s for {options.steps} steps, {middle / base - 1:+.1%}; "
                f"{share:+.2%} with a checkpoint every {train.save_interval} steps"
            )


if __name__ == "__main__":
    main()
