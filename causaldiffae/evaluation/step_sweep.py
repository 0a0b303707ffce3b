"""Accuracy of solvers over the number of network evaluations, compared with the published 250 DDIM steps.

Every solver is applied at several numbers of steps to the same weights, images and interventions. The sweep reports the
error of the null intervention, the errors of the counterfactual relative to the true image and the true labels, and the
difference between decodings of the reference's x_T by this solver and by the reference, which is the solver error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from causaldiffae.counterfactual import Abduction, CounterfactualEngine
from causaldiffae.datasets.images import ImageData, model_inputs
from causaldiffae.datasets.registry import measure, true_counterfactual
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.evaluation.interventions import Measurement, describe_do, finite_uint8
from causaldiffae.evaluation.tables import MISSING, shown, text_table
from causaldiffae.metrics.effectiveness import label_errors
from causaldiffae.metrics.intervals import Figure, mean_figure, rate_difference_figure, write_figures
from causaldiffae.metrics.truth import l1_errors
from causaldiffae.script_util import FEW_STEP, LoadedModel
from causaldiffae.solvers import SolverState
from causaldiffae.visualization.curves import plot_interval
from causaldiffae.visualization.image_grids import render

NULL: Final = "null"
SAME_NOISE: Final = "same_noise"
MARGIN: Final = 0.05
"""Accepted increase of a mean error, as a fraction of the reference's."""
NULL_MARGIN: Final = 0.5
"""Accepted increase of the error of the null intervention, in grey levels: what rounding to 8 bits may lose."""


@dataclass(frozen=True)
class Setting:
    """A solver, its network evaluations in each direction, and the number of label corrections."""

    solver: str
    steps: int
    corrections: int = 0

    def __str__(self) -> str:
        return f"{self.solver}:{self.steps}" + (f"+{self.corrections}" if self.corrections else "")

    @property
    def evaluations(self) -> int:
        """Network evaluations of a counterfactual: of the encoding, the decoding, and the decodings of corrections."""
        return self.steps * (2 + self.corrections)


@dataclass(frozen=True)
class SweepRow:
    """Values (N,) float64 of one setting, by the keys of `headings`; those of `rates` are 0 or 1."""

    setting: Setting
    values: dict[str, np.ndarray]
    rates: frozenset[str] = frozenset()

    def figures(self) -> dict[str, Figure]:
        """Means with intervals over images."""
        return {name: mean_figure(values, rate=name in self.rates) for name, values in self.values.items()}


def parse_settings(text: str) -> list[Setting]:
    """Parses "ddim:250,dpmpp2m:25,exact_ddim:4+1"; the first setting is the reference."""
    settings = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        found = re.fullmatch(r"([^:]*):([0-9]{1,6})(?:\+([0-9]))?", part)
        if found is None:
            expected = "SOLVER:STEPS or SOLVER:STEPS+CORRECTIONS, like dpmpp2m:25"
            raise InputError(f"settings: expected {expected}, got {part[:80]!r}")
        settings.append(Setting(found[1], int(found[2]), int(found[3] or 0)))
    if len(set(settings)) < 2 or len(set(settings)) < len(settings):
        raise InputError(f"settings: expected two or more distinct settings, got {text[:200]!r}")
    return settings


def headings(dos: Sequence[Mapping[str, float]], spec: DatasetSpec) -> dict[str, str]:
    """Headings of the measured figures, by key."""
    found = {NULL: "null intervention, L1 to the image", SAME_NOISE: "from the reference's x_T, L1 to its image"}
    for do in dos:
        name = describe_do(do, spec)
        found[f"truth:{name}"] = f"{name}, L1 to the true image"
        for variable in _affected(do, spec):
            rate = " rate" if spec.values_of(variable) else ""
            found[f"error:{name}:{variable}"] = f"{name}, {variable} error{rate}"
    return found


def _affected(do: Mapping[str, float], spec: DatasetSpec) -> list[str]:
    """The intervened variables and their descendants."""
    affected = {*do, *spec.graph.descendants(*do)}
    return [name for name in spec.graph.names if name in affected]


def create_engine(loaded: LoadedModel, setting: Setting) -> CounterfactualEngine:
    """The engine of a setting. It keeps neither pixels nor causes, so that images are those of the solver.

    Raises:
        InputError: for another solver or number of steps than those of a distilled model.
    """
    few_steps = loaded.config.diffusion.few_steps
    if few_steps and (setting.solver, setting.steps) != (FEW_STEP, few_steps):
        raise InputError(f"settings: expected {FEW_STEP}:{few_steps} for {loaded.path}, got {setting}")
    return loaded.engine(
        setting.steps, setting.solver, label_corrections=setting.corrections, keep_unchanged=0.0, keep_causes=False
    )


def sweep_steps(
    engines: Mapping[Setting, CounterfactualEngine],
    data: ImageData,
    dos: Sequence[Mapping[str, float]],
    batch_size: int = 100,
    device: torch.device | str = "cpu",
    on_batch: Callable[[int], object] | None = None,
    measurement: Measurement | None = None,
) -> list[SweepRow]:
    """Applies every setting to every image; the first engine is the reference.

    Args:
        data: images with known true counterfactuals.
        dos: interventions in label units.
        on_batch: called with the number of images of each batch, once per setting.
        measurement: measures labels in images; by default the data set's `measure`.
    """
    spec, read = data.spec, measurement or (lambda images: measure(data.spec, images))
    categories = spec.all_category_values()
    values: dict[Setting, dict[str, list[np.ndarray]]] = {
        setting: {name: [] for name in headings(dos, spec)} for setting in engines
    }
    for start in range(0, len(data), batch_size):
        part = data.subset(range(start, min(start + batch_size, len(data))))
        truths = [true_counterfactual(part, do) for do in dos]
        x_start, classes, labels = model_inputs(part, device)
        reference: tuple[Abduction, list[np.ndarray]] | None = None
        for setting, engine in engines.items():
            abducted = engine.abduct(x_start, classes, labels=labels)
            null, *drawn = _images(engine, abducted, [{}, *dos])
            if reference is None:
                assert abducted.state is not None
                state = SolverState(abducted.state.x_T, stop=abducted.state.stop)
                reference, again = (replace(abducted, state=state, residual=None, x_start=None), drawn), drawn
            else:
                again = _images(engine, reference[0], dos)
            found = values[setting]
            found[NULL].append(l1_errors(null, part.images))
            errors = [l1_errors(ours, theirs) for ours, theirs in zip(again, reference[1], strict=True)]
            found[SAME_NOISE].append(np.mean(errors, axis=0))
            for do, images, (true_labels, true_images) in zip(dos, drawn, truths, strict=True):
                name, wrong = describe_do(do, spec), label_errors(read(images), true_labels, categories)
                found[f"truth:{name}"].append(l1_errors(images, true_images))
                for variable in _affected(do, spec):
                    found[f"error:{name}:{variable}"].append(wrong[:, spec.graph.index(variable)])
            if on_batch is not None:
                on_batch(len(part))
    joined = {s: {name: np.concatenate(pieces) for name, pieces in found.items()} for s, found in values.items()}
    rates = {
        f"error:{describe_do(do, spec)}:{name}" for do in dos for name in _affected(do, spec) if spec.values_of(name)
    }
    return [SweepRow(setting, found, frozenset(rates)) for setting, found in joined.items()]


def _images(engine: CounterfactualEngine, abducted: Abduction, dos: Sequence[Mapping[str, float]]) -> list[np.ndarray]:
    return [finite_uint8(result.images) for result in engine.predict(abducted, dos)]


def exceeded(row: SweepRow, reference: SweepRow, margin: float = MARGIN) -> dict[str, Figure]:
    """The figures in which a setting is not shown to be as good as the reference: their differences, with intervals.

    A setting is as good if the upper end of the 95 % interval of the difference, over paired images, lies below a
    margin: `margin` times the reference's mean, or `NULL_MARGIN` for the null intervention (a test of non-inferiority:
    with few images the interval is wide, also that of a rate if no image differs, and the setting is not accepted).
    Figures that could not be measured for the reference are left out.
    """
    found = {}
    for name, values in reference.values.items():
        mean = mean_figure(values).mean
        if name == SAME_NOISE or mean is None:
            continue
        difference = (rate_difference_figure if name in row.rates else mean_figure)(row.values[name] - values)
        if difference.high is None or difference.high > (NULL_MARGIN if name == NULL else margin * mean):
            found[name] = difference
    return found


def describe_exceeded(rows: Sequence[SweepRow], heads: Mapping[str, str], margin: float = MARGIN) -> list[str]:
    """One line for each figure of `exceeded`: setting, heading, and the difference with its interval."""
    return [
        f"{row.setting}: {heads[name]}: {shown(difference.to_dict(), interval=True)}"
        for row in rows[1:]
        for name, difference in exceeded(row, rows[0], margin).items()
    ]


def recommend(rows: Sequence[SweepRow], margin: float = MARGIN) -> SweepRow | None:
    """The setting with the fewest evaluations that is as good as the reference (`exceeded`); None if there is none."""
    reference, *others = rows
    equivalent = [row for row in others if not exceeded(row, reference, margin)]
    return min(equivalent, key=lambda row: row.setting.evaluations, default=None)


def write_rows(path: Path, rows: Sequence[SweepRow]) -> None:
    """Writes a CSV file with one row per setting: means and 95 % intervals of all figures."""
    keys = ("solver", "steps", "corrections")
    write_figures(path, [*keys], [([getattr(row.setting, key) for key in keys], row.figures()) for row in rows])


def table(rows: Sequence[SweepRow], heads: Mapping[str, str]) -> str:
    """A text table with one row per setting: means with the half-widths of their intervals."""
    letters = [f"({chr(97 + i)})" for i in range(len(heads))]
    cells = []
    for row in rows:
        texts = []
        for figure in row.figures().values():
            known = figure.mean is not None and figure.low is not None and figure.high is not None
            texts.append(f"{figure.mean:.3f} ± {(figure.high - figure.low) / 2:.3f}" if known else MISSING)  # type: ignore[operator]
        cells.append([row.setting.solver, str(row.setting).partition(":")[2], *texts])
    legend = [f"{letter} {head}" for letter, head in zip(letters, heads.values(), strict=True)]
    return "\n".join([*legend, text_table(["solver", "steps", *letters], cells)])


def draw(rows: Sequence[SweepRow], heads: Mapping[str, str]) -> np.ndarray:
    """Plots every figure over the number of evaluations, (H, W, 3) uint8.

    One panel per figure and one curve per solver and number of corrections; a dotted line shows the reference.
    """
    from matplotlib.figure import Figure as Plot
    from matplotlib.ticker import NullFormatter

    columns = 3
    lines = -(-len(heads) // columns)
    plot = Plot(figsize=(3.6 * columns, 2.7 * lines), dpi=110, layout="constrained")
    axes = list(plot.subplots(lines, columns, squeeze=False).flat)
    curves = list(dict.fromkeys((row.setting.solver, row.setting.corrections) for row in rows))
    figures = {row.setting: row.figures() for row in rows}
    ticks = sorted({row.setting.steps for row in rows})
    for axis, (name, head) in zip(axes, heads.items(), strict=False):
        axis.set_title(head, fontsize=8)
        reference = figures[rows[0].setting][name].mean
        if reference is None:
            axis.text(0.5, 0.5, "could not be measured", ha="center", fontsize=8, transform=axis.transAxes)
            axis.set_axis_off()
            continue
        axis.axhline(reference, color="black", linewidth=0.8, linestyle=":")
        for i, (solver, corrections) in enumerate(curves):
            of_curve = [each for each in figures if (each.solver, each.corrections) == (solver, corrections)]
            of_curve.sort(key=lambda each: each.steps)
            label = f"{solver}, {corrections} corrections" if corrections else solver
            plot_interval(
                axis, [each.steps for each in of_curve], [figures[each][name] for each in of_curve], f"C{i}", label
            )
        axis.set_xscale("log")
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_ylim(bottom=0)
        axis.set_xlabel("evaluations in each direction", fontsize=7)
        axis.tick_params(labelsize=6)
        axis.grid(alpha=0.3)
    for axis in axes[len(heads) :]:
        axis.set_visible(False)
    axes[0].legend(fontsize=7)
    return render(plot)
