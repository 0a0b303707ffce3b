"""Cells that mark missing labels, groups and splits, and what they must not become."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import make_folder, table_rows, write_table

from causaldiffae.datasets.folder.check import check_folder
from causaldiffae.datasets.registry import read_split
from causaldiffae.errors import DataError


def rows_with(**columns: Any) -> list[dict[str, Any]]:
    """Rows with further columns: functions of the number of the row."""
    return [{**row, **{name: value(i) for name, value in columns.items()}} for i, row in enumerate(table_rows())]


def test_two_values_inside_a_declared_range_are_numbers(tmp_path: Path) -> None:
    graph = "names: [dose, grey]\nvariables: {dose: {low: 0, high: 100}, grey: {}}\nimage_size: 8\nignore: [age, hat]\n"
    folder = make_folder(tmp_path / "set", rows_with(dose=lambda i: 50 * (i % 2)), graph)
    spec = read_split("folder", folder, "train").spec
    assert spec.kind(0) == "continuous" and spec.check_do({"dose": 50}) == {"dose": 50.0}
    write_table(folder, rows_with(dose=lambda i: 100 * (i % 2)))
    assert read_split("folder", folder, "train").spec.kind(0) == "binary", "the ends of the range"


def test_marks_of_missing_labels_are_found_in_every_notation(tmp_path: Path) -> None:
    graph = "edges: [[age, grey]]\nvariables: {hat: {}}\nmissing: [-999]\nimage_size: 8\n"
    rows = rows_with(age=lambda i: "-999,0" if i == 3 else f"{20 + i},5")
    data = read_split("folder", make_folder(tmp_path / "set", rows, graph), "train")
    column = data.spec.graph.index("age")
    assert np.flatnonzero(np.isnan(data.labels[:, column])).tolist() == [3] and data.spec.low[column] == 20.5


def test_marks_of_missing_labels_apply_to_true_counterfactuals(tmp_path: Path) -> None:
    graph = "edges: [[age, grey]]\nvariables: {hat: {}}\nmissing: [-999]\nimage_size: 8\n"
    folder = make_folder(tmp_path / "set", graph=graph)
    lines = ["file,do,true_file,age", "im/16.png,hat=cap,im/18.png,-999", "im/17.png,hat=cap,im/18.png,33"]
    (folder / "counterfactuals.csv").write_text("\n".join(lines))
    pairs = read_split("folder", folder, "test").pairs
    assert pairs is not None and pairs.labels[:, 1].tolist() == [65.0, 33.0], "the first is that of the table"


def test_a_category_may_end_with_a_parenthesis(tmp_path: Path) -> None:
    rows = rows_with(hat=lambda i: ("none", "cap", "felt (wide)")[i % 3])
    folder = make_folder(tmp_path / "set", rows)
    for do in ("hat=felt (wide)", "do(hat=felt (wide))"):
        (folder / "counterfactuals.csv").write_text(f'file,do,true_file\nim/16.png,"{do}",im/18.png\n')
        pairs = read_split("folder", folder, "test").pairs
        assert pairs is not None and pairs.dos[0] == {"hat": 1.0}


def test_images_without_a_group_are_groups_of_their_own(tmp_path: Path) -> None:
    graph = "edges: [[age, grey]]\nvariables: {hat: {}}\ngroup: patient\nimage_size: 8\n"
    folder = make_folder(tmp_path / "set", rows_with(patient=lambda i: "NA" if i % 2 else f"p{i}"), graph)
    assert check_folder(folder).problems == []
    rows = rows_with(patient=lambda i: "NA")
    for row in rows:
        del row["split"]
    write_table(folder, rows)
    sizes = [len(read_split("folder", folder, split)) for split in ("train", "test")]
    assert sum(sizes) > 0 and max(sizes) < 20, "not all in one split"


def test_an_empty_split_is_named_and_numbers_are_read(tmp_path: Path) -> None:
    rows = rows_with(split=lambda i: "" if i == 5 else "0" if i < 12 else "1" if i < 16 else "2")
    problems = check_folder(make_folder(tmp_path / "set", rows)).problems
    assert len(problems) == 1 and "labels.csv:7: split: expected one of train, val, test, got ''" in problems[0]


def test_folders_named_like_splits_are_hinted_at(tmp_path: Path) -> None:
    rows = table_rows()
    for row in rows:
        row["file"] = f"{row.pop('split')}/{str(row['file']).rpartition('/')[2]}"
    folder = tmp_path / "set"
    for split in ("train", "val", "test"):
        (folder / split).mkdir(parents=True)
    report = check_folder(make_folder(folder, rows))
    assert any("the folders test, train, val are not read as splits" in hint for hint in report.hints)


def test_a_table_with_other_problems_is_not_rewritten_and_the_first_original_stays(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set")
    text = (folder / "labels.csv").read_text()
    (folder / "im" / "3.png").unlink()
    (folder / "labels.csv").write_text(text + "im/1.png,1,yes,cap,train,more,cells\n")
    report = check_folder(folder, drop_broken=True)
    assert any(line.startswith("drop_broken: expected no other problems") for line in report.problems)
    assert not (folder / "labels.csv.orig").exists()
    (folder / "labels.csv").write_text(text)
    for name in ("3", "4"):
        (folder / "im" / f"{name}.png").unlink(missing_ok=True)
        check_folder(folder, drop_broken=True)
    assert (folder / "labels.csv.orig").read_text() == text
    assert len((folder / "labels.csv").read_text().splitlines()) == 19


def test_a_binary_variable_takes_the_numbers_of_training_only(tmp_path: Path) -> None:
    """With the spec of a model, -1 and 1 are not 0 and 1."""
    graph = "edges: [[age, grey]]\nignore: [hat]\nimage_size: 8\n"
    folder = make_folder(tmp_path / "set", rows_with(grey=lambda i: 2 * (i % 2) - 1), graph)
    spec = read_split("folder", folder, "train").spec
    assert set(read_split("folder", folder, "test", spec=spec).labels[:, 1]) == {-1.0, 1.0}
    write_table(folder, rows_with(grey=lambda i: i % 2))
    message = r"labels.csv:2: grey: expected -1 or 1, as in training, got 0 \(and 9 more\)$"
    with pytest.raises(DataError, match=message):
        read_split("folder", folder, "test", spec=spec)
    write_table(folder, rows_with(grey=lambda i: ""))
    assert np.isnan(read_split("folder", folder, "test", spec=spec).labels[:, 1]).all()
    write_table(folder, rows_with(grey=lambda i: 2 * (i % 2) - 1))
    (folder / "counterfactuals.csv").write_text("file,do,true_file,grey\nim/16.png,age=30,im/18.png,0\n")
    with pytest.raises(DataError, match=r"counterfactuals.csv:2: grey: expected -1 or 1, as in training, got 0$"):
        read_split("folder", folder, "test", spec=spec)


def test_a_column_of_groups_that_is_used_without_a_declaration_is_noted(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set", rows_with(group=lambda i: f"g{i}"))
    note = f"{folder}/labels.csv: images with the same group are kept in one split; list it in `ignore` if not"
    assert check_folder(folder).notes == [note]
    graph = (folder / "graph.yaml").read_text()
    for declared in ("group: group\n", "ignore: [group]\n"):
        (folder / "graph.yaml").write_text(graph + declared)
        assert not check_folder(folder).notes


def test_a_mechanism_without_labels_of_all_its_variables_is_hinted_at(tmp_path: Path) -> None:
    rows = rows_with(age=lambda i: "" if i % 2 else 20 + i, grey=lambda i: ("yes", "no")[i // 2 % 2] if i % 2 else "")
    hint = (
        "grey: no training image has its label and those of its parents age, so its mechanism is not fitted to labels"
    )
    assert [line.partition("; ")[0] for line in check_folder(make_folder(tmp_path / "set", rows)).hints] == [hint]


def test_a_category_is_described_in_one_line(tmp_path: Path) -> None:
    rows = rows_with(hat=lambda i: ("none", "cap", "felt\nor straw")[i % 3])
    assert (
        "  hat: categorical, cap 33.3 %, felt or straw 33.3 %, none 33.3 %"
        in check_folder(make_folder(tmp_path / "set", rows)).summary
    )
