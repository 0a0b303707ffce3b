"""Data sets: specs, reading and refusing files, batches that know neither process count nor epoch end, the truth."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from causaldiffae import image_datasets
from causaldiffae.datasets.images import ImageData, resize_area, to_model_range, to_uint8
from causaldiffae.datasets.pendulum import parse_pendulum_name
from causaldiffae.datasets.registry import DATASETS, dataset_spec, measure, read_split, true_counterfactual
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.files import idx
from causaldiffae.generators import morphomnist, pendulum
from causaldiffae.graphs import CausalGraph
from causaldiffae.image_datasets import BatchSource, fits_on, load_data

TOY = DatasetSpec("toy", 4, 1, CausalGraph(("a", "b"), (("a", "b"),)), (1.0, 2.0), (2.0, 4.0), (0, 0), (3, 9))


def toy_data(count: int, classes: bool = True) -> ImageData:
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 4, 4), np.uint8)
    labels = np.stack([np.arange(count), np.arange(count) / 2], axis=1).astype(np.float32)
    return ImageData(TOY, "train", images, labels, np.arange(count) % 10 if classes else None, list("x" * count))


@pytest.fixture(scope="module")
def pendulum_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A share of the Pendulum set, as published: 12 training and 4 test pictures."""
    folder = tmp_path_factory.mktemp("pendulum")
    for split, angles in (("train", (-30, 0, 25)), ("test", (10,))):
        (folder / split).mkdir()
        for labels in pendulum.true_labels(np.repeat(angles, 4), np.tile([70, 90, 110, 130], len(angles))):
            Image.fromarray(pendulum.render(*labels[:2])).save(folder / split / pendulum.file_name(labels))
    return folder


@pytest.fixture(scope="module")
def morphomnist_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MorphoMNIST set of 8 and 3 rings."""
    folder = tmp_path_factory.mktemp("morpho")
    y, x = np.mgrid[:28, :28] - 13.5
    rings = np.array([255 * np.clip(2.0 - np.abs(np.hypot(x, y) - 4 - 0.5 * i), 0, 1) for i in range(8)])
    (folder / "mnist").mkdir()
    for split, count in (("train", 8), ("t10k", 3)):
        idx.write_idx(folder / f"mnist/{split}-images-idx3-ubyte.gz", rings[:count].astype(np.uint8))
        idx.write_idx(folder / f"mnist/{split}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8))
    return morphomnist.write_dataset(folder / "mnist", folder / "set", workers=1, progress=False)


# --- DatasetSpec ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"folder"}))
def test_specs_survive_json(name: str) -> None:
    spec = dataset_spec(name)
    assert DatasetSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize("labels", [np.array([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([[1.0, 2.0], [3.0, 6.0]])])
def test_normalise_and_back(labels: Any) -> None:
    normalised = TOY.normalise(labels)
    assert type(normalised) is type(labels) and normalised.dtype == labels.dtype
    assert normalised.tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert TOY.denormalise(normalised).tolist() == labels.tolist()
    assert TOY.normalise(torch.tensor([1, 2])).dtype == torch.float32
    with pytest.raises(InputError, match=r"labels: shape \(2,\) given, the last axis must be 4"):
        dataset_spec("pendulum").normalise(labels[0])


def test_do_speaks_label_units() -> None:
    assert TOY.normalise_do(TOY.check_do({"b": 4, "a": np.float32(2)})) == {"b": 0.5, "a": 0.5}
    assert TOY.check_do({"a": torch.tensor(1.5)}) == {"a": 1.5}
    with pytest.warns(UserWarning, match="do: b=10 is outside the training labels' range 0..9"):
        assert TOY.check_do({"b": 10}) == {"b": 10.0}


@pytest.mark.parametrize(
    ("do", "message"),
    [
        ({"c": 1}, "do: unknown variable 'c', known are a, b"),
        ({"a": "1"}, "do: a is '1', a finite number is needed"),
        ({"a": True}, "do: a is True, a finite number is needed"),
        ({"a": float("inf")}, "do: a is inf, a finite number is needed"),
        ([("a", 1)], r"do: \[\('a', 1\)\] given, a mapping from variable to value is needed"),
    ],
)
def test_do_is_refused_with_a_message(do: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TOY.check_do(do)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "unknown key 'extra', allowed are name, image_size"),
        ({"shift": None}, r"shift is None, a list of 2 numbers is needed"),
        ({"shift": [1.0]}, r"shift is \[1.0\], a list of 2 numbers is needed"),
        ({"low": [0.0, float("nan")]}, "low is .*, finite numbers are needed"),
        ({"low": [0.0, True]}, "low is .*, finite numbers are needed"),
        ({"scale": [1.0, 0.0]}, r"scale is \[1.0, 0.0\], numbers above 0 are needed"),
        ({"low": [4.0, 0.0]}, r"low \[4.0, 0.0\] is not below high \[3.0, 9.0\]"),
        ({"image_size": 4.5}, "image_size is 4.5, a whole number above 0 is needed"),
        ({"num_classes": 0}, "num_classes is 0, a whole number above 0 is needed"),
        ({"name": ""}, "name is '', up to 64 letters"),
        ({"graph": {"names": ["a", "a"]}}, "data set: graph: variable 'a' is named more than once"),
        ({"graph": [1]}, "data set: graph: a mapping with names and edges is needed, got list"),
        ({"units": ["m"]}, "units is .*, one for each variable or none is needed"),
        ({"units": "mm"}, "units is 'mm', a list is needed"),
        ({"units": [1, 2]}, "units is .*, strings are needed"),
    ],
)
def test_a_wrong_description_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        DatasetSpec.from_dict({**TOY.to_dict(), **change})


def test_an_incomplete_description_is_refused() -> None:
    description = TOY.to_dict()
    del description["scale"]
    with pytest.raises(DataError, match="data set: key 'scale' is missing"):
        DatasetSpec.from_dict(description)
    with pytest.raises(DataError, match="data set: a mapping is needed, got NoneType"):
        DatasetSpec.from_dict(None)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_every_grey_level_survives_the_model_range() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    scaled = to_model_range(levels)
    assert scaled.dtype == torch.float32 and scaled.min() == -1 and scaled.max() == 1
    np.testing.assert_array_equal(to_uint8(scaled).numpy(), levels)
    np.testing.assert_array_equal(to_uint8(scaled.numpy()), levels)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
    with pytest.raises(InputError, match="images: torch.float32 given, uint8 is needed"):
        to_model_range(torch.zeros(1))


def test_resize_averages_areas() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 96, 96)).astype(np.uint8)
    boxed = [Image.fromarray(i.transpose(1, 2, 0)).resize((32, 32), Image.Resampling.BOX) for i in images]
    expected = np.stack([np.array(b) for b in boxed]).transpose(0, 3, 1, 2)
    assert np.abs(resize_area(images, 32).astype(int) - expected).max() <= 1
    assert resize_area(images, 96) is images
    ramp = np.array([[0, 30, 60]] * 3, np.uint8)[None, None]
    assert resize_area(ramp, 2)[0, 0].tolist() == [[10, 50]] * 2
    assert np.abs(resize_area(images, 64).mean() - images.mean()) < 0.1


# --- Pendulum ---------------------------------------------------------------------------------------------------------


def test_pendulum_is_read(pendulum_dir: Path) -> None:
    data = read_split("pendulum", pendulum_dir, "train")
    assert data.images.shape == (12, 4, 96, 96) and data.labels.dtype == np.float32 and data.classes is None
    assert data.ids[0] == "a_-30_70_3_4.png" and data.labels[0].tolist() == [-30, 70, 3, 4]
    np.testing.assert_array_equal(data.images[0].transpose(1, 2, 0), pendulum.render(-30, 70))
    small = read_split("pendulum", pendulum_dir, "test", image_size=48, channels=3, limit=2)
    assert small.images.shape == (2, 3, 48, 48) and len(small) == 2
    assert read_split("pendulum", pendulum_dir, "train", limit=3).labels[:, 0].tolist() == [-30, 0, 25]
    error = np.abs(measure(small.spec, small.images) - pendulum.true_labels(*small.labels.T[:2]))
    assert (error < (0.5, 0.5, 0.6, 0.6)).all()
    subset = data.subset([3, 1])
    assert subset.ids == [data.ids[3], data.ids[1]] and subset.labels[0].tolist() == data.labels[3].tolist()


@given(*[st.integers(-999999, 999999)] * 4)
def test_pendulum_names_round_trip(angle: int, light: int, length: int, position: int) -> None:
    name = pendulum.file_name(np.array([angle, light, length, position]))
    assert parse_pendulum_name(name) == (angle, light, length, position)


@given(st.text(max_size=30) | st.from_regex(r"a_-?\d+_\d+(_\d+){1,3}\.(png|PNG)\n?", fullmatch=True))
def test_any_pendulum_name_is_read_or_refused(name: str) -> None:
    try:
        labels = parse_pendulum_name(name)
    except DataError as error:
        assert "the file name must be a_ANGLE_LIGHT_LENGTH_POSITION.png" in str(error)
    else:
        assert name.startswith("a_") and len(labels) == 4 and all(abs(label) < 10**6 for label in labels)


def test_pendulum_truth(pendulum_dir: Path) -> None:
    data = read_split("pendulum", pendulum_dir, "train", image_size=48, channels=3)
    labels, images = true_counterfactual(data, {})
    np.testing.assert_array_equal(images, data.images)
    np.testing.assert_array_equal(labels, data.labels)
    labels, images = true_counterfactual(data, {"light": 95})
    assert labels.dtype == np.float32 and images.shape == data.images.shape and images.dtype == np.uint8
    assert np.abs(measure(data.spec, images) - labels).mean() < 0.2
    with pytest.raises(InputError, match="do: unknown variable 'sun'"):
        true_counterfactual(data, {"sun": 1})


def bad_name(folder: Path) -> None:
    (folder / "a_1_2_3.png").write_bytes(b"")


def bad_size(folder: Path) -> None:
    Image.new("RGBA", (64, 96)).save(folder / "a_1_70_3_9.png")


def bad_mode(folder: Path) -> None:
    Image.new("L", (96, 96)).save(folder / "a_1_70_3_9.png")


def bad_format(folder: Path) -> None:
    Image.new("RGB", (96, 96)).save(folder / "a_1_70_3_9.png", format="JPEG")


def bad_end(folder: Path) -> None:
    path = next(folder.glob("*.png"))
    path.write_bytes(path.read_bytes()[:300])


def bad_bomb(folder: Path) -> None:
    Image.new("1", (20000, 20000)).save(folder / "a_1_70_3_9.png")


def bad_weight(folder: Path) -> None:
    path = next(folder.glob("*.png"))
    path.write_bytes(path.read_bytes() + bytes(2 << 20))


def no_images(folder: Path) -> None:
    for path in folder.glob("*.png"):
        path.unlink()


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (bad_name, "a_1_2_3.png: the file name must be a_ANGLE_LIGHT_LENGTH_POSITION.png with whole numbers"),
        (bad_size, "a_1_70_3_9.png: it is 64x96 RGBA, 96x96 RGBA is needed"),
        (bad_mode, "a_1_70_3_9.png: it is 96x96 L, 96x96 RGBA is needed"),
        (bad_format, "a_1_70_3_9.png: it cannot be read as a PNG image"),
        (bad_end, "png: it cannot be read as a PNG image"),
        (bad_bomb, "a_1_70_3_9.png: it unpacks to far too many pixels, 67108864 are allowed"),
        (bad_weight, "png: it has .* bytes, 1048576 are allowed"),
        (no_images, "train: the folder has no PNG images"),
        (no_folder, "train: the folder is missing"),
    ],
)
def test_a_harmed_pendulum_is_refused(pendulum_dir: Path, tmp_path: Path, harm: Any, message: str) -> None:
    shutil.copytree(pendulum_dir, tmp_path / "set")
    harm(tmp_path / "set/train")
    with pytest.raises(DataError, match=message):
        read_split("pendulum", tmp_path / "set", "train")


# --- MorphoMNIST ------------------------------------------------------------------------------------------------------


def test_morphomnist_is_read(morphomnist_dir: Path) -> None:
    data = read_split("morphomnist", morphomnist_dir, "train")
    assert data.images.shape == (8, 1, 28, 28) and data.base_images is not None
    assert data.classes is not None and data.classes.tolist() == list(range(8)) and data.classes.dtype == np.int64
    assert data.ids == [str(i) for i in range(8)] and data.labels.shape == (8, 2)
    large = read_split("morphomnist", morphomnist_dir, "test", image_size=56, limit=2)
    assert large.images.shape == (2, 1, 56, 56)
    test = read_split("morphomnist", morphomnist_dir, "test", limit=2)
    np.testing.assert_array_equal(measure(large.spec, large.images), measure(test.spec, test.images))
    subset = data.subset(np.array([5]))
    assert subset.classes is not None and subset.classes.tolist() == [5]


def test_morphomnist_truth(morphomnist_dir: Path, tmp_path: Path) -> None:
    data = read_split("morphomnist", morphomnist_dir, "train")
    labels, images = true_counterfactual(data, {})
    np.testing.assert_array_equal(images, data.images)
    np.testing.assert_array_equal(labels, data.labels)
    labels, images = true_counterfactual(data.subset([0, 1]), {"thickness": 3.0})
    assert np.abs(measure(data.spec, images) - labels).max() < 1.0 and images.shape == (2, 1, 28, 28)
    shutil.copytree(morphomnist_dir, tmp_path / "published", ignore=shutil.ignore_patterns("*base*"))
    published = read_split("morphomnist", tmp_path / "published", "train")
    assert published.base_images is None
    with pytest.raises(InputError, match="true counterfactual: the folder holds no base digits"):
        true_counterfactual(published, {})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-morpho.csv", "index,thickness,intensity\n0,1,100\n", "train-morpho.csv: it has 1 rows, .* has 8"),
        ("train-morpho.csv", "index,thickness\n", "train-morpho.csv: column 'intensity' must be there once"),
        ("train-morpho.csv", None, "train-morpho.csv or train-morpho.csv.gz is missing"),
        ("train-labels-idx1-ubyte.gz", np.zeros(5, np.uint8), r"ubyte.gz: its shape is \(5,\), \(8,\) is needed"),
        ("train-labels-idx1-ubyte.gz", np.full(8, 11, np.uint8), "ubyte.gz: it holds digit 11, 0..9 are allowed"),
        ("train-images-idx3-ubyte.gz", np.zeros((8, 9, 9), np.uint8), r"its shape is \(8, 9, 9\), \(N, 28, 28\) is"),
        ("train-base-idx3-ubyte.gz", np.zeros((2, 28, 28), np.uint8), r"its shape is \(2, 28, 28\), \(8, 28, 28\) is"),
    ],
)
def test_a_harmed_morphomnist_is_refused(
    morphomnist_dir: Path, tmp_path: Path, name: str, content: Any, message: str
) -> None:
    shutil.copytree(morphomnist_dir, tmp_path / "set")
    path = tmp_path / "set" / name
    if content is None:
        path.unlink()
    elif isinstance(content, str):
        path.write_text(content)
    else:
        idx.write_idx(path, content)
    with pytest.raises(DataError, match=message):
        read_split("morphomnist", tmp_path / "set", "train")


def test_an_empty_split_is_refused(morphomnist_dir: Path, tmp_path: Path) -> None:
    mnist = morphomnist_dir.parent / "mnist"
    morphomnist.write_dataset(mnist, tmp_path / "set", num_test=0, num_train=1, workers=1, progress=False)
    with pytest.raises(DataError, match="set: t10k-images-idx3-ubyte has no images"):
        read_split("morphomnist", tmp_path / "set", "test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "celeba"}, "dataset: 'celeba' given, known are circuit, mnist"),
        ({"split": "val"}, "split: 'val' given, allowed are train, test"),
        ({"limit": 0}, "limit: 0 given, a whole number above 0 is needed"),
        ({"image_size": 4}, "image_size: 4 given, data set pendulum needs a whole number in 8..512"),
        ({"channels": 1}, "channels: 1 given, data set pendulum has 3 or 4"),
        ({"data_dir": "/nowhere"}, "/nowhere: the folder is missing"),
    ],
)
def test_requests_are_refused_with_a_message(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_split(**{"dataset": "pendulum", "data_dir": tmp_path, "split": "train", **arguments})


def test_measure_refuses_other_shapes() -> None:
    with pytest.raises(InputError, match=r"images: shape \(1, 1, 28, 28\) given, \(N, 4, S, S\) is needed"):
        measure(dataset_spec("pendulum"), np.zeros((1, 1, 28, 28), np.uint8))
    with pytest.raises(InputError, match="images: a numpy uint8 array"):
        measure(dataset_spec("pendulum"), np.zeros((1, 4, 28, 28)))


# --- batches ----------------------------------------------------------------------------------------------------------


def test_batches_run_across_epoch_ends_and_drop_nothing() -> None:
    source = BatchSource(toy_data(10), 4, seed=3)
    seen = np.concatenate([source.batch(step).indices.numpy() for step in range(5)])  # 20 images: two epochs
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    large = BatchSource(toy_data(3), 7, seed=3).indices(1)
    assert len(large) == 7 and sorted(large[2:5]) == [0, 1, 2]


@pytest.mark.parametrize("fits", [True, False])
def test_what_does_not_fit_the_device_stays_where_it_was_read(fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(image_datasets, "fits_on", lambda device, size: bool(asked.append(size)) or fits)
    data = toy_data(10)
    source = BatchSource(data, 4, seed=3, device="meta")
    assert asked == [data.images.nbytes]
    assert source.images.device.type == ("meta" if fits else "cpu") and source.labels.device.type == "meta"
    assert fits_on(torch.device("cpu"), 1 << 60)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3000, 9000))
    assert fits_on(torch.device("cuda"), 1000) and not fits_on(torch.device("cuda"), 1001)


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    first, second = BatchSource(toy_data(10), 4, seed=3), BatchSource(toy_data(10), 4, seed=3)
    for step in range(6):
        first.batch(step)
    np.testing.assert_array_equal(first.indices(17), second.indices(17))
    assert (
        BatchSource(toy_data(100), 50, seed=4).indices(0).tolist() != BatchSource(toy_data(100), 50).indices(0).tolist()
    )


def test_two_processes_share_the_batch_of_one() -> None:
    whole = BatchSource(toy_data(10), 6, seed=1)
    shares = [BatchSource(toy_data(10), 6, seed=1, rank=rank, world=2) for rank in (0, 1)]
    for step in range(4):
        together = torch.cat([share.batch(step).indices for share in shares])
        assert torch.equal(together, whole.batch(step).indices)


def test_a_batch_holds_what_its_indices_say() -> None:
    data = toy_data(10)
    batch = BatchSource(data, 4, shuffle=False).batch(1)
    assert batch.indices.tolist() == [4, 5, 6, 7] and batch.classes is not None
    assert batch.classes.tolist() == [4, 5, 6, 7]
    assert torch.equal(batch.images, to_model_range(data.images[4:8]))
    np.testing.assert_allclose(batch.labels, TOY.normalise(data.labels[4:8]))
    assert BatchSource(toy_data(4, classes=False), 2).batch(0).classes is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size: 0 given, a whole number above 0 is needed"),
        ({"batch_size": 3, "world": 2}, "batch_size: 3 given, a multiple of the 2 processes is needed"),
        ({"rank": 2, "world": 2}, "rank: 2 given, 0..1 are allowed"),
        ({"seed": -1}, "seed: -1 given, a whole number of 0 or more is needed"),
        ({"data": toy_data(0)}, "data set toy: split train has no images"),
    ],
)
def test_batch_requests_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BatchSource(**{"data": toy_data(4), "batch_size": 2, **arguments})
    with pytest.raises(InputError, match="step: -1 given, a whole number of 0 or more is needed"):
        BatchSource(toy_data(4), 2).batch(-1)


def test_load_data_is_guided_diffusions(morphomnist_dir: Path, pendulum_dir: Path) -> None:
    loader = load_data(
        dataset="morphomnist", data_dir=morphomnist_dir, batch_size=3, class_cond=True, deterministic=True
    )
    ids = [next(loader)[1]["y"].tolist() for _ in range(3)]
    assert ids == [[0, 1, 2], [3, 4, 5], [6, 7, 0]]
    later = load_data(dataset="morphomnist", data_dir=morphomnist_dir, batch_size=3, deterministic=True, start_step=2)
    images, cond = next(later)
    assert images.shape == (3, 1, 28, 28) and list(cond) == ["c"] and cond["c"].shape == (3, 2)
    with pytest.raises(InputError, match="class_cond: data set pendulum has no classes"):
        load_data(dataset="pendulum", data_dir=pendulum_dir, batch_size=2, class_cond=True)


def test_values_for_each_image() -> None:
    spec = dataset_spec("morphomnist")
    columns = spec.check_do({"thickness": np.array([1.5, 3.0, 1.5]), "intensity": 90.0}, 3)
    np.testing.assert_array_equal(columns["thickness"], [1.5, 3.0, 1.5])
    assert columns["intensity"] == 90.0
    assert spec.check_do(columns, 3) is columns, "what was validated is not validated again"
    np.testing.assert_array_equal(columns.rows(slice(1, 3))["thickness"], [3.0, 1.5])
    for bad, words in (
        ({"thickness": np.array([1.0, 2.0])}, "one for each image"),
        ({"thickness": np.array([1.0, np.nan, 2.0])}, "finite numbers"),
        ({"colour": np.array([1.0, 2.0, 3.0])}, "unknown variable 'colour'"),
    ):
        with pytest.raises(InputError, match=words):
            spec.check_do(bad, 3)
    named = DatasetSpec.from_dict(
        {**spec.to_dict(), "kinds": ["categorical", "continuous"], "categories": [["thin", "thick"], []]}
    )
    with pytest.raises(InputError, match="thickness is"):
        named.check_do({"thickness": np.array([0.0, 0.5, 1.0])}, 3)
