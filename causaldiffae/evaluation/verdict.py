"""Verdicts in words on the counterfactuals of a test or an evaluation, by `training.responses`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.evaluation.grids import readings
from causaldiffae.evaluation.interventions import InterventionResult, describe_do
from causaldiffae.evaluation.tables import Results, dig, interventions_of, name_of
from causaldiffae.metrics.intervals import Figure, mean_figure
from causaldiffae.training.responses import MEASURED, PREDICTED, Response, Responses, describe, requested_share


def response_of(
    read: np.ndarray, factual: np.ndarray, requested: np.ndarray, spec: DatasetSpec, name: str, reader: str
) -> Response:
    """The response to one variable, from labels (N,) read off counterfactuals and factual images."""
    return Response(requested_share(read, factual, requested, spec, spec.graph.index(name)), reader)


def responses_to(result: InterventionResult, spec: DatasetSpec, reader: str) -> dict[str, Response]:
    """The response to every variable that an intervention sets; `reader` is what reads the labels.

    Images that are of the requested class before the intervention are left out, as in `requested_share`.
    """
    read, factual = readings(result)
    found = {}
    for name in spec.names_of(result.do):
        i, requested = spec.graph.index(name), np.full(len(read), float(result.do[name]))
        found[name] = response_of(read[:, i], factual[:, i], requested, spec, name, reader)
    if spec.class_name in result.do and result.measured_classes is not None:
        wanted = np.full(len(read), result.do[spec.class_name])
        found[spec.class_name] = class_response(result.measured_classes, result.factual_classes, wanted)
    return found


def class_response(read: np.ndarray, factual: np.ndarray | None, requested: np.ndarray) -> Response:
    """The response to the class, from classes (N,) read off counterfactuals, and those of the factual images."""
    rows = np.ones(len(read), bool) if factual is None else factual != requested
    reached = (read == requested)[rows].astype(np.float64)
    share = mean_figure(reached, rate=True) if len(reached) else Figure(None, None, None, 0)
    return Response(share, PREDICTED)


def verdict_of_test(
    results: Sequence[InterventionResult], spec: DatasetSpec, reader: str, images_seen: int
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Lines about the interventions of a test, and the figures behind them by intervention and variable."""
    named: dict[str, Response] = {}
    figures: dict[str, dict[str, Any]] = {}
    for result in results:
        do, found = describe_do(result.do, spec), responses_to(result, spec, reader)
        figures[do] = {name: _plain(response) for name, response in found.items()}
        named |= {do if len(result.do) == 1 else f"{name} in {do}": response for name, response in found.items()}
    return describe(named, images_seen, what=str), figures


def _plain(response: Response) -> dict[str, Any]:
    return {**asdict(response), "verdict": response.verdict}


def evaluation_verdict(results: Results) -> list[str]:
    """Lines about the interventions of an evaluation."""
    found: Responses = {name: each for name in interventions_of([results]) if (each := _response(results, name))}
    return [f"{name_of(results)}: {line}" if i == 0 else line for i, line in enumerate(describe(found))]


def _response(results: Results, name: str) -> Response | None:
    """The response to a variable; of results files without it, from mean errors, and so without an interval."""
    answers = dig(results, "results", "interventions", name, "answers")
    for reader, key in ((MEASURED, "measured"), (PREDICTED, "predictor")):
        found = dig(answers, "model", "response", key)
        if found and found.get("mean") is not None:
            return Response(Figure(found["mean"], found["low"], found["high"], found.get("images") or 0), reader)
        figures = [dig(answers, kind, "effectiveness", key, name) for kind in ("model", "do_nothing")]
        error, nothing = (figure.get("mean") if figure else None for figure in figures)
        if error is not None and nothing:
            images = int(figures[0].get("images") or 0)
            return Response(Figure(1 - error / nothing, None, None, images), reader)
    return None
