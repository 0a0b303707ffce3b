"""Words that stand for numbers."""

import pytest

from causaldiffae.datasets.folder.word_forms import describe_numbers


@pytest.mark.parametrize(
    ("words", "unit"),
    [
        (("5 kg", "6kg", "7.5 KG"), "kg"),
        (("1%", "20 %", "3,5%"), "%"),
        (("$5", "$6.50", "$12"), "$"),
        (("<1", "<2", "<10"), "<"),
    ],
)
def test_numbers_with_one_unit(words: tuple[str, ...], unit: str) -> None:
    expected = f"numbers with '{unit}' are words; write the numbers alone, and a unit in the graph file"
    assert describe_numbers(words) == expected


@pytest.mark.parametrize(
    "words",
    [
        ("2023-01-05", "2023-1-5 10:00:00", "2023-02"),
        ("1/2/2023", "13/02/23", "3/4/2023 10:00"),
        ("01.07.2021", "02.07.2021", "03.07.2021"),
        ("10:00", "9:30 pm", "08:00:01"),
    ],
)
def test_dates_and_times(words: tuple[str, ...]) -> None:
    assert describe_numbers(words).startswith("dates and times are words; write them as numbers")


@pytest.mark.parametrize(
    "words",
    [("2D", "3D"), ("1st", "2nd", "3rd"), ("20-29", "30-39", "40-49"), ("T1", "T2", "T3"), ("cap", "hat", "none"), ()],
)
def test_other_words(words: tuple[str, ...]) -> None:
    assert describe_numbers(words) == ""
