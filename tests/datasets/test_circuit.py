"""CausalCircuit: files of the publisher and of this package are read without unpickling, damaged ones are refused."""

import io
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from circuits import npy, replace_member, save
from PIL import Image

from causaldiffae.datasets import circuit
from causaldiffae.datasets.circuit import CircuitData, decode_jpeg
from causaldiffae.datasets.images import resize_area
from causaldiffae.datasets.registry import dataset_spec, measure, read_split, true_counterfactual, truth_is_known
from causaldiffae.errors import DataError, InputError
from causaldiffae.generators.circuit_scene import can_render
from causaldiffae.generators.circuit_writer import encode_jpeg, write_dataset

Members = dict[str, Any]


def as_objects(strings: np.ndarray) -> np.ndarray:
    objects = np.empty(strings.shape, object)
    objects[...] = strings.tolist()
    return objects


def assert_holds(data: Any, members: Members, rows: slice) -> None:
    np.testing.assert_array_equal(data.labels, members["original_latents"][rows, 0, ::-1].astype(np.float32))
    images = [decode_jpeg(content, data.spec.image_size, "") for content in members["imgs"][rows, 0]]
    np.testing.assert_array_equal(data.images, np.stack(images))


def test_files_of_this_package_are_read(circuit_dir: Path, circuit_members: Members) -> None:
    data = read_split("circuit", circuit_dir, "train", image_size=32)
    assert isinstance(data, CircuitData) and data.rendered_size == 32 and data.classes is None
    assert data.images.shape == (7, 3, 32, 32) and data.images.dtype == np.uint8 and data.labels.dtype == np.float32
    assert data.ids[:2] == ["train:0", "train:1"]
    assert_holds(data, circuit_members, slice(None))
    stripes = data.images[:, 0, 4::8, 16] / 255.0  # each image shows its own labels, in the graph's order
    np.testing.assert_allclose(stripes, data.labels, atol=0.02)
    assert_holds(read_split("circuit", circuit_dir, "train", image_size=24, limit=3), circuit_members, slice(0, 3))
    subset = data.subset([2, 0])
    assert isinstance(subset, CircuitData) and subset.rendered_size == 32 and subset.ids == ["train:2", "train:0"]
    assert read_split("circuit", circuit_dir, "test").images.shape == (3, 3, 128, 128)
    assert dataset_spec("circuit").graph.names == ("arm", "blue", "green", "red")


@pytest.mark.parametrize("form", ["parts", "objects", "compressed", "protocol 3"])
def test_published_files_are_read(tmp_path: Path, circuit_members: Members, form: str) -> None:
    published = {key: array for key, array in circuit_members.items() if key != "stand_in"}
    published["imgs"] = as_objects(circuit_members["imgs"])
    if form == "parts":
        for i, rows in enumerate((slice(0, 3), slice(3, 4), slice(4, 7))):
            save(tmp_path, {key: array[rows] for key, array in published.items()}, f"train-{i}")
    elif form == "compressed":
        np.savez_compressed(tmp_path / "train.npz", **published)
    else:
        save(tmp_path, published)
    if form == "protocol 3":
        replace_member(tmp_path / "train.npz", "imgs", npy("|O", (7, 2), pickle.dumps(published["imgs"], protocol=3)))
    data = read_split("circuit", tmp_path, "train", image_size=32)
    assert_holds(data, circuit_members, slice(None))
    assert isinstance(data, CircuitData) and data.rendered_size is None and not truth_is_known(data)
    with pytest.raises(
        InputError, match="true counterfactual: expected images rendered by scripts/make_dataset.py circuit"
    ):
        true_counterfactual(data, {})
    if form == "parts":
        assert data.ids == ["train-0:0", "train-0:1", "train-0:2", "train-1:0", "train-2:0", "train-2:1", "train-2:2"]
        assert_holds(read_split("circuit", tmp_path, "train", image_size=32, limit=4), circuit_members, slice(0, 4))


def test_large_images_are_averaged_in_blocks(
    tmp_path: Path, circuit_members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (7, 2, 64, 64, 3)).astype(np.uint8)
    smooth = np.array([[np.array(Image.fromarray(p).resize((512, 512))) for p in pair] for pair in coarse])
    circuit_members["imgs"] = np.array([[encode_jpeg(image) for image in pair] for pair in smooth])
    monkeypatch.setattr(circuit, "_BLOCK", 3)
    data = read_split("circuit", save(tmp_path, circuit_members), "train")
    assert np.abs(data.images.astype(int) - resize_area(smooth[:, 0].transpose(0, 3, 1, 2), 128)).mean() < 2.0


@pytest.mark.skipif(not can_render(), reason="MuJoCo or the EGL libraries it draws with are missing")
def test_true_counterfactuals_are_rendered(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", num_train=3, num_val=1, num_test=6, image_size=128, workers=1, progress=False)
    data = read_split("circuit", tmp_path / "set", "test", image_size=64)
    assert truth_is_known(data)
    np.testing.assert_allclose(measure(data.spec, data.images), data.labels, atol=0.03)
    labels, images = true_counterfactual(data, {})
    np.testing.assert_array_equal(labels, data.labels)
    np.testing.assert_array_equal(images, data.images)
    labels, images = true_counterfactual(data, {"arm": 0.5})
    assert images.shape == data.images.shape and (labels[:, 0] == 0.5).all()
    np.testing.assert_allclose(measure(data.spec, images), labels, atol=0.03)


class Trap:
    """Unpickling this runs its code."""

    sprung = False

    def __reduce__(self) -> Any:
        return (setattr, (Trap, "sprung", True))


def with_object(value: object) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        members["imgs"] = as_objects(members["imgs"])
        members["imgs"][2, 0] = value

    return change


def with_member(name: str, value: Any) -> Callable[[Members], None]:
    return lambda members: members.update({name: value})


def with_jpeg(content: bytes) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        members["imgs"] = members["imgs"].astype("S5000")
        members["imgs"][5, 0] = content

    return change


def with_nan(members: Members) -> None:
    members["original_latents"][4, 0, 3] = np.nan


def image_file(width: int, height: int, mode: str = "RGB", kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, kind)
    return buffer.getvalue()


def bomb() -> bytes:
    """A small JPEG whose header declares 65500 x 65500 pixels."""
    content = bytearray(image_file(16, 16))
    start = content.index(b"\xff\xc0")
    content[start + 5 : start + 9] = struct.pack(">HH", 65500, 65500)
    return bytes(content)


SQUARE = r"row 5: expected a square RGB image of 8\.\.2048 pixels per side, got "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_object(Trap()), "imgs: expected an object array of bytes"),
        (with_object(17), "imgs: expected an object array of bytes"),
        (with_object("image.jpg"), "imgs: expected an object array of bytes"),
        (with_object(np.zeros(3)), "imgs: expected an object array of bytes"),
        (with_nan, "original_latents: row 4, arm: expected a finite number, got nan"),
        (with_member("original_latents", np.zeros((7, 4))), r"original_latents: .*\(N, 2, 4\).*\(7, 4\)"),
        (with_member("original_latents", np.zeros((7, 2, 4), int)), "original_latents: .*int64"),
        (with_member("original_latents", np.zeros((6, 2, 4))), r"imgs: expected shape \(6, 2\) .*, got \(7, 2\)"),
        (with_member("original_latents", np.asfortranarray(np.zeros((7, 2, 4)))), "original_latents: "),
        (with_member("imgs", np.zeros((7, 2))), "imgs: .*float64"),
        (with_member("imgs", np.zeros((7, 2, 3), np.uint8)), r"imgs: expected shape \(7, 2\) .*, got \(7, 2, 3\)"),
        (with_member("imgs", np.zeros((7, 2), "S5000000")), r"imgs: .*\|S5000000"),
        (with_jpeg(b"no image"), "imgs: row 5: .*JPEG image"),
        (with_jpeg(b""), "imgs: row 5: .*JPEG image"),
        (with_jpeg(image_file(16, 16, kind="PNG")), "row 5: .*JPEG image"),
        (with_jpeg(image_file(32, 16)), SQUARE + "32x16 RGB"),
        (with_jpeg(image_file(32, 32, "L")), SQUARE + "32x32 L"),
        (with_jpeg(image_file(64, 64)[:-40]), "row 5: .*JPEG image"),
        (with_jpeg(bomb()), "row 5: .*pixels"),
        (with_member("stand_in", np.array(b"{}")), "stand_in: expected the note of make_dataset.py, got b'{}'"),
        (with_member("stand_in", np.array(b"[[")), r"stand_in: expected the note of make_dataset.py, got b'\[\["),
        (with_member("stand_in", np.array(["x"])), "stand_in: .*<U1"),
        (
            lambda members: [members.update({k: v[:0]}) for k, v in members.items() if v.ndim],
            "expected at least one image, got none",
        ),
    ],
)
def test_a_damaged_file_is_refused(
    tmp_path: Path, circuit_members: Members, change: Callable[[Members], None], message: str
) -> None:
    change(circuit_members)
    with pytest.raises(DataError, match=f"train.npz: {message}|train.npz: imgs: {message}") as refusal:
        read_split("circuit", save(tmp_path, circuit_members), "train", image_size=32)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 400
    assert not Trap.sprung


def test_missing_parts_are_named(circuit_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected train.npz, or train-0.npz, train-1.npz, ..., got neither"):
        read_split("circuit", tmp_path, "train")
    for i in (0, 1, 3):
        (tmp_path / f"train-{i}.npz").write_bytes((circuit_dir / "test.npz").read_bytes())
    with pytest.raises(DataError, match=r"expected train-2.npz, got 3 files train-\*.npz without it"):
        read_split("circuit", tmp_path, "train")
    (tmp_path / "train-3.npz").unlink()
    assert len(read_split("circuit", tmp_path, "train", image_size=32)) == 6
