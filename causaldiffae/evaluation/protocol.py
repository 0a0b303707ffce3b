"""The benchmark's questions: what is asked of a model about every test image, and what it answers.

For every variable v, every image is asked one do(v = value), the value uniform over the label's range in the test
split. Values follow from (seed, the image's place in the split) alone, so they do not depend on how many images are
asked about, nor on who asks. From one abduction come the reconstruction and all counterfactuals; the axioms ask on.

Images are answered in chunks of fixed content, each by one process and one thread: whoever does it, the numbers are
the same to the last bit. A chunk's answers are plain arrays with one row per image; they are averaged nowhere here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor

from causaldiffae.counterfactual import AbductionKind, CounterfactualEngine
from causaldiffae.datasets.images import ImageData, evenly_spread, model_inputs, to_uint8
from causaldiffae.datasets.registry import exact_labels, measure, true_counterfactual, truth_is_known
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError, check_least
from causaldiffae.metrics import axioms
from causaldiffae.script_util import SOLVER, STEPS

PROTOCOL: Final = "causaldiffae benchmark"
VERSION: Final = 2


@dataclass(frozen=True)
class ProtocolSettings:
    """What decides the numbers.

    Attributes:
        num_images: test images, evenly spread over the split; 0 for all.
        variables: those to intervene on; none stands for all.
        solver, steps, grid, abduction, stop, w: as in `inference_util.TestConfig`.
        seed: of the values, of the resamples, and of x_T where it is drawn.
        chunk: images at a time.
        back_images: how many images go there and back once.
        cycles: of the long composition and reversibility; 1 leaves them out.
        cycle_images: how many of these go through them.
        dci_resamples: refits for the intervals of DCI; 0 leaves DCI out.
        ema: rate of the moving average of the weights; "" takes the first.
    """

    num_images: int = 0
    variables: tuple[str, ...] = ()
    solver: str = SOLVER
    steps: int = STEPS
    grid: str = ""
    abduction: str = "ddim"
    stop: float = 1.0
    w: float = 1.0
    seed: int = 0
    chunk: int = 50
    back_images: int = 400
    cycles: int = 10
    cycle_images: int = 50
    dci_resamples: int = 10
    ema: str = ""

    def __post_init__(self) -> None:
        if self.abduction not in [kind.value for kind in AbductionKind]:
            raise InputError(f"abduction: {self.abduction!r} given, allowed are ddim, noise, none")
        check_least(
            self, num_images=0, steps=1, seed=0, chunk=1, back_images=0, cycles=1, cycle_images=0, dci_resamples=0
        )


@dataclass(frozen=True)
class Task:
    """The images and questions of one evaluation.

    Attributes:
        data: N test images with the labels on disk, which is what models learned from.
        places: (N,) in the test split.
        labels: (N, n) float32, exact.
        variables: the ones intervened on.
        values: variable -> (N,) float64, what it is set to.
        ranges: variable -> lowest and highest test label.
        cycled: (N,) int64, the variable (by its place in `variables`) whose long cycle an image goes through, or -1.
        returned: (N,) bool, the images that go there and back once.
    """

    data: ImageData
    places: np.ndarray
    labels: np.ndarray
    variables: tuple[str, ...]
    values: dict[str, np.ndarray]
    ranges: dict[str, tuple[float, float]]
    cycled: np.ndarray
    returned: np.ndarray

    def __len__(self) -> int:
        return len(self.data)

    @property
    def truth_is_known(self) -> bool:
        """Whether the generator can draw the true counterfactual images."""
        return truth_is_known(self.data)

    def chunks(self, size: int) -> list[np.ndarray]:
        """The rows of every chunk: images of which the same is asked are together, since large batches are fast.

        Those with a long cycle come first, they take longest.
        """
        kinds = 2 * (self.cycled >= 0) + self.returned
        sorts = [np.flatnonzero(kinds == kind) for kind in (3, 2, 1, 0)]
        return [rows[start : start + size] for rows in sorts for start in range(0, len(rows), size)]

    def join(self, parts: Sequence[dict[str, np.ndarray]], size: int) -> dict[str, np.ndarray]:
        """The answers of all chunks of `chunks(size)`, a row for each image in the images' order."""
        order = np.argsort(np.concatenate(self.chunks(size)))
        return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}


def draw_values(spec: DatasetSpec, low: np.ndarray, high: np.ndarray, places: np.ndarray, seed: int) -> np.ndarray:
    """What every variable is set to, (N, n) float64: uniform in low..high, or over the values of a categorical one."""
    values = np.empty((len(places), len(spec.graph)))
    for row, place in zip(values, places, strict=True):
        row[:] = np.random.Generator(np.random.Philox(key=[seed, int(place)])).random(len(spec.graph))
    for i in range(len(spec.graph)):
        kind = spec.kinds[i] if spec.kinds else "continuous"
        if kind == "continuous":
            values[:, i] = low[i] + values[:, i] * (high[i] - low[i])
        else:
            named = len(spec.categories[i]) if spec.categories and spec.categories[i] else 0
            allowed = np.arange(named, dtype=np.float64) if named else np.array([spec.low[i], spec.high[i]])
            values[:, i] = allowed[np.minimum((values[:, i] * len(allowed)).astype(int), len(allowed) - 1)]
    return values


def make_task(test: ImageData, settings: ProtocolSettings) -> Task:
    """Chooses the images and draws the questions.

    Args:
        test: the whole test split.

    Raises:
        InputError: for more images than there are, or a variable that is not in the graph.
    """
    spec, total = test.spec, len(test)
    wanted = settings.num_images or total
    if wanted > total:
        raise InputError(f"num_images: {wanted} given, the test split has {total}")
    unknown = [name for name in settings.variables if name not in spec.graph.names]
    if unknown:
        raise InputError(f"variables: unknown variable {unknown[0]!r}, the model has {', '.join(spec.graph.names)}")
    variables = tuple(settings.variables) or spec.graph.names
    exact = exact_labels(test)
    low, high = exact.min(axis=0).astype(np.float64), exact.max(axis=0).astype(np.float64)
    places = evenly_spread(wanted, total)
    drawn = draw_values(spec, low, high, places, settings.seed)
    index = spec.graph.index
    back = evenly_spread(min(settings.back_images, wanted), wanted)
    cycled = np.full(wanted, -1, np.int64)
    if settings.cycles > 1:
        long = back[evenly_spread(min(settings.cycle_images, len(back)), len(back))]
        cycled[long] = np.arange(len(long)) % len(variables)
    return Task(
        data=test.subset(places),
        places=places,
        labels=exact[places],
        variables=variables,
        values={name: drawn[:, index(name)] for name in variables},
        ranges={name: (float(low[index(name)]), float(high[index(name)])) for name in variables},
        cycled=cycled,
        returned=np.isin(np.arange(wanted), back),
    )


class TaskRunner:
    """Asks a model about chunks of a task.

    Args:
        engine: the model.
        task: the questions.
        settings: how long the cycles are.
        device: where the model is.
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

    def answer(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Everything that is asked about the images `rows`; every array has a row for each.

        Of variable v: `images/v` uint8, `labels/v` as the model predicts them, `broken/v` the number of pixels that
        are not finite, `measured/v` and, NaN where it was not asked, `reverse/v`, `reverse_long/v`; where the truth is
        known `true_images/v`, `true_labels/v`, `true_measured/v`. And `images`, `composition`, `composition_long`,
        `broken` of the null intervention, `measured` of the factual images.
        """
        part = self.task.data.subset(rows)
        stream = np.random.Generator(np.random.Philox(key=[self.settings.seed, int(self.task.places[rows[0]])]))
        self.generator.manual_seed(int(stream.integers(2**62)))
        answers = self._ask_model(part, rows)
        exact = replace(part, labels=self.task.labels[rows])
        spec = part.spec
        answers["measured"] = measure(spec, part.images)
        for name in self.task.variables:
            answers[f"measured/{name}"] = measure(spec, answers[f"images/{name}"])
            if self.task.truth_is_known:
                do = spec.check_do({name: self.task.values[name][rows]}, len(rows), warn=False)
                labels, images = true_counterfactual(exact, do)
                answers |= {f"true_labels/{name}": labels, f"true_images/{name}": images}
                answers[f"true_measured/{name}"] = measure(spec, images)
        return answers

    def _ask_model(self, part: ImageData, rows: np.ndarray) -> dict[str, np.ndarray]:
        x_start, classes, labels = model_inputs(part, self.device)
        there = {name: self._column(self.task.values[name][rows]) for name in self.task.variables}
        index = part.spec.graph.index
        back = {name: self._column(part.labels[:, index(name)]) for name in self.task.variables}
        check = partial(part.spec.check_do, count=len(part), warn=False)
        questions = [check({}), *(check({name: there[name]}) for name in self.task.variables)]
        abducted = self.engine.abduct(x_start, classes, self.generator, labels)
        results = self.engine.predict(abducted, questions)
        null = results[0].images
        answers = {
            "images": as_uint8(null),
            "broken": _array(axioms.broken(null)),
            "composition": _array(axioms.distance(null, x_start)),
        }
        for name, result in zip(self.task.variables, results[1:], strict=True):
            answers |= {
                f"images/{name}": as_uint8(result.images),
                f"labels/{name}": _array(result.labels).astype(np.float64),
                f"broken/{name}": _array(axioms.broken(result.images)),
                f"reverse/{name}": np.full(len(rows), np.nan),
            }
            mine = np.flatnonzero(self.task.returned[rows])
            if len(mine):
                first, ways = (
                    (result.images[mine], result.labels[mine]),
                    ({name: there[name][mine]}, {name: back[name][mine]}),
                )
                asked = self._asked(_rows(classes, mine))
                answers[f"reverse/{name}"][mine] = _array(
                    axioms.reversibility(asked, x_start[mine], labels[mine], *ways, 1, first)
                )
        return answers | self._long_cycles(x_start, labels, classes, there, back, self.task.cycled[rows])

    def _long_cycles(
        self,
        x_start: Tensor,
        labels: Tensor,
        classes: Tensor | None,
        there: dict[str, Tensor],
        back: dict[str, Tensor],
        cycled: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Composition over many cycles, and reversibility of one variable for each image that is chosen for it."""
        count, cycles = len(cycled), self.settings.cycles
        answers = {"composition_long": np.full(count, np.nan)}
        answers |= {f"reverse_long/{name}": np.full(count, np.nan) for name in self.task.variables}
        chosen = np.flatnonzero(cycled >= 0)
        if not len(chosen):
            return answers
        asked = self._asked(_rows(classes, chosen))
        answers["composition_long"][chosen] = _array(axioms.composition(asked, x_start[chosen], labels[chosen], cycles))
        for k, name in enumerate(self.task.variables):
            mine = np.flatnonzero(cycled == k)
            if len(mine):
                asked = self._asked(_rows(classes, mine))
                ways = ({name: there[name][mine]}, {name: back[name][mine]})
                answers[f"reverse_long/{name}"][mine] = _array(
                    axioms.reversibility(asked, x_start[mine], labels[mine], *ways, cycles)
                )
        return answers

    def _asked(self, classes: Tensor | None) -> _Answers:
        return _Answers(self.engine, classes, self.generator)

    def _column(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.float64)).to(self.device)


class _Answers:
    """One question at a time, for the axioms: images and labels in, images and labels out."""

    def __init__(self, engine: CounterfactualEngine, classes: Tensor | None, generator: torch.Generator) -> None:
        self.engine, self.classes, self.generator = engine, classes, generator

    def __call__(self, images: Tensor, labels: Tensor, do: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        checked = self.engine.spec.check_do(do, len(images), warn=False)
        result = self.engine.predict(self.engine.abduct(images, self.classes, self.generator, labels), [checked])[0]
        return result.images, result.labels


def as_uint8(images: Tensor) -> np.ndarray:
    """Images in [-1, 1] on 0..255; what is not finite becomes 0 and has been counted by then."""
    return to_uint8(torch.nan_to_num(images, nan=-1.0, posinf=-1.0, neginf=-1.0)).cpu().numpy()


def _rows(values: Tensor | None, places: np.ndarray) -> Tensor | None:
    return None if values is None else values[torch.from_numpy(places).to(values.device)]


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
