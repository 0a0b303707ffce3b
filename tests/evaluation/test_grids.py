"""Grids of a test: their sizes, and what stands below the counterfactuals."""

from dataclasses import replace

import numpy as np
import pytest
from tiny import squares, squares_spec

from causaldiffae.evaluation.grids import draw_grid, draw_traversal, readings, result_captions
from causaldiffae.evaluation.interventions import InterventionResult

SPEC = squares_spec(4)
ROWS = np.arange(2)


@pytest.fixture
def result() -> InterventionResult:
    """do(size = 6) on two squares: the first picture follows, the second does not."""
    images = squares(2).images
    factual, predicted = np.array([[2.0, 60.0], [3.0, 90.0]]), np.array([[6.0, 180.0], [6.0, 180.0]])
    measured = np.array([[5.8, 175.0], [3.2, 180.0]])
    return InterventionResult(
        {"size": 6.0}, images, images, images, images, factual, predicted, predicted, measured,
        measured_factual=factual,
    )  # fmt: skip


def test_captions_say_what_is_read_beside_what_was_requested(result: InterventionResult) -> None:
    assert result_captions(result, SPEC, ROWS) == ["size 5.8 (6), grey 175 (180)", "size 3.2 (6) !, grey 180 (180)"]
    assert result_captions(result, SPEC, ROWS[1:]) == ["size 3.2 (6) !, grey 180 (180)"]
    poor = replace(result, measured_factual=result.factual_labels + 2.0)
    assert "!" not in "".join(result_captions(poor, SPEC, ROWS)), "the reader itself is wrong by 2"


def test_what_nothing_can_read_is_requested_or_predicted(result: InterventionResult) -> None:
    unread = replace(result, measured_labels=np.full((2, 2), np.nan), measured_factual=None)
    assert result_captions(unread, SPEC, ROWS) == ["size 6 requested, grey 180 predicted"] * 2


def test_the_encoder_reads_where_there_is_no_measurement(result: InterventionResult) -> None:
    read, factual = result.measured_labels, result.factual_labels
    encoded = replace(result, measured_labels=np.full((2, 2), np.nan), read_labels=read, read_factual=factual)
    assert readings(encoded)[0] is read and "size 3.2 (6) !" in result_captions(encoded, SPEC, ROWS)[1]


def test_the_class_is_read_beside_the_requested_one(result: InterventionResult) -> None:
    of_class = replace(result, do={"class": 3.0}, measured_classes=np.array([3, 1]))
    assert [caption.split("class ")[1] for caption in result_captions(of_class, SPEC, ROWS)] == ["3 (3)", "1 (3) !"]
    assert "class 3 requested" in result_captions(replace(of_class, measured_classes=None), SPEC, ROWS)[0]


def test_a_traversal_is_drawn_above_the_true_images(result: InterventionResult) -> None:
    one, two = (draw_traversal([result] * 2, SPEC, ["a", "b"], count) for count in (1, 2))
    assert one.shape[2] == 3 and one.dtype == np.uint8
    assert two.shape[0] > 1.6 * one.shape[0], "two rows per image"
    unknown = [replace(result, truth=None, true_labels=None)] * 2
    assert draw_traversal(unknown, SPEC, ["a", "b"], 1).shape[0] < one.shape[0]
    with_truth, without = (draw_grid([each], SPEC, 2) for each in (result, unknown[0]))
    assert with_truth.shape[1] > without.shape[1]


def test_the_spread_of_draws_has_a_column(result: InterventionResult) -> None:
    spread = {"pixel_std": np.ones((2, 1, 8, 8), np.float32), "label_std": np.array([[0.0, 4.0]] * 2)}
    with_spread, without = (draw_grid([each], SPEC, 2) for each in (replace(result, **spread), result))
    assert with_spread.shape[1] > without.shape[1]
