"""A step folder is complete or absent, verified by its manifest, and read back bit for bit."""

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import CHECKPOINT_CONFIG as CONFIG
from support import bitwise_equal, flip_byte, small_network

from causaldiffae.checkpoints.checkpoint import (
    FORMAT,
    VERSION,
    build_with_weights,
    check_state_fits,
    export_weights,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from causaldiffae.errors import DataError, InputError


def save(run_dir: Path, step: int, seed: int = 0, **options: Any) -> Path:
    state = small_network(seed).state_dict()
    given = {"ema_states": {"0.9999": small_network(seed + 1).state_dict()}, "training_state": {"n": step}} | options
    return save_checkpoint(run_dir, step, model_state=state, config=CONFIG, **given)


def holds_weights(state: dict[str, torch.Tensor], network: torch.nn.Module) -> bool:
    return all(bitwise_equal(state[key], value) for key, value in network.state_dict().items())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_format_is_fixed(tmp_path: Path) -> None:
    assert (FORMAT, VERSION) == ("causaldiffae checkpoint", 1)
    path = save(tmp_path, 1000)
    assert path == tmp_path / "step_0001000"
    weights = ["ema_0.9999.safetensors", "manifest.json", "model.safetensors"]
    assert names(path) == ["config.json", *weights, "training.json", "training.safetensors"]


def test_weights_and_moving_averages_are_read_back(tmp_path: Path) -> None:
    path = save(tmp_path, 1000)
    for where in (tmp_path, path, str(path)):
        loaded = load_checkpoint(where)
        assert (loaded.step, loaded.config, loaded.training_state, loaded.path) == (1000, CONFIG, None, path)
        assert holds_weights(loaded.model_state, small_network(0))
    assert holds_weights(load_checkpoint(path, ema="0.9999").model_state, small_network(1))
    with pytest.raises(DataError, match=r"expected a moving average of rate 0\.9999, got '0\.5'"):
        load_checkpoint(path, ema="0.5")


def test_an_optimizer_continues_from_its_state(tmp_path: Path) -> None:
    model = small_network()
    optimizer = torch.optim.AdamW([{"params": model[0].parameters(), "lr": 0.3}, {"params": model[2].parameters()}])
    model(torch.randn(8, 3)).square().mean().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "torch": torch.get_rng_state()}
    save_checkpoint(tmp_path, 3, model_state=model.state_dict(), ema_states={}, training_state=state, config=CONFIG)
    loaded = load_checkpoint(tmp_path, with_training=True).training_state
    assert bitwise_equal(loaded, state)
    again = torch.optim.AdamW([{"params": model[0].parameters()}, {"params": model[2].parameters()}])
    again.load_state_dict(loaded["optimizer"])
    assert bitwise_equal(again.state_dict(), optimizer.state_dict())


def test_exported_weights(tmp_path: Path) -> None:
    state = small_network().state_dict()
    folder = export_weights(tmp_path / "weights", state, CONFIG, torch.float16)
    assert names(folder) == ["config.json", "model.safetensors"]
    loaded = load_checkpoint(folder, ema="0.9999")
    assert (loaded.step, loaded.config) == (None, CONFIG)
    assert loaded.model_state["0.weight"].dtype == torch.float16
    assert loaded.model_state["1.num_batches_tracked"].dtype == torch.int64
    with pytest.raises(DataError, match="expected a training state to resume from, got a model folder"):
        load_checkpoint(folder, with_training=True)
    save(tmp_path / "run", 1)
    with pytest.raises(InputError, match="expected a folder without checkpoints"):
        export_weights(tmp_path / "run", state, CONFIG)


@pytest.mark.parametrize("dtype", ["float16", torch.int8, torch.complex64, float])
def test_weights_are_exported_as_floats(tmp_path: Path, dtype: Any) -> None:
    with pytest.raises(InputError, match=r"^dtype: expected a floating-point dtype such as torch\.float16, got "):
        export_weights(tmp_path / "weights", small_network().state_dict(), CONFIG, dtype)
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("name", ["file", "file/weights"])
def test_a_file_is_no_folder_for_weights(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=f"{name}: expected a folder, got a file"):
        export_weights(tmp_path / name, small_network().state_dict(), CONFIG)
    assert (tmp_path / "file").read_text() == "mine"


def test_weights_are_not_exported_to_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="^folder: expected a local path, got gs://bucket/model$"):
        export_weights("gs://bucket/model", small_network().state_dict(), CONFIG)
    assert names(tmp_path) == []


# --- complete or absent -----------------------------------------------------------------------------------------------


def test_old_steps_are_removed(tmp_path: Path) -> None:
    for step in range(10, 70, 10):
        save(tmp_path, step, keep_last=2, keep_every=30)
    assert names(tmp_path) == ["step_0000030", "step_0000050", "step_0000060"]
    save(tmp_path, 20, keep_last=1)
    assert names(tmp_path) == ["step_0000020", "step_0000030", "step_0000050", "step_0000060"], "later steps are kept"


def test_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 5, seed=0)
    save(tmp_path, 5, seed=9)
    assert names(tmp_path) == ["step_0000005"]
    assert holds_weights(load_checkpoint(tmp_path).model_state, small_network(9))


@pytest.mark.parametrize("failing", [(Path, "open"), (os, "fsync"), (Path, "rename")], ids=["open", "fsync", "rename"])
def test_a_failed_write_keeps_the_older_checkpoint(tmp_path: Path, failing: Any) -> None:
    save(tmp_path, 1)

    def disk_full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(*failing, disk_full)
        save(tmp_path, 2)
    assert names(tmp_path) == ["step_0000001"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step_0000001"


def test_the_folder_is_on_disk_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def note_fsync(descriptor: int) -> None:
        events.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def note_rename(path: Path, target: Path) -> Path:
        events.append(f"rename to {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    path = save(tmp_path, 1)
    renamed = events.index("rename to step_0000001")
    synced = [event for event in events[:renamed] if event.startswith("sync ")]
    assert {f"sync {name}" for name in names(path)} == set(synced[:-1])
    assert synced[-2] == "sync manifest.json", "the manifest is the last file"
    assert synced[-1].startswith("sync .step_0000001.tmp-"), "then the folder's entries"
    assert events[renamed + 1 :] == [f"sync {tmp_path.name}"], "then the entry of the folder"


def test_leftovers_of_a_killed_process_are_ignored_and_removed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".step_0000002.tmp-abc").mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "step_0000001"
    save(tmp_path, 2)
    assert names(tmp_path) == ["step_0000001", "step_0000002"]


# --- damage -----------------------------------------------------------------------------------------------------------


def test_the_newest_intact_step_is_used_with_a_warning(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "none") is None
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert latest_checkpoint(tmp_path) == tmp_path / "step_0000004"
    flip_byte(tmp_path / "step_0000004" / "model.safetensors")
    (tmp_path / "step_0000003" / "manifest.json").unlink()
    with pytest.warns(UserWarning) as caught:
        assert load_checkpoint(tmp_path).step == 2
    texts = [str(warning.message) for warning in caught]
    assert texts[0].startswith("skipped a damaged checkpoint: ")
    assert "model.safetensors: damaged file, its SHA-256 differs from the manifest" in texts[0]
    assert "manifest.json: file not found" in texts[1]
    for step in (1, 2):
        (tmp_path / f"step_000000{step}" / "config.json").write_text("{}")
    with pytest.raises(
        DataError, match="expected an intact checkpoint, all 4 are damaged; the newest: .*model.safetensors"
    ):
        latest_checkpoint(tmp_path)


def grow(path: Path) -> None:
    with (path / "ema_0.9999.safetensors").open("ab") as file:
        file.write(b"x")


def link(path: Path) -> None:
    (path / "config.json").rename(path.parent / "elsewhere")
    (path / "config.json").symlink_to(path.parent / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (grow, r"ema_0\.9999\.safetensors: expected \d+ bytes, got \d+"),
        (link, r"config\.json: expected a regular file, got a link; replace it by a copy"),
        (lambda path: (path / "manifest.json").unlink(), r"manifest\.json: file not found"),
    ],
)
def test_a_damaged_step_is_refused(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    damage(path)
    with pytest.raises(DataError, match=message):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "expected a manifest of version 1"),
        ({"version": 2}, "expected a manifest of version 1"),
        ({"step": -1}, "expected a step and files"),
        ({"step": 2}, "expected step 1 as in the folder's name, got 2"),
        ({"files": []}, "expected a step and files"),
        ({"files": {}}, "expected files with config.json and model.safetensors"),
        ({"files": {"config.json": {}, "model.safetensors": {}, "../../x": {}}}, "names of files .*, got '../../x'"),
        ({"files": {"config.json": {}, "model.safetensors": {}}}, "config.json: expected None bytes"),
    ],
)
def test_an_invalid_manifest_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = save(tmp_path, 1) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        load_checkpoint(path.parent)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_mutation_of_a_checkpoint_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "run" / "step_0000001"
    if not path.exists():
        save(tmp_path / "run", 1)
    target = path / data.draw(st.sampled_from(names(path)))
    original = target.read_bytes()
    at = data.draw(st.integers(0, len(original) - 1))
    piece = data.draw(st.binary(max_size=4))
    target.write_bytes(original[:at] + piece + original[at + data.draw(st.integers(0, 8)) :])
    try:
        loaded = load_checkpoint(path, with_training=True)
    except DataError:
        pass
    else:  # white space in the manifest, or no change at all
        assert loaded.training_state == {"n": 1}
    finally:
        target.write_bytes(original)


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": -1}, "step: expected a non-negative integer, got -1"),
        ({"keep_last": 0}, "keep_last: expected None or 1 or more"),
        ({"ema_states": {"../x": {}}}, r"ema rate: .*, got '\.\./x'"),
        ({"config": {"x": float("nan")}}, r"config\.json: expected plain types and finite numbers"),
        ({"training_state": {"a": {"f": len}}}, "training state: a.f: expected a tensor"),
    ],
)
def test_invalid_arguments_are_refused_and_leave_nothing(tmp_path: Path, arguments: Any, message: str) -> None:
    valid = {"step": 1, "model_state": {}, "ema_states": {}, "training_state": None, "config": {}}
    with pytest.raises(InputError, match=message):
        save_checkpoint(tmp_path, **(valid | arguments))
    assert names(tmp_path) == []


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder not found; expected a run directory, a step or a model folder"):
        load_checkpoint(tmp_path / "none")
    with pytest.raises(DataError, match="found no checkpoint"):
        load_checkpoint(tmp_path)
    path = save(tmp_path, 1, training_state=None)
    with pytest.raises(DataError, match="expected a training state to resume from, got a step without one"):
        load_checkpoint(path, with_training=True)


# --- networks ---------------------------------------------------------------------------------------------------------


def test_differences_between_model_and_weights_are_listed() -> None:
    model, state = small_network(), small_network(1).state_dict()
    check_state_fits(model, state)
    state["0.weight"] = torch.zeros(3, 4)
    state["extra"] = torch.zeros(1)
    del state["2.bias"]
    with pytest.raises(InputError) as caught:
        check_state_fits(model, state)
    assert str(caught.value) == (
        "weights: expected those of this model, got 3 differences: 0.weight: expected shape (4, 3), got (3, 4); "
        "2.bias: expected shape (2,), got none; extra: unexpected, of shape (1,)"
    )
    with pytest.raises(InputError, match="9 differences: .*; and 4 more$"):
        check_state_fits(model, {})


def test_a_network_is_built_without_memory_first() -> None:
    devices = []

    def build() -> torch.nn.Module:
        layer = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.GroupNorm(1, 3))
        devices.append(layer[0].weight.device.type)
        return layer

    state = build().state_dict()
    devices.clear()
    model = build_with_weights(build, {key: value.half() for key, value in state.items()}, "x")
    assert devices == ["meta", "cpu"] and not model.training and model[0].weight.dtype == torch.float32
    torch.testing.assert_close(model[0].weight, state["0.weight"], atol=1e-3, rtol=1e-3)
    devices.clear()
    with pytest.raises(DataError, match="x: weights: expected those of this model"):
        build_with_weights(build, {"0.weight": torch.zeros(1)}, "x")
    assert devices == ["meta"], "nothing is allocated for weights of another model"
    devices.clear()
    broken = {**state, "0.bias": torch.tensor([0.0, torch.nan, 1.0]), "1.weight": torch.full((3,), torch.inf)}
    with pytest.raises(DataError, match="x: weights: expected finite numbers, got NaN or infinity in 0.bias, 1.weight"):
        build_with_weights(build, broken, "x")
    devices.clear()
    kept = build_with_weights(build, state, "x", assign=True)
    assert devices == ["meta"] and kept[0].weight.data_ptr() == state["0.weight"].data_ptr()
    assert all(parameter.requires_grad for parameter in kept.parameters())
    with pytest.raises(DataError, match="x: expected valid layer sizes"):
        build_with_weights(lambda: torch.nn.Conv2d(3, 4, 1, groups=2), {}, "x")
