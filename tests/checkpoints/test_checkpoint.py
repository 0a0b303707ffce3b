"""Round trips bit for bit, whole-or-not-there folders, and files from strangers that only raise DataError."""

import hashlib
import json
import os
import pickle
import random
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from causaldiffae.checkpoints import checkpoint
from causaldiffae.checkpoints.checkpoint import (
    check_state_fits,
    export_weights,
    latest_checkpoint,
    load_checkpoint,
    load_torch_state_dict,
    save_checkpoint,
)
from causaldiffae.checkpoints.state_tree import flatten_state, unflatten_state
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import check_safetensors, read_json, read_tensors, write_tensors

CONFIG = {"graph": {"names": ["a", "b"], "edges": [["a", "b"]]}, "batch_size": 8, "lr": 1e-4}
any_bytes = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def same(a: Any, b: Any) -> bool:
    """Equal types and equal bits, NaN included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def small_model(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))


def save(run_dir: Path, step: int, seed: int = 0, **options: Any) -> Path:
    state = small_model(seed).state_dict()
    given = {"ema_states": {"0.9999": small_model(seed + 1).state_dict()}, "training_state": {"n": step}} | options
    return save_checkpoint(run_dir, step, model_state=state, config=CONFIG, **given)


def flip_a_byte(path: Path, at: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Round trips


def test_optimizer_and_random_states_come_back_bit_for_bit(tmp_path: Path) -> None:
    model = small_model()
    optimizer = torch.optim.AdamW(
        [{"params": model[0].parameters(), "lr": 0.1 + 0.2}, {"params": model[2].parameters(), "betas": (0.8, 0.99)}]
    )
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
    state = {
        "optimizer": optimizer.state_dict(),
        "torch": torch.get_rng_state(),
        "numpy": np.random.default_rng(3).bit_generator.state,
        "python": random.Random(5).getstate(),
        "odd": {
            "nan": float("nan"),
            "inf": -float("inf"),
            "none": None,
            7: [True, (), {}, "ü"],
            "$kind": "tensor",
            "a.b": torch.ones(1),
            "a": {"b": torch.zeros(0, 3, dtype=torch.bfloat16).float()},
            "weights": np.array([1.5, np.nan], dtype=">f4").astype("f4"),
            "scalar": np.float32(0.1),
            "big": np.uint64(2**64 - 1),
            "scaled": torch.tensor(5),
        },
    }
    save_checkpoint(tmp_path, 3, model_state=model.state_dict(), ema_states={}, training_state=state, config=CONFIG)
    loaded = load_checkpoint(tmp_path, with_training=True)
    assert same(loaded.training_state, state)
    again = torch.optim.AdamW([{"params": model[0].parameters()}, {"params": model[2].parameters()}])
    again.load_state_dict(loaded.training_state["optimizer"])
    assert same(again.state_dict(), optimizer.state_dict())


plain_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
states = st.recursive(
    plain_values | st.integers(0, 3).map(lambda n: torch.arange(n) * 0.5) | st.floats(width=32).map(np.float32),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.just("$kind"), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(states)
@settings(deadline=None)
def test_any_nested_state_round_trips(state: Any) -> None:
    tensors, tree = flatten_state(state)
    text = json.dumps({"state": tree}, allow_nan=False)
    assert same(unflatten_state(tensors, json.loads(text)["state"]), state)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"f": len}}, "builtin_function_or_method at a.f cannot be saved"),
        ({"a": [{1.5: 0}]}, "key 1.5 at a.0 must be a string or an integer"),
        ({1, 2}, "set at the top cannot be saved"),
    ],
)
def test_what_cannot_be_saved_is_named_and_leaves_nothing(tmp_path: Path, state: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"training state: {message}"):
        save(tmp_path, 1, training_state=state)
    assert names(tmp_path) == []


def test_model_and_moving_averages(tmp_path: Path) -> None:
    path = save(tmp_path, 1000)
    assert path == tmp_path / "step_0001000"
    assert names(path) == [
        "config.json",
        "ema_0.9999.safetensors",
        "manifest.json",
        "model.safetensors",
        "training.json",
        "training.safetensors",
    ]
    for place in (tmp_path, path, str(path)):
        loaded = load_checkpoint(place)
        assert (loaded.step, loaded.config, loaded.training_state, loaded.path) == (1000, CONFIG, None, path)
        assert all(same(loaded.model_state[key], value) for key, value in small_model(0).state_dict().items())
    averaged = load_checkpoint(path, ema="0.9999").model_state
    assert all(same(averaged[key], value) for key, value in small_model(1).state_dict().items())
    with pytest.raises(DataError, match=r"no moving average of rate '0\.5', there are: 0\.9999"):
        load_checkpoint(path, ema="0.5")


def test_shared_and_strided_tensors_are_saved(tmp_path: Path) -> None:
    whole = torch.randn(4, 6)
    state = {"tied": whole, "tied_too": whole, "slice": whole[1:3], "turned": whole.T, "scalar": torch.tensor(3)}
    write_tensors(tmp_path / "x.safetensors", state)
    loaded = read_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    assert loaded["slice"].untyped_storage().nbytes() == 2 * 6 * 4


def test_files_hold_every_dtype_and_say_their_hash(tmp_path: Path) -> None:
    dtypes = (torch.int64, torch.float64, torch.complex64, torch.float32, torch.uint32, torch.int32, torch.bfloat16)
    dtypes += (torch.float16, torch.int16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.bool)
    state = {f"{i % 3}.{i}": torch.arange(6).reshape(2, 3).to(dtype) for i, dtype in enumerate(dtypes)}
    state |= {"größe": torch.tensor(3.0), "empty": torch.zeros(0, 3), "large": torch.randn(2**18 + 5)}
    told = write_tensors(tmp_path / "ours.safetensors", state)
    save_file(state, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    ours, theirs = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("ours", "theirs"))
    assert ours == theirs
    assert told == {"size": len(ours), "sha256": hashlib.sha256(ours).hexdigest()}
    with pytest.raises(InputError, match=r"ours\.safetensors: safetensors cannot hold this state"):
        write_tensors(tmp_path / "ours.safetensors", {"b": torch.zeros(1, dtype=torch.complex128)})
    with pytest.raises(InputError, match="__metadata__ is no name for a tensor"):
        write_tensors(tmp_path / "ours.safetensors", {"__metadata__": torch.zeros(1)})


def test_exported_weights(tmp_path: Path) -> None:
    state = small_model().state_dict()
    folder = export_weights(tmp_path / "weights", state, CONFIG, torch.float16)
    assert names(folder) == ["config.json", "model.safetensors"]
    loaded = load_checkpoint(folder, ema="0.9999")
    assert (loaded.step, loaded.config) == (None, CONFIG)
    assert loaded.model_state["0.weight"].dtype == torch.float16
    assert loaded.model_state["1.num_batches_tracked"].dtype == torch.int64
    small_model(1).load_state_dict(loaded.model_state)
    with pytest.raises(DataError, match="model folder without training state"):
        load_checkpoint(folder, with_training=True)
    save(tmp_path / "run", 1)
    with pytest.raises(InputError, match="weights need a folder of their own"):
        export_weights(tmp_path / "run", state, CONFIG)


# Whole or not there


def test_keep_last_and_every(tmp_path: Path) -> None:
    for step in range(10, 70, 10):
        save(tmp_path, step, keep_last=2, keep_every=30)
    assert names(tmp_path) == ["step_0000030", "step_0000050", "step_0000060"]
    save(tmp_path, 20, keep_last=1)  # after going back: what lies beyond stays, and the new one above all
    assert names(tmp_path) == ["step_0000020", "step_0000030", "step_0000050", "step_0000060"]


def test_same_step_again_replaces(tmp_path: Path) -> None:
    save(tmp_path, 5, seed=0)
    save(tmp_path, 5, seed=9)
    assert names(tmp_path) == ["step_0000005"]
    assert torch.equal(load_checkpoint(tmp_path).model_state["0.bias"], small_model(9).state_dict()["0.bias"])


@pytest.mark.parametrize("failing", ["open", "fsync", "rename"])
def test_a_write_that_fails_leaves_the_older_checkpoint(
    tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def disk_full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    place, name = {"open": (Path, "open"), "fsync": (os, "fsync"), "rename": (Path, "rename")}[failing]
    monkeypatch.setattr(place, name, disk_full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert names(tmp_path) == ["step_0000001"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step_0000001"


def test_everything_is_on_disk_before_the_name_is_and_then_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def note_fsync(descriptor: int) -> None:
        told.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def note_rename(path: Path, target: Path) -> Path:
        told.append(f"rename to {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    path = save(tmp_path, 1)
    before = [line for line in told[: told.index("rename to step_0000001")] if line.startswith("sync ")]
    assert before[-2] == "sync manifest.json", "the manifest is the last file"
    assert {f"sync {name}" for name in names(path)} == set(before[:-1])
    assert before[-1].startswith("sync .step_0000001.tmp-"), "the folder's entries"
    assert told[told.index("rename to step_0000001") + 1 :] == [f"sync {tmp_path.name}"], "the entry of the folder"


def test_leftovers_of_a_killed_writer_are_ignored_and_cleared(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".step_0000002.tmp-abc").mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "step_0000001"
    save(tmp_path, 2)
    assert names(tmp_path) == ["step_0000001", "step_0000002"]


def test_newest_that_verifies_is_taken_with_a_warning(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "none") is None
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert latest_checkpoint(tmp_path) == tmp_path / "step_0000004"
    flip_a_byte(tmp_path / "step_0000004" / "model.safetensors")
    (tmp_path / "step_0000003" / "manifest.json").unlink()
    with pytest.warns(UserWarning) as caught:
        assert load_checkpoint(tmp_path).step == 2
    texts = [str(warning.message) for warning in caught]
    assert "a damaged checkpoint is passed over" in texts[0]
    assert "model.safetensors: its content is not what was written (SHA-256 differs)" in texts[0]
    assert "manifest.json: it is missing" in texts[1]
    for step in (1, 2):
        (tmp_path / f"step_000000{step}" / "config.json").write_text("{}")
    with pytest.raises(DataError, match="none of its 4 checkpoints is whole; the newest: .*model.safetensors"):
        latest_checkpoint(tmp_path)


def test_an_explicit_step_that_is_damaged_is_an_error(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    with (path / "ema_0.9999.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"ema_0\.9999\.safetensors: it has \d+ bytes, the manifest says \d+"):
        load_checkpoint(path)
    (path / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest\.json: it is missing"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "it is no manifest of version 1"),
        ({"version": 2}, "it is no manifest of version 1"),
        ({"step": -1}, "step and files are missing or wrong"),
        ({"step": 2}, "it is the manifest of step 2"),
        ({"files": []}, "step and files are missing or wrong"),
        ({"files": {}}, "it does not list config.json"),
        ({"files": {"config.json": {}, "model.safetensors": {}, "../../etc/passwd": {}}}, "passwd' is no entry"),
        ({"files": {"config.json": {}, "model.safetensors": {}}}, "config.json: it has"),
    ],
)
def test_manifests_that_are_wrong(tmp_path: Path, change: dict, message: str) -> None:
    path = save(tmp_path, 1) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        load_checkpoint(path.parent)


def test_manifest_and_links_stay_in_the_folder(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"size": 1, "sha256": "0"}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"'\.\./secret' is no entry of a checkpoint"):
        load_checkpoint(path)
    path = save(tmp_path, 2)
    (path / "config.json").rename(tmp_path / "elsewhere")
    (path / "config.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"config\.json: it is missing or no regular file"):
        load_checkpoint(path)


def test_arguments_and_places_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="step: -1 is given, an integer of 0 or more is needed"):
        save(tmp_path, -1)
    with pytest.raises(InputError, match="keep_last: 0 is given, 1 or more is allowed"):
        save(tmp_path, 1, keep_last=0)
    with pytest.raises(InputError, match=r"ema rate: '\.\./x' is given"):
        save(tmp_path, 1, ema_states={"../x": {}})
    with pytest.raises(InputError, match=r"config\.json: only plain types and finite numbers can be saved"):
        save_checkpoint(tmp_path, 1, model_state={}, ema_states={}, training_state=None, config={"x": float("nan")})
    assert names(tmp_path) == []
    with pytest.raises(DataError, match="there is no such folder; a run directory, a step or a model folder"):
        load_checkpoint(tmp_path / "none")
    with pytest.raises(DataError, match="it holds no checkpoint"):
        load_checkpoint(tmp_path)
    path = save(tmp_path, 1, training_state=None)
    with pytest.raises(DataError, match="it has no training state, so training cannot go on"):
        load_checkpoint(path, with_training=True)


def test_check_state_fits() -> None:
    model, state = small_model(), small_model(1).state_dict()
    check_state_fits(model, state)
    state["0.weight"] = torch.zeros(3, 4)
    state["extra"] = torch.zeros(1)
    del state["2.bias"]
    with pytest.raises(InputError) as caught:
        check_state_fits(model, state)
    assert str(caught.value) == (
        "checkpoint of another model, 3 differences: 0.weight has shape (3, 4) (expected (4, 3)); "
        "2.bias is missing (expected shape (2,)); extra of shape (1,) is not part of the model"
    )
    with pytest.raises(InputError, match="9 differences: .*; and 4 more$"):
        check_state_fits(model, {})


# Files from strangers


@any_bytes
@given(st.binary(max_size=80))
@example(b'{"a": NaN}')
@example(b'{"a": 1e999}')
@example(b'{"a": 1, "a": 2}')
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b"[1]")
@example(b'{"a": ' + b"1" * 5000 + b"}")
@example(b"\xff\xfe")
def test_any_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    try:
        assert isinstance(read_json(path), dict)
    except DataError as error:
        assert str(error).startswith(str(path))


def test_json_size_limit(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": "' + "x" * 100 + '"}')
    with pytest.raises(DataError, match="it has 109 bytes, 50 are allowed"):
        read_json(tmp_path / "x.json", limit=50)


def tensor_file(header: Any, body: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


json_values = st.recursive(plain_values.filter(lambda v: v == v), lambda x: st.lists(x, max_size=3), max_leaves=4)
numbers = st.integers(-1, 16) | st.integers()
entries = st.builds(
    entry,
    st.sampled_from(["F32", "I64", "U8", "BF16", "X"]) | json_values,
    st.lists(numbers, max_size=3) | json_values,
    st.lists(numbers, min_size=1, max_size=3) | json_values,
)


@any_bytes
@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), entries | json_values), st.binary(max_size=24))
@example({"a": entry()}, b"12345678")
@example({"a": entry(shape=[2**62, 4], offsets=[0, 0])}, b"")
@example({"a": entry(), "b": entry()}, b"12345678")
@example({"a": entry(offsets=[8, 16])}, b"1234567812345678")
@example({"a": entry()}, b"123")
@example({"a": entry(shape=[1] * 100, offsets=[0, 4])}, b"1234")
@example({"a": entry(dtype=["F32"])}, b"12345678")
@example({"__metadata__": {"format": 3}}, b"")
def test_any_tensor_header(tmp_path: Path, header: dict, body: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(tensor_file(header, body))
    try:
        tensors = read_tensors(path)
    except DataError as error:
        assert str(error).startswith(str(path))
    else:
        assert sum(tensor.nbytes for tensor in tensors.values()) == len(body)


@any_bytes
@given(st.binary(max_size=60), st.integers(0, 2**64 - 1) | st.integers(0, 60))
@example(b"{}", 2**64 - 1)
@example(b"{}", 3)
def test_any_tensor_file(tmp_path: Path, content: bytes, length: int) -> None:
    path = tmp_path / "x.safetensors"
    for data in (content, tensor_file(content, b"", length)):
        path.write_bytes(data)
        try:
            check_safetensors(path)
        except DataError as error:
            assert str(error).startswith(str(path))


@any_bytes
@given(st.data())
def test_any_mutation_of_a_checkpoint(tmp_path: Path, data: st.DataObject) -> None:
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
    else:  # white space or the step's digits in the manifest, or no change at all
        assert loaded.training_state == {"n": 1}
    finally:
        target.write_bytes(original)


trees = st.recursive(
    plain_values,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["$kind", "items", "name", "value", "x"]), inner, max_size=4)
        | st.fixed_dictionaries(
            {"$kind": st.sampled_from(["tensor", "array", "scalar", "tuple", "dict", "float", "module"])},
            optional={"items": inner, "name": inner | st.just("a"), "value": inner},
        )
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(trees)
def test_any_tree_gives_a_state_or_a_data_error(tree: Any) -> None:
    try:
        unflatten_state({"a": torch.zeros(2, dtype=torch.bfloat16)}, tree, "training.json")
    except DataError as error:
        assert str(error).startswith("training.json: ")


def test_deep_tree() -> None:
    tree: Any = 0
    for _ in range(50_000):
        tree = [tree]
    with pytest.raises(DataError, match="nested too deeply"):
        unflatten_state({}, tree)


class Hostile:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("pwned",)


def test_torch_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    state = small_model().state_dict()
    torch.save(state, path)
    assert same(load_torch_state_dict(path), dict(state))

    def refused(content: Any, message: str) -> None:
        torch.save(content, path)
        with pytest.raises(DataError, match=message) as caught:
            load_torch_state_dict(path)
        assert str(caught.value).startswith(str(path))

    refused({"a": Hostile()}, "it needs pickle execution, refused")
    refused(small_model(), "it needs pickle execution, refused")
    refused([torch.zeros(1)], "a dict of tensors is needed, got list")
    refused({"a": 1}, "entry 'a' is int")
    refused({"a": torch.zeros(1).expand(10**9)}, "is larger than the file")
    refused({"a": torch.zeros(3, device="meta")}, "it needs pickle execution, refused")
    assert names(tmp_path) == ["model.pt"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", pickle.dumps({"a": Hostile()}), b"\x80\x02}q\x00."])
def test_what_is_no_torch_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.pt: it is no file of torch\.save"):
        load_torch_state_dict(tmp_path / "x.pt")


def test_compressed_torch_files_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 10**6)
    with pytest.raises(DataError, match="it is compressed or its entries are larger than the file, refused"):
        load_torch_state_dict(tmp_path / "x.pt")


@any_bytes
@given(st.data())
def test_any_mutation_of_a_torch_file(tmp_path: Path, data: st.DataObject) -> None:
    original = tmp_path / "original.pt"
    if not original.exists():
        torch.save({"w": torch.zeros(4)}, original)
    content = original.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    changed = content[:at] + data.draw(st.binary(max_size=4)) + content[at + data.draw(st.integers(0, 8)) :]
    (tmp_path / "changed.pt").write_bytes(changed)
    try:
        load_torch_state_dict(tmp_path / "changed.pt")
    except DataError as error:
        assert str(error).startswith(str(tmp_path / "changed.pt"))


def test_format_constants() -> None:
    assert (checkpoint.FORMAT, checkpoint.VERSION) == ("causaldiffae checkpoint", 1)
