"""MorphoMNIST: invertible mechanisms, images that show their labels, untrusted CSV files."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from paths import SHARED

from causaldiffae.errors import DataError, InputError
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
needs_mnist = pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="../shared/data/mnist is missing")


def digits(count: int) -> np.ndarray:
    """(count, 28, 28) uint8: rings and slanted bars in place of MNIST."""
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


def test_abduction_is_the_inverse_of_prediction() -> None:
    labels = sample_labels(1000, np.random.default_rng(1))
    np.testing.assert_allclose(predict(abduct(labels), {}), labels, rtol=1e-12)
    noise = np.random.default_rng(2).normal(size=(50, 2)) * 0.5
    np.testing.assert_allclose(abduct(predict(noise, {})), noise, atol=1e-10)


def test_counterfactuals_keep_the_noise() -> None:
    labels = sample_labels(20, np.random.default_rng(3))
    thicker = MorphoMnistGenerator().counterfactual_labels(labels, {"thickness": labels[:, 0] + 0.5})
    assert (thicker[:, 1] > labels[:, 1]).all()
    np.testing.assert_allclose(abduct(thicker)[:, 1], abduct(labels)[:, 1], atol=1e-7)
    dimmed = MorphoMnistGenerator().counterfactual_labels(labels, {"intensity": 80.0})
    np.testing.assert_array_equal(dimmed[:, 0], labels[:, 0])


def test_counterfactual_images_show_their_labels() -> None:
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
        ([[2.0, 64.0]], {"thickness": 1.0}, "intensity: expected a factual label strictly between 64 and 255, got 64"),
        ([[2.0, 99.0]], {"thickness": -1.0}, r"thickness: expected a number in \(0, 28\], got -1.0"),
        ([[2.0, 99.0]] * 2, {}, "base_images: expected 2, one per row of labels, got 1"),
    ],
)
def test_refusals(labels: list[list[float]], do: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MorphoMnistGenerator().counterfactual_images(digits(1), np.array(labels), do)


CSV_HEADER = "index,thickness,intensity\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "file not found"),
        (b"index\xff\xfe", "UTF-8"),
        (b"\x1f\x8bnonsense", "cannot be read|cannot read"),
        ("", "header: expected column 'index' once, got nothing"),
        ("index,thickness\n0,1\n", "header: expected column 'intensity' once, got index, thickness"),
        ("index,thickness,intensity,index\n", "header: expected column 'index' once"),
        (CSV_HEADER + "0,1\n", "line 2: intensity: expected a finite number, got ''"),
        (CSV_HEADER + "0,fat,100\n", "line 2: thickness: expected a finite number, got 'fat'"),
        (CSV_HEADER + "0,2,nan\n", "line 2: intensity: expected a finite number, got 'nan'"),
        (CSV_HEADER + "0.5,2,3\n", "line 2: index: expected a non-negative integer, got '0.5'"),
        (CSV_HEADER + "1,2,3\n1,2,3\n", "index: expected different values, got one twice"),
    ],
)
def test_csv_refusals_name_file_and_line(tmp_path: Path, content: str | bytes | None, message: str) -> None:
    path = tmp_path / "bad.csv"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=f"bad.csv: .*({message})"):
        read_morpho_csv(path)


def test_csv_takes_other_columns_and_gzip(tmp_path: Path) -> None:
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(b"area,index,intensity,thickness\n9,4,100.5,2.25\n\n8,2,90,1\n"))
    index, labels = read_morpho_csv(tmp_path / "x.csv.gz")
    assert index.tolist() == [4, 2] and labels.tolist() == [[2.25, 100.5], [1.0, 90.0]]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    mnist = write_mnist(tmp_path / "mnist")
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_dataset(mnist, tmp_path / name, seed=seed, workers=1, progress=False)
    written = {name: content(tmp_path / name) for name in "abc"}
    assert written["a"] == written["b"] and len(written["a"]) == 9
    assert written["a"]["train-morpho.csv"] != written["c"]["train-morpho.csv"]
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
    assert content(out) == content(other)


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (None, {"num_train": 7}, "num_train: expected 0..6, got 7"),
        (None, {"seed": -1}, "seed: expected 0 or more, got -1"),
        ("9,2,100", {}, "train-morpho.csv: index: expected 0..5, the digits of MNIST's train, got 9"),
        ("0,2,256", {}, r"train-morpho.csv: expected thickness in \(0, 28\], intensity in \(0, 255\], got"),
    ],
)
def test_refused_arguments_write_nothing(
    tmp_path: Path, table: str | None, options: dict[str, int], message: str
) -> None:
    mnist = write_mnist(tmp_path / "mnist")
    if table:
        (mnist / "train-morpho.csv").write_text(f"index,thickness,intensity\n{table}\n")
    with pytest.raises(InputError, match=message):
        write_dataset(mnist, tmp_path / "out", labels=mnist if table else None, progress=False, **options)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["mnist"]


@needs_mnist
def test_redrawn_digits_show_the_published_labels(tmp_path: Path) -> None:
    options = {"num_train": 0, "num_test": 48, "workers": 1, "progress": False}
    out = write_dataset(SHARED / "mnist", tmp_path / "a", labels=SHARED / "morphomnist_labels", **options)  # type: ignore[arg-type]
    published = gzip.decompress((SHARED / "morphomnist_labels/t10k-morpho.csv.gz").read_bytes()).decode()
    assert (out / "t10k-morpho.csv").read_text().splitlines() == published.splitlines()[:49]
    _, labels = read_morpho_csv(out / "t10k-morpho.csv")
    measured = MorphoMnistGenerator().measure(read_idx(out / "t10k-images-idx3-ubyte.gz"))
    error = np.abs(measured - labels).mean(axis=0)
    assert error[0] < 0.15 and error[1] < 0.7, error
