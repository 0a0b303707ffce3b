"""Verdicts in words on a test and on an evaluation."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tiny import squares, squares_spec

from causaldiffae.datasets.registry import dataset_spec, example_images, measure, true_counterfactual
from causaldiffae.evaluation.interventions import InterventionResult
from causaldiffae.evaluation.verdict import evaluation_verdict, response_of, verdict_of_test

SPEC = squares_spec(4)
FACTUAL = np.array([[2.0, 60.0], [3.0, 90.0], [4.0, 120.0]])


def result(share: float, do: dict[str, float], **changes: Any) -> InterventionResult:
    """Pictures that move `share` of the way to what is set."""
    images, read = squares(3).images, FACTUAL.copy()
    for name, value in do.items():
        if name != "class":
            i = SPEC.graph.index(name)
            read[:, i] += share * (value - read[:, i])
    given: dict[str, Any] = {"measured_labels": read, "measured_factual": FACTUAL} | changes
    return InterventionResult(do, images, images, images, None, FACTUAL, FACTUAL, None, **given)


def test_every_intervention_has_a_line_and_weak_ones_an_advice() -> None:
    results = [result(0.9, {"size": 6.0}), result(0.12, {"grey": 200.0}), result(0.0, {"size": 7.0, "grey": 200.0})]
    lines, figures = verdict_of_test(results, SPEC, "measured", 64_000)
    assert lines[0] == "response to interventions, 3 images, labels measured:"
    assert lines[1].startswith("  do(size=6): 90% of the requested change (") and lines[1].endswith(", followed")
    assert lines[2].startswith("  do(grey=200): 12% of the requested change (")
    assert lines[2].endswith("), hardly followed")
    assert lines[3].startswith("  size in do(size=7, grey=200): 0% of the requested change (")
    assert lines[3].endswith("no better than doing nothing")
    assert lines[5] == (
        "  counterfactuals of do(grey=200), size in do(size=7, grey=200), grey in do(size=7, grey=200) are not "
        "reliable yet; train longer (64,000 images seen; the example of own images needed 112,000)"
    )
    assert figures["do(grey=200)"]["grey"]["share"]["mean"] == pytest.approx(0.12)
    assert figures["do(grey=200)"]["grey"]["verdict"] == "hardly followed"


def test_what_nothing_can_read_is_unknown() -> None:
    unread = np.full((3, 2), np.nan)
    lines, _ = verdict_of_test([result(1.0, {"size": 6.0}, measured_labels=unread)], SPEC, "", 64_000)
    assert lines == [
        "response to interventions:",
        "  do(size=6): unknown, no labels can be read or all images already have the requested one",
    ]


def test_the_class_counts_where_it_was_another_one() -> None:
    classes = {"factual_classes": np.array([3, 1, 2]), "measured_classes": np.array([3, 3, 2])}
    lines, figures = verdict_of_test([result(0.0, {"class": 3.0}, **classes)], SPEC, "measured", 0)
    share = figures["do(class=3)"]["class"]["share"]
    assert share["mean"] == 0.5 and share["images"] == 2 and "too few images for a verdict" in lines[1]


def test_an_evaluation_compares_with_the_factual_images() -> None:
    def errors(**values: float) -> dict[str, Any]:
        return {
            "answers": {
                kind: {"effectiveness": {"predictor": {"size": {"mean": value, "images": 9}}}}
                for kind, value in values.items()
            }
        }

    results = {
        "model": {"name": "m"},
        "results": {"interventions": {"size": errors(model=1.5, do_nothing=2.0), "grey": {"answers": {}}}},
    }
    assert evaluation_verdict(results) == [
        "m: response to interventions, 9 images, labels read by a predictor:",
        "  do(size): 25% of the requested change, hardly followed",
        "  counterfactuals of size are not reliable yet; train longer",
    ]
    answers = results["results"]["interventions"]["size"]["answers"]
    answers["truth"] = {"effectiveness": {"predictor": {"size": {"mean": 0.9, "images": 9}}}}
    assert evaluation_verdict(results)[1] == "  do(size): 45% of the requested change, hardly followed", "0.5 of 1.1"
    del answers["truth"]
    share = {"mean": 0.9, "low": 0.8, "high": 0.95, "images": 7, "left_out": 2}
    results["results"]["interventions"]["size"]["answers"]["model"]["response"] = {"predictor": share}
    assert evaluation_verdict(results)[1] == "  do(size): 90% of the requested change (80% to 95%), followed"


def test_true_images_follow() -> None:
    """The measurement reads thick strokes as thicker than their labels."""
    spec = dataset_spec("morphomnist")
    data = example_images(spec, 24)
    labels, factual = data.labels[:, 0].astype(np.float64), measure(spec, data.images)[:, 0]
    for value in (1.5, 5.5):
        _, truth = true_counterfactual(data, spec.check_do({"thickness": value}))
        requested, read = np.full(24, value), measure(spec, truth)[:, 0]
        found = response_of(read, factual, requested, spec, "thickness", "measured", labels, read)
        assert found.verdict == "followed" and found.share.mean == pytest.approx(1.0)
        alone = response_of(read, factual, requested, spec, "thickness", "measured")
        assert alone.share.mean is not None and alone.share.mean < 0.97
    same = response_of(factual, factual, labels, spec, "thickness", "measured", labels)
    assert same.share.mean is None and same.verdict == "the requested change is too small to measure"
    same = response_of(factual, factual, factual + 0.1, spec, "thickness", "measured")
    assert same.verdict == "the requested change is too small to measure", "without labels, by the range"


def test_a_poor_encoder_does_not_excuse_the_pictures() -> None:
    labels, factual, requested = np.full(8, 2.0), np.full(8, 4.0), np.full(8, 6.0)
    for reader, verdict in (
        ("read by the model's own encoder", "no better than doing nothing"),
        ("read by a predictor", "the requested change is too small to measure"),
    ):
        assert response_of(factual, factual, requested, SPEC, "size", reader, labels).verdict == verdict


def test_two_images_with_a_wide_interval_have_no_verdict() -> None:
    factual, requested = np.array([2.0, 2.0]), np.array([4.0, 4.0])
    found = response_of(np.array([4.4, 3.4]), factual, requested, SPEC, "size", "measured", factual)
    assert found.share.mean is not None and found.share.mean > 0.7
    assert found.verdict == "too few images for a verdict" and not found.is_weak


def test_the_distance_to_the_truth_is_in_the_line_of_an_intervention() -> None:
    images = squares(3).images
    factual, truth = np.zeros_like(images), np.full_like(images, 100)
    known = {"factual": factual, "truth": truth, "counterfactual": np.full_like(images, 40)}
    lines, _ = verdict_of_test([replace(result(1.0, {"size": 6.0}), **known)], SPEC, "measured", 0)
    assert lines[1].endswith(", followed; L1 to the true images: 60% of doing nothing")
    lines, _ = verdict_of_test([result(1.0, {"size": 6.0})], SPEC, "measured", 0)
    assert lines[1].endswith(", followed")


def test_the_distance_to_the_truth_is_in_the_line_of_an_evaluation() -> None:
    answers = {
        kind: {
            "effectiveness": {"predictor": {"size": {"mean": error, "images": 9}}},
            "truth": {"l1": {"mean": l1}},
        }
        for kind, error, l1 in (("model", 0.2, 6.2), ("do_nothing", 2.0, 10.0))
    }
    results = {"model": {"name": "m"}, "results": {"interventions": {"size": {"answers": answers}}}}
    assert evaluation_verdict(results)[1] == (
        "  do(size): 90% of the requested change, followed; L1 to the true images: 62% of doing nothing"
    )
    answers["truth"] = {"effectiveness": {"predictor": {"size": {"mean": 1.2}}}}
    assert evaluation_verdict(results)[1] == "  do(size): the requested change is too small to measure"
