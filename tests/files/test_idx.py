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
        (b"", "expected an IDX file, got one that starts with nothing"),
        (b"PK\x03\x04", "expected an IDX file, got one that starts with 504b0304"),
        (idx_file((1,), b"1234", kind=0x0D), r"expected IDX type 0x08 \(unsigned bytes\), got 0x0d"),
        (idx_file((1, 1, 1, 1), b"1"), "expected 1 to 3 dimensions, got 4"),
        (idx_file((2, 2), b"")[:6], "expected a header of 12 bytes, got 6"),
        (idx_file((2, 2), b"123"), "expected 4 bytes as its header declares, got 3"),
        (idx_file((2, 2), b"12345"), "expected 4 bytes as its header declares, got more"),
        (idx_file((60000, 28000, 28000), b"1"), "expected at most 536870912 bytes, got a header that "),
        (gzip.compress(idx_file((2,), b"12"), mtime=0)[:-9], "cannot be read"),
        (b"\x1f\x8bnonsense", "cannot be read"),
    ],
)
def test_idx_refusals_name_the_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad-idx"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"bad-idx: {message}"):
        read_idx(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: file not found"):
        read_idx(tmp_path / "absent")
    with pytest.raises(
        DataError, match="expected train-images-idx3-ubyte or train-images-idx3-ubyte.gz, found neither"
    ):
        read_digits(tmp_path, "train")
    with pytest.raises(DataError, match="nowhere: folder not found"):
        read_digits(tmp_path / "nowhere", "train")
