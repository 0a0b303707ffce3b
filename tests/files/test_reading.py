"""JSON, safetensors and .pt files: valid ones are read exactly, any other content is a DataError."""

import hashlib
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support import small_network

from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import (
    file_stem,
    load_torch_state_dict,
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


# --- .pt --------------------------------------------------------------------------------------------------------------


class Hostile:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("pwned",)


def pt_file(path: Path, content: bytes, *others: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a/data.pkl", *others):
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_state_dicts_of_torch_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {"a": torch.zeros(2, 3, dtype=dtype), "b": torch.nn.Parameter(torch.ones(2)), "c": torch.zeros(())}
    state["d"] = state["a"][1:]  # storage shared
    for given_state in (state, small_network().state_dict()):
        torch.save(given_state, tmp_path / "a.pt")
        found = load_torch_state_dict(tmp_path / "a.pt")
        assert list(found) == list(given_state)
        assert all(torch.equal(found[key], value) for key, value in given_state.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": Hostile()}, "expected a dict of tensors, refused to execute pickle code"),
        (small_network(), "expected a dict of tensors, refused to execute pickle code"),
        ({"a": torch.zeros(3, device="meta")}, "expected a dict of tensors, refused to execute pickle code"),
        ([torch.zeros(1)], "expected a dict of tensors, got list"),
        ({"a": 1}, "'a': expected a tensor, got int"),
        ({"a": torch.zeros(1).expand(10**9)}, r"'a': expected at most the file's \d+ bytes, got 4000000000"),
    ],
)
def test_other_contents_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(DataError, match=rf"model\.pt: {message}"):
        load_torch_state_dict(tmp_path / "model.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


_ROOM = b"\x80\x02}q\0X\x01\0\0\0ac__builtin__\nbytearray\n\x8a\x05\0\0\0\0\x10\x85Rs."
_PAIRS = b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(1, 60))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"\x80\x02}q\0X\x01\0\0\0ac__builtin__\nbytearray\n\x8a\x05\0\0\0\0\x10\x85Rs.",
            r"refused to execute pickle code \('__builtin__ bytearray'",
        ),
        (b"\x80\x02}q\0)\x85q\x01" + _PAIRS + b"K\x01s.", "got a pickle with repeated references to a tuple"),
        (b"\x80\x02ctorch\nTensor\nK\x05\x85R.", r"refused to execute pickle code \('torch Tensor'"),
        (b"\x80\x02}q", "expected a complete pickle, got a damaged one"),
    ],
)
def test_pickles_are_checked_before_torch_follows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    """`weights_only=True` would allocate 64 GiB for the first, and hash the second for years."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    with pytest.raises(DataError, match=message):
        load_torch_state_dict(pt_file(tmp_path / "a.pt", content))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", pickle.dumps({"a": Hostile()}), b"\x80\x02}q\x00."])
def test_files_of_other_programs_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.pt: expected a file of torch\.save"):
        load_torch_state_dict(tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_other_archives_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 10**6)
    with pytest.raises(DataError, match="expected uncompressed entries no larger than the file"):
        load_torch_state_dict(tmp_path / "x.pt")
    for others in (("b/data.pkl",), ("a/x", "a/x")):
        with pytest.raises(DataError, match="one data.pkl and unique names"):
            load_torch_state_dict(pt_file(tmp_path / "x.pt", b".", *others))
    with pytest.raises(DataError, match="x.pt: expected a dict of tensors"):
        load_torch_state_dict(pt_file(tmp_path / "x.pt", pickle.dumps({"a": b"x"}, 4)))


@any_bytes
@given(st.data())
def test_any_mutation_of_a_torch_file_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
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
