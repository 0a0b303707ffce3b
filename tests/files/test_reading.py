"""JSON and safetensors files: valid ones are read exactly, any other content is a DataError."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import (
    file_stem,
    read_file,
    read_json,
    read_tensors,
    replace_file,
    write_tensors,
)

any_bytes = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_only_regular_files_within_a_limit_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "ten").write_bytes(b"x" * 11)
    for name in ("pipe", "none", "\0"):
        with pytest.raises(DataError, match=": file not found, or not a regular file"):
            read_file(tmp_path / name, 10)
    with pytest.raises(DataError, match="ten: expected at most 10 bytes, got 11"):
        read_file(tmp_path / "ten", 10)
    (tmp_path / "link").symlink_to(tmp_path / "ten")
    assert read_file(tmp_path / "link", 11) == b"x" * 11


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    mine, beside = tmp_path / "mine", tmp_path / "set"
    beside.mkdir()
    mine.write_text("untouched")
    (beside / "graph.png").symlink_to(mine)
    replace_file(beside / "graph.png", b"drawn")
    assert (beside / "graph.png").read_bytes() == b"drawn" and not (beside / "graph.png").is_symlink()
    assert mine.read_text() == "untouched" and [path.name for path in beside.iterdir()] == ["graph.png"]


def test_names_become_stems_of_files() -> None:
    plain = ["thickness", "shadow_length", "a.b+c-1"]
    assert [file_stem(name) for name in plain] == plain
    odd = ["../x", "/etc/passwd", "a/b", "a\\b", "a b", "a_b ", ".", "..", "", "-rf", "con", "LPT1", "a.", "Größe"]
    stems = [file_stem(name) for name in [*odd, "a" * 99]]
    assert len(set(stems)) == len(stems)
    for stem in stems:
        assert not set(stem) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+-")
        assert stem[0] not in ".-" and not stem.endswith(".") and len(stem) < 100
        assert stem.upper() not in ("CON", "LPT1")


# --- JSON -------------------------------------------------------------------------------------------------------------


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
def test_any_json_is_an_object_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    try:
        assert isinstance(read_json(path), dict)
    except DataError as error:
        assert str(error).startswith(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": NaN}', "NaN is not a finite number"),
        (b'{"a": 1e999}', "1e999 is not a finite number"),
        (b'{"a": 1, "a": 2}', "repeated key"),
        (b"[1]", "expected a JSON object, got list"),
        (b'{"a": "' + b"x" * 100 + b'"}', "expected at most 50 bytes, got 109"),
    ],
)
def test_invalid_json_says_why(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_json(tmp_path / "x.json", limit=50)


# --- safetensors ------------------------------------------------------------------------------------------------------


def test_shared_and_strided_tensors_are_saved(tmp_path: Path) -> None:
    whole = torch.randn(4, 6)
    state = {"tied": whole, "tied_too": whole, "slice": whole[1:3], "turned": whole.T, "scalar": torch.tensor(3)}
    write_tensors(tmp_path / "x.safetensors", state)
    loaded = read_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    assert loaded["slice"].untyped_storage().nbytes() == 2 * 6 * 4


def test_every_dtype_is_written_as_the_library_does(tmp_path: Path) -> None:
    dtypes = (torch.int64, torch.float64, torch.complex64, torch.float32, torch.uint32, torch.int32, torch.bfloat16)
    dtypes += (torch.float16, torch.int16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.bool)
    state = {f"{i % 3}.{i}": torch.arange(6).reshape(2, 3).to(dtype) for i, dtype in enumerate(dtypes)}
    state |= {"größe": torch.tensor(3.0), "empty": torch.zeros(0, 3), "large": torch.randn(2**18 + 5)}
    written = write_tensors(tmp_path / "ours.safetensors", state)
    save_file(state, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    ours, theirs = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("ours", "theirs"))
    assert ours == theirs
    assert written == {"size": len(ours), "sha256": hashlib.sha256(ours).hexdigest()}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"b": torch.zeros(1, dtype=torch.complex128)}, "expected names and dtypes that safetensors supports"),
        ({"__metadata__": torch.zeros(1)}, "expected tensor names other than __metadata__"),
        ({"b": torch.zeros(1, device="meta")}, "b: expected a dense tensor"),
        ({"b": 3}, "b: expected a dense tensor"),
    ],
)
def test_states_that_cannot_be_written_are_refused(tmp_path: Path, state: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"x\.safetensors: {message}"):
        write_tensors(tmp_path / "x.safetensors", state)


def tensor_file(header: Any, body: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3),
    max_leaves=4,
)
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
@example({"a": entry(shape=[0, 2**63], offsets=[0, 0])}, b"")
def test_any_tensor_header_is_consistent_or_refused(tmp_path: Path, header: dict, body: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(tensor_file(header, body))
    try:
        tensors = read_tensors(path)
    except DataError as error:
        assert str(error).startswith(str(path))
    else:
        assert sum(tensor.nbytes for tensor in tensors.values()) == len(body)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        tensor_file({"a": entry(shape=[2**62, 4], offsets=[0, 0])}, b""),
        tensor_file({"a": entry(), "b": entry()}, b"12345678"),
        tensor_file({"a": entry(offsets=[8, 16])}, b"1234567812345678"),
        tensor_file({"a": entry()}, b"123"),
        tensor_file({"a": entry()}, b"123456789"),
        tensor_file({"a": entry(shape=[1] * 100, offsets=[0, 4])}, b"1234"),
        tensor_file({"a": entry(dtype=["F32"])}, b"12345678"),
        tensor_file({"__metadata__": {"format": 3}}, b""),
        tensor_file({}, b"", 2**64 - 1),
        tensor_file({}, b"", 3),
        tensor_file(b'{"a":' * 100_000, b""),
    ],
)
def test_invalid_safetensors_are_refused(tmp_path: Path, content: bytes) -> None:
    """The library refuses most of them; the number of dimensions and the header's length are bounded here."""
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.safetensors: "):
        read_tensors(tmp_path / "x.safetensors")
