"""Verdicts in words on the counterfactuals of a test or an evaluation, by `training.responses`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from causaldiffae.datasets.captions import NOTABLE_ERRORS
from causaldiffae.datasets.registry import DATASETS, measure
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.evaluation.grids import readings
from causaldiffae.evaluation.interventions import InterventionResult, describe_do
from causaldiffae.evaluation.tables import Results, dig, interventions_of, name_of
from causaldiffae.metrics.intervals import Figure
from causaldiffae.training.responses import (
    ENCODED,
    MEASURED,
    PREDICTED,
    Response,
    Responses,
    class_response,
    describe,
    percent,
    requested_share,
)


def response_of(
    read: np.ndarray,
    factual: np.ndarray,
    requested: np.ndarray,
    spec: DatasetSpec,
    name: str,
    reader: str,
    labels: np.ndarray | None = None,
    truth: np.ndarray | None = None,
) -> Response:
    """The response to one variable, from labels (N,) read off counterfactuals and factual images.

    Args:
        labels: (N,) factual labels, for the error of the reader unless it is the model's encoder.
        truth: (N,) labels that the same reader reads off the true counterfactual images; takes precedence.
    """
    errors = None
    if truth is not None:
        errors = np.abs(truth - requested)
    elif labels is not None and reader != ENCODED:
        errors = np.abs(factual - labels)
    return Response(requested_share(read, factual, requested, spec, spec.graph.index(name), errors), reader)


def readings_of_truth(truth: np.ndarray | None, spec: DatasetSpec, reader: str) -> np.ndarray | None:
    """Labels (N, n) measured in true counterfactual images (N, C, S, S), if there are any and `reader` measures."""
    return None if truth is None or reader != MEASURED or spec.name not in DATASETS else measure(spec, truth)


def responses_to(result: InterventionResult, spec: DatasetSpec, reader: str) -> dict[str, Response]:
    """The response to every variable that an intervention sets; `reader` is what reads the labels.

    Images that are of the requested class before the intervention are left out, as in `requested_share`.
    """
    read, factual = readings(result)
    found, truth = {}, readings_of_truth(result.truth, spec, reader)
    for name in spec.names_of(result.do):
        i, requested = spec.graph.index(name), np.full(len(read), float(result.do[name]))
        known = result.factual_labels[:, i], None if truth is None else truth[:, i]
        found[name] = response_of(read[:, i], factual[:, i], requested, spec, name, reader, *known)
    if spec.class_name in result.do and result.measured_classes is not None:
        wanted = np.full(len(read), result.do[spec.class_name])
        found[spec.class_name] = class_response(result.measured_classes, result.factual_classes, wanted)
    return found


def verdict_of_test(
    results: Sequence[InterventionResult], spec: DatasetSpec, reader: str, images_seen: int
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Lines about the interventions of a test, and the figures behind them by intervention and variable."""
    named: dict[str, Response] = {}
    notes: dict[str, str] = {}
    figures: dict[str, dict[str, Any]] = {}
    for result in results:
        do, found = describe_do(result.do, spec), responses_to(result, spec, reader)
        figures[do] = {name: _plain(response) for name, response in found.items()}
        texts = {name: do if len(result.do) == 1 else f"{name} in {do}" for name in found}
        named |= {texts[name]: response for name, response in found.items()}
        if result.counterfactual_l1 is not None and result.do_nothing_l1 is not None:
            note = l1_note(float(np.nanmean(result.counterfactual_l1)), float(np.nanmean(result.do_nothing_l1)))
            notes |= dict.fromkeys(texts.values(), note)
    return describe(named, images_seen, what=str, notes=notes), figures


def l1_note(error: float | None, nothing: float | None) -> str:
    """An addition to a verdict: mean L1 of counterfactuals to the true images, as a share of that of factual images.

    Labels do not show this: a figure may have the requested shape and be drawn in another place.
    """
    return (
        f"; L1 to the true images: {percent(error / nothing)} of doing nothing" if error is not None and nothing else ""
    )


def _plain(response: Response) -> dict[str, Any]:
    return {**asdict(response), "verdict": response.verdict}


def evaluation_verdict(results: Results) -> list[str]:
    """Lines about the interventions of an evaluation."""
    found: Responses = {name: each for name in interventions_of([results]) if (each := _response(results, name))}
    notes = {name: l1_note(*(_l1(results, name, kind) for kind in ("model", "do_nothing"))) for name in found}
    return [f"{name_of(results)}: {line}" if i == 0 else line for i, line in enumerate(describe(found, notes=notes))]


def _l1(results: Results, name: str, kind: str) -> float | None:
    figure = dig(results, "results", "interventions", name, "answers", kind, "truth", "l1")
    return figure.get("mean") if figure else None


def _response(results: Results, name: str) -> Response | None:
    """The response to a variable, relative to that of the true images if they are known.

    Of results files without it, from mean errors, and so without an interval.
    """
    answers = dig(results, "results", "interventions", name, "answers")
    for reader, key in ((MEASURED, "measured"), (PREDICTED, "predictor")):
        figures = [dig(answers, kind, "effectiveness", key, name) for kind in ("model", "do_nothing", "truth")]
        error, nothing, floor = (figure.get("mean") if figure else None for figure in figures)
        if floor is not None and nothing is not None and nothing <= NOTABLE_ERRORS * floor:
            return Response(Figure(None, None, None, int(figures[0].get("images") or 0)), reader)
        scale = 1 / (1 - floor / nothing) if floor is not None and nothing else 1.0
        found = dig(answers, "model", "response", key)
        if found and found.get("mean") is not None:
            mean, low, high = (None if found[key] is None else scale * found[key] for key in ("mean", "low", "high"))
            return Response(Figure(mean, low, high, found.get("images") or 0), reader)
        if error is not None and nothing:
            images = int(figures[0].get("images") or 0)
            return Response(Figure(scale * (1 - error / nothing), None, None, images), reader)
    return None
