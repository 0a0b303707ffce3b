"""NPZ files: sizes are checked before anything is read, and nothing is unpickled except byte strings."""

import io
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from circuits import npy, replace_member, save
from hypothesis import given, settings
from hypothesis import strategies as st

from causaldiffae.datasets.registry import read_split
from causaldiffae.errors import DataError
from causaldiffae.files.npz import NpzFile
from causaldiffae.files.pickles import iterate_bytes

GREAT = 2**46


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("original_latents", None, r"original_latents: expected this member, got "),
        ("imgs", None, r"imgs: expected this member, got "),
        ("original_latents", npy("<f8", (GREAT, 2, 4), b""), r"expected \d+ bytes for shape .*, got 0"),
        ("original_latents", npy("<f8", (7, 2, 4), bytes(8)), "expected 448 bytes for shape .*, got 8"),
        ("imgs", npy("|S65536", (GREAT, 2), b""), r"imgs: expected \d+ bytes for shape .*, got 0"),
        ("imgs", npy("|O", (GREAT, 2), pickle.dumps(1)), r"expected shape \(7, 2\) .*, got \(.*, 2\)"),
        ("imgs", npy("|O", (7, 2), b""), "imgs: expected a complete pickle, got a damaged one"),
        (
            "imgs",
            npy("|O", (7, 2), b"\x80\x04\x8e" + struct.pack("<Q", GREAT)),
            r"a string of \d+ bytes .at most 4194304",
        ),
        (
            "imgs",
            npy("|O", (7, 2), b"cos\nsystem\n(S'true'\ntR."),
            "expected an object array of bytes, got 'os' instead of",
        ),
        ("imgs", npy("|S9", (-1, 2), b""), "expected the header of an npy file|expected a plain array"),
        ("imgs", npy("|S9", (7.0, 2), b""), "expected the header of an npy file|expected a plain array"),
        (
            "imgs",
            npy("", (), b"", "__import__('os').getcwd()"),
            "expected the header of an npy file|expected a plain array",
        ),
        ("imgs", npy("", (), b"", "(" * 4000), "expected the header of an npy file|expected a plain array"),
        (
            "imgs",
            npy("", (), b"", "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': ()}"),
            "expected a plain array",
        ),
        (
            "imgs",
            npy("", (), b"", " " * 60000),
            r"expected the header of an npy file 1.0 .Header info length \(60000\)",
        ),
        ("imgs", b"\x93NUMPY\x03\x00", "expected the header of an npy file 1.0 .another version"),
        ("imgs", b"", "expected the header of an npy file 1.0"),
    ],
    ids=lambda value: "content" if isinstance(value, bytes) else None,
)
def test_a_member_that_declares_what_it_does_not_hold_is_refused(
    tmp_path: Path, circuit_members: dict[str, Any], name: str, content: bytes | None, message: str
) -> None:
    save(tmp_path, circuit_members)
    replace_member(tmp_path / "train.npz", name, content)
    with pytest.raises(DataError, match=rf"train.npz: {name}.*{message}|train.npz: {message}"):
        read_split("circuit", tmp_path, "train", image_size=32)


def test_a_decompression_bomb_is_refused(tmp_path: Path, circuit_members: dict[str, Any]) -> None:
    save(tmp_path, circuit_members)
    path = tmp_path / "train.npz"
    content = path.read_bytes()
    directory = content.index(b"PK\x01\x02", content.index(b"imgs.npy") + 100)  # some entry of the central directory
    lying = content[: directory + 24] + struct.pack("<I", 2**31) + content[directory + 28 :]
    path.write_bytes(lying)
    with pytest.raises(DataError, match="train.npz: .*: expected at most .* bytes, got a declared size of 2147483648"):
        read_split("circuit", tmp_path, "train")
    zeros = zlib.compress(bytes(10**7))
    assert len(zeros) * 1040 > 10**7  # what deflate can do at best is let through, no more


def test_a_zip_archive_of_another_kind_is_refused(tmp_path: Path, circuit_members: dict[str, Any]) -> None:
    path = save(tmp_path, circuit_members) / "train.npz"
    replace_member(path, "imgs", npy("|S9", (7, 2), bytes(126)), zipfile.ZIP_BZIP2)
    with pytest.raises(DataError, match="'imgs.npy': expected a stored or deflated member"):
        read_split("circuit", tmp_path, "train")
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(5001):
            archive.writestr(f"{i}.npy", b"")
    with pytest.raises(DataError, match="expected at most 5000 members with unique names, got 5001"):
        read_split("circuit", tmp_path, "train")
    path.write_bytes(b"PK no zip")
    with pytest.raises(DataError, match="train.npz: expected a complete npz file"):
        read_split("circuit", tmp_path, "train")


def test_a_member_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    """Only the name before the member's bytes is invalid; the central directory is not."""
    path = tmp_path / "x.npz"
    np.savez(path, **{"größe": np.zeros(3)})
    content, name = path.read_bytes(), "größe.npy".encode()
    assert content.count(name) == 2
    path.write_bytes(content.replace(name, b"gr\x9e\x9e\xc3\x9fe.npy"[: len(name)].ljust(len(name), b"y"), 1))
    with NpzFile(path) as file, pytest.raises(DataError, match=r"größe: expected a complete member"):
        file.header("größe")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_pickle_is_read_or_refused(data: st.DataObject) -> None:
    objects = np.empty((2, 2), object)
    objects[...] = [[b"one", b"two"], [b"", b"four" * 20]]
    content = bytearray(pickle.dumps(objects, protocol=data.draw(st.integers(3, 5))))
    for _ in range(data.draw(st.integers(0, 2))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        strings = list(iterate_bytes(io.BytesIO(content), (2, 2), 1000, "x"))
    except DataError as error:
        assert str(error).startswith("x: ")
    else:
        assert len(strings) == 4 and all(type(string) is bytes for string in strings)


def test_strings_given_twice_are_read() -> None:
    objects = np.empty((200, 2), object)
    for i in range(200):
        objects[i] = [b"%d" % i] * 2  # one object in two places
    stream = io.BytesIO(pickle.dumps(objects, protocol=4))
    assert list(iterate_bytes(stream, (200, 2), 100, "x")) == objects.ravel().tolist()
    objects[199, 1] = objects[0, 0]
    with pytest.raises(DataError, match="got a reference to a value too far back"):
        list(iterate_bytes(io.BytesIO(pickle.dumps(objects, protocol=4)), (200, 2), 100, "x"))


def test_a_pickle_of_another_shape_is_refused() -> None:
    content = pickle.dumps(np.array([[b"a", b"b"]], object), protocol=4)
    assert list(iterate_bytes(io.BytesIO(content), (1, 2), 100, "x")) == [b"a", b"b"]
    with pytest.raises(DataError, match=r"got 1 instead of 2 of an array of shape \(2, 1\)"):
        list(iterate_bytes(io.BytesIO(content), (2, 1), 100, "x"))
    with pytest.raises(DataError, match=r"x: expected an object array of bytes, got EMPTY_LIST instead of"):
        list(iterate_bytes(io.BytesIO(pickle.dumps([b"a", b"b"], protocol=4)), (2, 1), 100, "x"))
    with pytest.raises(DataError, match=r"got 2 instead of 1 of an array of shape \(1, 1\)"):
        list(iterate_bytes(io.BytesIO(content), (1, 1), 100, "x"))
    with pytest.raises(DataError, match=r"x: expected an object array of bytes, got a string of 1 bytes \(at most 0\)"):
        list(iterate_bytes(io.BytesIO(content), (1, 2), 0, "x"))


def test_npz_members_are_checked(circuit_dir: Path) -> None:
    with NpzFile(circuit_dir / "train.npz") as file:
        assert set(file.names) == set(np.load(circuit_dir / "train.npz").files)
        assert file.header("imgs").shape == (7, 2)
        assert len(list(file.byte_strings("imgs", 7, 1 << 20))) == 14
        with pytest.raises(DataError, match=r"imgs: expected 6 rows, got shape \(7, 2\)"):
            list(file.byte_strings("imgs", 6, 1 << 20))
    with pytest.raises(DataError, match="none.npz: "):
        NpzFile(circuit_dir / "none.npz")
