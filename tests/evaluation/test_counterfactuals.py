"""What users see of a result: short text, a table for notebooks, a data frame, PIL images, files."""

import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import squares_spec

from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.evaluation.counterfactuals import Counterfactuals

NAN = float("nan")


@pytest.fixture
def spec() -> DatasetSpec:
    """A variable of named categories and a number with a unit."""
    changes = {"kinds": ("categorical", "continuous"), "categories": (("small", "<b>large</b>"), ())}
    return replace(squares_spec(), **changes, low=(0.0, 50.0), high=(1.0, 250.0), units=("", "grey levels"))  # type: ignore[arg-type]


@pytest.fixture
def cf(spec: DatasetSpec) -> Counterfactuals:
    images = np.arange(10 * 64, dtype=np.uint8).reshape(10, 1, 8, 8)
    labels = {"size": np.ones(10, np.float32), "grey": np.linspace(60, 200, 10).astype(np.float32)}
    before = {"size": np.array([0.0, 1.0] * 5, np.float32), "grey": np.full(10, 60.5, np.float32)}
    return Counterfactuals(images, labels, {"size": 1.0}, 255 - images, before, images, spec)


def test_the_text_is_short_and_has_no_pixels(cf: Counterfactuals) -> None:
    assert repr(cf) == (
        "Counterfactuals(squares: do(size=<b>large</b>); images (10, 1, 8, 8) uint8; size <b>large</b>; "
        "grey 60 to 200; with factual and truth)"
    )
    each = replace(cf, do={"grey": np.linspace(60, 200, 10)}, factual=None, factual_labels=None, truth=None)
    assert "do(grey=60 to 200); " in repr(each) and "with" not in repr(each)
    assert "no intervention" in repr(replace(each, do={}))


def test_notebooks_show_pictures_and_labels(cf: Counterfactuals) -> None:
    page = cf._repr_html_()
    assert page.count("<img") == 3 * 8 and page.count("data:image/png;base64,") == 3 * 8
    assert "(8 of 10 images)" in page and "grey (grey levels)" in page and ">60.5<" in page
    assert "<b>" not in page and "&lt;b&gt;large&lt;/b&gt;" in page
    rows = [line for line in page.splitlines() if "<th " in line]
    assert [row.split(">")[2].split("<")[0] for row in rows] == ["factual", "do(size=&lt;b&gt;large&lt;/b&gt;)", "true"]


def test_labels_that_are_read_stand_beside_the_requested_ones(cf: Counterfactuals) -> None:
    assert "requested or predicted, not read" in cf._repr_html_() and cf.verdict == ""
    assert "&lt;b&gt;large&lt;/b&gt; requested" in cf._repr_html_() and "60 predicted" in cf._repr_html_()
    read = {"size": np.zeros(10), "grey": cf.labels["grey"] + 1.0}
    before = {"size": np.array([0.0, 1.0] * 5), "grey": np.full(10, 60.5)}
    found = replace(cf, read_labels=read, reader="measured", read_factual=before, do={"size": 1.0})
    page = found._repr_html_()
    assert "measured (requested or predicted)" in page and "small (&lt;b&gt;large&lt;/b&gt;) !" in page
    assert "61 (60)<" in page, "one grey level is no notable difference"
    assert "size <b>large</b> (read small)" in repr(found) and "grey 60 to 200;" in repr(found)
    assert list(found.to_dataframe())[:3] == ["factual_size", "counterfactual_size", "read_size"]
    assert found.verdict.splitlines()[1] == (
        "  do(size): 0% of the requested change (0% to 43%), no better than doing nothing; "
        "L1 to the true images: 0% of doing nothing"
    ), "of the five small ones"


def test_a_data_frame_has_one_row_per_image(cf: Counterfactuals) -> None:
    frame = cf.to_dataframe()
    names = ["factual_size", "counterfactual_size", "factual_grey", "counterfactual_grey"]
    assert list(frame.columns) == names and len(frame) == 10 and frame.index.name == "image"
    assert frame["factual_size"].tolist()[:2] == ["small", "<b>large</b>"]
    np.testing.assert_array_equal(frame["counterfactual_grey"], cf.labels["grey"])
    samples = replace(cf, factual=None, factual_labels=None).to_dataframe()
    assert list(samples.columns) == ["size", "grey"]


def test_only_the_data_frame_needs_pandas(cf: Counterfactuals, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match="to_dataframe: expected pandas, found none; run"):
        cf.to_dataframe()
    cf.save(tmp_path / "all")


@pytest.mark.parametrize("channels", [1, 3])
def test_pil_images_have_the_pixels(cf: Counterfactuals, channels: int) -> None:
    images = np.repeat(cf.images, channels, axis=1)
    images[:, -1] //= 2
    found = replace(cf, images=images).pil()
    assert len(found) == 10 and {image.mode for image in found} == {"L" if channels == 1 else "RGB"}
    np.testing.assert_array_equal(np.asarray(found[3]).reshape(8, 8, channels), images[3].transpose(1, 2, 0))


def test_a_folder_has_all_images_and_their_labels(cf: Counterfactuals, tmp_path: Path) -> None:
    folder = cf.save(tmp_path / "deep" / "out")
    assert len(list(folder.glob("*.png"))) == 30
    for suffix, expected in (("", cf.images), ("_factual", cf.factual), ("_true", cf.truth)):
        with Image.open(folder / f"0009{suffix}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), expected[9, 0])  # type: ignore[index]
    with (folder / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 and rows[9] == {
        "image": "0009.png",
        "factual_size": "<b>large</b>",
        "counterfactual_size": "<b>large</b>",
        "factual_grey": "60.5",
        "counterfactual_grey": "200",
    }


def test_a_folder_holds_the_images_of_the_last_saving_alone(cf: Counterfactuals, tmp_path: Path) -> None:
    folder = cf.save(tmp_path / "out")
    (folder / "notes_0001.png").write_bytes(b"mine")
    short = {name: values[:2] for name, values in cf.labels.items()}
    replace(cf, images=cf.images[:2], labels=short, factual=None, factual_labels=None, truth=None).save(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["0000.png", "0001.png", "labels.csv", "notes_0001.png"]


def test_images_of_others_are_not_removed(cf: Counterfactuals, tmp_path: Path) -> None:
    for name in ("0042.png", "0043.png"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    (tmp_path / "labels.csv").write_text("image,age\n0042.png,3\n0043.png,4\n")
    assert {"0042.png", "0043.png", "0009.png"} <= {path.name for path in cf.save(tmp_path).iterdir()}


def test_the_spread_of_draws_is_shown_and_saved(cf: Counterfactuals, tmp_path: Path) -> None:
    drawn = replace(
        cf,
        pixel_std=np.linspace(0, 20, 640, dtype=np.float32).reshape(10, 1, 8, 8),
        label_std={"size": np.zeros(10), "grey": np.full(10, 3.25)},
    )
    page = drawn._repr_html_()
    assert "spread of draws" in page and "white: 20 of 255" in page and "± 3.2" in page
    assert drawn.grid(2).shape[1] > cf.grid(2).shape[1], "a further column"
    folder = drawn.save(tmp_path / "out")
    with Image.open(folder / "0009_spread.png") as image:
        assert np.asarray(image).max() == 255 and np.asarray(image).shape == (8, 8)
    assert "0000_spread.png" not in {path.name for path in cf.save(folder).iterdir()}


def test_missing_folders_of_a_picture_are_created(cf: Counterfactuals, tmp_path: Path) -> None:
    assert cf.save(tmp_path / "deep" / "out" / "grid.png", 1).is_file()


@pytest.mark.parametrize("name", ["out", "grid.png"])
def test_results_are_not_saved_to_a_url(
    cf: Counterfactuals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"^path: expected a local path, got gs://bucket/{name}$"):
        cf.save(f"gs://bucket/{name}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [0, -1, 2.0])
def test_a_picture_has_at_least_one_row(cf: Counterfactuals, tmp_path: Path, count: int) -> None:
    with pytest.raises(InputError, match=f"^count: expected a positive integer, got {count}"):
        cf.save(tmp_path / "out" / "grid.png", count)
    assert not (tmp_path / "out").exists()


def test_a_picture_has_the_first_images(cf: Counterfactuals, tmp_path: Path) -> None:
    sizes = []
    for count in (2, 4):
        with Image.open(cf.save(tmp_path / "grid.png", count)) as image:
            sizes.append(image.size)
    assert sizes[0][0] == sizes[1][0] > 200 and sizes[1][1] > 1.5 * sizes[0][1]
    with pytest.raises(
        InputError, match=r"path: expected an image file such as grid\.png, or a folder, got '.*\.docx'"
    ):
        cf.save(tmp_path / "grid.docx")


def test_in_a_script_without_a_screen_the_picture_is_a_file_named_by_the_intervention(
    cf: Counterfactuals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("causaldiffae.visualization.display.has_screen", lambda: False)
    shown = replace(cf, do={"grey": 90.0}).show(2)
    (path,) = tmp_path.iterdir()
    assert path.name == "do_grey_90.png" and str(path) in capsys.readouterr().out
    with Image.open(path) as image:
        assert image.size == shown.size
