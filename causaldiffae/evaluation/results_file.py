"""What a results file of the benchmark must look like, so that tables and the report can take it as it is.

    model {name, recipe, seed, ...}   predictor {digest, ...}
    data {dataset, digest, images, image_size, variables, ...}
    results.interventions.DO.answers.KIND    truth, effectiveness, class_accuracy, cld, realism, effects
    results.composition, .dci, .broken

A *figure* is `{mean, low, high}`, three numbers; or its mean is null, where nothing could be measured. Files may come
from elsewhere: whatever else stands where a figure is read is a `DataError` that names its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from causaldiffae.errors import DataError

KINDS = ("model", "truth", "do_nothing", "nearest")
_LARGEST = 1e300


def check_results(found: Mapping[str, Any], where: str) -> None:
    """`DataError` that starts with `where` for the first part of a results file that is not as described."""
    check = _Check(where)
    for part in ("model", "data", "predictor", "settings", "results"):
        check.mapping(found.get(part), part)
    model, data, results = found["model"], found["data"], found["results"]
    for part, keys in (("model", ("name", "recipe")), ("data", ("dataset", "digest")), ("predictor", ("digest",))):
        for key in keys:
            check.text(found[part].get(key), f"{part}.{key}")
    check.whole(model.get("seed"), "model.seed")
    for key in ("images", "image_size"):
        check.whole(data.get(key), f"data.{key}")
    variables = data.get("variables")
    if not isinstance(variables, list) or not all(isinstance(name, str) for name in variables):
        check.refuse("data.variables", variables, "a list of names")
    for part in ("versions", "timing"):
        check.mapping(found.get(part) or {}, part)
    _check_judge(found["predictor"].get("figures"), check)
    for do, answer in check.mapping(results.get("interventions"), "results.interventions").items():
        _check_intervention(answer, f"results.interventions.{do[:80]}", check)
    check.figures(results.get("composition"), "results.composition", 1)
    check.figures(results.get("dci"), "results.dci", 2)
    for do, row in check.mapping(results.get("broken"), "results.broken").items():
        for key in ("images", "pixels"):
            place = f"results.broken.{do[:80]}"
            check.whole(check.mapping(row, place).get(key), f"{place}.{key}")


def _check_judge(figures: Any, check: _Check) -> None:
    kinds = check.mapping(figures or {}, "predictor.figures")
    for kind in ("observational", "interventional"):
        if isinstance(kinds.get(kind), dict):
            for name, value in kinds[kind].items():
                check.number(value, f"predictor.figures.{kind}.{name[:80]}")


def _check_intervention(answer: Any, place: str, check: _Check) -> None:
    check.mapping(answer, place)
    bounds = answer.get("range")
    if bounds is not None and (not isinstance(bounds, list) or len(bounds) != 2):
        check.refuse(f"{place}.range", bounds, "two numbers")
    for bound in bounds or ():
        check.number(bound, f"{place}.range")
    check.figures(answer.get("reversibility"), f"{place}.reversibility", 1)
    for kind, scores in check.mapping(answer.get("answers"), f"{place}.answers").items():
        at = f"{place}.answers.{kind[:80]}"
        if kind not in KINDS:
            check.refuse(f"{place}.answers", kind, f"one of {', '.join(KINDS)}")
        check.mapping(scores, at)
        for key, depth in (("truth", 1), ("effectiveness", 2), ("class_accuracy", 0), ("cld", 0)):
            check.figures(scores.get(key), f"{at}.{key}", depth)
        realism = dict(check.mapping(scores.get("realism") or {}, f"{at}.realism"))
        check.text(realism.pop("against", ""), f"{at}.realism.against")
        check.figures(realism, f"{at}.realism", 1)
        for name, effect in check.mapping(scores.get("effects") or {}, f"{at}.effects").items():
            for key in ("model", "truth", "error"):
                place_of_effect = f"{at}.effects.{name[:80]}"
                if check.mapping(effect, place_of_effect).get(key) is None:
                    check.refuse(f"{place_of_effect}.{key}", None, "a figure")
                check.figures(effect[key], f"{place_of_effect}.{key}", 0)


class _Check:
    """Says where in which file something else was found."""

    def __init__(self, where: str) -> None:
        self.where = where

    def refuse(self, place: str, value: Any, needed: str) -> None:
        raise DataError(f"{self.where}: {place} is {repr(value)[:60]}, {needed} is needed; delete it and evaluate anew")

    def mapping(self, value: Any, place: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.refuse(place, value, "a mapping")
        return value  # type: ignore[no-any-return]

    def text(self, value: Any, place: str) -> None:
        if not isinstance(value, str):
            self.refuse(place, value, "a text")

    def whole(self, value: Any, place: str) -> None:
        if type(value) is not int or abs(value) >= 2**63:
            self.refuse(place, value, "a whole number")

    def number(self, value: Any, place: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
            self.refuse(place, value, "a number")

    def figures(self, value: Any, place: str, depth: int) -> None:
        """A figure under `depth` more keys; nothing at all is allowed, and so is what is no mapping above it."""
        if value is None:
            return
        self.mapping(value, place)
        if depth:
            for key, inner in value.items():
                if isinstance(inner, dict) or inner is None:  # others are settings beside the figures
                    self.figures(inner, f"{place}.{key[:80]}", depth - 1)
                elif depth == 1:
                    self.refuse(f"{place}.{key[:80]}", inner, "a figure")
        elif value.get("mean") is not None or "mean" not in value:
            for key in ("mean", "low", "high"):
                self.number(value.get(key), f"{place}.{key}")
