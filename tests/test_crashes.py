"""What is left of a run when it is killed, and when the disk refuses at any place: always something to go on from."""

import contextlib
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from crashes import INTERVAL, train
from safetensors import SafetensorError

from causaldiffae import checkpoint, safe_files
from causaldiffae.checkpoint import latest_checkpoint
from causaldiffae.errors import InputError
from causaldiffae.train_util import TrainLoop


@pytest.mark.slow
@pytest.mark.parametrize("writer", ["waited", "background"])
def test_killed_at_random_moments(writer: str) -> None:
    """Five kills, in a process that nothing else has run in: autograd's threads do not survive a fork.

    `python tests/crashes.py --kills 100` does the same with a hundred.
    """
    command = [sys.executable, str(Path(__file__).with_name("crashes.py")), "--kills=5", f"--writer={writer}"]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "equal=True" in outcome.stdout


class Fault:
    """A disk that refuses at the n-th call of anything that writes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.calls, self.at = 0, at
        places = [(safe_files, "save_file"), (os, "fsync"), (Path, "write_text"), (Path, "rename"), (Path, "mkdir")]
        places += [(checkpoint.tempfile, "mkdtemp"), (Path, "chmod")]
        for place, name in places:
            monkeypatch.setattr(place, name, self._refusing(getattr(place, name)))

    def _refusing(self, action: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self.at + 1:
                raise OSError(28, "No space left on device")
            return action(*arguments, **options)

        return refuse


def save_while_the_disk_refuses(trained: TrainLoop, at: int) -> int:
    """One checkpoint with a fault at call `at`; how many calls there were."""
    with pytest.MonkeyPatch.context() as patch:
        fault = Fault(patch, at)
        trained.save()
        trained.writer.finish()
    with contextlib.suppress(InputError):
        trained.writer.check()
    return fault.calls


@pytest.mark.parametrize("background", [False, True])
def test_a_disk_that_refuses_at_any_write_leaves_a_whole_checkpoint(tmp_path: Path, background: bool) -> None:
    trained = train(tmp_path, 2 * INTERVAL, background)
    at, calls, before, written = -1, 0, trained.step, []
    while calls > at:  # until a whole checkpoint takes fewer calls
        at += 1
        trained.step += 1
        calls = save_while_the_disk_refuses(trained, at)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            newest = latest_checkpoint(tmp_path)
        assert newest is not None
        found = int(newest.name.removeprefix("step_"))
        assert found in (before, trained.step)
        written.append(found == trained.step)
        before = found
    assert at > 20, "every file is written and flushed, the folder renamed and flushed"
    assert not any(written[:15]) and written[-1]


def test_training_says_why_it_ends_and_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tmp_path / "whole", 4 * INTERVAL, True)
    real, calls = safe_files.save_file, []

    def full(*arguments: Any, **options: Any) -> None:
        calls.append(arguments)
        if len(calls) == 5:  # of the second checkpoint
            raise OSError(28, "No space left on device")
        real(*arguments, **options)

    monkeypatch.setattr(safe_files, "save_file", full)
    message = (
        r"the checkpoint of step 10 could not be written \(.*No space left on device\); those before it are untouched"
    )
    with pytest.raises(InputError, match=message):
        train(tmp_path / "full", 4 * INTERVAL, False, tmp_path / "steps.txt")
    monkeypatch.undo()
    assert (tmp_path / "steps.txt").read_text().split()[-1] == "10", "the next step tells"
    assert latest_checkpoint(tmp_path / "full") == tmp_path / "full" / "step_0000005"
    resumed = train(tmp_path / "full", 4 * INTERVAL, True)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value)


def test_a_full_disk_in_the_library_s_words_is_an_os_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safe_files, "save_file", full)
    with pytest.raises(OSError, match=r"x\.safetensors: .*No space left"):
        safe_files.write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)})
