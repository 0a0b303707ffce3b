"""Verdicts in words on a test and on an evaluation."""

from typing import Any

import numpy as np
import pytest
from tiny import squares, squares_spec

from causaldiffae.evaluation.interventions import InterventionResult
from causaldiffae.evaluation.verdict import evaluation_verdict, verdict_of_test

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
        "reliable yet; train longer (64,000 images seen)"
    )
    assert figures["do(grey=200)"]["grey"]["share"]["mean"] == pytest.approx(0.12)
    assert figures["do(grey=200)"]["grey"]["verdict"] == "hardly followed"


def test_what_nothing_can_read_is_unknown() -> None:
    unread = np.full((3, 2), np.nan)
    lines, _ = verdict_of_test([result(1.0, {"size": 6.0}, measured_labels=unread)], SPEC, "", 64_000)
    assert lines == [
        "response to interventions:",
        "  do(size=6): unknown, no labels can be read or all images already have the requested ones",
    ]


def test_the_class_counts_where_it_was_another_one() -> None:
    classes = {"factual_classes": np.array([3, 1, 2]), "measured_classes": np.array([3, 3, 2])}
    lines, figures = verdict_of_test([result(0.0, {"class": 3.0}, **classes)], SPEC, "measured", 0)
    share = figures["do(class=3)"]["class"]["share"]
    assert share["mean"] == 0.5 and share["images"] == 2 and "followed in part" in lines[1]


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
    share = {"mean": 0.9, "low": 0.8, "high": 0.95, "images": 7, "left_out": 2}
    results["results"]["interventions"]["size"]["answers"]["model"]["response"] = {"predictor": share}
    assert evaluation_verdict(results)[1] == "  do(size): 90% of the requested change (80% to 95%), followed"
