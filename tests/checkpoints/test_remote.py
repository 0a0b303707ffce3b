"""A run directory in object storage: a stand-in for blobfile over a folder, which fails at chosen calls."""

import shutil
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoint import CONFIG, flip_a_byte, small_model
from tiny import small_config, squares

from causaldiffae.checkpoints import remote as remote_checkpoints
from causaldiffae.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from causaldiffae.checkpoints.remote import PAUSES, RemoteRun, local_checkpoint, run_folder
from causaldiffae.errors import DataError, InputError
from causaldiffae.logger import Logger
from causaldiffae.script_util import load_model
from causaldiffae.train_util import TrainLoop
from causaldiffae.training.resuming import checkpoint_to_resume

RUN = "gs://bucket/run"


class FakeBlobfile(types.ModuleType):
    """A service whose bucket is a local folder; `refuse` says which call (number, name, address) fails."""

    def __init__(self, bucket: Path) -> None:
        super().__init__("blobfile")
        self.bucket = bucket
        self.calls: list[tuple[str, str]] = []
        self.refuse: Callable[[int, str, str], bool] = lambda number, name, address: False

    def create_context(self, **options: Any) -> "FakeBlobfile":
        assert options["retry_limit"] is not None, "the library's own default is to try for ever"
        return self

    def _local(self, address: str) -> Path:
        if address.startswith("s3://"):
            raise RuntimeError(f"Unrecognized path: '{address}'")
        return self.bucket / address.removeprefix("gs://bucket/") if "://" in address else Path(address)

    def _call(self, name: str, address: str) -> Path:
        self.calls.append((name, address))
        if self.refuse(len(self.calls), name, address):
            raise RuntimeError("503 service\nunavailable")
        return self._local(address)

    def isdir(self, address: str) -> bool:
        return self._call("isdir", address).is_dir()

    def exists(self, address: str) -> bool:
        return self._call("exists", address).exists()

    def listdir(self, address: str) -> list[str]:
        return [path.name + ("/" if path.is_dir() else "") for path in self._call("listdir", address).iterdir()]

    def stat(self, address: str) -> Any:
        return types.SimpleNamespace(size=self._call("stat", address).stat().st_size)

    def copy(self, source: str, target: str, overwrite: bool) -> None:
        assert overwrite
        path = self._call("copy", target if "://" in target else source)
        to = path if "://" in target else Path(target)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._local(source), to)

    def remove(self, address: str) -> None:
        self._call("remove", address).unlink()

    def rmtree(self, address: str) -> None:
        shutil.rmtree(self._call("rmtree", address))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(remote_checkpoints.time, "sleep", waited.append)
    return waited


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> FakeBlobfile:
    fake = FakeBlobfile(tmp_path / "bucket")
    monkeypatch.setitem(sys.modules, "blobfile", fake)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return fake


def write(step: int, seed: int = 0) -> Path:
    state = {"model_state": small_model(seed).state_dict(), "ema_states": {}, "training_state": {"n": step}}
    return save_checkpoint(run_folder(RUN), step, config=CONFIG, **state)


def steps(service: FakeBlobfile) -> list[str]:
    return sorted(path.name for path in (service.bucket / "run").iterdir())


def test_up_and_down_again_on_another_machine(service: FakeBlobfile) -> None:
    for step in (1, 2, 3, 4):
        RemoteRun(RUN, keep_last=2, keep_every=3).upload(write(step, seed=step))
    assert steps(service) == ["step_0000003", "step_0000004"]
    shutil.rmtree(run_folder(RUN))
    for path in (RUN, f"{RUN}/", f"{RUN}/step_0000004"):
        loaded = load_checkpoint(local_checkpoint(path), with_training=True)
        assert loaded.step == 4 and loaded.training_state == {"n": 4}
        assert torch.equal(loaded.model_state["0.bias"], small_model(4).state_dict()["0.bias"])
    assert checkpoint_to_resume("", RUN) == run_folder(RUN) / "step_0000004"
    assert checkpoint_to_resume(f"{RUN}/step_0000003", RUN) == run_folder(RUN) / "step_0000003"
    read = sum(name == "copy" for name, _ in service.calls)
    checkpoint_to_resume("", RUN)
    assert sum(name == "copy" for name, _ in service.calls) == read + 1, "only the manifest: the rest is here"
    assert [path.name for path in run_folder(RUN).iterdir() if path.name.startswith(".")] == []


def test_the_manifest_goes_up_last_and_is_removed_first(service: FakeBlobfile) -> None:
    RemoteRun(RUN).upload(write(1))
    service.calls.clear()
    RemoteRun(RUN, keep_last=1).upload(write(2))
    copied = [address.rpartition("/")[2] for name, address in service.calls if name == "copy"]
    assert copied[-1] == "manifest.json" and sorted(copied) == sorted(set(copied)) and len(copied) == 5
    removed = [(name, address) for name, address in service.calls if name in ("remove", "rmtree")]
    assert removed == [("remove", f"{RUN}/step_0000001/manifest.json"), ("rmtree", f"{RUN}/step_0000001")]


def test_one_refusal_at_any_call_is_tried_again(service: FakeBlobfile, pauses: list[float]) -> None:
    at, begun = 0, 0
    while True:
        at += 1
        begun = len(service.calls)
        service.refuse = lambda number, name, address: number == begun + at  # noqa: B023
        pauses.clear()
        RemoteRun(RUN, keep_last=1).upload(write(at))
        assert RemoteRun(RUN).steps() == [at]
        if not pauses:
            break
        assert pauses == [PAUSES[0]]
    assert at > 15


@pytest.mark.parametrize("dead_from", range(1, 30, 3))
def test_a_service_that_stays_away_leaves_the_step_before(
    service: FakeBlobfile, pauses: list[float], dead_from: int
) -> None:
    RemoteRun(RUN, keep_last=1).upload(write(1))
    begun = len(service.calls)
    service.refuse = lambda number, name, address: number >= begun + dead_from
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an old step that cannot be removed is no error
            RemoteRun(RUN, keep_last=1).upload(write(2))
        arrived = True
    except OSError as error:
        assert str(error).startswith(f"{RUN}: ") and str(error).endswith(": 503 service unavailable")
        assert pauses == list(PAUSES)
        arrived = False
    service.refuse = lambda number, name, address: False
    shutil.rmtree(run_folder(RUN))
    assert checkpoint_to_resume("", RUN) == run_folder(RUN) / f"step_000000{2 if arrived else 1}"
    RemoteRun(RUN, keep_last=1).upload(write(2, seed=5))
    assert steps(service) == ["step_0000002"]


def test_what_is_damaged_up_there_is_passed_over_with_a_warning(service: FakeBlobfile) -> None:
    assert checkpoint_to_resume("", RUN) is None
    for step in (1, 2, 3):
        RemoteRun(RUN).upload(write(step))
    shutil.rmtree(run_folder(RUN))
    flip_a_byte(service.bucket / "run" / "step_0000003" / "model.safetensors")
    (service.bucket / "run" / "step_0000002" / "training.json").unlink()
    with pytest.warns(UserWarning) as caught:
        assert checkpoint_to_resume("", RUN) == run_folder(RUN) / "step_0000001"
    texts = [str(warning.message) for warning in caught]
    assert "passed over" in texts[0] and "SHA-256 differs" in texts[0]
    assert texts[1].endswith(f"{RUN}/step_0000002/training.json: it is missing")
    with pytest.raises(DataError, match="SHA-256 differs"):
        checkpoint_to_resume(f"{RUN}/step_0000003", RUN)
    (service.bucket / "run" / "step_0000001" / "config.json").unlink()
    shutil.rmtree(run_folder(RUN))
    with pytest.raises(DataError, match=f"{RUN}: none of its 3 checkpoints is whole; the newest: "):
        checkpoint_to_resume("", RUN)


def test_a_local_step_that_never_arrived_does_not_count(service: FakeBlobfile) -> None:
    RemoteRun(RUN).upload(write(1))
    write(2)
    assert checkpoint_to_resume("", RUN) == run_folder(RUN) / "step_0000001"


def test_addresses_that_cannot_be_served(service: FakeBlobfile, pauses: list[float]) -> None:
    with pytest.raises(InputError, match="s3://bucket/run is no address that can be served .Unrecognized path"):
        checkpoint_to_resume("", "s3://bucket/run")
    with pytest.raises(DataError, match="gs://bucket/none: it holds no checkpoint"):
        local_checkpoint("gs://bucket/none")
    assert pauses == []


def test_training_saves_there_and_goes_on_from_there(service: FakeBlobfile, tmp_path: Path) -> None:
    def train(total_steps: int) -> TrainLoop:
        options = {"channel_mult": "1", "attention_resolutions": "", "save_interval": 2, "run_dir": RUN}
        config = small_config(**options, total_steps=total_steps)
        RemoteRun(RUN).fetch_logs(("progress.csv",))
        trained = TrainLoop(config, squares(), Logger(run_folder(RUN), use_tensorboard=False))
        trained.run()
        return trained

    whole = train(6)
    assert steps(service) == ["progress.csv", "step_0000004", "step_0000006"]
    shutil.rmtree(service.bucket)
    shutil.rmtree(run_folder(RUN))
    train(4)
    shutil.rmtree(run_folder(RUN))  # another machine
    resumed = train(6)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value)
    lines = (service.bucket / "run" / "progress.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines[1:]] == ["1", "2", "3", "4", "5", "6"]
    assert load_model(RUN).step == 6
    service.refuse = lambda number, name, address: "step_0000008" in address
    with pytest.raises(InputError, match=r"the checkpoint of step 8 could not be written \(gs://bucket/run: .*503"):
        train(10)
