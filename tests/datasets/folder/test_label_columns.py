"""Columns of labels: missing marks, notations of numbers, kinds and categories."""

import numpy as np
import pytest

from causaldiffae.datasets.folder.description import Variable
from causaldiffae.datasets.folder.label_columns import Column, read_column
from causaldiffae.datasets.folder.label_table import Table
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.files.tables import TextColumn


def read(*cells: str, separator: str = ",", **declared: object) -> tuple[Column, Problems]:
    problems, n = Problems(), len(cells)
    table = Table(
        "t", [f"{i}.png" for i in range(n)], np.arange(2, n + 2), None, {"x": TextColumn.of(cells)}, separator
    )
    return read_column(table, "x", Variable(**declared), problems), problems  # type: ignore[arg-type]


def values(*cells: str, **options: object) -> list[float]:
    column, problems = read(*cells, **options)  # type: ignore[arg-type]
    assert not problems.lines
    return [None if np.isnan(value) else round(float(value), 4) for value in column.values]  # type: ignore[misc]


def test_missing_labels_are_marked_by_one_rule() -> None:
    for mark in ("", "NA", "NaN", "nan", "None", "null", "?", "N/A", "<NA>"):
        assert values("1", mark, "2", "3") == [1, None, 2, 3]
        column, problems = read("cap", mark, "hat", "none")
        assert column.categories == ("cap", "hat", "none") and not problems.count
    column, problems = read("NA", "EU", "", categories=("NA", "EU"))
    assert column.values[:2].tolist() == [0, 1] and not problems.notes, "a declared category is not missing"


def test_words_that_are_read_as_missing_are_noted_in_a_column_of_words() -> None:
    _, problems = read("cap", "None", "hat", "None", "", "NA", "-")
    assert problems.notes == [
        "t: x: read as missing: NA (1 row), None (2 rows); a category of this name must be declared in `categories`"
    ]
    assert not read("1", "NA", "2", "3")[1].notes and not read("a", "", "b", "c")[1].notes
    assert not read("a", "NA", "b", "c", missing=("NA",))[1].notes, "declared"


def test_too_many_words_are_no_categories() -> None:
    _, problems = read(*(f"{i} kg" for i in range(1001)))
    assert problems.lines == [
        "t: x: expected at most 1000 categories, got 1001; numbers with 'kg' are words; write the numbers alone, and a "
        "unit in the graph file"
    ]
    _, problems = read(*(f"person {i}" for i in range(1001)))
    assert problems.lines[0].endswith("; images share a category; remove an identifier from the graph and list it in "
                                      "`ignore`")  # fmt: skip


def test_further_marks_are_declared() -> None:
    assert values("1", "-999.0", "2", "x", "5", missing=("-999", "x")) == [1, None, 2, None, 5]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (("0,5", "1,0", "2,5", "10,0"), [0.5, 1, 2.5, 10]),
        (("51,8", "33", "-2,25e1"), [51.8, 33, -22.5]),
        (("1.234,5", "2.000", "7,25"), [1234.5, 2000, 7.25]),
        (("1,234.5", "2,000", "7.25"), [1234.5, 2000, 7.25]),
        (("1,234,567", "5", "12,000"), [1234567, 5, 12000]),
        (("0,123", "1,234", "3"), [0.123, 1.234, 3]),
        (("1\u00a0000,5", "2", "\u22123"), [1000.5, 2, -3]),
        (("+.5", "3.", "1e3"), [0.5, 3, 1000]),
    ],
)
def test_numbers_have_one_notation_in_a_column(cells: tuple[str, ...], expected: list[float]) -> None:
    assert values(*cells) == expected and read(*cells)[0].kind == "continuous"


def test_an_ambiguous_comma_is_refused_unless_the_separator_decides() -> None:
    _, problems = read("1,234", "2,500", "3")
    assert "t: x: expected numbers with a decimal point, got '1,234', whose comma separates" in problems.lines[0]
    assert values("1,234", "2,500", "3", separator=";") == [1.234, 2.5, 3]


def test_mixed_notations_are_refused_by_row() -> None:
    _, problems = read("51.8", "33.5", "20,1")
    assert problems.lines == ["t:4: x: expected a number, got '20,1'"]


def test_words_with_commas_stay_words() -> None:
    assert read("felt, wide", "1,234", "cap", "cap")[0].categories == ("1,234", "cap", "felt, wide")


def test_words_are_compared_in_composed_form() -> None:
    assert values("wei\u00df", "gru\u0308n", "gr\u00fcn", categories=("gr\u00fcn", "wei\u00df")) == [1, 0, 0]
    assert read("gru\u0308n", "gr\u00fcn", "rot")[0].categories == ("gr\u00fcn", "rot")


def test_spellings_of_truth_values_are_joined() -> None:
    column, problems = read("TRUE", "False", "True", "FALSE", "True", "NA")
    assert (column.kind, column.categories) == ("binary", ("FALSE", "True"))
    assert column.values[:5].tolist() == [1, 0, 1, 0, 1] and np.isnan(column.values[5])
    assert problems.notes == [
        "t: x: TRUE, True are read as one category",
        "t: x: FALSE, False are read as one category",
    ]
    assert read("AA", "Aa", "aa")[0].categories == ("AA", "Aa", "aa"), "genotypes"


@pytest.mark.parametrize(
    ("cells", "categories"),
    [
        (("Yes", "YES", "no", "Yes"), ("no", "Yes")),
        (("with", "Without"), ("Without", "with")),
        (("ja", "n"), ("n", "ja")),
        (("beard", "No beard"), ("No beard", "beard")),
        (("smoker", "non-smoker"), ("non-smoker", "smoker")),
        (("OFF", "Auto"), ("OFF", "Auto")),
        (("Male", "female"), ("female", "Male")),
        (("old", "normal"), ("normal", "old")),
        (("aa", "Aa"), ("Aa", "aa")),
    ],
)
def test_the_negative_one_of_two_words_is_the_first_category(
    cells: tuple[str, ...], categories: tuple[str, ...]
) -> None:
    """Others are in alphabetical order, capitals or not, so that 1 is never "no"."""
    column, _ = read(*cells)
    assert (column.kind, column.categories) == ("binary", categories)
    assert column.values[0] == categories.index(cells[0])


def test_the_order_of_other_categories_is_that_of_their_spelling() -> None:
    assert read("Yes", "no", "maybe")[0].categories == ("Yes", "maybe", "no"), "not of two values"
    assert read("1", "no", "no")[0].categories == ("1", "no"), "not of words alone"


def test_equal_numbers_are_one_category() -> None:
    column, _ = read("0", "0.0", "1", "2", "2.00", kind="categorical")
    assert column.categories == ("0", "1", "2") and column.values.tolist() == [0, 0, 1, 2, 2]
    assert read("0", "0.0", "1")[0].kind == "binary"
    assert read("01", "1", "007", kind="categorical")[0].categories == ("01", "1", "007"), "codes"


def test_declared_categories_match_in_another_case_if_that_is_unique() -> None:
    assert values("male", "Male", "FEMALE", categories=("Male", "Female")) == [0, 0, 1]
    _, problems = read("aa", "Aa", "AA", categories=("Aa", "aA"))
    assert problems.lines[0] == "t:2: x: expected one of Aa, aA, got 'aa'" and problems.count == 2


def test_a_cause_that_refuses_every_row_is_reported_once() -> None:
    _, problems = read("old", "young", "old", kind="continuous")
    words = "t: x: expected numbers, got words only, such as 'old', 'young'; declare `kind: categorical`"
    assert problems.lines == [words] and not problems.hints
    _, problems = read("1", "2", "3.5", "4", "unknown", "unknown")
    assert (
        problems.count == 2 and "'unknown' (2 rows) is no number; if it marks missing labels, add" in problems.hints[0]
    )
