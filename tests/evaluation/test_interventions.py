"""Scores of engines with known answers: one that renders the truth, and one that changes nothing."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from paths import REPO
from tiny import squares_spec

from causaldiffae.counterfactual import Counterfactual
from causaldiffae.datasets.images import ImageData, to_model_range
from causaldiffae.datasets.registry import measure, read_split, true_counterfactual
from causaldiffae.errors import InputError
from causaldiffae.evaluation import interventions
from causaldiffae.evaluation.interventions import (
    InterventionResult,
    check_labels,
    describe_do,
    evaluate_interventions,
    finite_uint8,
    interval,
    slope,
    summary,
    traversal,
    traversal_values,
    write_csv,
)
from causaldiffae.generators import morphomnist

DOS: list[dict[str, float]] = [{"thickness": 3.5}, {"intensity": 90.0}]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    folder = tmp_path_factory.mktemp("data") / "digits"
    share = REPO / "assets" / "mnist_share"
    morphomnist.write_dataset(share, folder, num_train=0, num_test=5, workers=1, progress=False)
    return read_split("morphomnist", folder, "test")


def test_a_model_that_is_given_labels_names_the_image_and_the_variable_that_lack_one(digits: ImageData) -> None:
    data = replace(digits, labels=digits.labels.copy())
    data.labels[3, 1], data.labels[4] = np.nan, np.nan
    for needs in ({"needs_labels": True}, {"unconditional_abduction": True}):
        model = SimpleNamespace(**({"needs_labels": False, "unconditional_abduction": False} | needs))
        check_labels(model, digits)
        message = (
            rf"labels: image 3 \({data.ids[3]}\) has no value of 'intensity', and 1 other image lacks a label; this"
        )
        with pytest.raises(InputError, match=message):
            check_labels(model, data)
    check_labels(SimpleNamespace(needs_labels=False, unconditional_abduction=False), data)


def test_errors_are_means_over_the_images_whose_true_label_is_known(digits: ImageData) -> None:
    engine = Engine(digits, knows_the_truth=True)
    (result,) = evaluate_interventions(engine, digits, DOS[:1])
    every, known = summary(result, digits.spec), replace(result, true_labels=result.true_labels.copy())
    assert not [name for name in every if name.startswith("not_labelled")]
    known.true_labels[1:3, 1] = np.nan
    found = summary(known, digits.spec)
    measured = np.abs(result.measured_labels - result.true_labels)[[0, 3, 4], 1].mean()
    assert found["measured_error_intensity"] == pytest.approx(measured) and found["not_labelled_intensity"] == 2
    assert np.isfinite(found["predicted_error_intensity"])
    assert found["measured_error_thickness"] == every["measured_error_thickness"]


class Engine:
    """Returns the true or the factual images; its reconstruction is up to 40 grey levels too dark."""

    def __init__(self, data: ImageData, knows_the_truth: bool) -> None:
        self.data, self.spec, self.knows_the_truth, self.done = data, data.spec, knows_the_truth, 0

    def abduct(self, x_start: torch.Tensor, *_: Any) -> SimpleNamespace:
        first, self.done = self.done, self.done + len(x_start)
        return SimpleNamespace(part=self.data.subset(range(first, self.done)))

    def predict(self, abducted: Any, dos: Sequence[Mapping[str, float]], guidances: Any = None) -> list[Counterfactual]:
        results = []
        for do in dos:
            images, labels = abducted.part.images, abducted.part.labels
            if not do:
                images = np.maximum(images, 40) - 40
            elif self.knows_the_truth:
                labels, images = true_counterfactual(abducted.part, do)
            results.append(Counterfactual(to_model_range(images), torch.from_numpy(labels), torch.zeros(0)))
        return results


def evaluate(data: ImageData, dos: Sequence[Any], truth: bool = True, **options: Any) -> list[InterventionResult]:
    return evaluate_interventions(Engine(data, truth), data, dos, batch_size=2, **options)  # type: ignore[arg-type]


def test_the_truth_has_no_error(digits: ImageData) -> None:
    results = evaluate(digits, DOS)
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


def test_an_unchanged_image_has_the_error_of_doing_nothing(digits: ImageData) -> None:
    seen: list[int] = []
    for result in evaluate(digits, DOS, truth=False, on_batch=seen.append):
        assert result.counterfactual_l1 is not None
        np.testing.assert_array_equal(result.counterfactual_l1, result.do_nothing_l1)
        expected = np.abs(digits.images.astype(float) - np.asarray(result.truth)).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(result.counterfactual_l1, expected)
        assert summary(result, digits.spec)["counterfactual_l1_interval"] > 0
    assert seen == [2, 2, 1]


def test_the_class_is_requested_and_read_and_its_true_labels_are_known(digits: ImageData, tmp_path: Path) -> None:
    dos = [{"digit": 7.0, "thickness": 3.5}, {"thickness": 3.5}]
    read = np.array([7, 7, 1, 7, 0])
    first, second = evaluate(digits, dos, truth=False, read_classes=lambda images: read)
    assert first.truth is None and first.counterfactual_l1 is None and second.truth is not None
    assert first.true_labels is not None and second.true_labels is not None
    np.testing.assert_array_equal(first.true_labels, second.true_labels)
    assert summary(first, digits.spec)["reached_digit"] == 0.6 and second.measured_classes is None
    assert "reached_digit" not in summary(second, digits.spec)
    assert describe_do(first.do, digits.spec) == "do(digit=7, thickness=3.5)"
    write_csv(tmp_path / "table.csv", [first, second], digits)
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert len(rows) == 5 * 3 + 5 * 2
    of_class = [row for row in rows if row["variable"] == "digit"]
    assert [row["measured"] for row in of_class] == ["7", "7", "1", "7", "0"]
    assert digits.classes is not None and [int(row["factual"]) for row in of_class] == digits.classes.tolist()
    assert {row["requested"] + row["predicted"] + row["true"] for row in of_class} == {"777"}


def test_a_traversal_of_the_class_has_all_classes_and_no_descendants(digits: ImageData) -> None:
    values = traversal_values(digits.spec, "digit")
    assert values == list(range(10))
    effects = traversal(evaluate(digits, [{"digit": value} for value in values[:2]], truth=False), digits.spec)
    assert all(row["change"] == 0 for row in effects.values()), "the images are the factual ones"


def test_interventions_that_the_generator_cannot_draw_have_no_truth(digits: ImageData) -> None:
    with pytest.warns(UserWarning, match="outside the range"):
        possible, other = evaluate(digits, [{"thickness": 3.0}, {"thickness": -1.0}], truth=False)
    assert possible.truth is not None and other.truth is None and other.true_labels is None
    assert other.counterfactual.shape == possible.counterfactual.shape


def test_an_empty_list_of_interventions_is_refused(digits: ImageData) -> None:
    with pytest.raises(InputError, match="do: expected at least one intervention"):
        evaluate(digits, [])


def test_slopes_are_within_images() -> None:
    x = np.arange(8.0).reshape(4, 2)
    assert slope(2 * x + [5.0, -90.0], x) == pytest.approx(2.0), "differences between images do not count"
    with_nan = 3 * x
    with_nan[0, 1] = np.nan
    assert slope(with_nan, x) == pytest.approx(3.0)
    assert slope(np.ones((4, 2)) * [1.0, 9.0], x) == 0.0
    assert np.isnan(slope(x, np.ones((4, 2)))) and np.isnan(slope(np.full((4, 2), np.nan), x))


def test_traversals_have_slopes_for_descendants_and_changes_for_the_others(digits: ImageData) -> None:
    dos = [{"thickness": value} for value in (1.5, 2.5, 3.5)]
    true = traversal(evaluate(digits, dos), digits.spec)
    assert true["thickness"]["slope"] == pytest.approx(1.0, abs=0.1)
    assert true["intensity"]["slope"] == pytest.approx(1.0, abs=0.05), "intensity follows"
    assert np.isnan(true["intensity"]["change"])
    unchanged = traversal(evaluate(digits, dos, truth=False), digits.spec)
    assert unchanged["thickness"]["slope"] == unchanged["intensity"]["slope"] == 0.0
    leaf = traversal(evaluate(digits, [{"intensity": value} for value in (90.0, 200.0)]), digits.spec)
    assert leaf["thickness"]["change"] < 0.05 and np.isnan(leaf["thickness"]["slope"])
    assert leaf["intensity"]["slope"] == pytest.approx(1.0, abs=0.05)


def test_a_traversal_compares_what_is_set_with_the_request_where_the_truth_is_unknown(digits: ImageData) -> None:
    dos = [{"thickness": value} for value in (1.5, 2.5, 3.5)]
    unknown = [replace(result, truth=None, true_labels=None) for result in evaluate(digits, dos)]
    effects = traversal(unknown, digits.spec)
    assert effects["thickness"]["slope"] == pytest.approx(1.0, abs=0.1)
    assert np.isnan(effects["intensity"]["slope"]), "the true label of an effect is unknown"


def test_changes_are_between_readings_of_one_measurement(digits: ImageData) -> None:
    """A predictor that reads thickness 2 too high sees no change where there is none."""
    results = evaluate(digits, [{"intensity": 90.0}], measurement=lambda images: measure(digits.spec, images) + 2.0)
    assert traversal(results, digits.spec)["thickness"]["change"] < 0.05


def test_intervals_are_students_t_and_unknown_for_one_image() -> None:
    assert interval(np.array([1.0, 2.0, 3.0])) == pytest.approx(4.302653 / 3**0.5, rel=1e-5)
    assert np.isnan(interval(np.array([1.0])))


def test_non_finite_pixels_are_an_error() -> None:
    images = torch.full((3, 1, 2, 2), 1.0)
    assert (finite_uint8(images) == 255).all()
    images[1, 0, 0, 1] = torch.nan
    with pytest.raises(InputError, match=r"counterfactuals: expected finite pixels, .* in 1 of 3 images \(index 1\)"):
        finite_uint8(images)


def test_equal_interventions_share_one_rendered_truth(digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[Any] = []

    def count(data: ImageData, do: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
        rendered.append(dict(do))
        return true_counterfactual(data, do)

    monkeypatch.setattr(interventions, "known_truth", count)
    results = evaluate(digits, [DOS[0], DOS[0], DOS[1], DOS[0]])
    assert rendered == DOS and [result.do for result in results] == [DOS[0], DOS[0], DOS[1], DOS[0]]
    assert all(result.counterfactual_l1.max() == 0 for result in results)  # type: ignore[union-attr]


def test_figures_of_categories_are_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: dict[str, Any] = {"kinds": ("categorical", "binary"), "categories": (("a", "b", "c"), ())}
    spec = replace(squares_spec(), **kinds, low=(0.0, 0.0), high=(2.0, 1.0))
    images = np.zeros((4, 1, 8, 8), np.uint8)
    true = np.array([[2.0, 0.0], [2, 1], [2, 1], [2, 0]])
    measured = np.array([[2.0, 0.0], [0, 1], [2, 0], [np.nan, 0]])
    predicted = np.array([[2.0, 0.4], [1.7, 0.6], [1.2, 0.9], [2, 0.1]])
    result = InterventionResult({"size": 2.0}, images, images, images, images, true, predicted, true, measured)
    figures = summary(result, spec)
    assert figures["measured_error_size"] == pytest.approx(1 / 3) and figures["reached_size"] == pytest.approx(2 / 3)
    assert np.isnan(figures["measured_size"]) and figures["measured_grey"] == 0.25, "codes of three categories"
    assert figures["measured_error_grey"] == 0.25 and figures["predicted_error_grey"] == 0.0
    assert figures["predicted_error_size"] == 0.25, "1.2 is category 1, 1.7 is category 2"
    monkeypatch.setattr(interventions, "measure", lambda spec, images: measured)
    row = traversal([result], spec)
    assert row["size"]["error_rate"] == pytest.approx(1 / 3) and np.isnan(row["size"]["slope"])
    assert row["grey"]["error_rate"] == 0.25, "a descendant"
