"""The evaluation protocol: interventions per test image, and the model outputs to score.

For every variable v, every image gets one intervention do(v = value), with the value uniform over the label's range in
the test split. Values depend only on the seed and on the image's index in the split, not on the number of images. One
abduction yields the reconstruction and all counterfactuals; the axioms need further ones.

Images are processed in fixed chunks, each by one process and one thread, so the results do not depend on the number of
processes. Outputs are arrays with one row per image; averages are computed in `scores.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from causaldiffae.config import (
    CLASS_WEIGHT_HELP,
    CORRECTION_PREDICTOR_HELP,
    KEEP_CAUSES_HELP,
    KEEP_UNCHANGED_HELP,
    LABEL_CORRECTIONS_HELP,
    SOLVER_HELP,
    USE_LABELS_HELP,
    WEIGHT_HELP,
    flag,
    with_help,
)
from causaldiffae.counterfactual import AbductionKind, Counterfactual, CounterfactualEngine
from causaldiffae.datasets.images import ImageData, evenly_spread, model_inputs, to_uint8
from causaldiffae.datasets.registry import measure, true_counterfactual, truth_is_known
from causaldiffae.datasets.spec import CheckedDo, DatasetSpec
from causaldiffae.errors import InputError, check_least
from causaldiffae.guidance import CLASS_WEIGHT
from causaldiffae.metrics import axioms
from causaldiffae.predictors.correction import LABEL_CORRECTIONS
from causaldiffae.script_util import SOLVER, STEPS
from causaldiffae.solvers import parse_enum

PROTOCOL: Final = "causaldiffae benchmark"  # the name in results files
VERSION: Final = 3

Values = dict[str, Tensor]
"""Variable -> (B,) values in label units."""


@with_help
@dataclass(frozen=True)
class ProtocolSettings:
    """Options that determine the results of an evaluation."""

    num_images: int = flag(0, "test images, evenly spread over the split; 0 for all")
    variables: tuple[str, ...] = flag((), "variables to intervene on; empty for all")
    solver: str = flag(SOLVER, SOLVER_HELP)
    steps: int = flag(STEPS, "network evaluations in each direction")
    grid: str = flag("", "spacing of noise levels: centred, logsnr, rho or uniform; default: that of the solver")
    abduction: str = flag("ddim", "x_T: ddim encodes the image, noise samples around it (published), none samples")
    stop: float = flag(1.0, "encode and decode only up to this fraction of T")
    w: float | None = flag(None, WEIGHT_HELP)
    w_class: float = flag(CLASS_WEIGHT, CLASS_WEIGHT_HELP)
    label_corrections: int = flag(LABEL_CORRECTIONS, LABEL_CORRECTIONS_HELP)
    correction_predictor: str = flag("", CORRECTION_PREDICTOR_HELP)
    keep_unchanged: float | None = flag(None, KEEP_UNCHANGED_HELP)
    keep_causes: bool | None = flag(None, KEEP_CAUSES_HELP)
    use_labels: bool = flag(False, USE_LABELS_HELP)
    seed: int = flag(0, "seed of intervention values, of resampling, and of a sampled x_T")
    chunk: int = flag(50, "images per batch")
    back_images: int = flag(400, "images for reversibility over one cycle")
    cycles: int = flag(10, "cycles of long composition and reversibility; 1 disables both")
    cycle_images: int = flag(50, "images for long composition and reversibility")
    dci_resamples: int = flag(10, "refits for the intervals of DCI; 0 disables DCI")
    ema: str = flag("", "rate of the moving average of the weights; default: the first one")

    def __post_init__(self) -> None:
        parse_enum(AbductionKind, self.abduction, "abduction")
        check_least(
            self, num_images=0, steps=1, seed=0, chunk=1, back_images=0, cycles=1, cycle_images=0, dci_resamples=0
        )
        check_least(self, label_corrections=0)

    def to_dict(self) -> dict[str, Any]:
        """All options, `use_labels` only if it is set, so that the digests of earlier results stay valid."""
        options = asdict(self)
        if not self.use_labels:
            del options["use_labels"]
        return options


@dataclass(frozen=True)
class Task:
    """Images and interventions of one evaluation.

    Attributes:
        data: N test images with their labels.
        indices: (N,) indices into the test split.
        variables: the variables to intervene on.
        values: variable -> (N,) float64 values of the interventions.
        ranges: variable -> lowest and highest test label.
        long_cycle: (N,) int64, index into `variables` of the image's long reversibility cycle, or -1.
        short_cycle: (N,) bool mask of images for reversibility over one cycle.
    """

    data: ImageData
    indices: np.ndarray
    variables: tuple[str, ...]
    values: dict[str, np.ndarray]
    ranges: dict[str, tuple[float, float]]
    long_cycle: np.ndarray
    short_cycle: np.ndarray

    def __len__(self) -> int:
        return len(self.data)

    @property
    def labels(self) -> np.ndarray:
        """(N, n) float32 factual labels."""
        return self.data.labels

    @property
    def truth_is_known(self) -> bool:
        """Whether the true counterfactual images can be rendered, or some are in the folder of the data set."""
        return truth_is_known(self.data) or self.data.pairs is not None

    def chunks(self, size: int) -> list[np.ndarray]:
        """Row indices of each chunk; images are grouped by their cycles, the long ones first."""
        kinds = 2 * (self.long_cycle >= 0) + self.short_cycle
        groups = [np.flatnonzero(kinds == kind) for kind in (3, 2, 1, 0)]
        return [rows[start : start + size] for rows in groups for start in range(0, len(rows), size)]

    def join(self, parts: Sequence[dict[str, np.ndarray]], size: int) -> dict[str, np.ndarray]:
        """Joins the outputs of all chunks of `chunks(size)`, in image order."""
        order = np.argsort(np.concatenate(self.chunks(size)))
        return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}


def draw_values(spec: DatasetSpec, low: np.ndarray, high: np.ndarray, indices: np.ndarray, seed: int) -> np.ndarray:
    """Values (N, n) float64, uniform over low..high for continuous variables and over the categories for others."""
    values = np.empty((len(indices), len(spec.graph)))
    for row, index in zip(values, indices, strict=True):
        row[:] = np.random.Generator(np.random.Philox(key=[seed, int(index)])).random(len(spec.graph))
    for i in range(len(spec.graph)):
        if spec.kind(i) == "continuous":
            values[:, i] = low[i] + values[:, i] * (high[i] - low[i])
        else:
            allowed = np.array(spec.category_values(i))
            values[:, i] = allowed[np.minimum((values[:, i] * len(allowed)).astype(int), len(allowed) - 1)]
    return values


def make_task(test: ImageData, settings: ProtocolSettings) -> Task:
    """Selects images of the test split and draws their interventions.

    Raises:
        InputError: for more images than the split has, an unknown variable, or one without labels.
    """
    spec, total = test.spec, len(test)
    count = settings.num_images or total
    if count > total:
        raise InputError(f"num_images: expected at most {total}, the size of the test split, got {count}")
    for name in settings.variables:
        spec.graph.index(name, "variables")
    variables = tuple(settings.variables) or spec.graph.names
    labelled = [name for i, name in enumerate(spec.graph.names) if not np.isnan(test.labels[:, i]).all()]
    for name in variables:
        if name not in labelled:
            others = f"; evaluate others with --variables {','.join(labelled)}" if labelled else ""
            raise InputError(f"{name}: expected labels in the test split, got none{others}")
    low, high = (end.reduce(test.labels).astype(np.float64) for end in (np.fmin, np.fmax))  # NaN is missing
    indices = evenly_spread(count, total)
    drawn = draw_values(spec, low, high, indices, settings.seed)
    column = spec.graph.index
    chosen = test.subset(indices)
    if chosen.pairs is not None:  # interventions whose result is known
        for name in variables:
            given = chosen.pairs.values_of(name, count)
            drawn[:, column(name)] = np.where(np.isnan(given), drawn[:, column(name)], given)
    short = evenly_spread(min(settings.back_images, count), count)
    long_cycle = np.full(count, -1, np.int64)
    if settings.cycles > 1:
        long = short[evenly_spread(min(settings.cycle_images, len(short)), len(short))]
        long_cycle[long] = np.arange(len(long)) % len(variables)
    return Task(
        data=chosen,
        indices=indices,
        variables=variables,
        values={name: drawn[:, column(name)] for name in variables},
        ranges={name: (float(low[column(name)]), float(high[column(name)])) for name in variables},
        long_cycle=long_cycle,
        short_cycle=np.isin(np.arange(count), short),
    )


class TaskRunner:
    """Computes the model outputs of chunks of a task.

    Args:
        engine, device: the engine of the model, and the device of its weights.
    """

    def __init__(
        self,
        engine: CounterfactualEngine,
        task: Task,
        settings: ProtocolSettings,
        device: torch.device | str = "cpu",
    ) -> None:
        self.engine, self.task, self.settings, self.device = engine, task, settings, torch.device(device)
        self.generator = torch.Generator(self.device)

    def run(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs for the images `rows`, one row each.

        For variable v: `images/v` uint8, `labels/v` predicted, `measured/v`, `broken/v` the number of non-finite
        pixels, and `reverse/v`, `reverse_long/v`, NaN for images without that cycle or label; if the truth is known
        also `true_images/v`, `true_labels/v`, `true_measured/v` and the mask `true_known/v`. For the null intervention
        `images`, `broken`, `composition` and `composition_long`. `measured` for the factual images.
        """
        task = self.task
        part = task.data.subset(rows)
        stream = np.random.Generator(np.random.Philox(key=[self.settings.seed, int(task.indices[rows[0]])]))
        self.generator.manual_seed(int(stream.integers(2**62)))
        outputs = self._model_outputs(part, rows)
        return outputs | measured_outputs(task, rows, outputs)

    def _model_outputs(self, part: ImageData, rows: np.ndarray) -> dict[str, np.ndarray]:
        x_start, classes, labels = model_inputs(part, self.device)
        spec, count, cycles = part.spec, len(part), self.settings.cycles
        forward = {name: self._tensor(self.task.values[name][rows]) for name in self.task.variables}
        inverse = {name: self._tensor(part.labels[:, spec.graph.index(name)]) for name in self.task.variables}
        dos = [spec.do_labels(do) for do in ({}, *({name: v} for name, v in forward.items()))]
        null, *results = self.engine.predict(self.engine.abduct(x_start, classes, self.generator, labels), dos)
        outputs = {
            "images": as_uint8(null.images),
            "broken": _array(axioms.non_finite_pixels(null.images)),
            "composition": _array(axioms.distance(null.images, x_start)),
            "composition_long": np.full(count, np.nan),
        }

        def reversibility(name: str, chosen: np.ndarray, cycles: int, result: Counterfactual | None) -> None:
            chosen = chosen[np.isfinite(part.labels[chosen, spec.graph.index(name)])]  # a missing value cannot be set
            if not len(chosen):
                return
            first = None if result is None else (result.images[chosen], result.labels[chosen])
            values = ({name: forward[name][chosen]}, {name: inverse[name][chosen]})
            model = self._model(classes, chosen)
            found = axioms.reversibility(model, x_start[chosen], labels[chosen], *values, cycles, first)
            outputs[f"reverse/{name}" if first else f"reverse_long/{name}"][chosen] = _array(found)

        short = np.flatnonzero(self.task.short_cycle[rows])
        for name, result in zip(self.task.variables, results, strict=True):
            outputs |= {
                f"images/{name}": as_uint8(result.images),
                f"labels/{name}": _array(result.labels).astype(np.float64),
                f"broken/{name}": _array(axioms.non_finite_pixels(result.images)),
                f"reverse/{name}": np.full(count, np.nan),
                f"reverse_long/{name}": np.full(count, np.nan),
            }
            reversibility(name, short, 1, result)
        long_cycle = self.task.long_cycle[rows]
        long = np.flatnonzero(long_cycle >= 0)
        if len(long):
            found = axioms.composition(self._model(classes, long), x_start[long], labels[long], cycles)
            outputs["composition_long"][long] = _array(found)
        for k, name in enumerate(self.task.variables):
            reversibility(name, np.flatnonzero(long_cycle == k), cycles, None)
        return outputs

    def _model(self, classes: Tensor | None, rows: np.ndarray) -> axioms.Model:
        """A function that applies one intervention to the images `rows`, with the signature of `axioms.Model`."""
        classes = None if classes is None else classes[torch.from_numpy(rows).to(classes.device)]

        def apply(images: Tensor, labels: Tensor, do: Values) -> tuple[Tensor, Tensor]:
            abducted = self.engine.abduct(images, classes, self.generator, labels)
            result = self.engine.predict(abducted, [self.engine.spec.do_labels(do)])[0]
            return result.images, result.labels

        return apply

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.float64)).to(self.device)


def measured_outputs(task: Task, rows: np.ndarray, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Labels measured in the factual images `rows` and in the counterfactuals of `outputs`, and the truth if known."""
    part, spec = task.data.subset(rows), task.data.spec
    found = {"measured": measure(spec, part.images)}
    for name in task.variables:
        found[f"measured/{name}"] = measure(spec, outputs[f"images/{name}"])
        if task.truth_is_known:
            do = spec.do_labels({name: task.values[name][rows]})
            labels, images, known = _truth(part, do)
            found |= {f"true_labels/{name}": labels, f"true_images/{name}": images, f"true_known/{name}": known}
            found[f"true_measured/{name}"] = measure(spec, images)
    return found


def _truth(data: ImageData, do: CheckedDo) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True labels (N, n), true images, and a mask (N,) of known ones; for others, NaN and the factual image."""
    if truth_is_known(data) or data.pairs is None:
        return *true_counterfactual(data, do), np.ones(len(data), bool)
    found = data.pairs.find(do, len(data))
    known = found >= 0
    labels, images = np.full(data.labels.shape, np.nan, np.float32), np.array(data.images)
    labels[known], images[known] = data.pairs.labels[found[known]], data.pairs.images[found[known]]
    return labels, images, known


def as_uint8(images: Tensor) -> np.ndarray:
    """Images in [-1, 1] as 0..255; non-finite pixels become 0."""
    return to_uint8(torch.nan_to_num(images, nan=-1.0, posinf=-1.0, neginf=-1.0)).cpu().numpy()


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
