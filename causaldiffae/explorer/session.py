"""One question to one model about one picture, and its answer.

Abduction (u and x_T of a picture) does not depend on the intervention, so it is remembered for every picture, class,
model and number of steps: moving a slider runs only the prediction. With DPM-Solver++(2M) and 12 evaluations that is
12 passes of the network; `STEPS` costs 1.2 grey levels more in the null intervention than 25 would (README, "Steps").
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Generic, TypeVar

import numpy as np
import torch

from causaldiffae.counterfactual import Abduction, CounterfactualEngine
from causaldiffae.datasets.images import ImageData, to_model_range, to_uint8
from causaldiffae.datasets.registry import measure, true_counterfactual
from causaldiffae.datasets.registry import truth_is_known as split_knows_truth
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.diff_scm import DiffScm
from causaldiffae.errors import InputError
from causaldiffae.guidance import Guidance
from causaldiffae.metrics.truth import l1_errors
from causaldiffae.predictors.predictor import Readings, check_fits, find_predictor, load_predictor
from causaldiffae.script_util import LoadedModel

STEPS: Final = 12
STEP_RANGE: Final = (4, 50)
_GRADES: Final = {"graded": (1.0, 3.0), "implicit": (1.5, 5.0), "explicit": (4.5, 10.0)}
"""The weight to begin with and the largest, by what it does: grade an intervention or scale Diff-SCM's guidance."""
_CACHE_SIZE: Final = 64

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Picture:
    """An image under study.

    Attributes:
        image: (C, S, S) uint8, as the model sees it.
        name: for people.
        labels: (n,) in label units where they are known.
        digit: its class where it is known.
        source: the split of this one image where the truth can be drawn, else None.
        note: what was done to a file to make it an image of this kind.
    """

    image: np.ndarray
    name: str
    labels: np.ndarray | None = None
    digit: int | None = None
    source: ImageData | None = None
    note: str = ""

    @property
    def key(self) -> str:
        """Differs where pixels or known labels differ."""
        known = b"" if self.labels is None else self.labels.tobytes()
        return hashlib.sha256(self.image.tobytes() + known).hexdigest()


@dataclass(frozen=True)
class Question:
    """What would `picture` have looked like under `do`?

    Attributes:
        do: variable -> value in label units; empty asks for the reconstruction.
        w: grade of the intervention, 0 to `Session.most_w`; steps: evaluations each way, in `STEP_RANGE`.
        digit: the class that the picture is taken for; None for the picture's own, or what is read off it.
    """

    picture: Picture
    do: Mapping[str, float] = field(default_factory=dict)
    w: float = 1.0
    steps: int = STEPS
    digit: int | None = None


@dataclass(frozen=True)
class Answer:
    """What would have been seen. Images are (C, S, S) uint8, labels (n,) in label units.

    Attributes:
        counterfactual, predicted: the picture, and the labels that the structural model predicts for it (z').
        encoded: the labels that the model reads off the factual picture (z).
        measured: the labels read off the counterfactual picture by geometry, NaN where nothing is found.
        truth, true_labels: the true counterfactual, None where it is not known.
        l1, do_nothing_l1: mean pixel error to the truth of the answer and of the factual picture, 0..255; or None.
        digit: the class that was used.
        seconds: it took, and of these `abduction_seconds` for the abduction (0 where it was remembered).
    """

    question: Question
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
    abduction_seconds: float


class Remembered(Generic[Key, Value]):
    """The last values that were made, by key; the oldest is forgotten first. Not for several threads at once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of `key`, made where it is not remembered."""
        if key not in self._kept:
            self._kept[key] = make()
            if len(self._kept) > self.most:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def __len__(self) -> int:
        return len(self._kept)


class Session:
    """Asks one model; safe to be called from several threads, which wait for each other.

    Args:
        loaded: the model.

    Attributes:
        first_w, most_w: the weight of the guidance to begin with, and the largest.
        scales_guidance: the weight is Diff-SCM's scale s, no grade of an intervention.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded, self.spec = loaded, loaded.spec
        self.device = next(loaded.model.parameters()).device
        guide = "explicit" if getattr(loaded.model, "predictor", None) is not None else "implicit"
        self.scales_guidance = isinstance(loaded.model, DiffScm)
        self.first_w, self.most_w = _GRADES[guide if self.scales_guidance else "graded"]
        self._abductions: Remembered[tuple[str, int | None, int], Abduction] = Remembered(_CACHE_SIZE)
        self._lock = threading.Lock()
        self._read = lru_cache(maxsize=_CACHE_SIZE)(self._read_bytes)

    @property
    def remembered(self) -> int:
        """How many abductions are kept."""
        return len(self._abductions)

    @torch.inference_mode()
    def answer(self, question: Question) -> Answer:
        """The answer to a question.

        Raises:
            InputError: for a value out of range, an unknown variable, a picture of another kind, or a class or labels
                that the model needs and nobody knows.
        """
        do = self.check(question)
        with self._lock:
            started = time.perf_counter()
            digit = self.digit_of(question)
            engine = self.loaded.engine(question.steps, guidance=Guidance(question.w))
            key = (question.picture.key, digit, question.steps)
            abducted = self._abductions.get(key, lambda: self._abduct(engine, question.picture, digit))
            abducted_at = time.perf_counter()
            result = engine.predict(abducted, [do])[0]
            encoded = self.spec.denormalise(self.loaded.model.read_labels(abducted.z))[0].cpu().numpy()
            image = to_uint8(result.images.nan_to_num())[0].cpu().numpy()
            seconds = time.perf_counter() - started
            true_labels, truth = self._truth(question.picture, do)
        factual = question.picture.image
        return Answer(
            question=question,
            spec=self.spec,
            counterfactual=image,
            predicted=result.labels[0].cpu().numpy(),
            encoded=encoded,
            measured=measure(self.spec, image[None])[0],
            truth=truth,
            true_labels=true_labels,
            l1=None if truth is None else float(l1_errors(image[None], truth[None])[0]),
            do_nothing_l1=None if truth is None else float(l1_errors(factual[None], truth[None])[0]),
            digit=digit,
            seconds=seconds,
            abduction_seconds=abducted_at - started,
        )

    def check(self, question: Question) -> dict[str, float]:
        """The intervention, checked; `InputError` for whatever else is out of range."""
        shape = (self.spec.channels, self.spec.image_size, self.spec.image_size)
        if question.picture.image.shape != shape or question.picture.image.dtype != np.uint8:
            raise InputError(f"picture: {question.picture.image.shape} given, this model needs {shape}")
        if not (isinstance(question.steps, int) and STEP_RANGE[0] <= question.steps <= STEP_RANGE[1]):
            raise InputError(f"steps: {question.steps} given, {STEP_RANGE[0]}..{STEP_RANGE[1]} are allowed")
        if not 0.0 <= question.w <= self.most_w:
            raise InputError(f"guidance: {question.w:g} given, 0..{self.most_w:g} is allowed")
        do = self.spec.check_do(question.do, warn=False)  # out of range is refused below, in this page's words
        for name, value in do.items():
            i = self.spec.graph.index(name)
            low, high = self.spec.low[i], self.spec.high[i]
            if not low <= value <= high:
                raise InputError(f"{name}: {value:g} given, the model has seen {low:g}..{high:g}")
        most = self.spec.num_classes
        if question.digit is not None and not (most and 0 <= question.digit < most):
            raise InputError(f"class: {question.digit} given, 0..{(most or 1) - 1} are allowed")
        return do

    def digit_of(self, question: Question) -> int | None:
        """The class a picture is taken for: as asked, as known, or as read off it; None where the model needs none."""
        if not self.loaded.model.class_cond:
            return None
        for given in (question.digit, question.picture.digit):
            if given is not None:
                return given
        classes = self._readings(question.picture, "class").classes
        assert classes is not None
        return int(classes[0])

    def _abduct(self, engine: CounterfactualEngine, picture: Picture, digit: int | None) -> Abduction:
        x_start = to_model_range(picture.image[None]).to(self.device)
        classes = None if digit is None else torch.tensor([digit], device=self.device)
        known = picture.labels
        if known is None and self.loaded.model.needs_labels:
            known = self._readings(picture, "labels").labels[0]
        labels = None if known is None else torch.tensor(known[None], dtype=torch.float32, device=self.device)
        generator = torch.Generator(self.device).manual_seed(0)
        return engine.abduct(x_start, classes, generator, labels)

    def _readings(self, picture: Picture, what: str) -> Readings:
        try:
            return self._read(picture.image.tobytes())
        except InputError as error:
            raise InputError(f"{what}: this model needs it and it is not known; to read it off, {error}") from None

    def _read_bytes(self, pixels: bytes) -> Readings:
        path = find_predictor(self.spec)
        predictor = load_predictor(path, self.device).predictor
        check_fits(predictor, self.spec, path)
        shape = (1, self.spec.channels, self.spec.image_size, self.spec.image_size)
        return predictor.read(np.frombuffer(pixels, np.uint8).reshape(shape).copy())

    def _truth(self, picture: Picture, do: Mapping[str, Any]) -> tuple[np.ndarray | None, np.ndarray | None]:
        if picture.source is None or not split_knows_truth(picture.source):
            return None, None
        try:
            labels, images = true_counterfactual(picture.source, do)
        except InputError:  # the generator cannot draw this one; the model's answer stands by itself
            return None, None
        return labels[0], images[0]


def opening_do(spec: DatasetSpec, encoded: np.ndarray) -> dict[str, float]:
    """A first intervention that shows something: the first root, at 28 % or 48 % of its range, whichever is farther."""
    name = spec.graph.roots[0]
    i = spec.graph.index(name)
    if spec.kinds and spec.kinds[i] != "continuous":
        return {name: spec.high[i] if encoded[i] < (spec.low[i] + spec.high[i]) / 2 else spec.low[i]}
    values = [spec.low[i] + share * (spec.high[i] - spec.low[i]) for share in (0.28, 0.48)]
    return {name: float(f"{max(values, key=lambda value: abs(value - encoded[i])):.3g}")}


def pictures_of(data: ImageData) -> list[Picture]:
    """Every image of a split as a picture, with the truth where it is known."""
    found = []
    for i in range(len(data)):
        labelled = data.labelled is None or bool(data.labelled[i])
        found.append(
            Picture(
                image=data.images[i],
                name=data.ids[i],
                labels=data.labels[i] if labelled else None,
                digit=None if data.classes is None else int(data.classes[i]),
                source=data.subset([i]),
            )
        )
    return found
