"""A killed process, and a disk that fails at any call, always leave an intact checkpoint to resume from."""

import contextlib
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from crashes import INTERVAL, train
from paths import REPO

from causaldiffae.checkpoints import checkpoint
from causaldiffae.checkpoints import writer as checkpoint_writer
from causaldiffae.checkpoints.checkpoint import latest_checkpoint
from causaldiffae.errors import InputError
from causaldiffae.files import reading as safe_files
from causaldiffae.train_util import TrainLoop


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("writer", ["waited", "background"])
def test_killed_at_random_moments(writer: str) -> None:
    """Five kills, in a new process because autograd's threads do not survive a fork."""
    command = [sys.executable, str(REPO / "tools" / "crashes.py"), "--kills=5", f"--writer={writer}"]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=550, check=False)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "equal=True" in outcome.stdout


class Fault:
    """A disk that fails at one call among all that write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.calls, self.at = 0, at
        functions = [(Path, "open"), (os, "fsync"), (Path, "rename"), (Path, "mkdir"), (Path, "chmod")]
        for owner, name in [*functions, (checkpoint.tempfile, "mkdtemp")]:
            monkeypatch.setattr(owner, name, self._failing(getattr(owner, name)))

    def _failing(self, action: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self.at + 1:
                if "wb" in arguments:
                    arguments[0].write_bytes(b"the beginning of a file")
                raise OSError(28, "No space left on device")
            return action(*arguments, **options)

        return call


def save_with_fault(trained: TrainLoop, at: int) -> int:
    """Saves one checkpoint with a fault at call `at`; returns the number of calls."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fault = Fault(patch, at)
        trained.save()
        trained.writer.finish()
    with contextlib.suppress(InputError):
        trained.writer.check()
    return fault.calls


@pytest.mark.parametrize("background", [False, True])
def test_a_failing_disk_leaves_an_intact_checkpoint(tmp_path: Path, background: bool) -> None:
    trained = train(tmp_path, 2 * INTERVAL, background)
    at, calls, before, written = -1, 0, trained.step, []
    while calls > at:  # until a complete checkpoint takes fewer calls
        at += 1
        trained.step += 1
        calls = save_with_fault(trained, at)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            newest = latest_checkpoint(tmp_path)
        assert newest is not None
        found = int(newest.name.removeprefix("step_"))
        assert found in (before, trained.step)
        written.append(found == trained.step)
        before = found
    assert at > 15, "six files are opened and flushed, the folder is created, renamed and flushed"
    assert not any(written[:15]) and written[-1]


def test_training_ends_with_the_reason_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tmp_path / "whole", 4 * INTERVAL, True)
    real, calls = checkpoint.write_tensors, []

    def full(*arguments: Any) -> dict[str, Any]:
        calls.append(arguments)
        if len(calls) == 5:  # of the second checkpoint
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    message = r"failed to write the checkpoint of step 10 \(.*No space left on device\); earlier checkpoints are intact"
    with pytest.raises(InputError, match=message):
        train(tmp_path / "full", 4 * INTERVAL, False, tmp_path / "steps.txt", patience=0.0)
    monkeypatch.undo()
    assert (tmp_path / "steps.txt").read_text().split()[-1] == "10", "the next step raises the error"
    assert latest_checkpoint(tmp_path / "full") == tmp_path / "full" / "step_0000005"
    resumed = train(tmp_path / "full", 4 * INTERVAL, True)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value)


@pytest.mark.parametrize("writer", ["waited", "background"])
def test_at_most_one_interval_is_unsaved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str) -> None:
    """At the end of every step, the newest complete checkpoint is at most an interval old, however slow the disk."""
    real = checkpoint_writer.save_checkpoint
    lost: list[int] = []
    begun: list[int] = []

    def slow(run_dir: Path, step: int, **options: Any) -> Path:
        begun.append(step)
        time.sleep(0.5)
        return real(run_dir, step, **options)

    def run_step(trained: TrainLoop) -> dict[str, float]:
        means = run(trained)
        newest = latest_checkpoint(tmp_path)
        lost.append(trained.step - (int(newest.name.removeprefix("step_")) if newest else 0))
        return means

    run = TrainLoop.run_step
    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", slow)
    monkeypatch.setattr(TrainLoop, "run_step", run_step)
    train(tmp_path, 3 * INTERVAL, writer == "background")
    assert begun == [INTERVAL, 2 * INTERVAL, 3 * INTERVAL]
    assert lost == [*range(1, INTERVAL + 1)] * 3


def test_a_partly_written_file_is_an_os_error(tmp_path: Path) -> None:
    """As on a full disk, the system writes a part of the bytes first."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            safe_files.write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(10**6)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "x.safetensors").stat().st_size == 100_000
