"""IDX files: round trips, and files that are not IDX."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from causaldiffae.errors import DataError
from causaldiffae.files.idx import read_digits, read_idx, write_idx

in_tmp_path = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@in_tmp_path
@given(st.lists(st.integers(0, 5), min_size=1, max_size=3), st.booleans(), st.integers(0, 2**32 - 1))
def test_idx_round_trip(tmp_path: Path, shape: list[int], zipped: bool, seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    write_idx(tmp_path / "a.gz", array)
    if not zipped:
        (tmp_path / "a.gz").write_bytes(gzip.decompress((tmp_path / "a.gz").read_bytes()))
    result = read_idx(tmp_path / "a.gz")
    np.testing.assert_array_equal(result, array)
    assert result.dtype == np.uint8 and result.flags.writeable


@in_tmp_path
@given(st.binary(max_size=60), st.sampled_from([b"", b"\0\0\x08\x01", b"\0\0\x08\x03", b"\x1f\x8b"]))
def test_idx_of_any_bytes_is_read_or_refused(tmp_path: Path, content: bytes, start: bytes) -> None:
    path = tmp_path / "any"
    path.write_bytes(start + content)
    try:
        array = read_idx(path)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert array.size <= 60


def idx_file(shape: tuple[int, ...], content: bytes, kind: int = 8) -> bytes:
    return bytes((0, 0, kind, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it starts with nothing, an IDX file is needed"),
        (b"PK\x03\x04", "it starts with 504b0304, an IDX file is needed"),
        (idx_file((1,), b"1234", kind=0x0D), r"its values are of IDX type 0x0d, 0x08 \(unsigned bytes\) is needed"),
        (idx_file((1, 1, 1, 1), b"1"), "it has 4 dimensions, 1 to 3 are allowed"),
        (idx_file((2, 2), b"")[:6], "it ends within its header"),
        (idx_file((2, 2), b"123"), "its header declares 4 bytes, it holds 3 bytes"),
        (idx_file((2, 2), b"12345"), "its header declares 4 bytes, it holds more"),
        (idx_file((60000, 28000, 28000), b"1"), "its header declares 47040000000000 bytes, 536870912 are allowed"),
        (gzip.compress(idx_file((2,), b"12"), mtime=0)[:-9], "it cannot be read"),
        (b"\x1f\x8bnonsense", "it cannot be read"),
    ],
)
def test_idx_refusals_name_the_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad-idx"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"bad-idx: {message}"):
        read_idx(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: the file is missing"):
        read_idx(tmp_path / "absent")
    with pytest.raises(DataError, match="train-images-idx3-ubyte or train-images-idx3-ubyte.gz is missing"):
        read_digits(tmp_path, "train")
    with pytest.raises(DataError, match="nowhere: the folder is missing"):
        read_digits(tmp_path / "nowhere", "train")
