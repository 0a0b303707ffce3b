"""Kills a training run at random times and checks its checkpoints.

    OMP_NUM_THREADS=1 python tools/crashes.py --kills 100

A tiny model saves every few steps, is killed by SIGKILL after a random number of steps and a random time, and resumes.
After each kill the newest checkpoint must be intact, and at most one save interval of steps may be lost, with and
without background writing. The last run trains to the end, and its weights must equal those of an uninterrupted run bit
for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from tiny import small_config, squares

from causaldiffae.checkpoints.checkpoint import latest_checkpoint, load_checkpoint
from causaldiffae.logger import Logger
from causaldiffae.train_util import TrainLoop

INTERVAL = 5
PATIENCE = 120.0  # seconds without a step before a run counts as hanging
SMALL = {"channel_mult": "1", "attention_resolutions": "", "save_interval": INTERVAL, "drop_prob": 0.3, "dropout": 0.3}
SMALL |= {"diffusion_steps": 4, "noise_schedule": "cosine", "schedule_sampler": "loss-second-moment"}


class Outcome(NamedTuple):
    """Kills, runs that completed a step, most steps lost by a kill, final step, and whether weights are equal."""

    kills: int
    runs_with_steps: int
    most_lost: int
    steps: int
    equal: bool


def train(
    run_dir: Path, total_steps: int, background: bool, record: Path | None = None, patience: float = 60.0
) -> TrainLoop:
    """Trains or resumes; appends the number of each completed step to `record`."""
    torch.set_num_threads(1)
    options = {"total_steps": total_steps, "background_save": background, "storage_patience": patience}
    config = small_config(**SMALL, **options)
    trained = TrainLoop(config, squares(), Logger(run_dir, use_tensorboard=False))
    if record is not None:
        step, file = trained.run_step, os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def run_step() -> dict[str, float]:
            means = step()
            os.write(file, f"{trained.step}\n".encode())
            return means

        trained.run_step = run_step  # type: ignore[method-assign]
    trained.run()
    return trained


def train_until_killed(run_dir: Path, record: Path, background: bool, steps: int, seconds: float) -> None:
    """Trains in a child process that is killed by SIGKILL some seconds after a number of steps."""
    before = count_steps(record)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(run_dir.parent / "errors.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        tqdm.set_lock(threading.RLock())  # its own lock is shared by all forks, and a killed one never releases it
        try:
            train(run_dir, 10**9, background, record)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    deadline, ended = time.monotonic() + PATIENCE, 0
    while not ended and count_steps(record) < before + steps and time.monotonic() < deadline:
        time.sleep(0.005)
        ended, _ = os.waitpid(child, os.WNOHANG)
    hangs = time.monotonic() >= deadline
    if not ended:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        ended = not os.WIFSIGNALED(status)
    assert not ended and not hangs, (run_dir.parent / "errors.txt").read_text()


def count_steps(record: Path) -> int:
    """Number of steps that all runs have completed."""
    return record.read_bytes().count(b"\n") if record.exists() else 0


def kill_often(folder: Path, kills: int, longest: float = 0.5, background: bool = True, seed: int = 0) -> Outcome:
    """Kills a run `kills` times; raises `AssertionError` if the newest checkpoint is damaged."""
    tqdm.monitor_interval = 0  # forks only the main thread
    train(folder / "warm", 1, background)  # imports everything before the first fork
    run_dir, record, drawn = folder / "killed", folder / "steps.txt", random.Random(seed)
    runs_with_steps, most_lost = 0, 0
    for _ in range(kills):
        before = count_steps(record)
        train_until_killed(run_dir, record, background, drawn.randrange(2 * INTERVAL), drawn.uniform(0.0, longest))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # skipping a damaged checkpoint is a warning
            newest = latest_checkpoint(run_dir)
        if count_steps(record) == before:
            continue
        runs_with_steps += 1
        saved = 0 if newest is None else int(newest.name.removeprefix("step_"))
        done = int(record.read_text().splitlines()[-1])
        most_lost = max(most_lost, done - saved)
    newest = latest_checkpoint(run_dir)
    total = (0 if newest is None else int(newest.name.removeprefix("step_"))) + 2 * INTERVAL
    killed = train(run_dir, total, background)
    whole = train(folder / "whole", total, background)
    for name in ("killed", "whole"):
        assert load_checkpoint(folder / name).step == total
    ours, theirs = killed.model.state_dict(), whole.model.state_dict()
    same = all(torch.equal(ours[key], theirs[key]) for key in theirs)
    same = same and all(torch.equal(killed.emas["0.9"][key], value) for key, value in whole.emas["0.9"].items())
    return Outcome(kills, runs_with_steps, most_lost, total, same)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--longest", type=float, default=0.5, help="maximum time from a step to a kill, in seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--writer", choices=("waited", "background"), help="way of writing checkpoints; default: both")
    options = parser.parse_args()
    for writer in [options.writer] if options.writer else ["waited", "background"]:
        background = writer == "background"
        with tempfile.TemporaryDirectory() as folder:
            outcome = kill_often(Path(folder), options.kills, options.longest, background, options.seed)
        print(f"background_save={background}, a checkpoint every {INTERVAL} steps: {outcome}", flush=True)
        if not outcome.equal or not outcome.runs_with_steps or outcome.most_lost > INTERVAL:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
