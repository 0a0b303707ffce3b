"""Plots training curves from the progress.csv of a run, one panel per kind of metric.

Thin lines show logged values, thick lines their running median.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from causaldiffae.errors import DataError
from causaldiffae.logger import PROGRESS, STEP, read_progress
from causaldiffae.visualization.image_grids import render

PANELS: Final = {
    "total loss, which may rise while the weight of the KL terms does": ("total",),
    "weight of the KL terms": ("kl_weight",),
    "image loss": ("mse", "loss", "val_", "validation"),
    "distance of the latents from the labels (KL), large at first": ("label_kl",),
    "exogenous noise (KL) and mechanisms (NLL)": ("prior_kl", "mechanism_nll"),
    "labels read from the latents (squared error)": ("label_mse", "probe_mse"),
    "effectiveness: mean error of the set variable, in its unit": (
        "effectiveness", "counterfactual_", "do_nothing",
    ),
    "response to interventions: 1 as requested, 0 as the factual image": ("response",),
    "gradient norm": ("grad_norm",),
    "learning rate": ("lr", "learning_rate"),
    "images per second": ("images_per_second",),
}  # fmt: skip
"""Panel titles in order, with the column prefixes of each; other columns go into a last panel."""
FEW: Final = 8  # curves with at most this many points have markers and no median

Curves = dict[str, tuple[np.ndarray, np.ndarray]]


def read_curves(run: Path) -> Curves:
    """Reads the finite values of each column of progress.csv, as (steps, values).

    Raises:
        DataError: if the table is missing, damaged, or has no finite value.
    """
    path = run / PROGRESS
    if not path.is_file():
        raise DataError(f"{path}: expected the log of a run directory or model folder, got no such file")
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
                raise DataError(
                    f"{path}: line {number}: {column}: expected a number, got {row[column][:40]!r}"
                ) from None
            if math.isfinite(value):
                points.append((float(row[STEP]), value))
        if points:
            steps, values = np.array(points).T
            curves[column] = (steps, values)
    if not curves:
        raise DataError(f"{path}: expected logged values, got none")
    return curves


def panels_of(columns: Sequence[str]) -> dict[str, list[str]]:
    """Groups columns by panel; panels without columns are omitted."""
    panels: dict[str, list[str]] = {title: [] for title in [*PANELS, "other"]}
    for column in columns:
        titles = [title for title, prefixes in PANELS.items() if column.startswith(prefixes)]
        panels[titles[0] if titles else "other"].append(column)
    return {title: names for title, names in panels.items() if names}


def running_median(values: np.ndarray) -> np.ndarray:
    """Running median (N,) over a window of about 5 % of the run."""
    half = max(1, len(values) // 40)
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def merge_identical(curves: Curves, names: Sequence[str]) -> dict[str, str]:
    """Maps the first of each group of identical curves to a label with all names."""
    labels: dict[str, str] = {}
    for name in names:
        same = next((kept for kept in labels if all(map(np.array_equal, curves[kept], curves[name]))), None)
        if same is None:
            labels[name] = name
        else:
            labels[same] += f" = {name}"
    return labels


def plot_interval(axis: Any, x: Sequence[float], figures: Sequence[Any], colour: str = "C0", label: str = "") -> None:
    """Plots the means of figures (`metrics.intervals.Figure`) over x, with their intervals as bands and bars."""
    means, lows, highs = np.array([[f.mean, f.low, f.high] for f in figures], dtype=np.float64).T
    axis.fill_between(x, lows, highs, color=colour, alpha=0.15, linewidth=0)
    axis.vlines(x, lows, highs, color=colour, alpha=0.5, linewidth=1)
    axis.plot(x, means, color=colour, marker="o", markersize=3, label=label)


def draw_curves(curves: Curves, title: str) -> np.ndarray:
    """Draws all panels as (H, W, 3) uint8."""
    from matplotlib.figure import Figure

    panels = panels_of(list(curves))
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(11, 2.9 * rows + 0.5), dpi=100, layout="constrained")
    for index, (heading, names) in enumerate(panels.items(), start=1):
        axis = figure.add_subplot(rows, 2, index)
        for number, (name, label) in enumerate(merge_identical(curves, names).items()):
            steps, values = curves[name]
            marker = "o" if len(values) <= FEW else ""  # a line through one point is invisible
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
    return render(figure)
