"""Validates evaluation results files against results.schema.json, so that tables and reports need no checks.

    model {name, recipe, seed, ...}   predictor {digest, ...}
    data {dataset, digest, images, image_size, variables, ...}
    results.interventions.DO.answers.KIND    truth, effectiveness, class_accuracy, cld, realism, effects
    results.composition, .dci, .broken

A figure is an object of numbers `{mean, low, high}`; its mean is null if nothing could be measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import read_json

SCHEMA = Path(__file__).with_name("results.schema.json")


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(read_json(SCHEMA))


def check_results(results: Mapping[str, Any], source: str) -> None:
    """Raises `DataError`, starting with `source`, for the first entry that violates the schema."""
    error = next(_validator().iter_errors(results), None)
    if error is None:
        return
    key = ".".join(str(part)[:80] for part in error.absolute_path) or "results file"
    expected = error.schema.get("description")
    if error.validator == "required":
        expected = f"the keys {', '.join(error.validator_value)}"
    given = repr(error.instance)[:60]
    raise DataError(f"{source}: {key}: expected {expected}, got {given}; delete the file and evaluate again")


def check_digest(results: Mapping[str, Any], digest: str, source: str) -> None:
    """Raises `InputError`, starting with `source`, for results of another model, data set or settings."""
    if results.get("digest") != digest:
        raise InputError(f"{source}: expected results of this model, data and settings, got others; delete it")
