"""Training curves from a run's progress.csv, one panel for each kind of figure.

Thin lines are the logged values, thick ones their running median.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from causaldiffae.errors import DataError
from causaldiffae.logger import PROGRESS, STEP, read_progress

PANELS: Final = {
    "everything that is minimised": ("total",),
    "loss of the image": ("mse", "loss", "val_", "validation"),
    "labels and blocks (KL)": ("label_kl",),
    "exogenous noise (KL) and mechanisms (NLL)": ("prior_kl", "mechanism_nll"),
    "labels as the model reads them (squared error)": ("label_mse", "probe_mse"),
    "effectiveness: mean error of what was set, in its own unit": ("effectiveness", "counterfactual_", "do_nothing"),
    "norm of the gradient": ("grad_norm",),
    "learning rate": ("lr", "learning_rate"),
    "images per second": ("images_per_second",),
}
"""Panels by how their columns' names begin, in the order of drawing; what fits none is drawn last."""
FEW: Final = 8  # points that are drawn one by one

Curves = dict[str, tuple[np.ndarray, np.ndarray]]


def read_curves(run: Path) -> Curves:
    """Of every column of the run's progress.csv, the steps and values where it was logged; infinite ones are left out.

    Raises:
        DataError: if there is no table, it is damaged, or holds no figure.
    """
    path = run / PROGRESS
    if not path.is_file():
        raise DataError(f"{path}: the file is missing; a run directory or a model folder with its log is needed")
    columns, rows = read_progress(path)
    curves: Curves = {}
    for column in columns:
        if column == STEP:
            continue
        points = []
        for number, row in enumerate(rows, start=2):
            if row[column] == "":
                continue
            try:
                value = float(row[column])
            except ValueError:
                raise DataError(f"{path}: line {number}: {column} is {row[column][:40]!r}, no number") from None
            if math.isfinite(value):
                points.append((float(row[STEP]), value))
        if points:
            steps, values = np.array(points).T
            curves[column] = (steps, values)
    if not curves:
        raise DataError(f"{path}: it holds no figures; nothing was logged yet")
    return curves


def panels_of(columns: Sequence[str]) -> dict[str, list[str]]:
    """The columns by panel; panels without columns are left out."""
    panels: dict[str, list[str]] = {title: [] for title in [*PANELS, "others"]}
    for column in columns:
        fits = [title for title, starts in PANELS.items() if column.startswith(starts)]
        panels[fits[0] if fits else "others"].append(column)
    return {title: names for title, names in panels.items() if names}


def running_median(values: np.ndarray) -> np.ndarray:
    """(N,) the median over a window of about a twentieth of the run around each value."""
    half = max(1, len(values) // 40)
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def without_twins(curves: Curves, names: Sequence[str]) -> dict[str, str]:
    """Of curves that lie on each other the first, with the names of all as its label."""
    labels: dict[str, str] = {}
    for name in names:
        twin = next((kept for kept in labels if all(map(np.array_equal, curves[kept], curves[name]))), None)
        if twin is None:
            labels[name] = name
        else:
            labels[twin] += f" = {name}"
    return labels


def draw_curves(curves: Curves, title: str) -> np.ndarray:
    """All panels on one picture, (H, W, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = panels_of(list(curves))
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(11, 2.9 * rows + 0.5), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for place, (heading, names) in enumerate(panels.items(), start=1):
        axis = figure.add_subplot(rows, 2, place)
        for number, (name, label) in enumerate(without_twins(curves, names).items()):
            steps, values = curves[name]
            marker = "o" if len(values) <= FEW else ""  # a line through one point would not be seen
            axis.plot(steps, values, color=f"C{number % 10}", alpha=0.3, linewidth=0.8)
            median = running_median(values) if len(values) > FEW else values
            axis.plot(steps, median, color=f"C{number % 10}", linewidth=1.8, label=label, marker=marker, markersize=4)
        everything = np.concatenate([curves[name][1] for name in names])
        if everything.min() > 0 and everything.max() > 20 * everything.min():
            axis.set_yscale("log")
        axis.set_title(heading, fontsize=10, loc="left")
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
        axis.legend(fontsize=8, frameon=False, ncols=1 + (len(names) > 4))
        axis.set_xlabel("step", fontsize=8)
    figure.suptitle(title, fontsize=12)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
