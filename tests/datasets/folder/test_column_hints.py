"""Hints at likely mistakes in labels, and at groups that are divided between splits."""

from collections.abc import Sequence

import numpy as np
import pytest

from causaldiffae.datasets.folder.column_hints import check_training_labels, hint_groups, hint_labels
from causaldiffae.datasets.folder.description import Variable
from causaldiffae.datasets.folder.label_columns import read_column
from causaldiffae.datasets.folder.label_table import Table
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.files.tables import TextColumn

AGES = [f"{20 + 1.7 * i:.1f}" for i in range(30)]


def hints(cells: Sequence[str], **declared: object) -> list[str]:
    table = Table(
        "t", [f"{i}.png" for i in range(len(cells))], np.arange(len(cells)), None, {"x": TextColumn.of(cells)}
    )
    variable, problems = Variable(**declared), Problems()  # type: ignore[arg-type]
    hint_labels(table, {"x": read_column(table, "x", variable, problems)}, {"x": variable}, problems)
    assert not problems.lines
    return problems.hints


@pytest.mark.parametrize(
    ("added", "found"),
    [
        (["-999", "-999", "9999"], "-999 (2 rows) and 9999 (1 row) far from the other values, 20..69.3"),
        (["-1", "-1"], "-1 (2 rows) far from the other values"),
        (["-9"], "-9 (1 row) far from the other values"),
        (["99999"], "99999 (1 row) far from the other values"),
        (["1e6"], "1e+06 (1 row) far from the other values"),
        (["0"], ""),
        (["75"], ""),
        (["1000"], "1000 (1 row) far from the other values"),
        (["99"], "99 (1 row) far from the other values"),
        (["85"], ""),
    ],
)
def test_values_far_from_others_are_reported(added: list[str], found: str) -> None:
    got = hints([*AGES, *added])
    assert (found in got[0] and "add `missing: [" in got[0]) if found else got == []


def test_a_heavy_tail_and_declared_limits_are_not() -> None:
    tail = np.exp(np.random.default_rng(0).normal(0, 2, 200))
    assert hints([f"{value:.6g}" for value in tail]) == []
    assert hints([*AGES, "1000"], high=1000.0) == []
    assert hints([str(10 * i - 1) for i in range(20)]) == [], "-1 belongs to the others"


def test_a_column_of_dates_is_one_line() -> None:
    dates = [f"{i:02d}.07.2021" for i in range(1, 31)]
    table = Table("t", [f"{i}.png" for i in range(30)], np.arange(30), None, {"x": TextColumn.of(dates)})
    problems = Problems()
    columns = {"x": read_column(table, "x", Variable(), problems)}
    check_training_labels(table, columns, np.arange(30) < 24, problems)
    (line,) = problems.lines
    assert line.startswith("t: x: expected training labels of all 30 categories, got none of 6, such as '25.07.2021'; ")
    problems = Problems()
    check_training_labels(table, columns, np.arange(30) < 28, problems)
    assert [line.rpartition(", ")[0] for line in problems.lines] == [
        f"t: x: expected training labels '{day}.07.2021'" for day in (29, 30)
    ]


def test_few_whole_numbers_may_be_categories() -> None:
    grades = ["0", "1", "2"] * 5
    assert "3 whole numbers (0, 1, 2) are read as continuous; if they are categories, add" in hints(grades)[0]
    assert hints(grades, kind="continuous") == hints(grades, kind="categorical") == hints(["0", "1", "2"]) == []


def test_categories_that_look_alike_are_reported() -> None:
    (hint,) = hints(["Male", "male", "other", "Female"])
    assert "the categories 'Male', 'male' differ in case or spacing only" in hint
    assert "category 'unknown' may mark missing labels" in hints(["cap", "unknown", "straw"])[0]


def group_hints(files: Sequence[str], splits: str, **columns: Sequence[str]) -> list[str]:
    cells = {name: TextColumn.of(cells) for name, cells in columns.items()}
    problems, words = Problems(), {"r": "train", "v": "val", "e": "test"}
    table = Table("t", list(files), np.arange(len(files)), None, cells)
    hint_groups(table, np.array([words[letter] for letter in splits]), problems)
    return problems.hints


def test_images_of_one_group_in_several_splits_are_reported() -> None:
    numbered = [f"{i}.png" for i in range(6)]
    patients = ["a", "a", "b", "b", "c", "c"]
    assert "add `group: patient`" in group_hints(numbered, "rerrrr", patient=patients)[0]
    assert group_hints(numbered, "rrrree", patient=patients) == []
    slices = [f"im/p{i // 3:02}_slice{i % 3}.png" for i in range(12)]
    assert "12 files have 4 stems, such as 'im/p00'" in group_hints(slices, "rrervererrrr")[0]
    assert group_hints(slices, "rrrrrrvvveee") == []
    folders = [f"scan{i // 3}/{i % 3}.png" for i in range(12)]
    assert "have 4 stems" in group_hints(folders, "rrervererrrr")[0]
    assert group_hints([f"img_{i:03}.png" for i in range(12)], "rrervererrrr") == []
