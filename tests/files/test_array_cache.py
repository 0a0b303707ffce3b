"""Cached arrays: mapped where they are intact, computed again where they are not, absent where they are incomplete."""

from pathlib import Path

import numpy as np
import pytest

from causaldiffae.errors import DataError
from causaldiffae.files.array_cache import BLOCK, block_checksum, open_array, write_array

SHAPE = (BLOCK + 3, 2, 5)
VALUES = np.random.default_rng(0).normal(size=SHAPE).astype(np.float16)


def fill(array: np.ndarray) -> list[int]:
    array[:] = VALUES
    return [block_checksum(array[start : start + BLOCK]) for start in range(0, len(array), BLOCK)]


def write(path: Path) -> np.ndarray:
    return write_array(path, "codes-", SHAPE, np.float16, fill, "codes")


def test_what_was_written_is_mapped_and_replaces_older_files(tmp_path: Path) -> None:
    assert open_array(tmp_path / "codes-1.npy", SHAPE, np.float16, "") is None
    for name in ("codes-1.npy", "codes-2.npy"):
        np.testing.assert_array_equal(write(tmp_path / name), VALUES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes-2.json", "codes-2.npy"]
    found = open_array(tmp_path / "codes-2.npy", SHAPE, np.float16, "")
    assert found is not None
    np.testing.assert_array_equal(found, VALUES)
    found[:] = 0  # a private copy
    again = open_array(tmp_path / "codes-2.npy", SHAPE, np.float16, "")
    assert again is not None and again.any()


@pytest.mark.parametrize("damage", ["last row", "shape", "dtype", "sums", "cut"])
def test_a_damaged_file_is_removed_with_a_warning(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "codes-1.npy"
    write(path)
    content = path.read_bytes()
    shape: tuple[int, ...] = SHAPE
    dtype: type = np.float16
    if damage == "last row":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        path.write_bytes(content[:-50])
    elif damage == "sums":
        path.with_suffix(".json").write_text("{}")
    elif damage == "shape":
        shape = (SHAPE[0], 5, 2)
    else:
        dtype = np.float32
    with pytest.warns(UserWarning, match="damaged.*; computed again"):
        assert open_array(path, shape, dtype, "computed again") is None
    assert not path.exists()


def test_nothing_is_left_of_an_array_that_failed(tmp_path: Path) -> None:
    def fail(array: np.ndarray) -> list[int]:
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="cannot write the codes .*No space left"):
        write_array(tmp_path / "a.npy", "a", SHAPE, np.float16, fail, "codes")
    assert not write_array(tmp_path / "a.npy", "a", SHAPE, np.float16, lambda array: None, "codes").any()
    assert not list(tmp_path.iterdir())
