"""The thread that writes checkpoints: it copies the state at once, and keeps its errors until `check`."""

import threading
from pathlib import Path
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
