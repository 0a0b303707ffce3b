"""The cache of decoded images: filled once, renewed after a change, safe against damage, links and full disks."""

import json
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import paint, table_rows, write_table
from PIL import Image

from causaldiffae.datasets.folder.image_files import ImageRule
from causaldiffae.datasets.images import ImageData
from causaldiffae.datasets.registry import read_split
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError


def read(folder: Path, **options: Any) -> ImageData:
    return read_split("folder", folder, "train", **options)


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts images from here on."""
    counts: list[int] = []
    decode = ImageRule.decode
    monkeypatch.setattr(ImageRule, "decode", lambda *a: (counts.append(1), decode(*a))[1])
    return counts


def caches(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / ".cache").glob("*.npy"))


def test_images_are_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = decoded(monkeypatch)
    first = read(folder)
    again = read(folder)
    assert len(counts) == 12
    np.testing.assert_array_equal(first.images, again.images)
    assert len(caches(folder)) == 1 and caches(folder)[0].startswith("train-3x8x8-crop-")
    statistics = DatasetSpec.from_dict(json.loads((folder / ".cache/statistics.json").read_text()))
    assert statistics == first.spec
    again.images[:] = 0  # a private copy: the file does not see it
    np.testing.assert_array_equal(read(folder).images, first.images)
    assert len(counts) == 12


def test_changed_files_are_decoded_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(folder)
    counts = decoded(monkeypatch)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "im/3.png")
    assert not read(folder).images[3].any() and len(counts) == 12
    assert len(caches(folder)) == 1  # the old one is gone
    os.utime(folder / "im/3.png", ns=(1, 1))
    read(folder)
    assert len(counts) == 24
    read(folder, image_size=16)
    read(folder, channels=1)
    assert len(counts) == 48 and len(caches(folder)) == 3
    rows = table_rows()
    rows[0]["age"] = 21  # labels are not pixels
    write_table(folder, rows)
    assert read(folder).labels[0, 1] == 21 and len(counts) == 48
    write_table(folder, rows[1:])
    assert len(read(folder)) == 11 and len(counts) == 59


def test_concurrent_readers_decode_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = decoded(monkeypatch)
    with ThreadPoolExecutor(3) as pool:
        images = [data.images for data in pool.map(read, [folder] * 3)]
    assert len(counts) == 12 and len(caches(folder)) == 1
    np.testing.assert_array_equal(images[0], images[2])


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    "damage",
    [
        rewrite(lambda content: content[:-100]),
        rewrite(lambda content: content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]),
        rewrite(lambda content: content.replace(b"(12, 3, 8, 8), }      ", b"(12000000, 3, 800, 8), }"[:22])),
        lambda path: np.save(path, np.zeros((12, 3, 8, 4), np.uint8)),
        lambda path: np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True),
        lambda path: path.with_suffix(".json").unlink(),
        lambda path: path.with_suffix(".json").write_text('{"checksums": [1, 2]}'),
    ],
    ids=["cut", "flipped bit", "claims terabytes", "other array", "pickle", "no checksums", "other checksums"],
)
def test_a_damaged_cache_is_renewed(
    folder: Path, damage: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = np.array(read(folder).images)
    damage(folder / ".cache" / caches(folder)[0])
    counts = decoded(monkeypatch)
    with pytest.warns(UserWarning, match="the cache is damaged .*; the images are decoded again"):
        np.testing.assert_array_equal(read(folder).images, first)
    assert len(counts) == 12
    read(folder)
    assert len(counts) == 12


def test_a_read_only_folder_uses_the_user_s_cache(
    folder: Path, user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".cache").write_text("not a folder")
    counts = decoded(monkeypatch)
    first = read(folder)
    read(folder)
    assert len(counts) == 12 and len(list(user_cache.rglob("*.npy"))) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "labels.csv"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder.parent))
    with pytest.warns(UserWarning, match="cannot write a cache; the images are decoded at every start"):
        np.testing.assert_array_equal(read(folder).images, first.images)
    assert len(counts) == 24


@pytest.mark.parametrize("name", [".cache", ".cache/statistics.json", ".cache/lock", ".cache/lock as a pipe"])
def test_nothing_is_written_through_a_link_that_came_with_the_data(
    folder: Path, user_cache: Path, tmp_path: Path, name: str
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_text("untouched")
    if name == ".cache":
        (folder / name).symlink_to(mine)
    else:
        (folder / ".cache").mkdir()
        if name.endswith("pipe"):
            os.mkfifo(folder / name.split()[0])
        else:
            (folder / name).symlink_to(mine / "file")
    assert len(read(folder)) == 12
    assert [path.name for path in mine.iterdir()] == ["file"] and (mine / "file").read_text() == "untouched"
    assert len(list(user_cache.rglob("*.npy"))) == 1


def test_a_full_disk_is_an_error_and_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(DataError, match="cannot write the decoded images .No space left on device"):
        read(folder)
    assert not list((folder / ".cache").glob(".part*")) and not caches(folder)


def test_an_interruption_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ImageRule, "decode", interrupt)
        with pytest.raises(KeyboardInterrupt):
            read(folder)
    assert not list((folder / ".cache").glob("*.npy")) and not list((folder / ".cache").glob(".part*"))
    assert len(read(folder)) == 12


def resident(key: str) -> int:
    """A figure of this process's memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset here")
def test_memory_is_that_of_the_images(tmp_path: Path) -> None:
    """400 images of 320x320 at 128 pixels: the first read, and one from the cache."""
    rows = [{"file": f"im/{i}.jpg", "age": i, "split": "train" if i < 399 else "test"} for i in range(400)]
    (tmp_path / "set/im").mkdir(parents=True)
    write_table(tmp_path / "set", rows)
    (tmp_path / "set/graph.yaml").write_text("names: [age]\nedges: []\nimage_size: 128\n")
    paint(0, 320, 320).resize((40, 40)).resize((320, 320)).save(tmp_path / "set/im/0.jpg")
    for row in rows[1:]:
        os.link(tmp_path / "set/im/0.jpg", tmp_path / "set" / str(row["file"]))
    for _ in range(2):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is used now
        before = resident("VmRSS")
        images = read(tmp_path / "set").images
        assert images.nbytes == 399 * 3 * 128 * 128
        assert 0.9 * images.nbytes < resident("VmHWM") - before < 1.5 * images.nbytes
        del images
