"""Whether the pictures of a model follow interventions: the share of the requested change that they show.

Every image gets one intervention on each variable: the end of its range, moved inwards by 10 %, that is farther from
the factual label, or another category. The labels of the resulting pictures are read off them, by measurement where the
data set supports it, by a predictor, or by the encoder of the model, which was trained on real images only. With the
mean error |read - requested| of the counterfactuals and that of the factual images,

    share = (error(factual images) - error(counterfactuals)) / (error(factual images) - error of the reader)

is 1 if the pictures show what was requested, 0 if they are no better than the factual images, and negative if they are
worse. The error of the reader is that on the true counterfactual images if they are known, otherwise that on the
factual images with labels; that of the model's own encoder counts as 0, or else a poor encoder would excuse poor
pictures. For a category, or the class of a class-conditional model, the share is that of the pictures that show the
requested one. This is effectiveness (Monteiro et al., 2023) on the scale of the request.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import numpy as np
import torch

from causaldiffae.checkpoints.checkpoint import CONFIG
from causaldiffae.checkpoints.folder_layout import RESPONSES
from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.datasets.captions import NOTABLE_ERRORS, NOTABLE_RANGE, NOTABLE_SHARE
from causaldiffae.datasets.images import ImageData, model_inputs, to_model_range, to_uint8
from causaldiffae.datasets.registry import DATASETS, can_measure, known_truth, measure
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError
from causaldiffae.files.reading import read_json
from causaldiffae.metrics.effectiveness import label_errors, nearest_category
from causaldiffae.metrics.intervals import Figure, mean_figure, statistic_figure
from causaldiffae.predictors.predictor import Predictor, open_predictor, predictor_is_shipped

FILE: Final = RESPONSES
FOLLOWS: Final = 1 - NOTABLE_SHARE
PARTLY: Final = 0.5
HARDLY: Final = 0.1
WIDE: Final = 0.6
"""Width of the interval of a share from which on a variable that may be followed has no verdict."""
EXAMPLE_IMAGES: Final = 112_000
"""Images, with repetitions, after which all variables of the example of own images were followed (docs/results.md)."""
UNDECIDED: Final = "too few images for a verdict"
TOO_SMALL: Final = "the requested change is too small to measure"
WEAK: Final = ("followed in part", "hardly followed", "no better than doing nothing")
MEASURED, PREDICTED, ENCODED = "measured", "read by a predictor", "read by the model's own encoder"
"""What reads labels, see `Reader.name`."""
PATIENCE: Final = 3
MARGIN: Final = 0.1
"""Requested values are this share of the range inside its ends."""


def percent(share: float) -> str:
    """ "12%"; a small negative share is "0%", not "-0%"."""
    return f"{round(share, 2) + 0.0:.0%}"


ClassReader = Callable[[np.ndarray], np.ndarray]
"""Reads classes (N,) off images (N, C, H, W) uint8."""


class Reader(NamedTuple):
    """Reads labels (N, n), in label units, off images (N, C, H, W) uint8; `name` says what it is.

    `read_classes` reads their classes; None if no predictor can.
    """

    name: str
    read: Callable[[np.ndarray], np.ndarray]
    read_classes: ClassReader | None = None


@dataclass(frozen=True)
class Response:
    """The response of pictures to interventions on one variable.

    Attributes:
        share: share of the requested change that the pictures show, with its 95 % interval over images.
        reader: what reads the labels.
    """

    share: Figure
    reader: str

    @property
    def verdict(self) -> str:
        """The response in words."""
        share, low, high = self.share.mean, self.share.low, self.share.high
        if share is None:
            return TOO_SMALL if self.share.images else "unknown"
        if low is not None and high is not None:
            is_open = low < PARTLY if share >= FOLLOWS else high >= FOLLOWS and high - low > WIDE
            if is_open:
                return UNDECIDED
        if share >= PARTLY:
            return "followed" if share >= FOLLOWS else WEAK[0]
        return WEAK[1] if share >= HARDLY else WEAK[2]

    @property
    def is_weak(self) -> bool:
        """Whether the pictures are known to follow the variable less than they should."""
        return self.verdict in WEAK

    def text(self, what: str) -> str:
        """A line about an intervention such as "do(size)"."""
        share, low, high = self.share.mean, self.share.low, self.share.high
        if share is None:
            reason = "" if self.share.images else ", no labels can be read or all images already have the requested one"
            return f"{what}: {self.verdict}{reason}"
        interval = f" ({percent(low)} to {percent(high)})" if low is not None and high is not None else ""
        return f"{what}: {percent(share)} of the requested change{interval}, {self.verdict}"


Responses = Mapping[str, Response]


def find_reader(spec: DatasetSpec, engine: CounterfactualEngine, label_predictor: str = "") -> Reader | None:
    """Returns what reads the labels of pictures; None if nothing can.

    Args:
        label_predictor: folder of a predictor; by default the measurement of the data set, the shipped predictor, or
            the model's encoder, in this order.
    """
    device = _device(engine)
    if not label_predictor and spec.name in DATASETS and can_measure(spec):
        has_classes = spec.num_classes and predictor_is_shipped(spec)
        read_classes = _class_reader(cache(lambda: open_predictor(spec, "", device).predictor)) if has_classes else None
        return Reader(MEASURED, lambda images: measure(spec, images), read_classes)
    if label_predictor or (spec.name in DATASETS and predictor_is_shipped(spec)):
        predictor = open_predictor(spec, label_predictor, device).predictor
        read_classes = _class_reader(lambda: predictor) if predictor.spec.num_classes else None
        return Reader(PREDICTED, lambda images: predictor.read(images).labels, read_classes)
    if engine.model.needs_labels or engine.model.unconditional_abduction:
        return None

    @torch.inference_mode()
    def read(images: np.ndarray) -> np.ndarray:
        z = engine.latents(to_model_range(torch.from_numpy(images)).to(device))
        return engine.read_labels(z).cpu().numpy()

    return Reader(ENCODED, read)


def _class_reader(opened: Callable[[], Predictor]) -> ClassReader:
    """Reads classes with a predictor that is only opened when they are read."""

    def read(images: np.ndarray) -> np.ndarray:
        found = opened().read(images).classes
        assert found is not None
        return found

    return read


def _device(engine: CounterfactualEngine) -> torch.device:
    return next(cast(torch.nn.Module, engine.model).parameters()).device


def requested_values(labels: np.ndarray, spec: DatasetSpec, i: int, rng: np.random.Generator) -> np.ndarray:
    """Values (N,) to request of variable i, far from the factual labels (N,)."""
    low, high, values = spec.low[i], spec.high[i], spec.category_values(i)
    if not values:
        ends = np.array([low + MARGIN * (high - low), high - MARGIN * (high - low)])
        return ends[np.abs(labels[:, None] - ends).argmax(axis=1)]
    factual = nearest_category(labels, values).astype(np.int64)
    return np.asarray(values)[(factual + rng.integers(1, len(values), len(labels))) % len(values)]


def measure_responses(
    engine: CounterfactualEngine,
    data: ImageData,
    reader: Reader,
    seed: int = 0,
    batch_size: int = 32,
    errors: dict[str, np.ndarray | None] | None = None,
) -> dict[str, Response]:
    """Measures the response to interventions on every variable, and on the class of a class-conditional model.

    The result is empty without images that have the labels needed.

    Args:
        data: images of the model's data set that it was not trained on. Missing labels are those that are read, unless
            the model requires labels.
        seed: of the requested categories and of the noise of discrete variables.
        errors: of the reader, from an earlier call with the same data, reader and seed; missing ones are added.
    """
    errors = {} if errors is None else errors
    spec, rng = data.spec, np.random.default_rng(seed)
    if engine.model.needs_labels or engine.model.unconditional_abduction:
        data = data.subset(np.flatnonzero(data.observed.all(axis=1)))
    factual = reader.read(data.images) if len(data) else np.empty((0, len(spec.graph)))
    known = np.where(np.isnan(data.labels), factual, data.labels)
    usable = np.flatnonzero(np.isfinite(known).all(axis=1))
    requested = {name: requested_values(known[:, i], spec, i, rng) for i, name in enumerate(spec.graph.names)}
    classes, read_classes = data.classes, reader.read_classes if engine.model.class_cond else None
    if read_classes is not None and classes is not None and spec.num_classes:
        requested[spec.class_name] = (classes + rng.integers(1, spec.num_classes, len(data))) % spec.num_classes
    read: dict[str, list[np.ndarray]] = {name: [] for name in requested}
    device = _device(engine)
    generator = torch.Generator(device).manual_seed(seed)
    for part in (usable[k : k + batch_size] for k in range(0, len(usable), batch_size)):
        x_start, factual_classes, labels = model_inputs(data.subset(part), device)
        abducted = engine.abduct(x_start, factual_classes, generator, labels)
        results = engine.predict(abducted, [spec.do_labels({name: values[part]}) for name, values in requested.items()])
        for i, (name, result) in enumerate(zip(requested, results, strict=True)):
            finite = result.images.isfinite().flatten(1).all(dim=1).cpu().numpy()
            images = to_uint8(result.images.nan_to_num()).cpu().numpy()
            if read_classes is not None and classes is not None and name == spec.class_name:
                found, unchanged = read_classes(images), classes[part]
            else:
                found, unchanged = reader.read(images)[:, i], factual[part, i]
            read[name].append(np.where(finite, found, unchanged))  # NaN shows nothing of the change
    if not len(usable):
        return {}
    data, factual = data.subset(usable), factual[usable]
    responses = {}
    for i, (name, values) in enumerate(requested.items()):
        if name == spec.class_name:
            responses[name] = class_response(np.concatenate(read[name]), None, values[usable])
            continue
        if name not in errors:
            errors[name] = reader_errors(reader, data, factual, name, values[usable])
        share = requested_share(np.concatenate(read[name]), factual[:, i], values[usable], spec, i, errors[name])
        responses[name] = Response(share, reader.name)
    return responses


def class_response(read: np.ndarray, factual: np.ndarray | None, requested: np.ndarray) -> Response:
    """The response to the class, from classes (N,) read off counterfactuals, and those of the factual images.

    Images that are of the requested class before the intervention are left out.
    """
    rows = np.ones(len(read), bool) if factual is None else factual != requested
    reached = (read == requested)[rows].astype(np.float64)
    share = mean_figure(reached, rate=True) if len(reached) else Figure(None, None, None, 0)
    return Response(share, PREDICTED)


def reader_errors(
    reader: Reader, data: ImageData, factual: np.ndarray, name: str, requested: np.ndarray
) -> np.ndarray | None:
    """Errors (N,) of the reader for a continuous variable, in label units; None for those that count as 0.

    Args:
        factual: labels (N, n) that it reads off the factual images.
        requested: values (N,), for its errors on the true counterfactual images if they are known.
    """
    i = data.spec.graph.index(name)
    if reader.name == ENCODED or data.spec.category_values(i):
        return None
    truth = known_truth(data, {name: requested})
    return np.abs(factual[:, i] - data.labels[:, i] if truth is None else reader.read(truth[1])[:, i] - requested)


def requested_share(
    read: np.ndarray,
    factual: np.ndarray,
    requested: np.ndarray,
    spec: DatasetSpec,
    i: int,
    reader_errors: np.ndarray | None = None,
) -> Figure:
    """The share of a requested change of variable i, from labels (N,) read off counterfactual and factual images.

    Images that are read to be of the requested category before the intervention are left out. There is no share of a
    mean requested change within `NOTABLE_ERRORS` times the error of the reader or `NOTABLE_RANGE` of the range.

    Args:
        reader_errors: (N,) errors of what reads a continuous variable, in label units, NaN where they are unknown; None
            counts as 0.
    """
    categories = [spec.category_values(i)]
    errors, nothing = (
        label_errors(labels[:, None], requested[:, None], categories)[:, 0] for labels in (read, factual)
    )
    known = np.isfinite(errors) & np.isfinite(nothing)
    if categories[0]:
        known &= nothing > 0
        return mean_figure(1.0 - errors[known], rate=True) if known.any() else Figure(None, None, None, 0, len(known))
    errors, nothing, floor = errors[known], nothing[known], np.zeros(int(known.sum()))
    if reader_errors is not None and np.isfinite(reader_errors).any():
        floor = np.where(np.isfinite(reader_errors), reader_errors, np.nanmean(reader_errors))[known]
    left_out, least = int((~known).sum()), NOTABLE_RANGE * (spec.high[i] - spec.low[i])
    if not len(errors) or nothing.mean() <= max(NOTABLE_ERRORS * floor.mean(), least):
        return Figure(None, None, None, len(errors), left_out)

    def share(rows: Any) -> float:
        return float((nothing[rows] - errors[rows]).sum() / max((nothing[rows] - floor[rows]).sum(), 1e-12))

    if len(errors) == 1:
        return Figure(share([0]), None, None, 1, left_out)
    return statistic_figure(share, len(errors), left_out=left_out)


def describe(
    responses: Responses,
    images_seen: int = 0,
    what: Callable[[str], str] = "do({})".format,
    when: str = "",
    notes: Mapping[str, str] | None = None,
) -> list[str]:
    """Lines about all variables, with advice if some are not followed.

    Args:
        images_seen: images that the model was trained on, 0 if this is not known.
        what: name of the intervention in its line.
        when: added to the heading.
        notes: added to the lines of variables that have a share.
    """
    if not responses:
        return []
    first = next((each for each in responses.values() if each.share.images), None)
    found = f", {first.share.images} images, labels {first.reader}" if first else ""
    lines = [f"response to interventions{found}{when}:"]
    known = {name: note for name, note in (notes or {}).items() if responses[name].share.mean is not None}
    lines += [f"  {each.text(what(name))}{known.get(name, '')}" for name, each in responses.items()]
    if weak := [name for name, response in responses.items() if response.is_weak]:
        seen = f" ({images_seen:,} images seen)" if images_seen else ""
        if 0 < images_seen < EXAMPLE_IMAGES:
            seen = f" ({images_seen:,} images seen; the example of own images needed {EXAMPLE_IMAGES:,})"
        lines.append(f"  counterfactuals of {', '.join(weak)} are not reliable yet; train longer{seen}")
    return lines


def images_seen(folder: Path) -> int:
    """Images, with repetitions, that a model folder or a step of a run was trained on; 0 if this is not known."""
    try:
        described = read_json(folder / CONFIG)
        if "images_seen" in described:
            return int(described["images_seen"])
        steps = described.get("trained_steps") or int(folder.name.removeprefix("step_"))
        return int(steps) * int(described["config"]["train"]["batch_size"])  # of one process
    except (OSError, ValueError, TypeError, KeyError, DataError):
        return 0


def mean_share(responses: Responses) -> float:
    """Mean share over variables, each limited to 0..1; unknown ones are left out, NaN if all are."""
    shares = [response.share.mean for response in responses.values() if response.share.mean is not None]
    return float(np.clip(shares, 0, 1).mean()) if shares else float("nan")


def stalled(history: Sequence[float], patience: int = PATIENCE, least: float = 0.01) -> bool:
    """Whether the last `patience` mean shares are less than `least` above the best one before them."""
    return len(history) > patience and max(history[-patience:]) < max(history[:-patience]) + least


def write_responses(folder: Path, responses: Responses) -> None:
    """Writes `FILE` into a run or model folder."""
    content = {name: asdict(response) for name, response in responses.items()}
    (folder / FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def responses_of_model(path: str) -> dict[str, Response]:
    """The responses that training measured for the model at `path`: a model folder, or a step of a run."""
    return next((found for each in (Path(path), Path(path).parent) if (found := read_responses(each))), {})


def verdicts(responses: Responses, names: Iterable[str], weak_only: bool = False) -> str:
    """A sentence about all of `names` whose responses are known, with advice if some are weak; "" if none is.

    Args:
        weak_only: only about those that the pictures follow less than they should.
    """
    found = {name: responses[name] for name in names if name in responses}
    known = {name: each for name, each in found.items() if each.is_weak or not weak_only}
    if not known:
        return ""
    advice = "; train the model longer" if any(each.is_weak for each in known.values()) else ""
    return f"as measured in training, {'; '.join(each.text(f'do({name})') for name, each in known.items())}{advice}"


def read_responses(folder: Path) -> dict[str, Response]:
    """Reads `FILE` of a run or model folder; empty if there is none or it is not valid."""
    try:
        content = read_json(folder / FILE)
        return {name: Response(_figure(each["share"]), str(each["reader"])) for name, each in content.items()}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _figure(given: Mapping[str, Any]) -> Figure:
    """A figure from an untrusted file; `TypeError` for other types."""
    figure = Figure(**given)
    numbers = (figure.mean, figure.low, figure.high)
    if not all(each is None or type(each) in (int, float) for each in numbers) or type(figure.images) is not int:
        raise TypeError(f"expected numbers, got {given}")
    return figure
