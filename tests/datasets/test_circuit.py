"""CausalCircuit's files: written in the publisher's format, read without unpickling, refused with one line."""

import hashlib
import importlib.util
import io
import json
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import REPO
from PIL import Image

from causaldiffae.datasets import circuit as circuit_files
from causaldiffae.datasets.circuit import CircuitData, decode_jpeg
from causaldiffae.datasets.images import resize_area
from causaldiffae.datasets.registry import dataset_spec, measure, read_split, true_counterfactual
from causaldiffae.datasets.registry import truth_is_known as truth_is_known_for
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.npz import NpzFile
from causaldiffae.files.pickles import iterate_bytes
from causaldiffae.generators import circuit_scene, circuit_writer
from causaldiffae.generators.circuit import abduct, predict
from causaldiffae.generators.circuit_writer import encode_jpeg, write_dataset

SCRIPT = REPO / "scripts" / "make_dataset.py"
COUNTS = {"num_train": 7, "num_val": 2, "num_test": 3}
needs_renderer = pytest.mark.skipif(
    not circuit_scene.can_render(), reason="MuJoCo or the EGL libraries it draws with are missing"
)


def painted(labels: Any, size: int) -> np.ndarray:
    """Stands in for the renderer: one flat colour for each of the four labels, in four stripes."""
    stripes = np.repeat(np.uint8(255 * np.asarray(labels)), size // 4)
    return np.broadcast_to(stripes[:, None, None], (size, size, 3)).copy()


def write_painted(out: Path, **changes: Any) -> Path:
    return write_dataset(out, **{**COUNTS, "image_size": 32, "workers": 1, "progress": False, **changes})


@pytest.fixture(scope="module")
def painted_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(circuit_writer, "render", painted)
        patch.setattr(circuit_writer, "CHUNK", 4)
        return write_painted(tmp_path_factory.mktemp("circuit") / "set")


@pytest.fixture
def members(painted_dir: Path) -> dict[str, np.ndarray]:
    with np.load(painted_dir / "train.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def as_objects(strings: np.ndarray) -> np.ndarray:
    objects = np.empty(strings.shape, object)
    objects[...] = strings.tolist()
    return objects


def save(folder: Path, members: dict[str, Any], name: str = "train") -> Path:
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"{name}.npz", **members)
    return folder


# --- writing ----------------------------------------------------------------------------------------------------------


def test_members_are_the_publishers(painted_dir: Path, members: dict[str, np.ndarray]) -> None:
    assert sorted(path.name for path in painted_dir.iterdir()) == ["recipe.json", "test.npz", "train.npz", "val.npz"]
    shapes = {key: (array.shape, array.dtype.kind) for key, array in members.items()}
    assert shapes == {
        "original_latents": ((7, 2, 4), "f"),
        "epsilon": ((7, 2, 4), "f"),
        "pressed": ((7, 2, 3), "f"),
        "intervention_labels": ((7,), "i"),
        "intervention_masks": ((7, 4), "b"),
        "imgs": ((7, 2), "S"),
        "stand_in": ((), "S"),
    }
    assert members["original_latents"].dtype == np.float64
    recipe = json.loads((painted_dir / "recipe.json").read_text())
    note = json.loads(members["stand_in"].item())
    assert recipe["stand_in"] is True and note["stand_in"] is True and "not the CausalCircuit files" in note["note"]
    assert recipe["num"] == {"train": 7, "val": 2, "test": 3} and note["image_size"] == 32


def test_pairs_are_an_intervention_apart() -> None:
    pairs = circuit_writer.sample_pairs(400, np.random.default_rng(0))
    latents, epsilon, kind = (pairs[key] for key in ("original_latents", "epsilon", "intervention_labels"))
    assert set(kind) == {0, 1, 2, 3, 4}
    ours = [3, 2, 1, 0]  # red, green, blue, arm -> arm, blue, green, red
    for half in (0, 1):
        np.testing.assert_allclose(predict(epsilon[:, half, ours], {}), latents[:, half, ours], atol=1e-9)
        np.testing.assert_allclose(pairs["pressed"][:, half], circuit_scene.pressed(latents[:, half, 3]))
    np.testing.assert_array_equal(latents[kind == 0, 0], latents[kind == 0, 1])
    for i in range(4):
        rows = kind == i + 1
        assert (pairs["intervention_masks"][rows].argmax(axis=1) == i).all()
        assert (latents[rows, 0, i] != latents[rows, 1, i]).all() and pairs["intervention_masks"][
            rows
        ].sum() == rows.sum()
        others = [j for j in range(4) if j != i]
        np.testing.assert_allclose(epsilon[rows, 0][:, others], epsilon[rows, 1][:, others], atol=1e-9)
    red = latents[kind == 1]
    np.testing.assert_array_equal(red[:, 0, 1:], red[:, 1, 1:])  # its causes stay
    np.testing.assert_allclose(abduct(latents[:, 0, ours]), epsilon[:, 0, ours], atol=1e-9)


def test_two_writes_are_the_same_bytes_and_a_larger_set_begins_with_them(
    painted_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: dict[str, np.ndarray]
) -> None:
    monkeypatch.setattr(circuit_writer, "render", painted)
    monkeypatch.setattr(circuit_writer, "CHUNK", 4)
    again = write_painted(tmp_path / "again")
    for path in painted_dir.iterdir():
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256((again / path.name).read_bytes()).digest()
    assert [path.name for path in tmp_path.iterdir()] == ["again"]  # no chunks are left
    larger = write_painted(tmp_path / "larger", num_train=9)
    with np.load(larger / "train.npz") as file:
        np.testing.assert_array_equal(file["epsilon"][:7], members["epsilon"])
        assert file["imgs"][:7].tolist() == members["imgs"].tolist()
    other = write_painted(tmp_path / "other", seed=1)
    with np.load(other / "train.npz") as file:
        assert (file["epsilon"] != members["epsilon"]).any()


def test_an_interrupted_run_goes_on(painted_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuit_writer, "CHUNK", 4)
    drawn: list[int] = []

    def stops(labels: Any, size: int) -> np.ndarray:
        drawn.append(1)
        if len(drawn) == 14:  # in the second chunk, beside the first trial
            raise KeyboardInterrupt
        return painted(labels, size)

    monkeypatch.setattr(circuit_writer, "render", stops)
    with pytest.raises(KeyboardInterrupt):
        write_painted(tmp_path / "set")
    (chunks,) = tmp_path.iterdir()
    assert chunks.name.startswith(".set.chunks-") and [path.name for path in chunks.iterdir()] == ["train-000000-4.npz"]
    (chunks / "train-000001-3.npz").write_bytes(b"half a chunk")
    drawn[:] = [1] * 100
    write_painted(tmp_path / "set")
    assert len(drawn) == 100 + 1 + 2 * (3 + 2 + 3)  # the trial, and all pairs but those of the first chunk
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert (tmp_path / "set/train.npz").read_bytes() == (painted_dir / "train.npz").read_bytes()
    monkeypatch.setattr(circuit_writer, "render", None)
    assert write_painted(tmp_path / "set") == tmp_path / "set"  # a finished set is left alone


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train": 0}, "num: expected 1..1000000, got 0"),
        ({"num_test": -1}, "num_test: expected 1..1000000, got -1"),
        ({"image_size": 4}, "image_size: expected 16..2048, got 4"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
        ({"workers": 0}, "workers: expected 1 or more, got 0"),
    ],
)
def test_requests_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit_writer, "render", painted)
    with pytest.raises(InputError, match=message):
        write_painted(tmp_path / "set", **changes)
    assert not (tmp_path / "set").exists()


def test_a_strange_folder_is_refused(painted_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got a data set of another recipe"):
        write_painted(painted_dir, seed=5)
    (tmp_path / "diary.txt").touch()
    with pytest.raises(InputError, match="got one with other files"):
        write_painted(tmp_path)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_dataset_circuit", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_command_line(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit_writer, "render", painted)
    command = ["circuit", "--out", str(tmp_path / "set"), "--image_size", "16", "--workers", "1"]
    assert script.main([*command, "--num", "12"]) == 0
    output = capsys.readouterr()
    assert output.out.strip() == str(tmp_path / "set") and "circuit" in output.err  # the progress bar
    assert [len(read_split("circuit", tmp_path / "set", split)) for split in ("train", "test")] == [12, 1]
    monkeypatch.undo()

    def fail(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", fail)
    circuit_scene._renderer.cache_clear()
    assert script.main(["circuit", "--out", str(tmp_path / "other"), "--num", "3"]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: circuit: MuJoCo cannot be loaded") and output.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


# --- reading ----------------------------------------------------------------------------------------------------------


def check(data: Any, members: dict[str, np.ndarray], rows: slice) -> None:
    expected = members["original_latents"][rows, 0, ::-1].astype(np.float32)
    np.testing.assert_array_equal(data.labels, expected)
    pictures = [decode_jpeg(content, data.spec.image_size, "") for content in members["imgs"][rows, 0]]
    np.testing.assert_array_equal(data.images, np.stack(pictures))


def test_our_files_are_read(painted_dir: Path, members: dict[str, np.ndarray]) -> None:
    data = read_split("circuit", painted_dir, "train", image_size=32)
    assert isinstance(data, CircuitData) and data.rendered_size == 32 and data.classes is None
    assert data.images.shape == (7, 3, 32, 32) and data.images.dtype == np.uint8 and data.labels.dtype == np.float32
    assert data.ids[:2] == ["train:0", "train:1"]
    check(data, members, slice(None))
    stripes = data.images[:, 0, 4::8, 16] / 255.0  # each picture shows its own labels, in the graph's order
    np.testing.assert_allclose(stripes, data.labels, atol=0.02)
    check(read_split("circuit", painted_dir, "train", image_size=24, limit=3), members, slice(0, 3))
    subset = data.subset([2, 0])
    assert isinstance(subset, CircuitData) and subset.rendered_size == 32 and subset.ids == ["train:2", "train:0"]
    assert read_split("circuit", painted_dir, "test").images.shape == (3, 3, 128, 128)  # enlarged to the usual size


@pytest.mark.parametrize("form", ["parts", "objects", "compressed", "protocol 3"])
def test_published_forms_are_read(tmp_path: Path, members: dict[str, np.ndarray], form: str) -> None:
    published = {key: array for key, array in members.items() if key != "stand_in"}
    published["imgs"] = as_objects(members["imgs"])
    if form == "parts":
        for i, rows in enumerate((slice(0, 3), slice(3, 4), slice(4, 7))):
            save(tmp_path, {key: array[rows] for key, array in published.items()}, f"train-{i}")
    elif form == "objects":
        save(tmp_path, published)
    elif form == "compressed":
        np.savez_compressed(tmp_path / "train.npz", **published)
    else:
        save(tmp_path, published)
        replace_member(tmp_path / "train.npz", "imgs", npy("|O", (7, 2), pickle.dumps(published["imgs"], protocol=3)))
    data = read_split("circuit", tmp_path, "train", image_size=32)
    check(data, members, slice(None))
    assert isinstance(data, CircuitData) and data.rendered_size is None and not truth_is_known_for(data)
    with pytest.raises(InputError, match="true counterfactual: these pictures are not drawn by our scene"):
        true_counterfactual(data, {})
    if form == "parts":
        assert data.ids == ["train-0:0", "train-0:1", "train-0:2", "train-1:0", "train-2:0", "train-2:1", "train-2:2"]
        check(read_split("circuit", tmp_path, "train", image_size=32, limit=4), members, slice(0, 4))


def test_large_pictures_are_averaged_and_never_all_in_memory(
    tmp_path: Path, members: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (7, 2, 64, 64, 3)).astype(np.uint8)
    smooth = np.array([[np.array(Image.fromarray(p).resize((512, 512))) for p in pair] for pair in coarse])
    members["imgs"] = np.array([[encode_jpeg(picture) for picture in pair] for pair in smooth])
    blocks = []
    monkeypatch.setattr(circuit_files, "_BLOCK", 3)
    real = circuit_files.decode_jpeg
    monkeypatch.setattr(circuit_files, "decode_jpeg", lambda *a: (blocks.append(len(a[0])), real(*a))[1])
    data = read_split("circuit", save(tmp_path, members), "train")
    expected = resize_area(smooth[:, 0].transpose(0, 3, 1, 2), 128)
    assert len(blocks) == 7 and np.abs(data.images.astype(int) - expected).mean() < 2.0


def test_spec() -> None:
    spec = dataset_spec("circuit")
    assert (spec.image_size, spec.channels, spec.graph.names) == (128, 3, ("arm", "blue", "green", "red"))
    with pytest.raises(InputError, match="channels: 4 given, data set circuit has 3"):
        dataset_spec("circuit", channels=4)
    with pytest.raises(InputError, match=r"image_size: 1000 given, data set circuit needs a whole number in 8..512"):
        dataset_spec("circuit", image_size=1000)


@needs_renderer
def test_the_truth_of_our_own_pictures(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", num_train=3, num_val=1, num_test=6, image_size=128, workers=1, progress=False)
    data = read_split("circuit", tmp_path / "set", "test", image_size=64)
    assert truth_is_known_for(data)
    np.testing.assert_allclose(measure(data.spec, data.images), data.labels, atol=0.03)
    labels, images = true_counterfactual(data, {})
    np.testing.assert_array_equal(labels, data.labels)
    np.testing.assert_array_equal(images, data.images)
    labels, images = true_counterfactual(data, {"arm": 0.5})
    assert images.shape == data.images.shape and (labels[:, 0] == 0.5).all()
    np.testing.assert_allclose(measure(data.spec, images), labels, atol=0.03)


# --- bad files --------------------------------------------------------------------------------------------------------


def npy(descr: str, shape: Any, content: bytes, header: str | None = None) -> bytes:
    """A member with whatever header is wanted."""
    text = header or repr({"descr": descr, "fortran_order": False, "shape": shape})
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin-1") + content


def replace_member(path: Path, name: str, content: bytes | None, method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path) as archive:
        kept = {entry: archive.read(entry) for entry in archive.namelist() if entry != f"{name}.npy"}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, value in kept.items():
            archive.writestr(entry, value)
        if content is not None:
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content, method)


class Trap:
    """Whoever unpickles this has run its code."""

    sprung = False

    def __reduce__(self) -> Any:
        return (setattr, (Trap, "sprung", True))


def trap(members: dict[str, Any]) -> None:
    members["imgs"] = as_objects(members["imgs"])
    members["imgs"][3, 1] = Trap()


def number(members: dict[str, Any]) -> None:
    members["imgs"] = as_objects(members["imgs"])
    members["imgs"][2, 0] = 17


def text(members: dict[str, Any]) -> None:
    members["imgs"] = as_objects(members["imgs"])
    members["imgs"][2, 0] = "picture.jpg"


def arrays(members: dict[str, Any]) -> None:
    members["imgs"] = as_objects(members["imgs"])
    members["imgs"][0, 0] = np.zeros(3)


def nan(members: dict[str, Any]) -> None:
    members["original_latents"][4, 0, 3] = np.nan


def set_to(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(members: dict[str, Any]) -> None:
        members[name] = value

    return change


def picture(content: bytes) -> Callable[[dict[str, Any]], None]:
    def change(members: dict[str, Any]) -> None:
        members["imgs"] = members["imgs"].astype("S5000")
        members["imgs"][5, 0] = content

    return change


def image_file(width: int, height: int, mode: str = "RGB", kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, kind)
    return buffer.getvalue()


def bomb() -> bytes:
    """A small JPEG whose header declares 65500 x 65500 pixels."""
    content = bytearray(image_file(16, 16))
    place = content.index(b"\xff\xc0")
    content[place + 5 : place + 9] = struct.pack(">HH", 65500, 65500)
    return bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (trap, "train.npz: imgs: expected an object array of bytes, got an item that is not bytes"),
        (number, "train.npz: imgs: expected an object array of bytes, got an item that is not bytes"),
        (text, "train.npz: imgs: expected an object array of bytes, got an item that is not bytes"),
        (arrays, "train.npz: imgs: expected an object array of bytes, got "),
        (nan, "train.npz: original_latents: arm of row 4 is nan"),
        (
            set_to("original_latents", np.zeros((7, 4))),
            r"original_latents: expected shape \(N, 2, 4\), got \(7, 4\)",
        ),
        (
            set_to("original_latents", np.zeros((7, 2, 4), int)),
            "original_latents: expected a dtype of kind f, got int64",
        ),
        (set_to("original_latents", np.zeros((6, 2, 4))), r"imgs: its shape is \(7, 2\), \(6, 2\) is needed"),
        (
            set_to("original_latents", np.asfortranarray(np.zeros((7, 2, 4)))),
            "expected the header of an npy file|expected a plain array",
        ),
        (set_to("imgs", np.zeros((7, 2))), "train.npz: imgs: expected bytes .*, got float64"),
        (
            set_to("imgs", np.zeros((7, 2, 32, 32, 3), np.uint8)),
            r"its shape is \(7, 2, 32, 32, 3\), \(7, 2\) is needed",
        ),
        (set_to("imgs", np.zeros((7, 2), "S5000000")), r"imgs: expected bytes .*, got \|S5000000"),
        (picture(b"no picture"), "train.npz: imgs: row 5: it cannot be read as a JPEG image"),
        (picture(b""), "train.npz: imgs: row 5: it cannot be read as a JPEG image"),
        (picture(image_file(16, 16, kind="PNG")), "row 5: it cannot be read as a JPEG image"),
        (picture(image_file(32, 16)), r"row 5: it is 32x16 RGB, a square RGB of 8..2048 is needed"),
        (picture(image_file(32, 32, "L")), r"row 5: it is 32x32 L, a square RGB of 8..2048 is needed"),
        (picture(image_file(64, 64)[:-40]), "row 5: it cannot be read as a JPEG image"),
        (picture(bomb()), "row 5: it unpacks to far too many pixels"),
        (set_to("stand_in", np.array(b"{}")), "train.npz: stand_in: b'{}' is not what make_dataset.py writes"),
        (set_to("stand_in", np.array(b"[[")), r"train.npz: stand_in: b'\[\[' is not what make_dataset.py writes"),
        (set_to("stand_in", np.array(["x"])), "train.npz: stand_in: expected a dtype of kind S, got <U1"),
    ],
)
def test_a_harmed_file_is_refused(
    tmp_path: Path, members: dict[str, Any], change: Callable[[dict[str, Any]], None], message: str
) -> None:
    change(members)
    with pytest.raises(DataError, match=message) as refusal:
        read_split("circuit", save(tmp_path, members), "train", image_size=32)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 400
    assert not Trap.sprung


GREAT = 2**46


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("original_latents", None, r"original_latents: the member is missing; the file has "),
        ("imgs", None, r"imgs: the member is missing; the file has "),
        ("original_latents", npy("<f8", (GREAT, 2, 4), b""), r"expected \d+ bytes for shape .*, got 0"),
        ("original_latents", npy("<f8", (7, 2, 4), bytes(8)), "expected 448 bytes for shape .*, got 8"),
        ("imgs", npy("|S65536", (GREAT, 2), b""), r"imgs: expected \d+ bytes for shape .*, got 0"),
        ("imgs", npy("|O", (GREAT, 2), pickle.dumps(1)), r"imgs: its shape is \(.*, 2\), \(7, 2\) is needed"),
        ("imgs", npy("|O", (7, 2), b""), "imgs: expected a complete pickle, got a damaged one"),
        (
            "imgs",
            npy("|O", (7, 2), b"\x80\x04\x8e" + struct.pack("<Q", GREAT)),
            r"a string of \d+ bytes .at most 4194304",
        ),
        ("imgs", npy("|O", (7, 2), b"cos\nsystem\n(S'true'\ntR."), "expected an object array of bytes, got 'os' where"),
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
def test_a_lying_member_is_refused(
    tmp_path: Path, members: dict[str, Any], name: str, content: bytes | None, message: str
) -> None:
    save(tmp_path, members)
    replace_member(tmp_path / "train.npz", name, content)
    with pytest.raises(DataError, match=rf"train.npz: {name}.*{message}|train.npz: {message}"):
        read_split("circuit", tmp_path, "train", image_size=32)


def test_an_empty_file_is_refused(tmp_path: Path, members: dict[str, Any]) -> None:
    save(tmp_path, {key: array if key == "stand_in" else array[:0] for key, array in members.items()})
    with pytest.raises(DataError, match="train.npz: it holds no pictures"):
        read_split("circuit", tmp_path, "train")


def test_a_zip_that_unpacks_too_far_is_refused(tmp_path: Path, members: dict[str, Any]) -> None:
    save(tmp_path, members)
    path = tmp_path / "train.npz"
    content = path.read_bytes()
    directory = content.index(b"PK\x01\x02", content.index(b"imgs.npy") + 100)  # some entry of the central directory
    lying = content[: directory + 24] + struct.pack("<I", 2**31) + content[directory + 28 :]
    path.write_bytes(lying)
    with pytest.raises(DataError, match="train.npz: .*: expected at most .* bytes, got 2147483648 declared"):
        read_split("circuit", tmp_path, "train")
    zeros = zlib.compress(bytes(10**7))
    assert len(zeros) * 1040 > 10**7  # what deflate can do at best is let through, no more


def test_a_strange_zip_is_refused(tmp_path: Path, members: dict[str, Any]) -> None:
    path = save(tmp_path, members) / "train.npz"
    replace_member(path, "imgs", npy("|S9", (7, 2), bytes(126)), zipfile.ZIP_BZIP2)
    with pytest.raises(DataError, match="'imgs.npy': expected a stored or deflated member"):
        read_split("circuit", tmp_path, "train")
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(5001):
            archive.writestr(f"{i}.npy", b"")
    with pytest.raises(DataError, match="expected at most 5000 members of different names, got 5001"):
        read_split("circuit", tmp_path, "train")
    path.write_bytes(b"PK no zip")
    with pytest.raises(DataError, match="train.npz: expected an npz file"):
        read_split("circuit", tmp_path, "train")


def test_a_member_whose_own_name_is_no_text_is_refused(tmp_path: Path) -> None:
    """The list at the end of the file names it well, and says that the name before its bytes is UTF-8."""
    path = tmp_path / "x.npz"
    np.savez(path, **{"größe": np.zeros(3)})
    content, name = path.read_bytes(), "größe.npy".encode()
    assert content.count(name) == 2
    path.write_bytes(content.replace(name, b"gr\x9e\x9e\xc3\x9fe.npy"[: len(name)].ljust(len(name), b"y"), 1))
    with NpzFile(path) as file, pytest.raises(DataError, match=r"größe: expected a complete member"):
        file.header("größe")


def test_missing_parts_are_named(painted_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train.npz \(or train-0.npz, train-1.npz, ...\) is missing"):
        read_split("circuit", tmp_path, "train")
    for i in (0, 1, 3):
        (tmp_path / f"train-{i}.npz").write_bytes((painted_dir / "test.npz").read_bytes())
    with pytest.raises(DataError, match=r"3 files train-\*.npz, but train-2.npz is missing"):
        read_split("circuit", tmp_path, "train")
    (tmp_path / "train-3.npz").unlink()
    assert len(read_split("circuit", tmp_path, "train", image_size=32)) == 6


@pytest.fixture(scope="module")
def small_file(painted_dir: Path) -> bytes:
    return (painted_dir / "val.npz").read_bytes()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_is_read_or_refused(
    small_file: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(small_file)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(0, len(content)))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "test.npz").write_bytes(content[:cut])
    try:
        read_split("circuit", folder, "test", image_size=16)
    except DataError as error:
        assert str(error).startswith(str(folder))


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
    with pytest.raises(DataError, match=r"got 1 where an array of shape \(2, 1\) has 2"):
        list(iterate_bytes(io.BytesIO(content), (2, 1), 100, "x"))
    with pytest.raises(DataError, match=r"x: expected an object array of bytes, got EMPTY_LIST where"):
        list(iterate_bytes(io.BytesIO(pickle.dumps([b"a", b"b"], protocol=4)), (2, 1), 100, "x"))
    with pytest.raises(DataError, match=r"got 2 where an array of shape \(1, 1\) has 1"):
        list(iterate_bytes(io.BytesIO(content), (1, 1), 100, "x"))
    with pytest.raises(DataError, match=r"x: expected an object array of bytes, got a string of 1 bytes \(at most 0\)"):
        list(iterate_bytes(io.BytesIO(content), (1, 2), 0, "x"))


def test_npz_members_are_checked(painted_dir: Path) -> None:
    with NpzFile(painted_dir / "train.npz") as file:
        assert set(file.names) == {*circuit_writer._KEYS, "stand_in"}
        assert file.header("imgs").shape == (7, 2)
        assert len(list(file.byte_strings("imgs", 7, 1 << 20))) == 14
        with pytest.raises(DataError, match=r"imgs: expected 6 rows, got shape \(7, 2\)"):
            list(file.byte_strings("imgs", 6, 1 << 20))
    with pytest.raises(DataError, match="none.npz: it is missing or no regular file"):
        NpzFile(painted_dir / "none.npz")
