"""A folder of images as a data set: what is read, what is refused, both layouts of one data set, and addresses."""

import dataclasses
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_storage import FakeBlobfile
from folders import GRAPH, make_folder, paint, table_rows, write_table
from PIL import Image

from causaldiffae.datasets.folder.image_folder import folder_spec
from causaldiffae.datasets.folder.label_table import assign_splits, parse_table
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.datasets.images import ImageData
from causaldiffae.datasets.registry import dataset_spec, measure, read_split, true_counterfactual, truth_is_known
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.generators import pendulum
from causaldiffae.image_datasets import BatchSource, load_data


def read(folder: str | Path, split: str = "train", **options: Any) -> ImageData:
    return read_split("folder", folder, split, **options)


def test_images_have_the_groups_of_the_table(tmp_path: Path) -> None:
    """An image without a group is one of its own, also if another group has the name of its file."""
    cells = ["p1", "p1", "", "im/2.png"]
    rows = [{**row, "group": cells[i] if i < 4 else f"q{i}"} for i, row in enumerate(table_rows())]
    groups = read(make_folder(tmp_path / "set", rows)).groups
    assert groups is not None and len(groups) == 12
    assert groups[0] == groups[1] and len(set(groups)) == 11
    assert read(tmp_path / "set").subset([3, 0]).groups.tolist() == groups[[3, 0]].tolist()  # type: ignore[union-attr]
    assert read(make_folder(tmp_path / "other")).groups is None


def test_a_folder_is_read(folder: Path) -> None:
    spec = folder_spec(folder)
    assert spec.graph.names == ("hat", "age", "grey") and spec.graph.edges == (("age", "grey"),)
    assert (spec.name, spec.image_size, spec.channels, spec.resize) == ("folder", 8, 3, "crop")
    assert spec.kinds == ("categorical", "continuous", "binary")
    assert spec.categories == (("cap", "none", "straw"), (), ("no", "yes"))
    ages = 20 + 2.5 * np.arange(12)
    assert spec.shift[1] == ages.mean() and spec.scale[1] == ages.std()
    assert (spec.low, spec.high) == ((0.0, 20.0, 0.0), (2.0, 47.5, 1.0))
    train, val, test = (read(folder, split) for split in ("train", "val", "test"))
    assert [len(data) for data in (train, val, test)] == [12, 4, 4]
    assert train.spec == spec == dataset_spec("folder", data_dir=folder)
    assert train.images.shape == (12, 3, 8, 8) and train.images.dtype == np.uint8 and type(train.images) is np.ndarray
    np.testing.assert_array_equal(test.images[1].transpose(1, 2, 0), np.asarray(paint(17)))
    assert test.ids == ["im/16.png", "im/17.png", "im/18.png", "im/19.png"] and test.classes is None
    assert train.labels[:3].tolist() == [[1.0, 20.0, 1.0], [0.0, 22.5, 0.0], [2.0, 25.0, 0.0]]
    assert train.labels.dtype == np.float32 and train.labelled is None
    assert read(folder, limit=3).ids == ["im/0.png", "im/6.png", "im/11.png"]


def test_it_is_a_data_set_like_others(folder: Path) -> None:
    data = read(folder, image_size=16, channels=1)
    assert data.images.shape == (12, 1, 16, 16)
    assert not truth_is_known(data) and np.isnan(measure(data.spec, data.images)).all()
    with pytest.raises(InputError, match="true counterfactual: expected a data set with a generator, got folder"):
        true_counterfactual(data, {"age": 30})
    images, cond = next(load_data(dataset="folder", data_dir=folder, batch_size=5, graph=folder / "graph.yaml"))
    assert images.shape == (5, 3, 8, 8) and cond["c"].shape == (5, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a mapped array that cannot be written to would warn
        assert torch.isfinite(BatchSource(data, 4).batch(0).labels).all()


def test_another_graph_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"names": ["age", "hat", "grey"], "edges": [["age", "hat"]]}')
    data = read(folder, "val", graph=tmp_path / "other.json")
    assert data.spec.graph.edges == (("age", "hat"),) and data.spec.image_size == 64
    (folder / "graph.yaml").unlink()
    with pytest.raises(DataError, match="set: expected graph.yaml, got none; add it or set --graph"):
        folder_spec(folder)
    (folder / "graph.dot").write_text("digraph { age -> grey; hat }")
    assert folder_spec(folder).graph.names == ("age", "grey", "hat")


def test_labels_are_missing_by_variable_and_statistics_are_those_of_all_others(tmp_path: Path) -> None:
    rows = table_rows()
    rows[0]["age"], rows[5]["hat"] = "", ""
    folder = make_folder(tmp_path / "set", rows)
    data = read(folder)
    hat, age, grey = (data.spec.graph.index(name) for name in ("hat", "age", "grey"))
    assert np.argwhere(~data.observed).tolist() == sorted([[0, age], [5, hat]]) and data.labels[5, age] == 32.5
    ages, hats = 20 + 2.5 * np.arange(1, 12), data.labels[np.arange(12) != 5, hat].astype(np.float64)
    for i, values in ((age, ages), (hat, hats), (grey, data.labels[:, grey].astype(np.float64))):
        found = [getattr(data.spec, key)[i] for key in ("shift", "scale", "low", "high")]
        np.testing.assert_allclose(found, [values.mean(), values.std(), values.min(), values.max()], rtol=1e-12)
    batch = BatchSource(data, 12, shuffle=False).batch(0)
    assert batch.labelled_fraction == 1.0 and torch.isfinite(batch.labels).all()
    assert (batch.labels[0] != 0).tolist() == [name != "age" for name in data.spec.graph.names]
    assert read(folder, "val").observed.all()


def test_statistics_without_partly_labelled_images_are_those_of_the_labelled_ones(tmp_path: Path) -> None:
    """To the bit: runs resume, and checkpoints fit the folders that they were trained on."""
    rows = [{**row, "age": 20 + 1 / (i + 3)} for i, row in enumerate(table_rows(60))]
    every = make_folder(tmp_path / "every", rows)
    hidden = [{**row, **dict.fromkeys(("age", "grey", "hat"), "")} for row in rows[:7]]
    some = make_folder(
        tmp_path / "some", rows[:30] + [{**row, "file": f"im/h{i}.png"} for i, row in enumerate(hidden)] + rows[30:]
    )
    labels = read(every).labels.astype(np.float64)
    for spec in (folder_spec(every), folder_spec(some)):
        assert spec.shift == tuple(labels.mean(0)) and spec.scale == tuple(labels.std(0))


def test_a_sparse_variable_takes_no_labels_from_the_others(tmp_path: Path) -> None:
    rows = [{**row, "grey": row["grey"] if i in (0, 1) else ""} for i, row in enumerate(table_rows())]
    data = read(make_folder(tmp_path / "set", rows))
    assert data.observed.sum(axis=0).tolist() == [2 if name == "grey" else 12 for name in data.spec.graph.names]
    assert data.spec.low[data.spec.graph.index("age")] == 20.0 and data.spec.high[data.spec.graph.index("age")] == 47.5


def test_marks_of_missing_labels_and_groups_are_stored_in_the_spec(tmp_path: Path) -> None:
    rows = [{**row, "patient": f"p{i // 4}"} for i, row in enumerate(table_rows(60))]
    rows = [{key: value for key, value in row.items() if key != "split"} for row in rows]
    rows[0]["age"] = -999
    folder = make_folder(tmp_path / "set", rows, GRAPH + "missing: [-999]\ngroup: patient\nsplit_seed: 1\n")
    spec = folder_spec(folder)
    assert spec.group == "patient" and spec.missing == (("-999",),) * 3 and min(spec.low) >= 0
    (folder / "graph.yaml").unlink()
    data = {split: read(folder, split, spec=spec) for split in ("train", "val", "test")}
    patients = [{name.removeprefix("im/").removesuffix(".png") for name in each.ids} for each in data.values()]
    assert sum(len({int(i) // 4 for i in each}) for each in patients) == 15, "no patient is divided"
    assert sum(np.isnan(each.labels).sum() for each in data.values()) == 1
    write_table(folder, [{key: value for key, value in row.items() if key != "patient"} for row in rows])
    with pytest.raises(DataError, match="expected a column 'patient' of groups to divide the images, got none"):
        read(folder, spec=spec)


def test_a_column_group_is_used_without_a_declaration(tmp_path: Path) -> None:
    rows = [{**row, "group": f"p{i // 4}"} for i, row in enumerate(table_rows())]
    assert folder_spec(make_folder(tmp_path / "set", rows)).group == "group"
    rows[13]["split"] = "train"
    with pytest.raises(DataError, match="split: expected each group in one split, got 'p3' in train and val"):
        folder_spec(make_folder(tmp_path / "divided", rows))


def test_likely_mistakes_are_warned_of(tmp_path: Path) -> None:
    rows = [{**row, "age": row["age"] if i else -999} for i, row in enumerate(table_rows())]
    with pytest.warns(UserWarning, match="age: -999 .1 row. far from the other values"):
        folder_spec(make_folder(tmp_path / "set", rows))


def test_declared_values_take_precedence(tmp_path: Path) -> None:
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
    data = read(make_folder(tmp_path / "set", graph=graph))
    spec = data.spec
    assert (spec.low[0], spec.high[0], spec.shift[0], spec.scale[0]) == (0, 100, 50, 25) and spec.units[0] == "years"
    assert spec.categories[1:] == (("straw", "cap", "none"), ("yes", "no")) and spec.kinds[2] == "categorical"
    assert data.labels[0].tolist() == [20.0, 2.0, 0.0] and data.images.shape == (12, 1, 16, 16)
    assert (spec.resize, spec.split_seed, spec.split_shares) == ("area", 7, (0.5, 0.2, 0.3))


def test_kinds_follow_from_the_cells(tmp_path: Path) -> None:
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


def test_added_images_move_no_others_in_a_random_split() -> None:
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


def test_the_random_split_is_stored_in_the_spec(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "split"} for row in table_rows(60)]
    folder = make_folder(tmp_path / "set", rows, GRAPH + "split_seed: 3\nsplit_shares: [0.5, 0.2, 0.3]\n")
    splits = {split: read(folder, split) for split in ("train", "val", "test")}
    assert sorted(name for data in splits.values() for name in data.ids) == sorted(row["file"] for row in rows)
    assert 20 < len(splits["train"]) < 40
    other = dataclasses.replace(splits["train"].spec, split_seed=4)
    assert read(folder, spec=other).ids != splits["train"].ids
    (folder / "graph.yaml").unlink()
    assert read(folder, "test", spec=splits["train"].spec).ids == splits["test"].ids


def test_a_model_reads_the_folder_with_its_own_spec(folder: Path) -> None:
    spec = folder_spec(folder)
    (folder / "graph.yaml").unlink()
    rows = [{**row, "age": 99, "note": "x"} for row in table_rows()]
    write_table(folder, rows)
    data = read(folder, "test", spec=spec)
    assert data.spec is spec and data.labels[0].tolist() == [0.0, 99.0, 1.0]
    rows[3]["hat"] = "helmet"
    write_table(folder, rows)
    with pytest.raises(DataError, match=r"labels.csv:5: hat: expected one of cap, none, straw, got 'helmet'"):
        read(folder, "test", spec=spec)


def test_labels_are_not_needed_with_the_spec_of_a_model(folder: Path) -> None:
    spec = folder_spec(folder)
    (folder / "graph.yaml").unlink()
    write_table(
        folder, [{"file": "im/0.png", "age": 1, "split": "test"}, {"file": "im/1.png", "age": 2, "split": "train"}]
    )
    with pytest.warns(UserWarning, match=r"labels.csv: no column hat, grey; these labels count as missing") as caught:
        data = read(folder, "test", spec=spec)
    assert len(caught) == 1 and data.ids == ["im/0.png"]
    assert np.isnan(data.labels).tolist() == [[name != "age" for name in spec.graph.names]]
    write_table(folder, [{"file": "im/0.png", "age": "", "grey": "", "hat": "", "split": "test"}])
    assert np.isnan(read(folder, "test", spec=spec).labels).all()
    write_table(folder, [{"file": "im/0.png", "hat": "cap"}])
    with pytest.raises(DataError, match="expected images in split .*; add a column `split` to assign images to it"):
        for split in ("train", "val", "test"):
            read(folder, split, spec=spec)


@pytest.fixture(scope="module")
def both_layouts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same images as the built-in data set and as a folder with a table."""
    built_in, own = tmp_path_factory.mktemp("built_in"), tmp_path_factory.mktemp("own")
    rows = []
    for split, angles in (("train", (-30, 0, 25)), ("test", (10,))):
        (built_in / split).mkdir()
        (own / split).mkdir()
        for labels in pendulum.true_labels(np.repeat(angles, 3), np.tile([70, 90, 130], len(angles))):
            name = pendulum.file_name(labels)
            Image.fromarray(pendulum.render(*labels[:2])).save(built_in / split / name)
            (own / split / name).write_bytes((built_in / split / name).read_bytes())
            names = ("angle", "light", "shadow_length", "shadow_position")
            rows.append({"file": f"{split}/{name}", **dict(zip(names, labels, strict=True)), "split": split})
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
def test_pendulum_is_the_same_in_both_layouts(
    both_layouts: tuple[Path, Path], size: int | None, channels: int | None
) -> None:
    built_in, own = both_layouts
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


Damage = Callable[[Path], object]


def cells(row: int, **changes: Any) -> Damage:
    return lambda folder: write_table(folder, [{**r, **changes} if i == row else r for i, r in enumerate(table_rows())])


def column(name: str, *values: Any) -> Damage:
    return lambda folder: write_table(
        folder, [{**row, name: values[i % len(values)]} for i, row in enumerate(table_rows())]
    )


def graph(text: str) -> Damage:
    return lambda folder: (folder / "graph.yaml").write_text(text)


def table(text: str | bytes) -> Damage:
    return lambda folder: (folder / "labels.csv").write_bytes(text.encode() if isinstance(text, str) else text)


def image(content: bytes) -> Damage:
    return lambda folder: (folder / "im/3.png").write_bytes(content)


def link_outside(folder: Path) -> None:
    (folder / "im/3.png").rename(folder.parent / "secret.png")
    (folder / "im/3.png").symlink_to(folder.parent / "secret.png")


def linked_folder_outside(folder: Path) -> None:
    (folder / "im").rename(folder.parent / "elsewhere")
    (folder / "im").symlink_to(folder.parent / "elsewhere")


def a_folder_for_a_file(folder: Path) -> None:
    (folder / "im/3.png").unlink()
    (folder / "im/3.png").mkdir()


NO_HAT = "edges: [[age, grey]]\nimage_size: 8\n"
CATEGORIES = "edges: [[age, grey]]\nvariables: {{hat: {{{}}}}}\n"
PATH, CELL, MISSING = (
    "labels.csv:5: expected a path inside the folder, got ",
    "labels.csv:5: age: expected a ",
    "for the variable of the graph, got none",
)
ONE_FILE = "labels.csv: expected one column `file` with the paths of the images, got "
DAMAGES: dict[str, tuple[Damage, str]] = {
    "leaves": (cells(3, file="../3.png"), PATH + "'../3.png'"),
    "leaves on Windows": (cells(3, file="im\\..\\..\\3.png"), PATH + ".*"),
    "absolute": (cells(3, file="/etc/passwd"), PATH + "'/etc/passwd'"),
    "drive": (cells(3, file="C:3.png"), PATH + "'C:3.png'"),
    "link": (link_outside, "labels.csv:5: im/3.png: .*link"),
    "linked folder": (linked_folder_outside, r"labels.csv:2: im/0.png: .*link.*\(the same for all 12 rows\)"),
    "twice": (cells(3, file="im/./2.png"), "labels.csv:5: expected unique paths, got 'im/./2.png' as in line 4"),
    "no name": (cells(3, file=""), "labels.csv:5: expected the path of an image, got an empty cell"),
    "odd name": (cells(3, file="a\x85b.png"), "labels.csv:5: expected a path without control characters, got "),
    "missing": (cells(3, file="im/none.png"), "labels.csv:5: im/none.png: "),
    "folder": (a_folder_for_a_file, "labels.csv:5: im/3.png: .*regular file"),
    "unreadable": (image(b"no image"), "im/3.png: .*JPEG, PNG, WebP, TIFF, BMP or GIF image"),
    "heavy": (image(bytes(1 << 26) + b"x"), "im/3.png: .*67108865"),
    "no column": (
        graph(GRAPH.replace("hat", "scarf")),
        rf"expected a column 'scarf' {MISSING} \(and 1 more; `causaldiffae check`",
    ),
    "no variable": (graph(NO_HAT), "column 'hat': expected a variable of the graph; to skip it, list it in `ignore`"),
    "ignored": (graph(GRAPH + "ignore: [note]\n"), "expected a column 'note', which is listed in `ignore`, got none"),
    "constant": (column("age", 3), "age: expected two or more values, got 3 in all 12 labelled training images"),
    "nearly constant": (
        column("age", 1.7e9, 1.7e9 + 100, 1.7e9),
        r"age: expected two or more values, got 1.7e\+09 in all 12",
    ),
    "constant word": (
        column("hat", "cap"),
        "hat: expected two or more values, got cap in all 12 labelled training images",
    ),
    "empty column": (column("age", ""), "age: expected labels, got an empty column"),
    "no number": (cells(3, age="old"), CELL + "number, got 'old'"),
    "odd number": (cells(3, age="1_000"), CELL + "number, got '1_000'"),
    "inf": (cells(3, age="-inf"), CELL + "finite 32-bit number, got '-inf'"),
    "huge": (cells(3, age="1e39"), CELL + "finite 32-bit number, got '1e39'"),
    "unseen": (
        cells(19, hat="helmet"),
        r"hat: expected training labels 'helmet', got none \(first in line 21\)",
    ),
    "third value": (
        lambda folder: (cells(3, grey="maybe")(folder), graph(GRAPH.replace("{}", "{}, grey: {kind: binary}"))(folder)),
        r"grey: expected 2 distinct values for a binary variable, got 3 \(maybe, no, yes\)",
    ),
    "undeclared category": (
        graph(CATEGORIES.format("categories: [none, cap]")),
        r"labels.csv:4: hat: expected one of none, cap, got 'straw' \(and 5 more; `causaldiffae check` lists",
    ),
    "category of none": (
        graph(CATEGORIES.format("categories: [none, cap, straw, fez]")),
        "hat: expected training labels 'fez', got none$",
    ),
    "split": (cells(3, split="spare"), "labels.csv:5: split: expected one of train, val, test, got 'spare'"),
    "split empty": (cells(3, split=""), "labels.csv:5: split: expected one of train, val, test, got ''"),
    "no training": (column("split", "test"), "expected images of split train with labels, got none"),
    "no training labels of one": (
        column("age", *[""] * 12, *range(20, 28)),
        r"labels.csv: age: expected labels of images of split train, got none$",
    ),
    "self-loop": (graph("edges: [[age, age]]"), "graph.yaml: graph: expected no self-loops, got edge age -> age"),
    "cycle": (graph("edges: [[age, hat], [hat, age]]"), "graph.yaml: graph: expected no cycles, got age -> hat -> age"),
    "size": (
        graph(GRAPH.replace("8", "4096")),
        r"graph.yaml: image_size: expected an integer in 8\.\.512, got 4096",
    ),
    "channels": (graph(GRAPH + "channels: 2\n"), "graph.yaml: channels: expected 1 or 3 or 4 .*, got 2"),
    "name": (graph(GRAPH + "name: faces\n"), "graph.yaml: name: expected one of .*circuit.*, got 'faces'"),
    "short row": (table("file,age,grey,hat\na.png,1,2\n"), "labels.csv:2: expected 4 cells, got 3"),
    "no file column": (table("name,age\na.png,1\n"), ONE_FILE + "name, age"),
    "two file columns": (table("file,filename\na,b\n"), ONE_FILE + "file, filename"),
    "column twice": (table("file,age,age\na,1,2\n"), "labels.csv: expected unique column names, got 'age' twice"),
    "column without name": (table("file,,age\na,1,2\n"), "labels.csv: column 2: expected a name, got none"),
    "no rows": (table("file,age\n"), "labels.csv: expected at least one row, got none"),
    "empty": (table(""), ONE_FILE + "no columns"),
    "no text": (table(b"file,age\n\xff\x81,1\n"), "labels.csv: expected UTF-8, UTF-16 or Windows-1252 text"),
    "no csv": (table('file,age\n"a,1\n'), "labels.csv: invalid CSV"),
    "no table": (lambda folder: (folder / "labels.csv").unlink(), "labels.csv: "),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_folder_is_refused(folder: Path, damage: Damage, message: str) -> None:
    damage(folder)
    with pytest.raises(DataError, match=message) as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    assert not list(folder.glob(".cache/*.npy")), "nothing is cached"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "split: expected one of train, val, test, got 'dev'"),
        ({"image_size": 4}, r"image_size: expected an integer in 8\.\.512, got 4"),
        ({"channels": 2}, "channels: expected 1 or 3 or 4 .*, got 2"),
        ({"limit": 0}, "limit: expected a positive integer, got 0"),
        ({"data_dir": "/nowhere"}, "/nowhere: "),
        ({"graph": "/nowhere.yaml"}, "/nowhere.yaml: "),
    ],
)
def test_an_invalid_request_is_refused(folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        read_split(**{"dataset": "folder", "data_dir": folder, "split": "train", **arguments})
    with pytest.raises(InputError, match="data_dir: expected the folder with the spec of data set folder, got none"):
        dataset_spec("folder")


def test_an_empty_split_is_refused_when_it_is_read(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set", [{**row, "split": "train"} for row in table_rows()])
    assert len(read(folder)) == 20
    with pytest.raises(DataError, match="labels.csv: expected images in split test, got none"):
        read(folder, split="test")


@pytest.fixture
def bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBlobfile:
    fake = FakeBlobfile(folder.parent)
    monkeypatch.setitem(sys.modules, "blobfile", fake)
    return fake


def test_an_address_is_read_like_a_path(folder: Path, bucket: FakeBlobfile, user_cache: Path) -> None:
    local = read(folder)
    assert not bucket.calls
    remote = read("gs://bucket/set")
    assert remote.spec == local.spec and remote.ids == local.ids
    np.testing.assert_array_equal(remote.images, local.images)
    assert len(list(user_cache.rglob("*.npy"))) == 1
    before = bucket.count("BlobFile")
    read("gs://bucket/set/", graph="gs://bucket/set/graph.yaml")
    assert bucket.count("BlobFile") == before + 2, "only the table and the graph; the images are cached"


def test_problems_at_an_address_name_it(folder: Path, bucket: FakeBlobfile) -> None:
    (folder / "im/3.png").unlink()
    with pytest.raises(DataError, match="gs://bucket/set/labels.csv:5: im/3.png: file not found"):
        read("gs://bucket/set")
    with pytest.raises(DataError, match="gs://bucket/none/labels.csv: file not found"):
        read("gs://bucket/none", graph="gs://bucket/set/graph.yaml")
    bucket.fails = lambda number, name, address: name == "BlobFile"
    with pytest.raises(DataError, match="gs://bucket/set/graph.yaml: cannot be read .503 service unavailable."):
        folder_spec("gs://bucket/set")
