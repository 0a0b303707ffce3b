"""Texts below pictures: what is read beside what was requested, and the mark of a notable difference."""

from dataclasses import replace

import numpy as np
import pytest
from tiny import squares_spec

from causaldiffae.datasets.captions import (
    caption_note,
    caption_texts,
    join_captions,
    label_captions,
    notable_difference,
)
from causaldiffae.datasets.registry import dataset_spec

SPEC = squares_spec()  # size 1..7, grey 50..250


def differs(read: float, requested: float, factual: float, span: float = 10.0, error: float = 0.0) -> bool:
    columns = (np.array([value]) for value in (read, requested, factual))
    return bool(notable_difference(*columns, span, reader_error=error)[0])


@pytest.mark.parametrize(
    ("read", "requested", "factual", "notable"),
    [
        (7.9, 10.0, 0.0, True),  # a fifth of the requested change of 10 is missing, and more
        (8.1, 10.0, 0.0, False),
        (5.4, 5.0, 5.0, False),  # no change was requested: a twentieth of the range counts
        (5.6, 5.0, 5.0, True),
        (5.6, 5.0, float("nan"), True),
        (float("nan"), 5.0, 0.0, False),
    ],
)
def test_a_difference_is_notable_by_the_requested_change_and_the_range(
    read: float, requested: float, factual: float, notable: bool
) -> None:
    assert differs(read, requested, factual) == notable


def test_a_poor_reader_makes_larger_differences_unremarkable() -> None:
    assert differs(7.0, 10.0, 0.0, error=1.0) and not differs(7.0, 10.0, 0.0, error=2.0)


def test_another_category_is_notable() -> None:
    read, requested = np.array([0.0, 1.1, 2.0, np.nan]), np.array([0.0, 1.0, 1.0, 1.0])
    found = notable_difference(read, requested, requested, 2.0, (0.0, 1.0, 2.0))
    assert found.tolist() == [False, False, True, False]


def test_texts_say_what_is_read_and_what_was_requested() -> None:
    requested, factual = np.array([[6.0, 200.0]] * 2), np.array([[2.0, 100.0]] * 2)
    read = np.array([[5.9, 120.0], [3.0, np.nan]])
    assert caption_texts(SPEC, requested, read, factual, ["size"]) == {
        "size": ["5.9 (6)", "3 (6) !"],
        "grey": ["120 (200) !", "200 predicted"],
    }
    unread = caption_texts(SPEC, requested, np.full((2, 2), np.nan), factual, ["size"])
    assert unread == {"size": ["6 requested"] * 2, "grey": ["200 predicted"] * 2}


def test_categories_have_names() -> None:
    spec = replace(SPEC, kinds=("binary", "continuous"), categories=(("small", "large"), ()), low=(0.0, 50.0),
                   high=(1.0, 250.0))  # fmt: skip
    read, requested = np.array([[0.0, 100.0]]), np.array([[1.0, 100.0]])
    assert caption_texts(spec, requested, read, read, ["size"])["size"] == ["small (large) !"]


def test_captions_shorten_names_that_do_not_fit_and_mark_missing_labels() -> None:
    assert label_captions(dataset_spec("morphomnist"), np.array([[2.5, np.nan]])) == ["thickness 2.5, intensity ?"]
    assert label_captions(dataset_spec("pendulum", 32, 3), np.arange(4.0)[None]) == ["ang 0, lig 1\nshalen 2, shapos 3"]


def test_long_texts_have_a_line_each_and_many_are_shortened() -> None:
    few = {"thickness": ["3.12 (4.5) !"], "intensity": ["181 (190)"]}
    assert join_captions(few) == ["thickness 3.12 (4.5) !\nintensity 181 (190)"]
    many = {f"long_name_{i}": ["3.12 (4.5) !"] for i in range(6)}
    (caption,) = join_captions(many)
    assert caption.count("\n") == 5 and caption.startswith("lonnam0 3.12 (4.5) !\nlonnam1 ")
    figures = {"position": ["22 (22)"] * 2, "size": ["13 (13.7) !"] * 2, "hue": ["0.436 (0.469)"] * 2}
    figures |= {"shape": ["disc (disc)", "triangle (triangle)"], "brightness": ["0.823 (0.852) !"] * 2}
    for shown, caption in zip(figures["shape"], join_captions(figures), strict=True):
        assert caption == f"pos 22 (22), siz 13 (13.7) !\nhue 0.436 (0.469)\nsha {shown}\nbri 0.823 (0.852) !"


def test_the_note_names_the_reader() -> None:
    assert caption_note("measured").startswith("labels of counterfactuals: measured (requested or predicted); !")
    assert caption_note("").endswith("requested or predicted, not read")
