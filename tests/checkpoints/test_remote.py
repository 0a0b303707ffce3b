"""A run directory in object storage, served by a stand-in for blobfile that fails at chosen calls."""

import re
import shutil
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from fake_storage import FakeBlobfile, install_service
from loops import assert_same, loop
from processes import ended, start_group
from support import CHECKPOINT_CONFIG, flip_byte, small_network
from tiny import small_config, squares
from tiny_models import tiny_model

from causaldiffae import dist_util, train_util
from causaldiffae.checkpoints.checkpoint import export_weights, load_checkpoint, save_checkpoint
from causaldiffae.checkpoints.folder_layout import BESIDE_STEPS, BEST_FILES
from causaldiffae.checkpoints.remote import RemoteRun, local_checkpoint, run_folder
from causaldiffae.errors import DataError, InputError
from causaldiffae.logger import Logger
from causaldiffae.pretrained import CounterfactualModel
from causaldiffae.script_util import describe_checkpoint, load_model
from causaldiffae.train_util import TrainLoop
from causaldiffae.training.response_tracker import ResponseTracker
from causaldiffae.training.resuming import checkpoint_to_resume

RUN = "gs://bucket/run"


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBlobfile:
    return install_service(tmp_path, monkeypatch)


def write(step: int, seed: int = 0) -> Path:
    state = {"model_state": small_network(seed).state_dict(), "ema_states": {}, "training_state": {"n": step}}
    return save_checkpoint(run_folder(RUN), step, config=CHECKPOINT_CONFIG, **state)


def steps(service: FakeBlobfile) -> list[str]:
    return sorted(path.name for path in (service.bucket / "run").iterdir())


def test_a_run_is_resumed_on_another_machine(service: FakeBlobfile) -> None:
    for step in (1, 2, 3, 4):
        RemoteRun(RUN, keep_last=2, keep_every=3).upload(write(step, seed=step))
    assert steps(service) == ["step_0000003", "step_0000004"]
    shutil.rmtree(run_folder(RUN))
    for path in (RUN, f"{RUN}/", f"{RUN}/step_0000004"):
        loaded = load_checkpoint(local_checkpoint(path), with_training=True)
        assert loaded.step == 4 and loaded.training_state == {"n": 4}
        assert torch.equal(loaded.model_state["0.bias"], small_network(4).state_dict()["0.bias"])
    assert checkpoint_to_resume("", RUN) == run_folder(RUN) / "step_0000004"
    assert checkpoint_to_resume(f"{RUN}/step_0000003", RUN) == run_folder(RUN) / "step_0000003"
    copied = service.count("copy")
    checkpoint_to_resume("", RUN)
    assert service.count("copy") == copied + 1, "only the manifest is downloaded again"
    assert [path.name for path in run_folder(RUN).iterdir() if path.name.startswith(".")] == []


def test_the_manifest_is_uploaded_last_and_removed_first(service: FakeBlobfile) -> None:
    RemoteRun(RUN).upload(write(1))
    service.calls.clear()
    RemoteRun(RUN, keep_last=1).upload(write(2))
    copied = [address.rpartition("/")[2] for name, address in service.calls if name == "copy"]
    assert copied[-1] == "manifest.json" and sorted(copied) == sorted(set(copied)) and len(copied) == 5
    removed = [(name, address) for name, address in service.calls if name in ("remove", "rmtree")]
    assert removed == [("remove", f"{RUN}/step_0000001/manifest.json"), ("rmtree", f"{RUN}/step_0000001")]


@pytest.mark.parametrize("first_failure", range(1, 30, 3))
def test_a_failing_service_keeps_the_earlier_step(service: FakeBlobfile, first_failure: int) -> None:
    RemoteRun(RUN, keep_last=1).upload(write(1))
    before = len(service.calls)
    service.fails = lambda number, name, address: number >= before + first_failure
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an old step that cannot be removed is not an error
            RemoteRun(RUN, keep_last=1).upload(write(2))
        arrived = True
    except OSError as error:
        assert re.fullmatch(rf"{RUN}: request to .* failed \(\w+\): 503 service unavailable", str(error))
        arrived = False
    service.fails = lambda number, name, address: False
    shutil.rmtree(run_folder(RUN))
    assert checkpoint_to_resume("", RUN) == run_folder(RUN) / f"step_000000{2 if arrived else 1}"
    RemoteRun(RUN, keep_last=1).upload(write(2, seed=5))
    assert steps(service) == ["step_0000002"]


def test_damaged_remote_steps_are_skipped_with_a_warning(service: FakeBlobfile) -> None:
    assert checkpoint_to_resume("", RUN) is None
    for step in (1, 2, 3):
        RemoteRun(RUN).upload(write(step))
    shutil.rmtree(run_folder(RUN))
    flip_byte(service.bucket / "run" / "step_0000003" / "model.safetensors")
    (service.bucket / "run" / "step_0000002" / "training.json").unlink()
    with pytest.warns(UserWarning) as caught:
        assert checkpoint_to_resume("", RUN) == run_folder(RUN) / "step_0000001"
    texts = [str(warning.message) for warning in caught]
    assert "skipped" in texts[0] and "its SHA-256 differs from the manifest" in texts[0]
    assert texts[1].endswith(f"{RUN}/step_0000002/training.json: file not found")
    with pytest.raises(DataError, match="SHA-256"):
        checkpoint_to_resume(f"{RUN}/step_0000003", RUN)
    (service.bucket / "run" / "step_0000001" / "config.json").unlink()
    shutil.rmtree(run_folder(RUN))
    with pytest.raises(DataError, match=f"{RUN}: expected an intact checkpoint, all 3 are damaged; the newest: "):
        checkpoint_to_resume("", RUN)


def test_a_step_that_cannot_be_fetched_is_not_replaced_by_an_older_one(service: FakeBlobfile) -> None:
    for step in (1, 2):
        RemoteRun(RUN).upload(write(step))
    shutil.rmtree(run_folder(RUN))
    service.fails = lambda number, name, address: "step_0000002" in address
    for find in (lambda: checkpoint_to_resume("", RUN), lambda: local_checkpoint(RUN)):
        with pytest.raises(InputError, match="request to the storage service failed"):
            find()


def test_other_processes_fetch_the_step_that_rank_0_has_chosen(
    service: FakeBlobfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the newest one, which may be damaged, or uploaded since."""
    for step in (1, 2):
        RemoteRun(RUN).upload(write(step))
    shutil.rmtree(run_folder(RUN))
    chosen = run_folder(RUN) / "step_0000001"
    monkeypatch.setattr(dist_util, "from_main", lambda action: (chosen, True, RUN))
    monkeypatch.setattr(dist_util, "is_main", lambda: False)
    assert checkpoint_to_resume("", RUN) == chosen and load_checkpoint(chosen).step == 1


def test_processes_of_a_machine_download_a_step_once(service: FakeBlobfile, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second download would replace the folder that another process reads."""
    RemoteRun(RUN).upload(write(1))
    shutil.rmtree(run_folder(RUN))
    service.calls.clear()
    copy = service.copy

    def slow_copy(source: str, target: str, overwrite: bool) -> None:
        time.sleep(0.05)
        copy(source, target, overwrite)

    monkeypatch.setattr(service, "copy", slow_copy)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: RemoteRun(RUN).fetch(1), range(4)))
    assert set(found) == {run_folder(RUN) / "step_0000001"}
    weights = [address for name, address in service.calls if name == "copy" and address.endswith("model.safetensors")]
    assert len(weights) == 1


def test_the_files_beside_a_step_are_fetched_with_it(service: FakeBlobfile) -> None:
    RemoteRun(RUN).upload(write(1))
    (run_folder(RUN) / "autoencoder").mkdir()
    for name in BESIDE_STEPS:
        (run_folder(RUN) / name).write_text(name)
    RemoteRun(RUN).upload_logs(BESIDE_STEPS)
    for path in (RUN, f"{RUN}/step_0000001"):
        shutil.rmtree(run_folder(RUN))
        assert local_checkpoint(path) == run_folder(RUN) / "step_0000001"
        assert [(run_folder(RUN) / name).read_text() for name in BESIDE_STEPS] == list(BESIDE_STEPS)


def upload_model(service: FakeBlobfile, name: str, seed: int) -> None:
    """Puts a model folder into the bucket, whose first weights are `seed`, in place of another one."""
    loaded, folder = tiny_model(), service.bucket / name
    next(loaded.model.parameters()).data.fill_(seed)
    shutil.rmtree(folder, ignore_errors=True)
    export_weights(folder, loaded.model.state_dict(), describe_checkpoint(loaded.config, loaded.spec))


@pytest.mark.parametrize("name", ["run/best", "model"])
def test_a_model_folder_is_opened_by_its_url(service: FakeBlobfile, name: str) -> None:
    url, is_best = f"gs://bucket/{name}", name == "run/best"
    service.bucket.mkdir()
    (service.bucket / "run").mkdir()
    upload_model(service, name, 1)
    (service.bucket / name / "responses.json").write_text("{}")
    (service.bucket / "run" / "reference.safetensors").write_text("damaged")
    with pytest.warns(UserWarning, match="inputs are not compared") if is_best else nullcontext():
        opened = CounterfactualModel.from_pretrained(url)
    assert next(opened.network.parameters()).eq(1).all()
    here, files = Path(opened.loaded.path), {"config.json", "model.safetensors", "responses.json"}
    assert {path.name for path in here.iterdir()} == files | ({"reference.safetensors"} if is_best else set())
    copied = service.count("copy")
    assert load_model(f"{url}/").path == str(here)
    assert service.count("copy") == copied, "nothing has changed"
    upload_model(service, name, 2)
    assert next(load_model(url).model.parameters()).eq(2).all() and not (here / "responses.json").exists()
    upload_model(service, name, 3)
    service.fails = lambda number, name, address: name == "copy"
    with pytest.raises(InputError, match="request to the storage service failed"):
        load_model(url)


def test_a_step_is_opened_by_its_url(service: FakeBlobfile) -> None:
    loaded = tiny_model()
    state, described = loaded.model.state_dict(), describe_checkpoint(loaded.config, loaded.spec)
    for step in (1, 2):
        states = {"model_state": state, "ema_states": {"0.9": state}, "training_state": {}}
        RemoteRun(RUN).upload(save_checkpoint(run_folder(RUN), step, config=described, **states))
    shutil.rmtree(run_folder(RUN))
    for address in (f"{RUN}/step_0000001", f"{RUN}/step_0000001/"):
        assert load_model(address).step == CounterfactualModel.from_pretrained(address).loaded.step == 1


def test_an_interrupted_download_leaves_no_file(service: FakeBlobfile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of a file would count as the whole one, as files that exist are not downloaded."""
    RemoteRun(RUN).upload(write(1))
    (run_folder(RUN) / "progress.csv").write_text("step,loss")
    RemoteRun(RUN).upload_logs(("progress.csv",))
    shutil.rmtree(run_folder(RUN))

    def broken_copy(source: str, target: str, overwrite: bool) -> None:
        Path(target).write_text("ste")
        raise RuntimeError("connection lost")

    with monkeypatch.context() as patch, pytest.raises(InputError, match="connection lost"):
        patch.setattr(service, "copy", broken_copy)
        RemoteRun(RUN).fetch_logs(("progress.csv",))
    RemoteRun(RUN).fetch_logs(("progress.csv",))
    assert (run_folder(RUN) / "progress.csv").read_text() == "step,loss"


def test_the_best_step_is_uploaded_when_it_improves(service: FakeBlobfile, monkeypatch: pytest.MonkeyPatch) -> None:
    def keep_best(self: ResponseTracker, run_dir: Path, *others: object) -> bool:
        (run_dir / "best").mkdir(exist_ok=True)
        for name in BEST_FILES:
            (run_dir / name).write_text(f"at {trained.step}")
        return trained.step < 3

    monkeypatch.setattr(ResponseTracker, "keep_best", keep_best)
    monkeypatch.setattr(ResponseTracker, "measure", lambda *_: {})
    trained = loop(run_folder(RUN), preview=True, run_dir=RUN, total_steps=4, sample_interval=1)
    trained.run()
    assert [(service.bucket / "run" / name).read_text() for name in BEST_FILES] == ["at 2"] * 3


def test_a_local_step_that_was_not_uploaded_does_not_count(service: FakeBlobfile) -> None:
    RemoteRun(RUN).upload(write(1))
    write(2)
    assert checkpoint_to_resume("", RUN) == run_folder(RUN) / "step_0000001"


def interrupt_upload(service: FakeBlobfile, folder: Path) -> None:
    service.fails = lambda number, name, address: folder.name in address
    with pytest.raises(OSError, match="503"):
        RemoteRun(RUN).upload(folder)
    service.fails = lambda number, name, address: False


@pytest.mark.parametrize("uploaded", [False, True])
def test_an_interrupted_upload_is_completed_by_the_next_run(service: FakeBlobfile, uploaded: bool) -> None:
    if uploaded:
        RemoteRun(RUN).upload(write(1))
    interrupt_upload(service, write(2))
    write(3)  # from an earlier, longer run
    with pytest.warns(UserWarning, match=rf"{RUN}: step 2 is not uploaded yet, uploading .*step_0000002"):
        assert checkpoint_to_resume("", RUN) == run_folder(RUN) / "step_0000002"
    assert RemoteRun(RUN).steps() == [2, 1][: 1 + uploaded]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoint_to_resume("", RUN) == run_folder(RUN) / "step_0000002"


def test_an_interrupted_upload_does_not_count_after_the_run_has_changed(service: FakeBlobfile, tmp_path: Path) -> None:
    """Another machine has continued from the step before, or the user has removed the run to start again."""
    RemoteRun(RUN).upload(write(1))
    interrupt_upload(service, write(4))
    own = run_folder(RUN)
    own.rename(tmp_path / "here")
    RemoteRun(RUN).upload(write(2))  # another machine
    shutil.rmtree(own)
    (tmp_path / "here").rename(own)
    assert checkpoint_to_resume("", RUN) == own / "step_0000002"
    interrupt_upload(service, own / "step_0000004")
    shutil.rmtree(service.bucket)
    assert checkpoint_to_resume("", RUN) is None
    RemoteRun(RUN).upload(write(1))
    assert checkpoint_to_resume("", RUN) == own / "step_0000001"


def test_a_pending_step_must_be_intact(service: FakeBlobfile) -> None:
    RemoteRun(RUN).upload(write(1))
    interrupt_upload(service, write(2))
    flip_byte(run_folder(RUN) / "step_0000002" / "model.safetensors")
    with pytest.warns(UserWarning, match="step 2 is not uploaded, and its local copy is gone .*SHA-256"):
        assert checkpoint_to_resume("", RUN) == run_folder(RUN) / "step_0000001"
    for content in (b"{", b"[]", b'{"newest": "x", "pending": true}'):
        (run_folder(RUN) / "uploads.json").write_bytes(content)
        assert checkpoint_to_resume("", RUN) == run_folder(RUN) / "step_0000001"


def test_a_pending_step_that_fails_again_stays_pending(service: FakeBlobfile) -> None:
    interrupt_upload(service, write(2))
    service.fails = lambda number, name, address: name == "copy"
    with pytest.warns(UserWarning, match="step 2 is not uploaded yet"), pytest.raises(OSError, match="503"):
        checkpoint_to_resume("", RUN)
    service.fails = lambda number, name, address: False
    with pytest.warns(UserWarning, match="step 2 is not uploaded yet"):
        assert checkpoint_to_resume("", RUN) == run_folder(RUN) / "step_0000002"


def test_an_incomplete_upload_is_noticed(service: FakeBlobfile, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(source: str, target: str, overwrite: bool) -> None:
        path = service.bucket / target.removeprefix("gs://bucket/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")

    monkeypatch.setattr(service, "copy", copy)
    with pytest.raises(OSError, match=r"config.json: expected \d+ bytes, got 1"):
        RemoteRun(RUN).upload(write(1))


def test_invalid_addresses_are_refused(service: FakeBlobfile) -> None:
    with pytest.raises(InputError, match="run_dir: expected a gs:// or az:// URL, got s3://bucket/run"):
        checkpoint_to_resume("", "s3://bucket/run")
    with pytest.raises(DataError, match="gs://bucket/none: expected a checkpoint, found none"):
        local_checkpoint("gs://bucket/none")


def test_training_saves_and_resumes_remotely(service: FakeBlobfile, tmp_path: Path) -> None:
    def train(total_steps: int, **changes: float) -> TrainLoop:
        options = {"channel_mult": "1", "attention_resolutions": "", "save_interval": 2, "run_dir": RUN}
        config = small_config(**options, **changes, total_steps=total_steps)
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
    service.fails = lambda number, name, address: "step_0000008" in address
    with pytest.raises(InputError, match=r"failed to write the checkpoint of step 8 \(gs://bucket/run: .*503"):
        train(10, storage_patience=0.0)


@pytest.mark.filterwarnings("ignore:failed to upload the checkpoint:UserWarning")
def test_training_goes_on_while_the_service_fails(
    service: FakeBlobfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 2 and 4 cannot be uploaded, and the last step only at the third attempt."""
    options = {"total_steps": 6, "save_interval": 2}
    whole = loop(tmp_path / "whole", **options)
    whole.run()
    monkeypatch.setattr(train_util, "RETRY_SECONDS", 0.0)
    attempts: list[str] = []

    def fails(number: int, name: str, address: str) -> bool:
        if name != "isdir" or not address.startswith(f"{RUN}/step"):
            return False
        attempts.append(address[-1])
        return len(attempts) < 5

    trained = loop(run_folder(RUN), **options, run_dir=RUN)
    service.fails = fails
    trained.run()
    assert attempts == ["2", "4", "6", "6", "6"] and RemoteRun(RUN).steps() == [6]
    shutil.rmtree(run_folder(RUN))
    assert_same(whole, loop(run_folder(RUN), **options, run_dir=RUN))


MACHINES = """
import os, sys
from pathlib import Path

rank, folder, total, kind = int(os.environ["RANK"]), Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
os.environ["XDG_CACHE_HOME"] = str(folder / f"home of machine {rank // 2}")

from fake_storage import FakeBlobfile

sys.modules["blobfile"] = service = FakeBlobfile(folder / "bucket")

import torch
from causaldiffae import dist_util
from causaldiffae.checkpoints.remote import run_folder
from causaldiffae.script_util import run_cli
from loops import loop, state_of

dist_util.machine = lambda: f"machine {rank // 2}"

def main(argv):
    run_dir = "gs://bucket/run" if kind == "remote" else str(folder / "disk of machine 0")
    if kind == "local" and rank == 2:
        is_dir = Path.is_dir
        Path.is_dir = lambda path: "disk of machine 0" not in str(path) and is_dir(path)
    dist_util.setup_dist("gloo", timeout_minutes=3.0)
    failed = True
    try:
        options = {"run_dir": run_dir, "total_steps": total, "batch_size": 2, "ema_rate": "0.5"}
        trained = loop(run_folder(run_dir), **options)
        print(trained.step, service.count("copy") > 0, flush=True)
        trained.run()
        torch.save({key: torch.as_tensor(value) for key, value in state_of(trained).items()}, folder / f"{rank}.pt")
        failed = False
    finally:
        dist_util.cleanup(failed)

run_cli(main)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_machines_without_a_common_home_resume(tmp_path: Path) -> None:
    """Ranks 0 and 1 are on one machine, rank 2 on another; each machine fetches the step once."""
    ends = []
    for start, fetched in ((0, [False, False, False]), (3, [True, False, True])):
        done = ended(start_group(MACHINES, tmp_path, 3, "remote", world=3))
        assert [process.code for process in done] == [0, 0, 0], "".join(process.err for process in done)
        assert [process.out for process in done] == [f"{start} {each}\n" for each in fetched]
        ends.append([torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(3)])
        shutil.rmtree(tmp_path / "home of machine 0")
    for saved, restored in zip(*ends, strict=True):
        assert not [key for key in saved if not torch.equal(saved[key], restored[key])]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_local_run_directory_that_is_not_shared_is_an_error_of_one_line(tmp_path: Path) -> None:
    for _ in range(2):
        done = ended(start_group(MACHINES, tmp_path, 1, "local", world=3))
    assert [process.code for process in done] == [2, 2, 2]
    assert ["error" in process.err for process in done] == [False, False, True]
    assert "error: run_dir: expected a folder that all machines share, got" in done[2].err
