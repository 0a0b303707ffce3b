"""How many evaluations of the network a counterfactual needs, by solver, against the published 250 DDIM steps.

The same trained weights, images and interventions go through every solver at several numbers of steps, and each row
says what a user would notice: how far the null intervention is from the image, the counterfactual from the true one
and from the labels that were asked for, and how far decoding *the reference's own x_T* ends from where it ends itself,
which is the solver's error alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from causaldiffae.counterfactual import Abduction, CounterfactualEngine
from causaldiffae.datasets.images import ImageData, model_inputs, to_uint8
from causaldiffae.datasets.registry import measure, true_counterfactual
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.evaluation.interventions import describe_do
from causaldiffae.metrics.intervals import Figure, mean_figure, write_figures
from causaldiffae.metrics.truth import l1_errors
from causaldiffae.solvers import SolverState

NULL: Final = "null"
SAME_NOISE: Final = "same_noise"


@dataclass(frozen=True)
class Setting:
    """A solver and its evaluations each way."""

    solver: str
    steps: int

    def __str__(self) -> str:
        return f"{self.solver}:{self.steps}"


@dataclass(frozen=True)
class SweepRow:
    """One setting's values, (N,) float64 each, by the name of what is measured (`headings`)."""

    setting: Setting
    values: dict[str, np.ndarray]

    def figures(self, seed: int = 0) -> dict[str, Figure]:
        """Means with intervals over images."""
        return {name: mean_figure(values, seed) for name, values in self.values.items()}


def parse_settings(text: str) -> list[Setting]:
    """ "ddim:250,dpmpp2m:25" -> settings, the first of which is the reference."""
    settings = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        solver, colon, steps = part.partition(":")
        if not colon or not steps.isdecimal() or len(steps) > 6:
            raise InputError(f"settings: {part[:80]!r} given, SOLVER:STEPS is needed, like dpmpp2m:25")
        settings.append(Setting(solver, int(steps)))
    if len(set(settings)) < 2 or len(set(settings)) < len(settings):
        raise InputError(f"settings: {text[:200]!r} given, two or more different ones are needed")
    return settings


def headings(dos: Sequence[Mapping[str, float]], spec: DatasetSpec) -> dict[str, str]:
    """What is measured, name -> heading."""
    found = {NULL: "null intervention, L1 to the image", SAME_NOISE: "from the reference's x_T, L1 to its picture"}
    for do in dos:
        said = describe_do(do, spec)
        found[f"truth:{said}"] = f"{said}, L1 to the truth"
        for name in _reached(do, spec):
            found[f"error:{said}:{name}"] = f"{said}, error of {name}"
    return found


def _reached(do: Mapping[str, float], spec: DatasetSpec) -> list[str]:
    """The variables that are set and their descendants."""
    reached = {*do, *spec.graph.descendants(*do)}
    return [name for name in spec.graph.names if name in reached]


def sweep_steps(
    engines: Mapping[Setting, CounterfactualEngine],
    data: ImageData,
    dos: Sequence[Mapping[str, float]],
    batch_size: int = 100,
    device: torch.device | str = "cpu",
    on_batch: Callable[[int], object] | None = None,
    eye: Callable[[np.ndarray], np.ndarray] | None = None,
) -> list[SweepRow]:
    """Every setting on every image; the first engine is the reference.

    Args:
        data: images whose true counterfactuals are known.
        dos: interventions in label units.
        on_batch: told the number of images after each batch and setting.
        eye: reads labels (N, n) off pictures (N, C, H, W) uint8; by default the data set's own `measure`.
    """
    spec, see = data.spec, eye or (lambda pictures: measure(data.spec, pictures))
    names = headings(dos, spec)
    values: dict[Setting, dict[str, list[np.ndarray]]] = {setting: {name: [] for name in names} for setting in engines}
    for start in range(0, len(data), batch_size):
        part = data.subset(range(start, min(start + batch_size, len(data))))
        truths = [true_counterfactual(part, do) for do in dos]
        x_start, classes, labels = model_inputs(part, device)
        reference: tuple[Abduction, list[np.ndarray]] | None = None
        for setting, engine in engines.items():
            abducted = engine.abduct(x_start, classes, labels=labels)
            null, *drawn = _pictures(engine, abducted, [{}, *dos])
            if reference is None:
                assert abducted.state is not None
                bare = replace(abducted, state=SolverState(abducted.state.x_T, stop=abducted.state.stop), residual=None)
                reference, again = (bare, drawn), drawn
            else:
                again = _pictures(engine, reference[0], dos)
            found = values[setting]
            found[NULL].append(l1_errors(null, part.images))
            errors = [l1_errors(ours, theirs) for ours, theirs in zip(again, reference[1], strict=True)]
            found[SAME_NOISE].append(np.mean(errors, axis=0))
            for do, picture, truth in zip(dos, drawn, truths, strict=True):
                said, read = describe_do(do, spec), see(picture)
                true_labels, true_images = truth
                found[f"truth:{said}"].append(l1_errors(picture, true_images))
                for name in _reached(do, spec):
                    i = spec.graph.index(name)
                    found[f"error:{said}:{name}"].append(np.abs(read[:, i] - true_labels[:, i]))
            if on_batch is not None:
                on_batch(len(part))
    joined = {s: {name: np.concatenate(pieces) for name, pieces in found.items()} for s, found in values.items()}
    return [SweepRow(setting, found) for setting, found in joined.items()]


def _pictures(
    engine: CounterfactualEngine, abducted: Abduction, dos: Sequence[Mapping[str, float]]
) -> list[np.ndarray]:
    return [to_uint8(answer.images.cpu().numpy()) for answer in engine.predict(abducted, dos)]


def recommend(rows: Sequence[SweepRow]) -> SweepRow | None:
    """The fewest steps at which nothing is worse than the reference by more than chance; None without such.

    Images are paired: a row is worse where the 95 % interval of the difference to the reference lies above 0.
    """
    reference, *others = rows
    compared = [name for name in reference.values if name != SAME_NOISE]

    def worse(row: SweepRow) -> bool:
        lows = [mean_figure(row.values[name] - reference.values[name]).low for name in compared]
        return any(low is not None and low > 0 for low in lows)

    good = [row for row in others if not worse(row)]
    return min(good, key=lambda row: row.setting.steps, default=None)


def write_rows(path: Path, rows: Sequence[SweepRow]) -> None:
    """One line a setting: every figure's mean with its 95 % interval."""
    write_figures(path, ["solver", "steps"], [([row.setting.solver, row.setting.steps], row.figures()) for row in rows])


def table(rows: Sequence[SweepRow], heads: Mapping[str, str]) -> str:
    """The same for people, a line a setting; means with half an interval's width."""
    lines = [f"({chr(97 + i)}) {head}" for i, head in enumerate(heads.values())]
    lines.append(f"{'solver':>10s}{'steps':>7s}" + "".join(f"{f'({chr(97 + i)})':>16s}" for i in range(len(heads))))
    for row in rows:
        cells = []
        for figure in row.figures().values():
            if figure.mean is None or figure.low is None or figure.high is None:
                cells.append("-")
            else:
                cells.append(f"{figure.mean:.3f} ± {(figure.high - figure.low) / 2:.3f}")
        lines.append(f"{row.setting.solver:>10s}{row.setting.steps:7d}" + "".join(f"{cell:>16s}" for cell in cells))
    return "\n".join(lines)


def draw(rows: Sequence[SweepRow], heads: Mapping[str, str]) -> np.ndarray:
    """A panel for every figure over the evaluations each way, a curve a solver, the reference dotted; (H, W, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Plot
    from matplotlib.ticker import NullFormatter

    columns = 3
    lines = -(-len(heads) // columns)
    plot = Plot(figsize=(3.6 * columns, 2.7 * lines), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(plot)
    axes = list(plot.subplots(lines, columns, squeeze=False).flat)
    solvers = list(dict.fromkeys(row.setting.solver for row in rows))
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
        for i, solver in enumerate(solvers):
            steps = sorted(row.setting.steps for row in rows if row.setting.solver == solver)
            found = [figures[Setting(solver, step)][name] for step in steps]
            bounds = np.array([[f.mean, f.low, f.high] for f in found], dtype=np.float64)
            axis.fill_between(steps, bounds[:, 1], bounds[:, 2], color=f"C{i}", alpha=0.15, linewidth=0)
            axis.vlines(steps, bounds[:, 1], bounds[:, 2], color=f"C{i}", alpha=0.5, linewidth=1)
            axis.plot(steps, bounds[:, 0], color=f"C{i}", marker="o", markersize=3, label=solver)
        axis.set_xscale("log")
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_ylim(bottom=0)
        axis.set_xlabel("evaluations each way", fontsize=7)
        axis.tick_params(labelsize=6)
        axis.grid(alpha=0.3)
    for axis in axes[len(heads) :]:
        axis.set_visible(False)
    axes[0].legend(fontsize=7)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
