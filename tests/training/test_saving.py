"""Training outlasts trouble of storage: a disk or an object store that fails for a while, for checkpoints and logs."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from loops import assert_same, loop
from processes import run_group

from causaldiffae import train_util
from causaldiffae.checkpoints import checkpoint
from causaldiffae.checkpoints import writer as checkpoint_writer
from causaldiffae.checkpoints.checkpoint import latest_checkpoint
from causaldiffae.errors import InputError
from causaldiffae.logger import Logger
from causaldiffae.training.saving import all_finite


class Disk:
    """A disk that is full while `full()`, and a clock that only sleeping moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full: Callable[[], bool] = lambda: False
        self.slept: list[float] = []
        self.attempts = 0
        self._write = checkpoint.write_tensors
        monkeypatch.setattr(checkpoint, "write_tensors", self._write_or_fail)
        clock = SimpleNamespace(perf_counter=lambda: 0.0, monotonic=lambda: sum(self.slept), sleep=self.slept.append)
        monkeypatch.setattr(
            train_util, "time", SimpleNamespace(perf_counter=iter(range(1000)).__next__, sleep=clock.sleep)
        )
        monkeypatch.setattr(checkpoint_writer, "time", clock)

    def _write_or_fail(self, path: Path, state: Any) -> dict[str, Any]:
        if path.name == "model.safetensors":
            self.attempts += 1
        if self.full():
            raise OSError(28, "No space left on device")
        return self._write(path, state)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.filterwarnings("ignore:failed to write the checkpoint:UserWarning")
def test_training_goes_on_while_a_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    options = {"total_steps": 8, "save_interval": 2, "background_save": background}
    whole = loop(tmp_path / "whole", **options)
    whole.run()
    disk = Disk(monkeypatch)
    trained = loop(tmp_path / "full", **options)
    disk.full = lambda: disk.attempts in (2, 3)  # at steps 4 and 6
    trained.run()
    assert disk.attempts == 4 and not disk.slept
    assert_same(whole, trained)
    assert [path.name for path in sorted((tmp_path / "full").glob("step_*"))] == ["step_0000002", "step_0000008"]
    assert_same(whole, loop(tmp_path / "full", **options))


@pytest.mark.filterwarnings("ignore:failed to write the checkpoint:UserWarning")
def test_the_last_checkpoint_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    disk.full = lambda: disk.attempts in (2, 3, 4)
    loop(tmp_path, total_steps=4, save_interval=2).run()
    assert disk.slept == [30.0, 30.0, 30.0]
    assert latest_checkpoint(tmp_path) == tmp_path / "step_0000004"


@pytest.mark.filterwarnings("ignore:failed to write the checkpoint:UserWarning")
def test_training_gives_up_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    disk.full = lambda: disk.attempts > 1
    message = "failed to write the checkpoint of step 4 and for the last 2 minutes .*No space left on device"
    with pytest.raises(InputError, match=message):
        loop(tmp_path, total_steps=4, save_interval=2, storage_patience=2.0).run()
    assert disk.slept == [30.0] * 4
    assert latest_checkpoint(tmp_path) == tmp_path / "step_0000002"


def test_without_patience_the_first_failure_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    disk.full = lambda: disk.attempts > 1
    trained = loop(tmp_path, total_steps=8, save_interval=2, storage_patience=0.0)
    with pytest.raises(InputError, match=r"failed to write the checkpoint of step 4 \(.*No space left on device"):
        trained.run()
    assert trained.step == 4


WORKER = """
import json, sys
from pathlib import Path
from causaldiffae import dist_util, train_util
from causaldiffae.checkpoints import writer
from loops import loop

dist_util.setup_dist("gloo", timeout_minutes=3.0)
save, failing = writer.save_checkpoint, json.loads(sys.argv[2])

def save_or_fail(run_dir, step, **options):
    if failing and failing[0] == step:
        failing.pop(0)
        raise OSError(28, "No space left on device")
    return save(run_dir, step, **options)

writer.save_checkpoint = save_or_fail
train_util.RETRY_SECONDS = 0.1
trained = loop(Path(sys.argv[1]), total_steps=6, save_interval=2, batch_size=4)
trained.run()
assert trained.step == 6 and not failing or not dist_util.is_main()
dist_util.cleanup()
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_processes_wait_for_the_storage_of_rank_0(tmp_path: Path) -> None:
    run_group(WORKER, tmp_path, json.dumps([2, 6, 6]))
    assert [path.name for path in sorted(tmp_path.glob("step_*"))] == ["step_0000004", "step_0000006"]


def test_logs_that_cannot_be_written_are_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Logger, "dumpkvs", full)
    with pytest.warns(UserWarning, match=r"progress\.csv: cannot be written .*No space left .*; training continues"):
        loop(tmp_path / "patient", total_steps=2).run()
    assert latest_checkpoint(tmp_path / "patient") == tmp_path / "patient" / "step_0000002"
    with pytest.raises(OSError, match="No space left"):
        loop(tmp_path / "impatient", total_steps=2, storage_patience=0.0).run()


def test_all_finite() -> None:
    assert all_finite([{"a": torch.ones(2), "steps": torch.tensor(3), "none": torch.empty(0)}, {"b": torch.zeros(1)}])
    for bad in (float("nan"), float("inf"), -float("inf")):
        assert not all_finite([{"a": torch.ones(2)}, {"b": torch.tensor([1.0, bad, 2.0])}])
