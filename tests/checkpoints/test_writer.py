"""The thread that writes checkpoints: it copies the state at once, keeps its errors until `check`, and is patient."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from causaldiffae.checkpoints import writer as checkpoint_writer
from causaldiffae.checkpoints.checkpoint import load_checkpoint
from causaldiffae.checkpoints.writer import CheckpointWriter, copy_to_cpu
from causaldiffae.errors import InputError


def states(value: float) -> dict[str, Any]:
    tensor = torch.full((3,), value)
    return {
        "model_state": {"w": tensor},
        "ema_states": {"0.9": {"w": tensor}},
        "training_state": {"list": [tensor, (1, None)]},
        "config": {},
    }


def test_copies_share_no_memory() -> None:
    given = states(1.0)
    copied = copy_to_cpu(given)
    given["model_state"]["w"].zero_()
    assert copied["model_state"]["w"].tolist() == copied["training_state"]["list"][0].tolist() == [1, 1, 1]
    assert copied["training_state"]["list"][1] == (1, None)


def test_later_changes_of_the_state_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, save = threading.Event(), checkpoint_writer.save_checkpoint

    def slow(*arguments: Any, **options: Any) -> Path:
        assert go.wait(30)
        return save(*arguments, **options)

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", slow)
    written = []
    with CheckpointWriter(tmp_path, on_written=written.append) as writer:
        given = states(1.0)
        writer.write(1, given)
        given["model_state"]["w"].fill_(7.0)
        assert not list(tmp_path.glob("step_*")), "training continues while the files are written"
        go.set()
    loaded = load_checkpoint(tmp_path, with_training=True)
    assert loaded.model_state["w"].tolist() == loaded.training_state["list"][0].tolist() == [1, 1, 1]
    assert written == [tmp_path / "step_0000001"]
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint"]


def test_wait_for_disk_does_not_wait_for_uploads(tmp_path: Path) -> None:
    go = threading.Event()
    with CheckpointWriter(tmp_path, on_written=lambda _: go.wait(30)) as writer:
        writer.wait_for_disk()
        writer.write(1, states(1.0))
        writer.wait_for_disk()
        assert load_checkpoint(tmp_path).step == 1
        assert [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
        go.set()


def test_checkpoints_are_written_in_order_and_old_ones_removed(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, keep_last=1, keep_every=3) as writer:
        for step in range(1, 6):
            writer.write(step, states(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_0000003", "step_0000005"]


@pytest.mark.parametrize("background", [False, True])
def test_an_error_is_raised_by_check(tmp_path: Path, background: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Path:
        raise OSError(28, "No space left on device")

    with CheckpointWriter(tmp_path, background=background) as writer:
        writer.check()
        monkeypatch.setattr(checkpoint_writer, "save_checkpoint", full)
        writer.write(7, states(1.0))
        writer.wait_for_disk()
        writer.finish()
        assert writer.failed
        monkeypatch.undo()
        writer.write(8, states(1.0))
        assert not list(tmp_path.iterdir()), "nothing is written before check"
        with pytest.raises(InputError, match="failed to write the checkpoint of step 7 .*No space left"):
            writer.check()
        writer.write(9, states(1.0))
    assert load_checkpoint(tmp_path).step == 9


def test_other_errors_keep_their_type(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path)
    writer.write(1, states(1.0) | {"training_state": len})
    writer.finish()
    with pytest.raises(InputError, match="top level: expected a tensor, .*, got builtin_function_or_method"):
        writer.check()


class Storage:
    """A clock in minutes, and uploads and files that fail while `full` or `offline`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.minutes, self.full, self.offline = 0.0, False, False
        self.written: list[int] = []
        self.uploaded: list[str] = []
        self._save = checkpoint_writer.save_checkpoint
        clock = SimpleNamespace(monotonic=lambda: 60.0 * self.minutes)
        monkeypatch.setattr(checkpoint_writer, "time", clock)
        monkeypatch.setattr(checkpoint_writer, "save_checkpoint", self._write)

    def _write(self, run_dir: Path, step: int, **options: Any) -> Path:
        if self.full:
            raise OSError(28, "No space left on device")
        self.written.append(step)
        return self._save(run_dir, step, **options)

    def upload(self, folder: Path) -> None:
        if self.offline:
            raise OSError("gs://bucket/run: copy failed: 503")
        self.uploaded.append(folder.name)


@pytest.mark.parametrize("background", [False, True])
def test_trouble_of_storage_is_a_warning_until_patience_ends(
    tmp_path: Path, background: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(monkeypatch)
    writer = CheckpointWriter(tmp_path, background=background, patience=10.0)

    def save(step: int, minutes: float, full: bool) -> tuple[bool, bool]:
        storage.minutes, storage.full = minutes, full
        writer.write(step, states(step))
        writer.finish()
        return writer.behind, writer.failed

    assert save(1, 0, full=False) == (False, False)
    for step, minutes in ((2, 100), (3, 109)):
        with pytest.warns(UserWarning) as caught:
            assert save(step, minutes, full=True) == (True, False)
        assert [str(each.message) for each in caught] == [
            f"failed to write the checkpoint of step {step} ([Errno 28] No space left on device); the next checkpoint "
            "is the next attempt; without success, the run ends after 10 minutes (storage_patience)"
        ]
        writer.check()
        assert load_checkpoint(tmp_path).step == 1
    assert save(4, 111, full=False) == (False, False), "the next checkpoint is written as usual"
    assert load_checkpoint(tmp_path).model_state["w"].tolist() == [4, 4, 4]
    with pytest.warns(UserWarning, match="step 5"):
        assert save(5, 112, full=True) == (True, False), "minutes count from the first failure after a success"
    assert save(6, 122, full=True) == (True, True)
    with pytest.raises(
        InputError, match="checkpoint of step 6 and for the last 10 minutes .*; earlier checkpoints are"
    ):
        writer.check()


def test_a_checkpoint_that_is_not_uploaded_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(monkeypatch)
    with CheckpointWriter(tmp_path, on_written=storage.upload, patience=10.0, keep_last=1) as writer:
        storage.offline = True
        for _ in range(2):  # at the end of a run, the same step again
            with pytest.warns(UserWarning, match=rf"failed to upload .* 503\); it is kept in {tmp_path}; the next"):
                writer.write(1, states(1))
                writer.finish()
        assert storage.written == [1] and load_checkpoint(tmp_path).step == 1 and writer.behind
        storage.offline = False
        writer.write(2, states(2))
        writer.finish()
        assert storage.uploaded == ["step_0000002"] and not writer.behind
    with CheckpointWriter(tmp_path, on_written=storage.upload, patience=10.0) as writer:
        storage.offline = True
        with pytest.warns(UserWarning, match="step 3"):
            writer.write(3, states(3))
            writer.finish()
        (tmp_path / "step_0000003").rename(tmp_path / "moved")
        storage.offline = False
        writer.write(3, states(3))
    assert storage.written == [1, 2, 3, 3] and storage.uploaded[-1] == "step_0000003"


def test_other_errors_are_not_trouble_of_storage(tmp_path: Path) -> None:
    def refused(folder: Path) -> None:
        raise InputError("run_dir: gs://bucket/run is in use by process 7")

    writer = CheckpointWriter(tmp_path, on_written=refused, patience=10.0)
    writer.write(1, states(1.0))
    writer.finish()
    with pytest.raises(InputError, match="in use by process 7"):
        writer.check()
