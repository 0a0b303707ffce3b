"""True counterfactuals that a folder contains."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import make_folder, paint

from causaldiffae.datasets.folder.check import check_folder
from causaldiffae.datasets.images import ImageData
from causaldiffae.datasets.registry import read_split, true_counterfactual, truth_is_known
from causaldiffae.errors import DataError, InputError
from causaldiffae.evaluation.image_test import read_test_images

PAIRS = [
    ("im/16.png", "age=60", "true/0.png"),
    ("im/16.png", "age=60,hat=straw", "true/1.png"),
    ("im/17.png", "do(age=30)", "true\\2.png"),
    ("im/19.png", "hat=cap", "im/18.png"),
    ("im/0.png", "age=60", "true/3.png"),
]


def write_pairs(folder: Path, pairs: Sequence[tuple[str, str, str]], header: str = "file,do,true_file") -> None:
    (folder / "true").mkdir(exist_ok=True)
    for i in range(4):
        paint(100 + i).save(folder / f"true/{i}.png")
    lines = [header, *(",".join(f'"{cell}"' for cell in pair) for pair in pairs)]
    (folder / "counterfactuals.csv").write_text("\n".join(lines))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = make_folder(tmp_path / "set")
    write_pairs(made, PAIRS)
    return made


def truth(data: ImageData, do: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    assert truth_is_known(data, do)
    return true_counterfactual(data, do)


def test_pairs_belong_to_the_images_of_their_split(folder: Path) -> None:
    data = read_split("folder", folder, "test")
    assert data.pairs is not None and data.pairs.rows.tolist() == [0, 0, 1, 3]
    assert data.pairs.dos[1] == {"age": 60.0, "hat": 2.0}
    np.testing.assert_array_equal(data.pairs.images[2].transpose(1, 2, 0), np.asarray(paint(102)))
    train = read_split("folder", folder, "train")
    assert train.pairs is not None and train.pairs.rows.tolist() == [0]
    assert read_split("folder", folder, "val").pairs is None
    assert not truth_is_known(data), "other interventions have no known result"


def test_known_labels_follow_from_the_table_or_the_graph(folder: Path) -> None:
    data = read_split("folder", folder, "test")
    assert data.pairs is not None
    names = data.spec.graph.names
    assert names == ("hat", "age", "grey")
    factual = dict(zip(names, data.labels[0].tolist(), strict=True))
    np.testing.assert_array_equal(data.pairs.labels[0], [factual["hat"], 60, np.nan])  # age -> grey
    np.testing.assert_array_equal(data.pairs.labels[1], [2, 60, np.nan])
    np.testing.assert_array_equal(data.pairs.labels[3], data.labels[2])  # im/18.png is in the label table
    rows = [(*PAIRS[0], "25", "yes"), (*PAIRS[2], "", "no")]
    write_pairs(folder, rows, "file,do,true_file,age,grey")  # type: ignore[arg-type]
    given = read_split("folder", folder, "test").pairs
    assert given is not None and given.labels[:, 1:].tolist() == [[25, 1], [30, 0]]


def test_a_test_of_a_few_images_takes_those_with_known_truth(folder: Path) -> None:
    every = read_split("folder", folder, "test")
    spec = every.spec
    age, hat, both, other = [{"age": 60.0}, {"hat": "cap"}, {"age": 60.0, "hat": "straw"}, {"age": 31.0}]

    def chosen(limit: int | None, *dos: Mapping[str, Any]) -> list[str]:
        return list(read_test_images(str(folder), spec, [spec.check_do(do) for do in dos], limit).ids)

    assert chosen(1, hat) == [every.ids[3]]
    assert chosen(1, age, both) == [every.ids[0]]
    with pytest.warns(UserWarning, match=r"test images: the 1 of \d+ whose true counterfactuals are known"):
        assert chosen(3, hat) == [every.ids[3]]
    assert chosen(2, other) == chosen(2, age, hat) == [every.ids[0], every.ids[-1]], "no image has all of them"
    assert chosen(None, hat) == list(every.ids)
    (folder / "counterfactuals.csv").write_text("file,do,true_file\nim/0.png,age=60,true/0.png\n")  # a training image
    assert chosen(2, age) == [every.ids[0], every.ids[-1]]


def test_the_truth_is_found_by_intervention(folder: Path) -> None:
    data = read_split("folder", folder, "test")
    two = data.subset([0, 1])
    labels, images = truth(two, {"age": np.array([60.0, 30.0])})
    np.testing.assert_array_equal(images[1].transpose(1, 2, 0), np.asarray(paint(102)))
    assert labels[:, 1].tolist() == [60, 30]
    assert truth(data.subset([3]), {"hat": "cap"})[0].shape == (1, 3)
    twice = data.subset([1, 0, 1])
    assert twice.pairs is not None and twice.pairs.rows.tolist() == [0, 1, 1, 2]
    np.testing.assert_array_equal(twice.pairs.values_of("age", 3), [30, 60, 30])
    np.testing.assert_array_equal(twice.pairs.values_of("grey", 3), [np.nan] * 3)
    assert twice.pairs.find({"age": 60.0}, 3).tolist() == [-1, 1, -1]
    with pytest.raises(InputError, match="true counterfactual: expected a pair for every image, got none for 3"):
        true_counterfactual(data, {"age": 60})


USUAL = "file,do,true_file"
INVALID = {
    "unknown image": (
        USUAL,
        ("im/99.png", "age=60", "true/0.png"),
        ":2: file: expected an image of .*, got 'im/99.png'",
    ),
    "unknown variable": (USUAL, ("im/16.png", "height=6", "true/0.png"), ":2: do: expected one of hat, age, grey, got"),
    "missing file": (USUAL, ("im/16.png", "age=60", "true/9.png"), ":2: true_file: true/9.png: file not found"),
    "outside": (USUAL, ("im/16.png", "age=60", "../x.png"), ":2: true_file: ../x.png: "),
    "other columns": ("file,do,to", ("im/16.png", "age=60", "true/0.png"), ": expected the columns file, do and true_"),
}


@pytest.mark.parametrize(("header", "pair", "message"), INVALID.values(), ids=INVALID.keys())
def test_invalid_pairs_are_refused(folder: Path, header: str, pair: tuple[str, str, str], message: str) -> None:
    write_pairs(folder, [pair, PAIRS[1]], header)
    with pytest.raises(DataError, match=f"counterfactuals.csv{message}"):
        read_split("folder", folder, "test")
    assert check_folder(folder).count


def test_the_check_counts_pairs(folder: Path) -> None:
    report = check_folder(folder)
    pairs = "true counterfactuals: 1 of 1 images in split train, 4 of 3 images in split test"
    assert report.count == 0 and report.notes == [f"{folder}/counterfactuals.csv: {pairs}"]


def test_problems_and_notes_of_the_whole_table_are_reported_once(folder: Path) -> None:
    text = (folder / "counterfactuals.csv").read_text().replace("true_file", "truth")
    (folder / "counterfactuals.csv").write_text(text)
    missing = f"{folder}/counterfactuals.csv: expected the columns file, do and true_file, got no true_file"
    assert check_folder(folder).problems == [missing]
    (folder / "counterfactuals.csv").write_text("file;do;true_file\nim/16.png;age=60;true/0.png\n")
    assert sum("separated by semicolons" in note for note in check_folder(folder).notes) == 1
