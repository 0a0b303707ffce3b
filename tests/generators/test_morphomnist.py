"""MorphoMNIST: the mechanisms invert, pictures show their labels, IDX and CSV files are not trusted."""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import SHARED

from causaldiffae.errors import DataError, InputError
from causaldiffae.files import idx
from causaldiffae.files.idx import read_idx, write_idx
from causaldiffae.generators.morphomnist import (
    MorphoMnistGenerator,
    abduct,
    predict,
    read_morpho_csv,
    sample_labels,
    write_dataset,
)

SHARED = SHARED / "data"
needs_mnist = pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="MNIST (../shared/data/mnist) is not here")
in_tmp_path = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def digits(count: int) -> np.ndarray:
    """(count, 28, 28) uint8: rings and slanted bars that stand in for MNIST."""
    y, x = np.mgrid[:28, :28] - 13.5
    images = []
    for i in range(count):
        depth = np.abs(np.hypot(x, y) - 5.0 - 0.3 * i) if i % 2 else np.maximum(np.abs(x + 0.2 * y), np.abs(y) - 7)
        images.append(255 * np.clip(2.0 + 0.1 * (i % 3) - depth, 0, 1))
    return np.array(images).astype(np.uint8).reshape(count, 28, 28)


def write_mnist(folder: Path, train: int = 6, test: int = 3) -> Path:
    folder.mkdir()
    for split, count in (("train", train), ("t10k", test)):
        write_idx(folder / f"{split}-images-idx3-ubyte.gz", digits(count))
        write_idx(folder / f"{split}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8) % 10)
    return folder


def test_drawn_labels_have_the_published_statistics() -> None:
    labels = sample_labels(100_000, np.random.default_rng(0))
    np.testing.assert_allclose(labels.mean(axis=0), (2.50, 158.0), rtol=0.01)
    np.testing.assert_allclose(labels.std(axis=0), (0.63, 48.4), rtol=0.02)
    assert np.corrcoef(labels.T)[0, 1] == pytest.approx(0.908, abs=0.004)


def test_abduction_inverts_prediction() -> None:
    labels = sample_labels(1000, np.random.default_rng(1))
    np.testing.assert_allclose(predict(abduct(labels), {}), labels, rtol=1e-12)
    noise = np.random.default_rng(2).normal(size=(50, 2)) * 0.5
    np.testing.assert_allclose(abduct(predict(noise, {})), noise, atol=1e-10)


def test_do_moves_descendants_and_nothing_else() -> None:
    labels, generator = sample_labels(20, np.random.default_rng(3)), MorphoMnistGenerator()
    np.testing.assert_array_equal(generator.counterfactual_labels(labels, {}), labels)
    dimmed = generator.counterfactual_labels(labels, {"intensity": 80.0})
    np.testing.assert_array_equal(dimmed, np.stack([labels[:, 0], np.full(20, 80.0)], axis=1))
    same = generator.counterfactual_labels(labels, {"thickness": labels[:, 0]})
    np.testing.assert_allclose(same, labels, rtol=1e-12)
    thicker = generator.counterfactual_labels(labels, {"thickness": labels[:, 0] + 0.5})
    assert (thicker[:, 1] > labels[:, 1]).all()
    np.testing.assert_allclose(abduct(thicker)[:, 1], abduct(labels)[:, 1], atol=1e-7)
    both = generator.counterfactual_labels(labels, {"thickness": 3.0, "intensity": 90.0})
    np.testing.assert_array_equal(both, [[3.0, 90.0]] * 20)


def test_counterfactual_pictures_show_their_labels() -> None:
    generator, bases = MorphoMnistGenerator(), digits(6)
    labels = np.array([[2.0, 120.0]] * 6)
    do = {"thickness": 3.5}
    images = generator.counterfactual_images(bases, labels, do)
    measured = generator.measure(images)
    np.testing.assert_allclose(measured, generator.counterfactual_labels(labels, do), rtol=0.15)
    np.testing.assert_array_equal(generator.measure(images[..., None]), measured)
    np.testing.assert_array_equal(generator.counterfactual_images(bases[::-1], labels, do), images[::-1])
    factual = generator.counterfactual_images(bases, labels, {})
    np.testing.assert_array_equal(generator.counterfactual_images(bases, labels, {"thickness": 2.0}), factual)
    brighter = generator.counterfactual_images(bases, labels, {"intensity": 240.0})
    np.testing.assert_allclose(generator.measure(brighter)[:, 0], generator.measure(factual)[:, 0], atol=0.2)


@pytest.mark.parametrize(
    ("labels", "do", "message"),
    [
        ([[2.0, 64.0]], {"thickness": 1.0}, "intensity: 64 given, a factual label strictly between 64 and 255"),
        ([[2.0, 99.0]], {"colour": 1.0}, "unknown variable 'colour', known are thickness, intensity"),
        ([[2.0, 99.0]], {"thickness": None}, "do: thickness is not finite|do: thickness is None"),
        ([[2.0, 99.0]], {"thickness": -1.0}, r"thickness: -1.0 given, a number in \(0, 28\] is needed"),
        ([[2.0]], {}, r"labels: shape \(1, 1\), \(images, 2\) is needed"),
        ([[2.0, 99.0]] * 2, {}, "base_images: 1 given for 2 rows of labels"),
    ],
)
def test_refusals_say_what_is_allowed(labels: list[list[float]], do: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MorphoMnistGenerator().counterfactual_images(digits(1), np.array(labels), do)


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
    for read in (read_idx, read_morpho_csv):
        with pytest.raises(DataError, match="absent: the file is missing"):
            read(tmp_path / "absent")
    with pytest.raises(DataError, match="train-images-idx3-ubyte or train-images-idx3-ubyte.gz is missing"):
        idx.read_digits(tmp_path, "train")
    with pytest.raises(DataError, match="nowhere: the folder is missing"):
        idx.read_digits(tmp_path / "nowhere", "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "column 'index' must be there once, the header has nothing"),
        ("index,thickness\n0,1\n", "column 'intensity' must be there once, the header has index, thickness"),
        ("index,thickness,intensity,index\n", "column 'index' must be there once"),
        ("index,thickness,intensity\n0,1\n", "line 2 has 2 cells, 3 or more are needed"),
        ("index,thickness,intensity\n0,fat,100\n", "line 2, thickness is 'fat', a finite number is needed"),
        ("index,thickness,intensity\n0,2,nan\n", "line 2, intensity is 'nan', a finite number is needed"),
        ("index,thickness,intensity\n0.5,2,3\n", "line 2, index is '0.5', a whole number of 0 or more is needed"),
        ("index,thickness,intensity\n1,2,3\n1,2,3\n", "column 'index' holds a value twice"),
    ],
)
def test_csv_refusals_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=f"bad.csv: {message}"):
        read_morpho_csv(path)


def test_csv_of_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"index\xff\xfe")
    with pytest.raises(DataError, match="x.csv: it is no UTF-8 text"):
        read_morpho_csv(tmp_path / "x.csv")
    (tmp_path / "y.csv").write_bytes(b"\x1f\x8bnonsense")
    with pytest.raises(DataError, match="y.csv: it cannot be read"):
        read_morpho_csv(tmp_path / "y.csv")


def test_csv_takes_other_columns_and_gzip(tmp_path: Path) -> None:
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(b"area,index,intensity,thickness\n9,4,100.5,2.25\n\n8,2,90,1\n"))
    index, labels = read_morpho_csv(tmp_path / "x.csv.gz")
    assert index.tolist() == [4, 2] and labels.tolist() == [[2.25, 100.5], [1.0, 90.0]]


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    mnist = write_mnist(tmp_path / "mnist")
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_dataset(mnist, tmp_path / name, seed=seed, workers=1, progress=False)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") and len(digest(tmp_path / "a")) == 9
    assert digest(tmp_path / "a")["train-morpho.csv"] != digest(tmp_path / "c")["train-morpho.csv"]
    share = write_dataset(mnist, tmp_path / "share", seed=5, num_train=2, num_test=0, workers=1, progress=False)
    whole = read_idx(tmp_path / "a/train-images-idx3-ubyte.gz")
    np.testing.assert_array_equal(read_idx(share / "train-images-idx3-ubyte.gz"), whole[:2])
    assert read_idx(share / "t10k-images-idx3-ubyte.gz").shape == (0, 28, 28)
    index, labels = read_morpho_csv(tmp_path / "a/train-morpho.csv")
    bases = read_idx(tmp_path / "a/train-base-idx3-ubyte.gz")
    np.testing.assert_array_equal(bases, digits(6)[index])
    np.testing.assert_array_equal(MorphoMnistGenerator().counterfactual_images(bases, labels, {}), whole)


def test_given_labels_choose_the_digits(tmp_path: Path) -> None:
    mnist = write_mnist(tmp_path / "mnist")
    (tmp_path / "labels").mkdir()
    for split in ("train", "t10k"):
        (tmp_path / f"labels/{split}-morpho.csv").write_text("index,thickness,intensity\n2,2.5,140.25\n0,1.5,90\n")
    out = write_dataset(mnist, tmp_path / "a", labels=tmp_path / "labels", workers=1, progress=False)
    np.testing.assert_array_equal(read_idx(out / "train-base-idx3-ubyte.gz"), digits(6)[[2, 0]])
    assert read_idx(out / "train-labels-idx1-ubyte.gz").tolist() == [2, 0]
    assert (out / "train-morpho.csv").read_text() == "index,thickness,intensity\n2,2.5,140.25\n0,1.5,90.0\n"
    one_file = tmp_path / "labels/train-morpho.csv"
    other = write_dataset(mnist, tmp_path / "b", labels=one_file, workers=1, progress=False)
    assert digest(out) == digest(other)


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (None, {"num_train": 7}, "num_train: 7 given, 0..6 are there"),
        (None, {"seed": -1}, "seed: -1 given, 0 or more is needed"),
        ("9,2,100", {}, "train-morpho.csv: it names index 9, MNIST's train has 0..5"),
        ("0,2,256", {}, r"train-morpho.csv: thickness must be in \(0, 28\] and intensity in \(0, 255\]"),
    ],
)
def test_a_refused_request_writes_nothing(
    tmp_path: Path, table: str | None, options: dict[str, int], message: str
) -> None:
    mnist = write_mnist(tmp_path / "mnist")
    if table:
        (mnist / "train-morpho.csv").write_text(f"index,thickness,intensity\n{table}\n")
    with pytest.raises(InputError, match=message):
        write_dataset(mnist, tmp_path / "out", labels=mnist if table else None, progress=False, **options)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["mnist"]


@needs_mnist
def test_published_labels_are_measured_on_redrawn_digits(tmp_path: Path) -> None:
    options = {"num_train": 0, "num_test": 48, "workers": 1, "progress": False}
    out = write_dataset(SHARED / "mnist", tmp_path / "a", labels=SHARED / "morphomnist_labels", **options)  # type: ignore[arg-type]
    published = gzip.decompress((SHARED / "morphomnist_labels/t10k-morpho.csv.gz").read_bytes()).decode()
    assert (out / "t10k-morpho.csv").read_text().splitlines() == published.splitlines()[:49]
    _, labels = read_morpho_csv(out / "t10k-morpho.csv")
    measured = MorphoMnistGenerator().measure(read_idx(out / "t10k-images-idx3-ubyte.gz"))
    error = np.abs(measured - labels).mean(axis=0)
    assert error[0] < 0.15 and error[1] < 0.7, error
