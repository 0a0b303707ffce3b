"""A run on one page: its training curves, its causal graph, and what its model draws when one variable is turned.

Curves come from progress.csv, one panel for each kind of figure; thin lines are the logged values, thick ones their
running median. Traversals abduct a few images once and set one variable after the other to values all over its range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from causaldiffae.errors import DataError
from causaldiffae.graph_picture import draw_graph
from causaldiffae.image_datasets import DatasetSpec
from causaldiffae.logger import PROGRESS, STEP, read_progress
from causaldiffae.model_folders import config_file
from causaldiffae.pictures import labelled_grid, tile
from causaldiffae.pretrained import CounterfactualModel
from causaldiffae.report_page import data_uri
from causaldiffae.safe_files import read_json

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
VALUES: Final = 7
FEW: Final = 8  # points that are drawn one by one
_FRAME_MS: Final = 160
_STYLE: Final = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1100px;padding:0 1em;color:#1c2430}
h1{font-size:1.5em}h2{margin-top:1.8em;font-size:1.15em}img{max-width:100%;height:auto}
.gif{image-rendering:pixelated;width:480px}code{background:#f2f5f8;padding:1px 5px}
"""

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


def spec_of_run(run: Path) -> DatasetSpec | None:
    """The data set's spec out of the run's newest checkpoint, None where there is no checkpoint."""
    config = config_file(run)
    return None if config is None else DatasetSpec.from_dict(read_json(config).get("dataset"))


def traversals(model: CounterfactualModel, images: object) -> dict[str, tuple[list[float], list[np.ndarray]]]:
    """Of every variable: the values it is set to, and for each the images (N, C, S, S) uint8; one abduction for all."""
    abducted = model.abduct(images)  # type: ignore[arg-type]
    found = {}
    for i, name in enumerate(model.graph.names):
        low, high = model.spec.low[i], model.spec.high[i]
        if model.spec.kinds and model.spec.kinds[i] != "continuous":
            values = [float(value) for value in range(int(low), int(high) + 1)]
        else:
            margin = 0.05 * (high - low)  # the very ends are seen once in training
            values = [float(f"{value:.3g}") for value in np.linspace(low + margin, high - margin, VALUES)]
        found[name] = (values, [model.predict(abducted, {name: value}).images for value in values])
    return found


def draw_traversal(
    spec: DatasetSpec, name: str, values: Sequence[float], images: Sequence[np.ndarray], unset: np.ndarray
) -> np.ndarray:
    """What is drawn with nothing set, and one column for each value, (H, W, 3) uint8."""
    unit = spec.units[spec.graph.index(name)] if spec.units else ""
    columns = [
        ("nothing set", unset),
        *(
            (f"{name}\n= {spec.say(name, value)} {unit}".rstrip(), each)
            for value, each in zip(values, images, strict=True)
        ),
    ]
    return labelled_grid([(heading, each[:, :3]) for heading, each in columns])


def write_gif(path: Path, walks: dict[str, tuple[list[float], list[np.ndarray]]]) -> Path:
    """An animation, each variable there and back: one row for each variable, one column for each image."""
    longest = max(len(images) for _, images in walks.values())
    there_and_back = [*range(longest), *range(longest - 2, 0, -1)]
    frames = []
    for k in there_and_back:
        rows = [images[round(k * (len(images) - 1) / max(1, longest - 1))] for _, images in walks.values()]
        picture = tile(np.stack(rows)[:, :, :3])
        pixels = picture.repeat(3, axis=2) if picture.shape[2] == 1 else picture
        frames.append(Image.fromarray(pixels.repeat(2, axis=0).repeat(2, axis=1)))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=_FRAME_MS, loop=0)
    return path


def write_run_page(run: Path, out: Path, model: CounterfactualModel | None = None, images: object = None) -> list[Path]:
    """Writes curves.png and run.html, and with a model traversal_NAME.png and traversals.gif; returns the files.

    Args:
        model, images: the run's model and up to a few images to turn; without them there are no traversals.

    Raises:
        DataError: if the run's log is missing, damaged or empty.
    """
    curves, spec = read_curves(run), spec_of_run(run)
    out.mkdir(parents=True, exist_ok=True)
    name = run.resolve().name
    picture = draw_curves(curves, name)
    Image.fromarray(picture).save(out / "curves.png")
    files = [out / "curves.png"]
    last = max(float(steps[-1]) for steps, _ in curves.values())
    parts = [f"<h1>{escape(name)}</h1><p>{len(curves)} figures, the last at step {last:.0f}.</p>"]
    if spec is not None:
        uri = data_uri(draw_graph(spec.graph))
        parts.append(f'<h2>Causal graph of {escape(spec.name)}</h2><img src="{uri}" alt="causal graph">')
    parts.append(f'<h2>Training</h2><img src="{data_uri(picture)}" alt="training curves">')
    if model is not None:
        unset = model.predict(model.abduct(images)).images  # type: ignore[arg-type]
        walks = traversals(model, images)
        parts.append("<h2>Traversals: one variable at a time is set, its effects follow</h2>")
        for variable, (values, drawn) in walks.items():
            grid = draw_traversal(model.spec, variable, values, drawn, unset)
            files.append(out / f"traversal_{''.join(c if c.isalnum() else '_' for c in variable)}.png")
            Image.fromarray(grid).save(files[-1])
            parts.append(f'<img src="{data_uri(grid)}" alt="traversal of {escape(variable, quote=True)}">')
        files.append(write_gif(out / "traversals.gif", walks))
        parts.append('<h2>The same, moving</h2><img class="gif" src="traversals.gif" alt="traversals, animated">')
        parts.append(f"<p>From top to bottom: {escape(', '.join(walks))}.</p>")
    head = f'<meta charset="utf-8"><title>{escape(name)}</title><style>{_STYLE}</style>'
    page = f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"
    (out / "run.html").write_text(page, encoding="utf-8")
    return [*files, out / "run.html"]
