"""Hints at likely mistakes in labels, and at groups that are divided between splits."""

from collections.abc import Sequence

import numpy as np
import pytest

from causaldiffae.datasets.folder.column_hints import (
    check_training_labels,
    hint_groups,
    hint_labels,
    hint_splits,
)
from causaldiffae.datasets.folder.description import Variable
from causaldiffae.datasets.folder.label_columns import read_column
from causaldiffae.datasets.folder.label_table import Table
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.files.tables import TextColumn

AGES = [f"{20 + 1.7 * i:.1f}" for i in range(30)]


def table_of(**columns: Sequence[str]) -> Table:
    count = len(next(iter(columns.values())))
    cells = {name: TextColumn.of(each) for name, each in columns.items()}
    return Table("t", [f"{i}.png" for i in range(count)], np.arange(count), None, cells)


def hints_of(variable: Variable, **columns: Sequence[str]) -> list[str]:
    table, problems = table_of(**columns), Problems()
    read = {name: read_column(table, name, variable, problems) for name in columns}
    hint_labels(table, read, dict.fromkeys(columns, variable), problems)
    assert not problems.lines
    return problems.hints


def hints(cells: Sequence[str], **declared: object) -> list[str]:
    return hints_of(Variable(**declared), x=cells)  # type: ignore[arg-type]


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
    for training in (24, 28):
        (line,) = training_problems(dates, training)
        start = f"t: x: expected training labels of all 30 categories, got none of {30 - training}, such as '"
        assert line.startswith(f"{start}{training + 1}.07.2021'; dates and times are words; write them as numbers")
    (line,) = training_problems([f"person {i:02d}" for i in range(30)], 24)
    assert line.endswith("such as 'person 24'; images share a category; remove an identifier from the graph and list "
                         "it in `ignore`")  # fmt: skip
    few = training_problems([*["cap", "hat"] * 10, "crown", "straw"], 20)
    assert [line.partition(", got none")[0] for line in few] == [
        f"t: x: expected training labels '{word}'" for word in ("crown", "straw")
    ]


def training_problems(cells: Sequence[str], training: int) -> list[str]:
    """The problems of a column whose first labels are those of the training images."""
    table, problems = table_of(x=cells), Problems()
    columns = {"x": read_column(table, "x", Variable(), problems)}
    check_training_labels(table, columns, np.arange(len(cells)) < training, problems)
    return problems.lines


def test_numbers_that_are_equal_in_32_bits_are_not_called_one_value() -> None:
    (line,) = training_problems([f"{10**12 + i}" for i in range(9)], 9)
    assert line == (
        "t: x: expected two or more values, got 1e+12 in all 9 labelled training images; if they differ by less than a "
        "millionth, subtract a constant from all"
    )
    assert "subtract" not in training_problems(["1", "1", "1", "2"], 3)[0]


def test_dates_and_numbers_with_a_unit_that_are_read_as_categories_are_reported() -> None:
    cells = ["10 kg", "20 kg", "30 kg"] * 4
    assert hints(cells) == [
        "t: x: categories such as '10 kg': numbers with 'kg' are words; write the numbers alone, and a unit in the "
        "graph file"
    ]
    assert "categories such as '2021-01-01': dates and times" in hints(["2021-01-01", "2021-02-01", "2021-03-01"])[0]
    assert hints(cells, kind="categorical") == []


def test_a_circle_is_reported_unless_the_variable_is_declared_to_be_continuous() -> None:
    (hint,) = hints([str(day) for day in range(7)] * 4, unit="weekday")
    assert hint.startswith("t: x: 0..6 is likely a circle of 7, but is read as a line"), "rather than whole numbers"
    assert hints([str(day) for day in range(7)] * 4, unit="weekday", kind="continuous") == []


def test_binary_columns_of_which_one_is_set_are_reported() -> None:
    kinds = ["cap", "hat", "none"] * 4
    one_hot = {f"wears_{kind}": [str(int(each == kind)) for each in kinds] for kind in ("cap", "hat", "none")}
    (hint,) = hints_of(Variable(), **one_hot, smile=["yes", "no", "no", "yes"] * 3)
    assert hint == (
        "t: wears_cap, wears_hat, wears_none: exactly one is set in every row, but an intervention on one does not "
        "unset the others; write them as one column of categories"
    )
    one_hot["wears_cap"][1] = "1"
    assert hints_of(Variable(), **one_hot) == []


def test_a_column_of_splits_with_another_name_is_reported() -> None:
    table, problems = table_of(subset=["Train", "test", ""], use=["train", "test", "all"], dev=["dev"] * 3), Problems()
    hint_splits(table, ("hat",), problems)
    hint_splits(table, ("subset",), problems)
    assert problems.hints == ["t: column 'subset' holds splits, but is not used; rename it to `split` for that"]


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
    hint_groups(table, np.array([words[letter] for letter in splits]), ("animal",), problems)
    return problems.hints


def test_images_of_one_group_in_several_splits_are_reported() -> None:
    numbered = [f"{i}.png" for i in range(6)]
    patients = ["a", "a", "b", "b", "c", "c"]
    assert "add `group: patient`" in group_hints(numbered, "rerrrr", patient=patients)[0]
    assert group_hints(numbered, "rrrree", patient=patients) == []
    assert group_hints(numbered, "rerrrr", animal=patients, age_group=patients) == [], "a variable, and no group"
    slices = [f"im/p{i // 3:02}_slice{i % 3}.png" for i in range(12)]
    assert "12 files have 4 stems, such as 'im/p00'" in group_hints(slices, "rrervererrrr")[0]
    assert group_hints(slices, "rrrrrrvvveee") == []
    folders = [f"scan{i // 3}/{i % 3}.png" for i in range(12)]
    assert "have 4 stems" in group_hints(folders, "rrervererrrr")[0]
    assert group_hints([f"img_{i:03}.png" for i in range(12)], "rrervererrrr") == []
