"""Counterfactuals of one image by one model, as the page requests them.

Abduction (u and x_T of an image) does not depend on the intervention, so it is cached for every image, class and number
of steps, and moving a slider costs only the prediction: one decoding, and up to two more with label corrections.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from causaldiffae.checkpoints.checkpoint import CONFIG
from causaldiffae.checkpoints.model_folders import PREDICTOR_FOLDER
from causaldiffae.counterfactual import Abduction
from causaldiffae.datasets.images import ImageData, finite_images, to_model_range, to_uint8
from causaldiffae.datasets.reference import reference_of_model
from causaldiffae.datasets.registry import DATASETS, can_measure, known_truth, measure
from causaldiffae.datasets.spec import CheckedDo, DatasetSpec
from causaldiffae.datasets.variables import range_decimals, round_in_range
from causaldiffae.diff_scm import DiffScm
from causaldiffae.errors import InputError
from causaldiffae.evaluation.checks import Checks, check
from causaldiffae.guidance import Guidance, guidance_weight
from causaldiffae.metrics.truth import l1_errors
from causaldiffae.predictors.predictor import Readings, open_predictor
from causaldiffae.script_util import STEPS, LoadedModel
from causaldiffae.training.responses import Reader, find_reader, responses_of_model, verdicts

STEP_RANGE: Final = (4, 50)
_MAX_WEIGHTS: Final = {"latents": 3.0, "implicit": 5.0, "explicit": 10.0}
"""Largest guidance weight, for guidance by latents and by Diff-SCM's two kinds of predictor."""
_CACHE_SIZE: Final = 64


class SliderRange(NamedTuple):
    """Ends and step of a slider in label units; the ends are multiples of the step."""

    low: float
    high: float
    step: float


def slider_range(spec: DatasetSpec, i: int) -> SliderRange:
    """The range of the training labels of variable i, rounded outwards to steps of about a hundredth of it."""
    decimals = decimals_of(spec, i)
    step = 10.0**-decimals
    low, high = math.floor(spec.low[i] / step + 1e-6), math.ceil(spec.high[i] / step - 1e-6)
    return SliderRange(*(round(value, max(decimals, 0)) for value in (low * step, high * step, step)))


def decimals_of(spec: DatasetSpec, i: int) -> int:
    """Decimal places that resolve a hundredth of a variable's range; negative for thousands and more."""
    return range_decimals(spec.low[i], spec.high[i])


@dataclass(frozen=True, eq=False)
class SourceImage:
    """A factual image; compared by identity, so it can be the key of a cache.

    Attributes:
        image: (C, S, S) uint8, as the model sees it.
        labels: (n,) in label units, if known.
        digit: its class, if known.
        source: a split of this one image, from which true counterfactuals can be drawn; None for an upload.
        note: how an uploaded file was converted.
    """

    image: np.ndarray
    name: str
    labels: np.ndarray | None = None
    digit: int | None = None
    source: ImageData | None = None
    note: str = ""


@dataclass(frozen=True)
class Request:
    """An intervention on an image.

    Attributes:
        do: variable -> value in label units or name of a category; empty for the reconstruction.
        w: guidance weight, 0 to `Session.max_w`.
        steps: network evaluations in each direction, in `STEP_RANGE`.
        digit: class of the factual image; None for the known one, or the one that a predictor reads.
    """

    image: SourceImage
    do: Mapping[str, float | str] = field(default_factory=dict)
    w: float = 1.0
    steps: int = STEPS
    digit: int | None = None


@dataclass(frozen=True)
class Result:
    """A counterfactual. Images are (C, S, S) uint8, labels (n,) in label units.

    Attributes:
        predicted: labels that the structural model predicts for the counterfactual (z').
        encoded: labels that the model reads from the factual image (z).
        measured: labels measured on the counterfactual image; NaN where the data set cannot measure them.
        truth, true_labels: the true counterfactual, None where it is not known.
        digit, target_digit: class of the factual image, and that of the counterfactual.
        probabilities: discrete variable -> (K,) probabilities of its categories under the intervention, given the
            factual category and the predicted causes; empty for models with real-valued mechanisms.
        l1, do_nothing_l1: mean pixel error to the truth, 0..255, of the counterfactual and of the factual image.
        seconds: time of abduction and prediction.
        abduction_cached: whether the abduction came from the cache.
        read: labels that `reader` reads from the counterfactual image: measured, or read by a predictor or the model's
            encoder; NaN where nothing can.
        verdict: a sentence about how the pictures of this model follow the interventions, or "".
        checks: distances from the training data, and sentences about what is to be doubted.
    """

    request: Request
    spec: DatasetSpec
    counterfactual: np.ndarray
    predicted: np.ndarray
    encoded: np.ndarray
    measured: np.ndarray
    truth: np.ndarray | None
    true_labels: np.ndarray | None
    l1: float | None
    do_nothing_l1: float | None
    digit: int | None
    seconds: float
    abduction_cached: bool
    target_digit: int | None = None
    probabilities: Mapping[str, np.ndarray] = field(default_factory=dict)
    verdict: str = ""
    read: np.ndarray | None = None
    reader: str = ""
    checks: Checks | None = None


class Session:
    """Runs one model. Calls from several threads wait for each other.

    Attributes:
        first_w, max_w: initial and largest guidance weight.
        is_diff_scm: whether the weight is the guidance scale s of Diff-SCM.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded, self.spec = loaded, loaded.spec
        self.device = next(loaded.model.parameters()).device
        self.is_diff_scm = isinstance(loaded.model, DiffScm)
        predictor = "implicit" if getattr(loaded.model, "predictor", None) is None else "explicit"
        self.first_w = guidance_weight(loaded.model)
        self.max_w = _MAX_WEIGHTS[predictor if self.is_diff_scm else "latents"]
        if loaded.config.diffusion.few_steps:  # distilled with the guidance of its teacher
            self.first_w = self.max_w = 1.0
        self._lock, self._responses = threading.Lock(), responses_of_model(loaded.path)
        self._reference = reference_of_model(loaded.path, self.spec)
        self._cached_abduction = lru_cache(_CACHE_SIZE)(self._abduct)
        self._cached_readings = lru_cache(_CACHE_SIZE)(self._read)

    @torch.inference_mode()
    def run(self, request: Request) -> Result:
        """Computes a counterfactual.

        Raises:
            InputError: for a value out of range, an unknown variable, an image of another size, or a class or labels
                that the model needs and that are neither known nor readable.
        """
        do = self.check(request)
        factual = request.image
        with self._lock:
            started = time.perf_counter()
            digit = self._digit(request)
            misses = self._cached_abduction.cache_info().misses
            abducted = self._cached_abduction(factual, digit, request.steps)
            engine = self.loaded.engine(request.steps, guidance=Guidance(request.w))
            prediction = engine.predict(abducted, [do])[0]
            encoded = engine.read_labels(abducted.z)[0].cpu().numpy()
            probabilities = self.loaded.model.scm.counterfactual_probabilities(abducted.z, prediction.z)
            image = to_uint8(finite_images(prediction.images, "counterfactual"))[0].cpu().numpy()
            seconds, reader = time.perf_counter() - started, self._reader
            true_labels, truth = _truth(factual, do)
            predicted = prediction.labels.cpu().numpy()
        return Result(
            request=request,
            spec=self.spec,
            counterfactual=image,
            predicted=predicted[0],
            encoded=encoded,
            measured=measure(self.spec, image[None])[0],
            truth=truth,
            true_labels=true_labels,
            l1=None if truth is None else float(l1_errors(image[None], truth[None])[0]),
            do_nothing_l1=None if truth is None else float(l1_errors(factual.image[None], truth[None])[0]),
            digit=digit,
            seconds=seconds,
            abduction_cached=self._cached_abduction.cache_info().misses == misses,
            target_digit=int(do[self.spec.class_name]) if self.spec.class_name in do else digit,
            probabilities={name: values[0].cpu().numpy() for name, values in probabilities.items()},
            verdict=verdicts(self._responses, do),
            read=None if reader is None else reader.read(image[None])[0],
            reader="" if reader is None else reader.name,
            checks=check(self._reference, self.spec, do, predicted, factual.image[None]),
        )

    @cached_property
    def _reader(self) -> Reader | None:
        """Reads the labels of counterfactuals."""
        measured = self.spec.name in DATASETS and can_measure(self.spec)
        return find_reader(self.spec, self.loaded.engine(), "" if measured else self._own_predictor())

    def _own_predictor(self) -> str:
        """The predictor in the model's folder, "" if there is none."""
        own = Path(self.loaded.path) / PREDICTOR_FOLDER
        return str(own) if (own / CONFIG).is_file() else ""

    def check(self, request: Request) -> CheckedDo:
        """Validates a request and returns its intervention."""
        image, shape = request.image.image, (self.spec.channels, self.spec.image_size, self.spec.image_size)
        if image.shape != shape or image.dtype != np.uint8:
            raise InputError(f"image: expected uint8 of shape {shape}, got {image.dtype} of shape {image.shape}")
        low, high = STEP_RANGE
        if not (isinstance(request.steps, int) and low <= request.steps <= high):
            raise InputError(f"steps: expected an integer in {low}..{high}, got {request.steps}")
        if not 0.0 <= request.w <= self.max_w:
            raise InputError(f"guidance: expected a weight in 0..{self.max_w:g}, got {request.w:g}")
        do = self.spec.check_do(request.do, warn=False)
        for name in self.spec.names_of(do):
            i, value = self.spec.graph.index(name), do[name]
            ends = slider_range(self.spec, i)
            if not ends.low <= value <= ends.high:
                trained = f"{ends.low:g}..{ends.high:g} (the range of the training data)"
                raise InputError(f"{name}: expected a value in {trained}, got {value:g}")
        classes = self.spec.num_classes or 0
        if request.digit is not None and not 0 <= request.digit < classes:
            expected = f"0..{classes - 1}" if classes else "none (the data set has no classes)"
            raise InputError(f"class: expected {expected}, got {request.digit}")
        return do

    def _digit(self, request: Request) -> int | None:
        """The class as requested, known or read from the image; None for a model that needs none."""
        if not self.loaded.model.class_cond:
            return None
        for known in (request.digit, request.image.digit):
            if known is not None:
                return known
        classes = self._readings(request.image, "class").classes
        assert classes is not None
        return int(classes[0])

    def _abduct(self, image: SourceImage, digit: int | None, steps: int) -> Abduction:
        labels = image.labels
        if labels is None and self.loaded.model.needs_labels:
            labels = self._readings(image, "labels").labels[0]
        return self.loaded.engine(steps).abduct(
            to_model_range(image.image[None]).to(self.device),
            None if digit is None else torch.tensor([digit], device=self.device),
            torch.Generator(self.device).manual_seed(0),
            None if labels is None else torch.tensor(labels[None], dtype=torch.float32, device=self.device),
        )

    def _readings(self, image: SourceImage, name: str) -> Readings:
        try:
            return self._cached_readings(image)
        except InputError as error:
            raise InputError(f"{name}: this model needs it and it cannot be read from the image: {error}") from None

    def _read(self, image: SourceImage) -> Readings:
        return open_predictor(self.spec, self._own_predictor(), self.device).predictor.read(image.image[None])


def _truth(image: SourceImage, do: Mapping[str, Any]) -> tuple[np.ndarray | None, np.ndarray | None]:
    known = None if image.source is None else known_truth(image.source, do)
    return (None, None) if known is None else (known[0][0], known[1][0])


def first_intervention(spec: DatasetSpec, encoded: np.ndarray) -> dict[str, float | str]:
    """A visible intervention: the first root, set to 28 % or 48 % of its range, whichever is farther from its value."""
    name = spec.graph.roots[0]
    i = spec.graph.index(name)
    if spec.kinds and spec.kinds[i] != "continuous":
        value = spec.high[i] if encoded[i] < (spec.low[i] + spec.high[i]) / 2 else spec.low[i]
        return {name: spec.category_names(i)[int(value)] if spec.category_names(i) else value}
    low, high = spec.low[i], spec.high[i]
    values = [low + fraction * (high - low) for fraction in (0.28, 0.48)]
    return {name: round_in_range(max(values, key=lambda value: abs(value - encoded[i])), low, high)}


def images_of(data: ImageData) -> list[SourceImage]:
    """The images of a split, with their classes, and with their labels where none is missing."""
    complete = np.all(data.observed, axis=1)
    return [
        SourceImage(
            image=data.images[i],
            name=data.ids[i],
            labels=data.labels[i] if complete[i] else None,
            digit=None if data.classes is None else int(data.classes[i]),
            source=data.subset([i]),
        )
        for i in range(len(data))
    ]
