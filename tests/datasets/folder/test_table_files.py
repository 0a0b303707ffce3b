"""Tables in the layouts of neighbouring tools."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import make_folder, paint, table_rows

from causaldiffae.datasets.folder.check import check_folder
from causaldiffae.datasets.folder.image_folder import folder_spec
from causaldiffae.datasets.registry import read_split
from causaldiffae.errors import DataError

NO_SPLIT = [{key: value for key, value in row.items() if key != "split"} for row in table_rows()]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def renamed(row: dict[str, Any], file: str) -> dict[str, Any]:
    return {"file_name": file, **{key: value for key, value in row.items() if key != "file"}}


@pytest.fixture
def imagefolder(tmp_path: Path) -> Path:
    """Hugging Face's imagefolder: the images of table_rows() in folders of splits, without a table."""
    folder = make_folder(tmp_path / "set")
    (folder / "labels.csv").unlink()
    for i, row in enumerate(table_rows()):
        split = {"val": "validation"}.get(row["split"], row["split"])
        (folder / split).mkdir(exist_ok=True)
        (folder / row["file"]).rename(folder / split / f"{i}.png")
    return folder


def places() -> list[str]:
    return [f"{ {'val': 'validation'}.get(row['split'], row['split']) }/{i}.png" for i, row in enumerate(table_rows())]


def check_as_usual(folder: Path, tmp_path: Path) -> None:
    usual = make_folder(tmp_path / "usual")
    assert folder_spec(folder) == folder_spec(usual)
    for split in ("train", "val", "test"):
        read, expected = (read_split("folder", each, split) for each in (folder, usual))
        np.testing.assert_array_equal(read.labels, expected.labels)
        np.testing.assert_array_equal(read.images, expected.images)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_metadata_beside_folders_of_splits(imagefolder: Path, tmp_path: Path, form: str) -> None:
    rows = [renamed(row, place) for row, place in zip(NO_SPLIT, places(), strict=True)]
    if form == "csv":
        write_csv(imagefolder / "metadata.csv", rows)
    else:
        (imagefolder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    check_as_usual(imagefolder, tmp_path)


def test_metadata_in_folders_of_splits(imagefolder: Path, tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        rows = zip(NO_SPLIT, places(), strict=True)
        inside = [renamed(row, Path(place).name) for row, place in rows if place.startswith(split)]
        write_csv(imagefolder / split / "metadata.csv", inside)
    check_as_usual(imagefolder, tmp_path)
    (imagefolder / "test/17.png").unlink()
    with pytest.raises(DataError, match=r"test/metadata.csv:3: test/17.png: file not found"):
        read_split("folder", imagefolder, "test")


@pytest.mark.parametrize("published", [True, False])
def test_celeba(tmp_path: Path, published: bool) -> None:
    (tmp_path / "img_align_celeba").mkdir()
    names, partition = [f"{i:06}.jpg" for i in range(1, 11)], "0000001122"
    labels = [(-1, 1) if i % 2 else (1, -1) for i in range(10)]
    for i, name in enumerate(names):
        paint(i).save(tmp_path / "img_align_celeba" / name)
    rows = [f"{name} {first:2d} {second:2d}" for name, (first, second) in zip(names, labels, strict=True)]
    splits = [f"{name} {split}" for name, split in zip(names, partition, strict=True)]
    if published:
        (tmp_path / "list_attr_celeba.txt").write_text("\n".join(["10", "Smiling Young", *rows, ""]))
        (tmp_path / "list_eval_partition.txt").write_text("\n".join(splits))
    else:
        text = ["image_id,Smiling,Young", *(",".join(row.split()) for row in rows)]
        (tmp_path / "list_attr_celeba.csv").write_text("\n".join(text))
        text = ["image_id,partition", *(row.replace(" ", ",") for row in splits)]
        (tmp_path / "list_eval_partition.csv").write_text("\n".join(text))
    (tmp_path / "graph.yaml").write_text("names: [Smiling]\nimage_size: 8\nignore: ['*']\n")
    spec = folder_spec(tmp_path)
    assert spec.kinds == ("binary",) and (spec.low, spec.high) == ((-1.0,), (1.0,))
    data = {split: read_split("folder", tmp_path, split) for split in ("train", "val", "test")}
    assert [len(each) for each in data.values()] == [6, 2, 2] and data["test"].ids == names[8:]
    assert data["train"].labels[:, 0].tolist() == [1, -1, 1, -1, 1, -1]


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "graph.yaml").write_text("names: [a]\n")
    with pytest.raises(DataError, match="labels.csv: file not found, nor any of labels.tsv, .* metadata.csv, "):
        folder_spec(tmp_path)


def test_files_that_may_be_the_missing_table_are_named(tmp_path: Path) -> None:
    for name in ("graph.yaml", "graph.csv", "Labels.CSV", "instances.json", "README.txt", "a.png", ".hidden.csv"):
        (tmp_path / name).write_text("names: [a]\n")
    (tmp_path / "im").mkdir()
    (tmp_path / "im/other.csv").write_text("")
    advice = "; if Labels.CSV, instances.json is the table, rename it or save it as labels.csv$"
    with pytest.raises(DataError, match=advice):
        folder_spec(tmp_path)


def test_tables_that_are_not_read_are_noted(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set")
    assert not check_folder(folder).notes
    (folder / "labels.xlsx").write_bytes(b"an older export")
    assert check_folder(folder).notes == [f"{folder}: labels.csv is the table; labels.xlsx is not read"]
