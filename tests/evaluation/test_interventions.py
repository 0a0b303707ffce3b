"""Scoring on engines whose answers are known: one that draws the truth, and one that changes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from paths import REPO

from causaldiffae.counterfactual import Counterfactual
from causaldiffae.datasets.images import ImageData, to_model_range
from causaldiffae.datasets.registry import read_split, true_counterfactual
from causaldiffae.errors import InputError
from causaldiffae.evaluation import interventions as evaluation
from causaldiffae.evaluation.interventions import (
    draw_traversal,
    evaluate_interventions,
    shown_labels,
    slope,
    summary,
    traversal,
)
from causaldiffae.generators import morphomnist

DOS: list[dict[str, float]] = [{"thickness": 3.5}, {"intensity": 90.0}]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    folder = tmp_path_factory.mktemp("data") / "digits"
    share = REPO / "assets" / "mnist_share"
    morphomnist.write_dataset(share, folder, num_train=0, num_test=5, workers=1, progress=False)
    return read_split("morphomnist", folder, "test")


class Engine:
    """Answers with the truth, or with the factual images; its reconstruction is up to 40 grey levels too dark."""

    def __init__(self, data: ImageData, knows_the_truth: bool) -> None:
        self.data, self.spec, self.knows_the_truth = data, data.spec, knows_the_truth
        self.done = 0

    def abduct(self, x_start: torch.Tensor, *_: Any) -> SimpleNamespace:
        first, self.done = self.done, self.done + len(x_start)
        return SimpleNamespace(part=self.data.subset(range(first, self.done)))

    def predict(
        self, abducted: SimpleNamespace, dos: Sequence[Mapping[str, float]], guidances: Any = None
    ) -> list[Counterfactual]:
        results = []
        for do in dos:
            images, labels = abducted.part.images, abducted.part.labels
            if not do:
                images = np.maximum(images, 40) - 40
            elif self.knows_the_truth:
                labels, images = true_counterfactual(abducted.part, do)
            results.append(Counterfactual(to_model_range(images), torch.from_numpy(labels), torch.zeros(0)))
        return results


def test_the_truth_scores_nothing_and_is_told_from_reconstruction(digits: ImageData) -> None:
    engine: Any = Engine(digits, knows_the_truth=True)
    results = evaluate_interventions(engine, digits, DOS, batch_size=2)
    for do, result in zip(DOS, results, strict=True):
        assert result.do == do
        assert result.counterfactual_l1 is not None and result.do_nothing_l1 is not None
        np.testing.assert_array_equal(result.counterfactual, result.truth)
        np.testing.assert_array_equal(result.counterfactual_l1, 0.0)
        assert (result.do_nothing_l1 > 0).all() and (result.reconstruction_l1 > 0).all()
        figures = summary(result, digits.spec)
        assert figures["counterfactual_l1"] == 0 and figures["counterfactual_l1_interval"] == 0
        assert figures["predicted_error_thickness"] == figures["predicted_error_intensity"] == 0
    assert not np.array_equal(results[0].counterfactual, results[1].counterfactual)


def test_doing_nothing_scores_as_doing_nothing(digits: ImageData) -> None:
    engine: Any = Engine(digits, knows_the_truth=False)
    seen: list[int] = []
    for result in evaluate_interventions(engine, digits, DOS, batch_size=2, on_batch=seen.append):
        assert result.counterfactual_l1 is not None
        np.testing.assert_array_equal(result.counterfactual_l1, result.do_nothing_l1)
        expected = np.abs(digits.images.astype(float) - np.asarray(result.truth)).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(result.counterfactual_l1, expected)
        assert summary(result, digits.spec)["counterfactual_l1_interval"] > 0
    assert seen == [2, 2, 1]


def test_no_intervention_is_refused(digits: ImageData) -> None:
    engine: Any = Engine(digits, knows_the_truth=True)
    with pytest.raises(InputError, match="at least one intervention"):
        evaluate_interventions(engine, digits, [])


def test_slope_and_traversal(digits: ImageData) -> None:
    x = np.arange(8.0).reshape(4, 2)
    assert slope(2 * x + [5.0, -90.0], x) == pytest.approx(2.0), "differences between images do not count"
    holes = 3 * x
    holes[0, 1] = np.nan
    assert slope(holes, x) == pytest.approx(3.0)
    assert slope(np.ones((4, 2)) * [1.0, 9.0], x) == 0.0
    assert np.isnan(slope(x, np.ones((4, 2)))) and np.isnan(slope(np.full((4, 2), np.nan), x))
    dos = [{"thickness": value} for value in (1.5, 2.5, 3.5)]
    right = traversal(evaluate_interventions(Engine(digits, True), digits, dos), digits.spec)  # type: ignore[arg-type]
    assert right["thickness"]["slope"] == pytest.approx(1.0, abs=0.1)
    assert right["intensity"]["slope"] == pytest.approx(1.0, abs=0.05), "it must follow"
    assert np.isnan(right["intensity"]["change"])
    idle = traversal(evaluate_interventions(Engine(digits, False), digits, dos), digits.spec)  # type: ignore[arg-type]
    assert idle["thickness"]["slope"] == idle["intensity"]["slope"] == 0.0
    other = [{"intensity": value} for value in (90.0, 200.0)]
    still = traversal(evaluate_interventions(Engine(digits, True), digits, other), digits.spec)  # type: ignore[arg-type]
    assert still["thickness"]["change"] < 0.05 and np.isnan(still["thickness"]["slope"])
    assert still["intensity"]["slope"] == pytest.approx(1.0, abs=0.05)


def test_drawing_a_traversal(digits: ImageData) -> None:
    dos = [{"thickness": 1.5}, {"thickness": 3.5}]
    results = evaluate_interventions(Engine(digits, True), digits, dos)  # type: ignore[arg-type]
    low, high = (draw_traversal(results, digits.spec, ["a", "b"], count) for count in (1, 2))
    assert low.shape[2] == 3 and low.dtype == np.uint8
    assert high.shape[0] > 1.6 * low.shape[0], "a row for the model and one for the truth per image"
    unknown = [replace(result, truth=None, true_labels=None) for result in results]
    assert draw_traversal(unknown, digits.spec, ["a", "b"], 1).shape[0] < low.shape[0]


def test_where_nobody_can_measure_the_prediction_is_shown(digits: ImageData) -> None:
    (result,) = evaluate_interventions(Engine(digits, True), digits, [{"thickness": 3.5}])  # type: ignore[arg-type]
    assert shown_labels(result) is result.measured_labels
    blind = replace(result, measured_labels=np.full_like(result.measured_labels, np.nan))
    assert shown_labels(blind) is result.predicted_labels


def test_the_truth_of_an_intervention_is_drawn_once(digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []

    def counted(data: ImageData, do: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
        drawn.append(dict(do))
        return true_counterfactual(data, do)

    monkeypatch.setattr(evaluation, "true_counterfactual", counted)
    asked = [{"thickness": 3.5}, {"thickness": 3.5}, {"intensity": 90.0}, {"thickness": 3.5}]
    results = evaluate_interventions(Engine(digits, True), digits, asked)  # type: ignore[arg-type]
    assert drawn == [{"thickness": 3.5}, {"intensity": 90.0}]
    assert [result.do for result in results] == asked
    assert all(result.counterfactual_l1.max() == 0 for result in results)  # type: ignore[union-attr]
