"""A folder of images as a data set: what is read, what is refused and with which words, and its cache."""

import json
import os
import sys
import types
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from folders import GRAPH, make_folder, paint, table_rows, write_table
from paths import REPO
from PIL import Image

from causaldiffae.datasets.folder.image_files import MAX_PIXELS, ImageRule
from causaldiffae.datasets.folder.image_folder import folder_spec, read_image_folder
from causaldiffae.datasets.folder.label_table import assign_splits, parse_table
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.datasets.registry import dataset_spec, measure, read_split, true_counterfactual, truth_is_known
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.generators import pendulum
from causaldiffae.image_datasets import BatchSource, load_data


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test writes to the user's own cache."""
    folder = tmp_path_factory.mktemp("user")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "set")


# --- what is read -----------------------------------------------------------------------------------------------------


def test_a_folder_is_read(folder: Path) -> None:
    spec = folder_spec(folder)
    assert spec.graph.names == ("hat", "age", "grey") and spec.graph.edges == (("age", "grey"),)
    assert (spec.name, spec.image_size, spec.channels, spec.resize) == ("folder", 8, 3, "crop")
    assert spec.kinds == ("categorical", "continuous", "binary")
    assert spec.categories == (("cap", "none", "straw"), (), ("no", "yes"))
    ages = 20 + 2.5 * np.arange(12)
    assert spec.shift[1] == ages.mean() and spec.scale[1] == ages.std()
    assert (spec.low, spec.high) == ((0.0, 20.0, 0.0), (2.0, 47.5, 1.0))
    train, val, test = (read_image_folder(folder, split=split) for split in ("train", "val", "test"))
    assert [len(data) for data in (train, val, test)] == [12, 4, 4] and train.spec == spec
    assert train.images.shape == (12, 3, 8, 8) and train.images.dtype == np.uint8 and type(train.images) is np.ndarray
    np.testing.assert_array_equal(test.images[1].transpose(1, 2, 0), np.asarray(paint(17)))
    assert test.ids == ["im/16.png", "im/17.png", "im/18.png", "im/19.png"] and test.classes is None
    assert train.labels[:3].tolist() == [[1.0, 20.0, 1.0], [0.0, 22.5, 0.0], [2.0, 25.0, 0.0]]
    assert train.labels.dtype == np.float32 and train.labelled is None
    assert DatasetSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_data_set_folder_is_one_like_others(folder: Path) -> None:
    assert dataset_spec("folder", data_dir=folder) == folder_spec(folder)
    data = read_split("folder", folder, "train", image_size=16, channels=1)
    assert data.images.shape == (12, 1, 16, 16)
    assert not truth_is_known(data) and np.isnan(measure(data.spec, data.images)).all()
    assert measure(data.spec, data.images).shape == (12, 3)
    with pytest.raises(InputError, match="true counterfactual: data set folder has no generator"):
        true_counterfactual(data, {"age": 30})
    images, cond = next(load_data(dataset="folder", data_dir=folder, batch_size=5, graph=folder / "graph.yaml"))
    assert images.shape == (5, 3, 8, 8) and cond["c"].shape == (5, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a mapped array that cannot be written to would warn
        assert torch.isfinite(BatchSource(data, 4).batch(0).labels).all()
    spread = read_split("folder", folder, "train", limit=3)
    assert spread.ids == ["im/0.png", "im/6.png", "im/11.png"]


def test_another_graph_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"names": ["age", "hat", "grey"], "edges": [["age", "hat"]]}')
    data = read_split("folder", folder, "val", graph=tmp_path / "other.json")
    assert data.spec.graph.edges == (("age", "hat"),) and data.spec.image_size == 64
    (folder / "graph.yaml").unlink()
    with pytest.raises(DataError, match="set: there is no graph.yaml in it; name the graph's file with --graph"):
        folder_spec(folder)
    (folder / "graph.dot").write_text("digraph { age -> grey; hat }")
    assert folder_spec(folder).graph.names == ("age", "grey", "hat")


def test_missing_labels_count_as_unlabelled(tmp_path: Path) -> None:
    rows = table_rows()
    rows[0]["age"], rows[5]["hat"] = "", ""
    folder = make_folder(tmp_path / "set", rows)
    data = read_image_folder(folder)
    assert data.labelled is not None and np.nonzero(~data.labelled)[0].tolist() == [0, 5]
    assert np.isnan(data.labels).sum() == 2 and data.labels[5, 1] == 32.5
    rest = np.delete(20 + 2.5 * np.arange(12), [0, 5])
    assert data.spec.shift[1] == rest.mean() and data.spec.low[1] == 22.5
    batch = BatchSource(data, 12, shuffle=False).batch(0)
    assert batch.labelled_share == 10 / 12 and not batch.labels[0].any() and torch.isfinite(batch.labels).all()
    assert read_image_folder(folder, split="val").labelled is None


def test_declared_values_go_first(tmp_path: Path) -> None:
    graph = """
variables:
  age: {unit: years, low: 0, high: 100, shift: 50, scale: 25}
  hat: {categories: [straw, cap, none]}
  grey: {kind: categorical, categories: [yes, no]}
image_size: 16
channels: 1
resize: area
split_seed: 7
split_shares: [0.5, 0.2, 0.3]
"""
    data = read_image_folder(make_folder(tmp_path / "set", graph=graph))
    spec = data.spec
    assert (spec.low[0], spec.high[0], spec.shift[0], spec.scale[0]) == (0, 100, 50, 25) and spec.units[0] == "years"
    assert spec.categories[1:] == (("straw", "cap", "none"), ("yes", "no")) and spec.kinds[2] == "categorical"
    assert data.labels[0].tolist() == [20.0, 2.0, 0.0] and data.images.shape == (12, 1, 16, 16)
    assert (spec.resize, spec.split_seed, spec.split_shares) == ("area", 7, (0.5, 0.2, 0.3))


def test_kinds_are_found(tmp_path: Path) -> None:
    def kinds(**columns: list[Any]) -> DatasetSpec:
        count = len(next(iter(columns.values())))
        rows = [
            {"file": f"im/{i}.png", "split": "train", **{k: v[i] for k, v in columns.items()}} for i in range(count)
        ]
        graph = f"names: [{', '.join(columns)}]\nedges: []\nimage_size: 8\n"
        return folder_spec(make_folder(tmp_path / str(len(list(tmp_path.iterdir()))), rows, graph))

    spec = kinds(
        signs=[-1, 1, 1, -1],
        words=["b", "a", "b", "a"],
        mixed=["1", "x", "y", "x"],
        numbers=["1", "2.5e1", "+.5", "-3."],
        same=["1", "1.0", "01", "2"],
    )
    assert spec.kinds == ("binary", "binary", "categorical", "continuous", "binary")
    assert spec.categories == ((), ("a", "b"), ("1", "x", "y"), (), ()) and spec.low[0] == -1
    assert kinds(x=[1, 2, 3]).kinds == () == kinds(x=[1, 2, 3]).categories


def test_do_takes_categories_by_name_or_number(folder: Path) -> None:
    spec = folder_spec(folder)
    assert spec.check_do({"hat": "straw", "grey": "yes"}) == {"hat": 2.0, "grey": 1.0}
    assert spec.check_do({"hat": 1, "grey": np.float32(0)}) == {"hat": 1.0, "grey": 0.0}
    do = spec.normalise_do(spec.check_do({"grey": "yes"}))
    assert do["grey"] == pytest.approx((1 - spec.shift[2]) / spec.scale[2])
    for wrong in ("helmet", 3, 0.5, -1, True, None):
        with pytest.raises(InputError, match=r"do: hat is .*, allowed are cap \(0\), none \(1\), straw \(2\)"):
            spec.check_do({"hat": wrong})
    with pytest.raises(InputError, match="do: age is 'old', a finite number is needed"):
        spec.check_do({"age": "old"})


def test_do_takes_numbers_that_are_names(tmp_path: Path) -> None:
    rows = [{"file": f"im/{i}.png", "digit": (3, 5, 7)[i % 3], "sign": (-1, 1)[i % 2]} for i in range(40)]
    graph = "variables: {digit: {kind: categorical}, sign: {}}\nimage_size: 8\n"
    spec = folder_spec(make_folder(tmp_path / "set", rows, graph))
    assert spec.check_do({"digit": 7, "sign": -1}) == {"digit": 2.0, "sign": -1.0}
    assert spec.check_do({"digit": "3"}) == {"digit": 0.0}
    with pytest.raises(InputError, match="do: digit is 2, allowed are 3, 5, 7"):
        spec.check_do({"digit": 2})
    with pytest.raises(InputError, match="do: sign is 0, allowed are -1 and 1"):
        spec.check_do({"sign": 0})


def test_splits_by_chance_move_no_image_when_others_join() -> None:
    def splits(names: list[str], seed: int = 0) -> dict[str, str]:
        table = parse_table("\n".join(["file", *names]).encode(), "t", Problems())
        return dict(zip(names, assign_splits(table, seed, (0.8, 0.1, 0.1)).tolist(), strict=True))

    names = [f"{i}.png" for i in range(2000)]
    few, many = splits(names[:100]), splits(names[::-1])
    assert all(many[name] == split for name, split in few.items())
    shares = [list(many.values()).count(split) / 2000 for split in ("train", "val", "test")]
    np.testing.assert_allclose(shares, (0.8, 0.1, 0.1), atol=0.02)
    other = splits(names, seed=1)
    assert 0.5 < np.mean([many[name] == other[name] for name in names]) < 0.8
    # another rule would move images between the splits of data sets that models have been trained on
    assert [name for name, split in few.items() if split == "test"][:2] == ["4.png", "16.png"]


def test_a_model_s_test_images_are_not_those_it_learned_from(tmp_path: Path) -> None:
    """The seed of a split by chance travels in the spec."""
    rows = [{k: v for k, v in row.items() if k != "split"} for row in table_rows(60)]
    folder = make_folder(tmp_path / "set", rows, GRAPH + "split_seed: 3\nsplit_shares: [0.5, 0.2, 0.3]\n")
    splits = {split: read_split("folder", folder, split) for split in ("train", "val", "test")}
    assert sorted(name for data in splits.values() for name in data.ids) == sorted(row["file"] for row in rows)
    assert 20 < len(splits["train"]) < 40
    assert read_image_folder(folder, seed=4).ids != splits["train"].ids
    (folder / "graph.yaml").unlink()
    assert read_split("folder", folder, "test", spec=splits["train"].spec).ids == splits["test"].ids


def test_a_model_reads_the_folder_with_its_own_spec(folder: Path) -> None:
    spec = folder_spec(folder)
    (folder / "graph.yaml").unlink()
    rows = [{**row, "age": 99, "note": "x"} for row in table_rows()]
    write_table(folder, rows)
    data = read_split("folder", folder, "test", spec=spec)
    assert data.spec is spec and data.labels[0].tolist() == [0.0, 99.0, 1.0]
    rows[3]["hat"] = "helmet"
    write_table(folder, rows)
    with pytest.raises(DataError, match=r"labels.csv:5: hat is 'helmet', the categories are cap, none, straw"):
        read_split("folder", folder, "test", spec=spec)
    write_table(folder, [{"file": "im/0.png", "age": 1}])
    with pytest.raises(DataError, match=r"variable 'hat' of the graph is no column \(and 1 more\)"):
        read_split("folder", folder, "test", spec=spec)
    for arguments in ({"image_size": 8}, {"graph": "g.yaml"}):
        with pytest.raises(InputError, match="spec: it is given, so image_size, channels and graph must not be"):
            read_split("folder", folder, "test", spec=spec, **arguments)
    with pytest.raises(InputError, match="spec: it is given, so graph, image_size, channels and seed must not be"):
        read_image_folder(folder, spec=spec, seed=1)


# --- pendulum in both forms -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both_forms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same pictures as the built-in data set and as a folder with a table."""
    built_in, own = tmp_path_factory.mktemp("built_in"), tmp_path_factory.mktemp("own")
    rows = []
    for split, angles in (("train", (-30, 0, 25)), ("test", (10,))):
        (built_in / split).mkdir()
        (own / split).mkdir()
        for labels in pendulum.true_labels(np.repeat(angles, 3), np.tile([70, 90, 130], len(angles))):
            name = pendulum.file_name(labels)
            Image.fromarray(pendulum.render(*labels[:2])).save(built_in / split / name)
            (own / split / name).write_bytes((built_in / split / name).read_bytes())
            values = [int(part) for part in name[2:-4].split("_")]
            names = ("angle", "light", "shadow_length", "shadow_position")
            rows.append({"file": f"{split}/{name}", **dict(zip(names, values, strict=True)), "split": split})
    write_table(own, sorted(rows, key=lambda row: tuple(row[name] for name in names)))
    spec = dataset_spec("pendulum")
    keys = ("shift", "scale", "low", "high")
    variables = {
        name: {"kind": "continuous", "unit": spec.units[i], **{key: getattr(spec, key)[i] for key in keys}}
        for i, name in enumerate(spec.graph.names)
    }
    description = {**spec.graph.to_dict(), "variables": variables, "name": "pendulum", "resize": "area"}
    (own / "graph.json").write_text(json.dumps({**description, "image_size": 96, "channels": 4}))
    return built_in, own


@pytest.mark.parametrize(("size", "channels"), [(None, None), (48, 3), (40, 4)])
def test_pendulum_is_the_same_in_both_forms(
    both_forms: tuple[Path, Path], size: int | None, channels: int | None
) -> None:
    built_in, own = both_forms
    for split in ("train", "test"):
        expected = read_split("pendulum", built_in, split, size, channels)
        declared = read_split("folder", own, split, size, channels)  # what graph.json says
        known = read_split("pendulum", own, split, size, channels)  # what the built-in data set says
        for data in (declared, known):
            assert data.spec == expected.spec
            np.testing.assert_array_equal(data.images, expected.images)
            np.testing.assert_array_equal(data.labels, expected.labels)
            assert [Path(name).name for name in data.ids] == expected.ids and data.labelled is None
            first, second = (BatchSource(d, 3, seed=1).batch(2) for d in (data, expected))
            assert torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)
    truth, image = true_counterfactual(declared, {"light": 100})
    expected_truth, expected_image = true_counterfactual(expected, {"light": 100})
    np.testing.assert_array_equal(truth, expected_truth)
    np.testing.assert_array_equal(image, expected_image)


# --- pictures of every sort -------------------------------------------------------------------------------------------


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    import io

    file = io.BytesIO()
    picture.save(file, format=form, **options)
    return file.getvalue()


def centre_crop_as_published(picture: Image.Image, size: int) -> np.ndarray:
    """What guided-diffusion does, step by step, on an RGB picture whose short side is between 2 and 4 times `size`."""
    half = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    ratio = size / min(half.size)
    small = np.array(half.resize((round(half.width * ratio), round(half.height * ratio)), Image.Resampling.BICUBIC))
    top, left = (small.shape[0] - size) // 2, (small.shape[1] - size) // 2
    return small[top : top + size, left : left + size].transpose(2, 0, 1)


def test_any_size_is_resized_and_cropped_as_in_guided_diffusion() -> None:
    for width, height in ((50, 37), (37, 61), (32, 40)):
        picture = paint(0, width, height)
        decoded = ImageRule(16, 3, "crop").decode(encoded(picture))
        np.testing.assert_array_equal(decoded, centre_crop_as_published(picture, 16))
    enlarged = ImageRule(16, 3, "crop").decode(encoded(paint(0, 5, 9)))
    assert enlarged.shape == (3, 16, 16)


def test_a_picture_of_the_wanted_size_is_not_touched() -> None:
    for rule in ("crop", "area"):
        for channels, mode in ((1, "L"), (3, "RGB"), (4, "RGBA")):
            picture = paint(1, mode=mode)
            decoded = ImageRule(8, channels, rule).decode(encoded(picture))
            np.testing.assert_array_equal(decoded, np.asarray(picture).reshape(8, 8, channels).transpose(2, 0, 1))


def test_area_averages_the_middle() -> None:
    pixels = np.zeros((4, 8), np.uint8)
    pixels[:, 2:4], pixels[:, 4:6] = 100, 50
    assert ImageRule(8, 1, "area").decode(encoded(Image.fromarray(pixels).resize((16, 8), 0))).shape == (1, 8, 8)
    small = ImageRule(2, 1, "area").decode(encoded(Image.fromarray(pixels)))
    assert small.tolist() == [[[100, 50], [100, 50]]]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_formats(form: str) -> None:
    picture = Image.new("RGB", (12, 12), (200, 30, 60))
    for channels in (1, 3, 4):
        decoded = ImageRule(8, channels, "crop").decode(encoded(picture, form)).astype(int)
        expected = {1: [84], 3: [200, 30, 60], 4: [200, 30, 60, 255]}[channels]
        assert np.abs(decoded - np.array(expected)[:, None, None]).max() <= 4


def test_colours() -> None:
    def pixel(picture: Image.Image, channels: int, form: str = "PNG") -> list[int]:
        return ImageRule(8, channels, "crop").decode(encoded(picture, form))[:, 4, 4].tolist()

    glass = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    assert pixel(glass, 3) == [255, 255, 255] and pixel(glass, 1) == [255]  # transparent: white
    assert pixel(glass, 4)[3] == 0
    assert pixel(Image.new("RGBA", (8, 8), (10, 20, 30, 255)), 3) == [10, 20, 30]
    assert pixel(Image.new("LA", (8, 8), (10, 0)), 3) == [255, 255, 255]
    assert pixel(Image.new("LA", (8, 8), (10, 255)), 1) == [10]
    assert pixel(Image.new("L", (8, 8), 77), 3) == [77, 77, 77] and pixel(Image.new("L", (8, 8), 77), 4)[3] == 255
    assert pixel(Image.new("1", (8, 8), 1), 1) == [255]
    palette = Image.new("RGB", (8, 8), (10, 200, 30)).quantize(4)
    assert palette.mode == "P" and pixel(palette, 3) == [10, 200, 30]
    deep = Image.fromarray(np.full((8, 8), 0x8040, np.uint16))
    assert deep.mode.startswith("I") and pixel(deep, 1) == [0x80]
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(np.array(pixel(ink, 3, "JPEG")) - (255, 0, 0)).max() < 10


def test_a_camera_s_orientation_is_applied() -> None:
    picture = Image.new("RGB", (16, 16), "black")
    picture.paste("white", (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    decoded = ImageRule(16, 1, "crop").decode(encoded(picture, "JPEG", exif=exif))
    assert decoded[0, 2].mean() < 20 and decoded[0, 13].mean() > 235


def bomb(width: int, height: int) -> bytes:
    """A small file that unpacks to a large black picture."""
    return encoded(Image.new("1", (width, height)), compress_level=9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bomb(20_000, 20_000), f"it unpacks to far too many pixels, {MAX_PIXELS} are allowed"),
        (bomb(9000, 8000), f"it is 9000x8000, more than {MAX_PIXELS} pixels are refused"),
        (bomb(1, 600_000), "it is 1x600000, sides of at most 65536 pixels are allowed"),
        (encoded(paint(0, 40, 40))[:900], "it cannot be read as a JPEG, PNG or WebP image"),
        (encoded(paint(0, 40, 40), "JPEG")[:300], "it cannot be read as a JPEG, PNG or WebP image"),
        (encoded(paint(0, 40, 40), "GIF"), "it cannot be read as a JPEG, PNG or WebP image"),
        (b"", "it cannot be read as a JPEG, PNG or WebP image"),
    ],
    ids=["bomb", "large", "narrow", "cut png", "cut jpeg", "gif", "empty"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_harmful_or_damaged_picture_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}"):
        ImageRule(64, 3, "crop").decode(content)


# --- what is refused --------------------------------------------------------------------------------------------------


def change(row: int, **cells: Any) -> Any:
    def harm(folder: Path) -> None:
        rows = table_rows()
        rows[row].update(cells)
        write_table(folder, rows)

    return harm


def column(name: str, values: list[Any]) -> Any:
    def harm(folder: Path) -> None:
        write_table(folder, [{**row, name: values[i % len(values)]} for i, row in enumerate(table_rows())])

    return harm


def graph(text: str) -> Any:
    return lambda folder: (folder / "graph.yaml").write_text(text)


def table(text: str | bytes) -> Any:
    return lambda folder: (folder / "labels.csv").write_bytes(text.encode() if isinstance(text, str) else text)


def picture(content: bytes) -> Any:
    return lambda folder: (folder / "im/3.png").write_bytes(content)


def link_outside(folder: Path) -> None:
    (folder.parent / "secret.png").write_bytes((folder / "im/3.png").read_bytes())
    (folder / "im/3.png").unlink()
    (folder / "im/3.png").symlink_to(folder.parent / "secret.png")


def linked_folder_outside(folder: Path) -> None:
    (folder / "im").rename(folder.parent / "elsewhere")
    (folder / "im").symlink_to(folder.parent / "elsewhere")


def a_folder_for_a_file(folder: Path) -> None:
    (folder / "im/3.png").unlink()
    (folder / "im/3.png").mkdir()


NO_HAT = "edges: [[age, grey]]\nimage_size: 8\n"
HARMS = {
    "leaves": (change(3, file="../3.png"), r"labels.csv:5: file name '../3.png' leaves the folder"),
    "leaves on Windows": (change(3, file="im\\..\\..\\3.png"), r"csv:5: file name .* leaves the folder"),
    "absolute": (change(3, file="/etc/passwd"), r"csv:5: file name '/etc/passwd' leaves the folder"),
    "drive": (change(3, file="C:3.png"), r"csv:5: file name 'C:3.png' leaves the folder"),
    "link": (link_outside, r"labels.csv:5: im/3.png: a link leads out of the folder"),
    "linked folder": (linked_folder_outside, r"labels.csv:2: im/0.png: a link leads out of the folder \(and 11 more"),
    "twice": (change(3, file="im/./2.png"), r"labels.csv:5: file name 'im/./2.png' is in line 4 already"),
    "no name": (change(3, file=""), r"labels.csv:5: the file's name is empty"),
    "odd name": (change(3, file="a\x85b.png"), r"labels.csv:5: file name .* has control characters"),
    "missing": (change(3, file="im/none.png"), r"labels.csv:5: im/none.png: the file is missing"),
    "folder": (a_folder_for_a_file, r"labels.csv:5: im/3.png: it is no regular file"),
    "unreadable": (picture(b"no picture"), r"im/3.png: it cannot be read as a JPEG, PNG or WebP image"),
    "bomb": (picture(bomb(20_000, 20_000)), r"im/3.png: it unpacks to far too many pixels"),
    "heavy": (picture(bytes(1 << 26) + b"x"), r"im/3.png: it has 67108865 bytes, 67108864 are allowed"),
    "no column": (graph(GRAPH.replace("hat", "scarf")), r"variable 'scarf' of the graph is no column \(and 1 more\)"),
    "no variable": (graph(NO_HAT), r"column 'hat' is no variable of the graph; name it under `ignore` to leave it"),
    "ignored": (graph(GRAPH + "ignore: [note]\n"), r"column 'note' is to be ignored, but is not there"),
    "constant": (column("age", [3]), r"column age is constant \(3\) in the 12 training images"),
    "nearly constant": (column("age", [1.7e9, 1.7e9 + 100, 1.7e9]), r"column age is constant \(1.7e\+09\) in the 12"),
    "constant word": (column("hat", ["cap"]), r"column hat is constant \(cap\) in the 12 training images"),
    "empty column": (column("age", [""]), r"column age has no labels"),
    "never labelled": (change(0, split="val"), None),
    "no number": (change(3, age="old"), r"labels.csv:5: age is 'old', a number is needed"),
    "odd number": (change(3, age="1_000"), r"labels.csv:5: age is '1_000', a number is needed"),
    "nan": (change(3, age="NaN"), r"labels.csv:5: age is 'NaN', a finite 32-bit number is needed"),
    "inf": (change(3, age="-inf"), r"labels.csv:5: age is '-inf', a finite 32-bit number is needed"),
    "huge": (change(3, age="1e39"), r"labels.csv:5: age is '1e39', a finite 32-bit number is needed"),
    "unseen": (change(19, hat="helmet"), r"hat: no labelled training image has category 'helmet', first in line 21"),
    "third value": (
        lambda f: (change(3, grey="maybe")(f), graph(GRAPH + "").__call__(f), graph(
            "edges: [[age, grey]]\nvariables: {hat: {}, grey: {kind: binary}}\n")(f)),
        r"column grey is binary and has 3 different values \(maybe, no, yes\), 2 are needed",
    ),
    "undeclared category": (
        lambda f: graph("edges: [[age, grey]]\nvariables: {hat: {categories: [none, cap]}}\n")(f),
        r"labels.csv:4: hat is 'straw', the categories are none, cap \(and 5 more\)",
    ),
    "category of none": (
        graph("edges: [[age, grey]]\nvariables: {hat: {categories: [none, cap, straw, fez]}}\n"),
        r"hat: no labelled training image has category 'fez'$",
    ),
    "split": (change(3, split="dev"), r"labels.csv:5: split is 'dev', allowed are train, val, test"),
    "split empty": (change(3, split=""), r"labels.csv:5: split is '', allowed are train, val, test"),
    "no training": (column("split", ["test"]), r"no image of split train has all its labels"),
    "self-loop": (graph("edges: [[age, age]]"), r"graph.yaml: graph: age -> age is a self-loop"),
    "cycle": (graph("edges: [[age, hat], [hat, age]]"), r"graph.yaml: graph: it has a cycle, age -> hat -> age"),
    "size": (graph(GRAPH.replace("8", "4096")), r"graph: image_size: 4096 given, 8..512 are allowed"),
    "channels": (graph(GRAPH + "channels: 2\n"), r"graph: channels: 2 given, 1 \(grey\), 3 \(RGB\) or 4 \(RGBA\)"),
    "name": (graph(GRAPH + "name: faces\n"), r"graph: name: 'faces' given, known data sets are circuit, mnist"),
    "short row": (table("file,age,grey,hat\na.png,1,2\n"), r"labels.csv:2: the row has 3 cells, the header has 4"),
    "no file column": (table("name,age\na.png,1\n"), r"labels.csv: one column 'file' is needed, there are: name, age"),
    "two file columns": (table("file,filename\na,b\n"), r"one column 'file' is needed, there are: file, filename"),
    "column twice": (table("file,age,age\na,1,2\n"), r"labels.csv: column 'age' is there twice"),
    "column without name": (table("file,,age\na,1,2\n"), r"labels.csv: column 2 has no name"),
    "no rows": (table("file,age\n"), r"labels.csv: it has no rows"),
    "empty": (table(""), r"labels.csv: one column 'file' is needed, there are: none"),
    "no text": (table(b"file,age\n\xff\xfe,1\n"), r"labels.csv: it is no UTF-8 text"),
    "no csv": (table('file,age\n"a"b,1\n'), r"labels.csv: line 2 is no CSV"),
    "no table": (lambda folder: (folder / "labels.csv").unlink(), r"labels.csv: it is missing or no regular file"),
}  # fmt: skip


@pytest.mark.parametrize(("harm", "message"), HARMS.values(), ids=HARMS.keys())
def test_a_harmed_folder_is_refused(folder: Path, harm: Any, message: str | None) -> None:
    harm(folder)
    if message is None:
        read_image_folder(folder)
        return
    with pytest.raises(DataError, match=message) as caught:
        read_image_folder(folder)
    assert "\n" not in str(caught.value)
    assert not list(folder.glob(".cache/*.npy"))  # nothing of it is kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "split: 'dev' given, allowed are train, val, test"),
        ({"image_size": 4}, "image_size: 4 given, 8..512 are allowed"),
        ({"channels": 2}, "channels: 2 given, 1 (grey), 3 (RGB) or 4 (RGBA) are allowed"),
        ({"limit": 0}, "limit: 0 given, a whole number above 0 is needed"),
        ({"data_dir": "/nowhere"}, "/nowhere: the folder is missing"),
        ({"graph": "/nowhere.yaml"}, "/nowhere.yaml: it is missing or no regular file"),
        ({"dataset": "pendulum", "graph": "g.yaml"}, "graph: g.yaml given, but data set pendulum has its own"),
    ],
)
def test_requests_are_refused(folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_split(**{"dataset": "folder", "data_dir": folder, "split": "train", **arguments})
    assert str(caught.value).startswith(message)
    with pytest.raises(InputError, match="data_dir: it is not given"):
        dataset_spec("folder")


def test_an_empty_split_is_refused_when_it_is_read(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set", [{**row, "split": "train"} for row in table_rows()])
    assert len(read_image_folder(folder)) == 20
    with pytest.raises(DataError, match="labels.csv: no image is in split test"):
        read_image_folder(folder, split="test")


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_specs_of_older_checkpoints_open() -> None:
    paths = sorted(REPO.glob("weights/*/config.json"))
    assert paths
    for path in paths:
        described = json.loads(path.read_text())["dataset"]
        spec = DatasetSpec.from_dict(described)
        assert spec == dataset_spec(spec.name, spec.image_size, spec.channels)
        assert bool(spec.kinds) == bool(spec.categories) == (spec.name == "mnist") and spec.resize == "area"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": ["odd"] * 3}, "kinds is .*, one of continuous, binary, categorical for each variable or none"),
        ({"kinds": ["binary"]}, "kinds is .*, one of continuous"),
        ({"categories": [["a", "b"]]}, "categories is .*, a list for each variable or none is needed"),
        ({"categories": [["a"], [], []]}, "categories holds .*, two or more different names are needed"),
        ({"categories": ["ab", [], []]}, "categories holds 'ab', a list of names is needed"),
        ({"categories": [[], ["a", "b"], []]}, "categories holds .* for a continuous variable|categories holds .* for"),
        ({"resize": "stretch"}, "resize is 'stretch', one of crop, area is needed"),
        ({"split_seed": -1}, "split_seed is '-1', a whole number of 0 or more is needed"),
        ({"split_shares": [1, 1, 1]}, "split_shares is .*, shares of 0 or more that sum to 1 are needed"),
    ],
)
def test_a_wrong_spec_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"^data set folder: ({message})"):
        DatasetSpec.from_dict({**folder_spec(folder).to_dict(), **changes})


# --- the cache --------------------------------------------------------------------------------------------------------


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
    first = read_image_folder(folder)
    again = read_image_folder(folder)
    assert len(counts) == 12
    np.testing.assert_array_equal(first.images, again.images)
    assert len(caches(folder)) == 1 and caches(folder)[0].startswith("train-3x8x8-crop-")
    statistics = DatasetSpec.from_dict(json.loads((folder / ".cache/statistics.json").read_text()))
    assert statistics == first.spec
    again.images[:] = 0  # a private copy: the file does not see it
    np.testing.assert_array_equal(read_image_folder(folder).images, first.images)
    assert len(counts) == 12


def test_a_change_decodes_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_image_folder(folder)
    counts = decoded(monkeypatch)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "im/3.png")
    assert not read_image_folder(folder).images[3].any() and len(counts) == 12
    assert len(caches(folder)) == 1  # the old one is gone
    os.utime(folder / "im/3.png", ns=(1, 1))
    read_image_folder(folder)
    assert len(counts) == 24
    read_image_folder(folder, image_size=16)
    read_image_folder(folder, channels=1)
    assert len(counts) == 48 and len(caches(folder)) == 3
    rows = table_rows()
    rows[0]["age"] = 21  # labels are not pixels
    write_table(folder, rows)
    assert read_image_folder(folder).labels[0, 1] == 21 and len(counts) == 48
    write_table(folder, rows[1:])
    assert len(read_image_folder(folder)) == 11 and len(counts) == 59


def test_two_at_once_decode_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes started together: one decodes, the others wait for it."""
    counts = decoded(monkeypatch)
    with ThreadPoolExecutor(3) as pool:
        images = [data.images for data in pool.map(read_image_folder, [folder] * 3)]
    assert len(counts) == 12 and len(caches(folder)) == 1
    np.testing.assert_array_equal(images[0], images[2])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def other_array(path: Path) -> None:
    np.save(path, np.zeros((12, 3, 8, 4), np.uint8))


def claim_terabytes(path: Path) -> None:
    content = path.read_bytes()
    assert b"(12, 3, 8, 8)" in content
    path.write_bytes(content.replace(b"(12, 3, 8, 8), }      ", b"(12000000, 3, 800, 8), }"[:22]))


def pickled(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    "harm",
    [
        cut,
        flip,
        other_array,
        pickled,
        claim_terabytes,
        lambda path: path.with_suffix(".json").unlink(),
        lambda path: path.with_suffix(".json").write_text('{"checksums": [1, 2]}'),
    ],
)
def test_a_damaged_cache_is_made_anew(folder: Path, harm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = np.array(read_image_folder(folder).images)
    harm(folder / ".cache" / caches(folder)[0])
    counts = decoded(monkeypatch)
    with pytest.warns(UserWarning, match="the cache is damaged and is made anew"):
        np.testing.assert_array_equal(read_image_folder(folder).images, first)
    assert len(counts) == 12
    read_image_folder(folder)
    assert len(counts) == 12


def test_a_read_only_folder_uses_the_user_s_cache(
    folder: Path, user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".cache").write_text("in the way, as a read-only folder would be")
    counts = decoded(monkeypatch)
    first = read_image_folder(folder)
    read_image_folder(folder)
    assert len(counts) == 12 and len(list(user_cache.rglob("*.npy"))) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "labels.csv"))
    with pytest.warns(UserWarning, match="no cache can be written, so every start decodes the images anew"):
        np.testing.assert_array_equal(read_image_folder(folder).images, first.images)
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
    assert len(read_image_folder(folder)) == 12
    assert [path.name for path in mine.iterdir()] == ["file"] and (mine / "file").read_text() == "untouched"
    assert len(list(user_cache.rglob("*.npy"))) == 1


def test_a_full_disk_is_said_and_nothing_is_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(DataError, match="the decoded images cannot be kept there .No space left on device"):
        read_image_folder(folder)
    assert not list((folder / ".cache").glob(".part*")) and not caches(folder)


def test_an_interruption_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ImageRule, "decode", interrupt)
        with pytest.raises(KeyboardInterrupt):
            read_image_folder(folder)
    assert not list((folder / ".cache").glob("*.npy")) and not list((folder / ".cache").glob(".part*"))
    assert len(read_image_folder(folder)) == 12


def resident(key: str) -> int:
    """A figure of this process's memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset here")
def test_memory_is_that_of_the_images(tmp_path: Path) -> None:
    """400 pictures of 320x320 at 128 pixels: the first read, and one from the cache."""
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
        images = read_image_folder(tmp_path / "set").images
        assert images.nbytes == 399 * 3 * 128 * 128
        assert 0.9 * images.nbytes < resident("VmHWM") - before < 1.5 * images.nbytes
        del images


# --- addresses --------------------------------------------------------------------------------------------------------


class FakeBlobfile(types.ModuleType):
    """A service whose bucket is a local folder."""

    def __init__(self, root: Path) -> None:
        super().__init__("blobfile")
        self.root, self.reads = root, 0

    def local(self, address: str) -> Path:
        assert address.startswith("gs://bucket/"), address
        return self.root / address.removeprefix("gs://bucket/")

    def BlobFile(self, address: str, mode: str) -> Any:
        assert mode in ("rb", "wb")
        self.reads += 1
        return self.local(address).open(mode)

    def exists(self, address: str) -> bool:
        return self.local(address).exists()

    def scandir(self, address: str) -> Any:
        for path in self.local(address).iterdir():
            found = path.stat()
            stat = types.SimpleNamespace(size=found.st_size, mtime=found.st_mtime)
            yield types.SimpleNamespace(name=path.name, is_file=path.is_file(), stat=stat)


@pytest.fixture
def bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBlobfile:
    fake = FakeBlobfile(folder.parent)
    monkeypatch.setitem(sys.modules, "blobfile", fake)
    return fake


def test_an_address_is_read_like_a_path(folder: Path, bucket: FakeBlobfile, user_cache: Path) -> None:
    local = read_image_folder(folder)
    assert bucket.reads == 0
    remote = read_split("folder", "gs://bucket/set", "train")
    assert remote.spec == local.spec and remote.ids == local.ids
    np.testing.assert_array_equal(remote.images, local.images)
    assert len(list(user_cache.rglob("*.npy"))) == 1
    before = bucket.reads
    read_split("folder", "gs://bucket/set/", "train", graph="gs://bucket/set/graph.yaml")
    assert bucket.reads == before + 2  # the table and the graph: the images are cached


def test_what_is_wrong_at_an_address_is_said(folder: Path, bucket: FakeBlobfile) -> None:
    (folder / "im/3.png").unlink()
    with pytest.raises(DataError, match="gs://bucket/set/labels.csv:5: im/3.png: the file is missing"):
        read_image_folder("gs://bucket/set")
    with pytest.raises(DataError, match="gs://bucket/none/labels.csv: the file is missing"):
        read_image_folder("gs://bucket/none", "gs://bucket/set/graph.yaml")

    def refuse(*_: Any) -> None:
        raise RuntimeError("no\ncredentials")

    bucket.BlobFile = refuse  # type: ignore[method-assign]
    with pytest.raises(DataError, match="gs://bucket/set/graph.yaml: it cannot be read .no credentials."):
        folder_spec("gs://bucket/set")
