"""Writes the HTML page of a run: training curves, the causal graph, and traversals of counterfactuals.

A traversal abducts a few images once and sets one variable at a time to values over its whole range.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from PIL import Image

from causaldiffae.checkpoints.model_folders import config_file
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.evaluation.interventions import traversal_values
from causaldiffae.evaluation.pages import render_page
from causaldiffae.files.reading import file_stem, read_json
from causaldiffae.training.responses import describe, images_seen, read_responses
from causaldiffae.visualization.curves import draw_curves, read_curves
from causaldiffae.visualization.graph import draw_graph
from causaldiffae.visualization.image_grids import data_uri, labelled_grid, tile

VALUES: Final = 7
_FRAME_MS: Final = 160

Traversals = dict[str, tuple[list[float], list[np.ndarray]]]
"""For each variable: its values, and for each value the images (N, C, S, S) uint8."""


class TraversableModel(Protocol):
    """The part of `CounterfactualModel` that a traversal uses."""

    @property
    def spec(self) -> DatasetSpec: ...

    def abduct(self, images: Any) -> Any: ...

    def predict(self, abduction: Any, do: Any = None) -> Any: ...


def traverse(model: TraversableModel, images: object) -> Traversals:
    """Sets each variable to values over its range, after one abduction of the images."""
    abducted = model.abduct(images)
    found = {}
    for name in model.spec.graph.names:
        values = traversal_values(model.spec, name, VALUES)
        found[name] = (values, [model.predict(abducted, model.spec.do_labels({name: v})).images for v in values])
    return found


def draw_traversal(
    spec: DatasetSpec, name: str, values: Sequence[float], images: Sequence[np.ndarray], null: np.ndarray
) -> np.ndarray:
    """One column for the null intervention and one per value, (H, W, 3) uint8."""
    unit = spec.units[spec.graph.index(name)] if spec.units else ""
    columns = [("no intervention", null[:, :3])]
    for value, drawn in zip(values, images, strict=True):
        columns.append((f"{name}\n= {spec.format_value(name, value)} {unit}".rstrip(), drawn[:, :3]))
    return labelled_grid(columns)


def write_gif(path: Path, traversals: Traversals) -> Path:
    """Animates all traversals forwards and backwards: one row per variable, one column per image."""
    longest = max(len(images) for _, images in traversals.values())
    frames = []
    for k in [*range(longest), *range(longest - 2, 0, -1)]:
        rows = [images[round(k * (len(images) - 1) / max(1, longest - 1))] for _, images in traversals.values()]
        frame = tile(np.stack(rows)[:, :, :3])
        frame = frame.repeat(3, axis=2) if frame.shape[2] == 1 else frame
        frames.append(Image.fromarray(frame.repeat(2, axis=0).repeat(2, axis=1)))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=_FRAME_MS, loop=0)
    return path


def write_run_page(run: Path, out: Path, model: TraversableModel | None = None, images: object = None) -> list[Path]:
    """Writes curves.png and run.html and, given a model, traversal_NAME.png and traversals.gif; returns the files.

    Args:
        run: run directory, or model folder with its log.
        model, images: the model of the run and a few images to traverse.

    Raises:
        DataError: if the run's log is missing, damaged or empty.
    """
    curves, config = read_curves(run), config_file(run)
    spec = None if config is None else DatasetSpec.from_dict(read_json(config).get("dataset"))
    out.mkdir(parents=True, exist_ok=True)
    name = run.resolve().name
    drawn_curves = draw_curves(curves, name)
    Image.fromarray(drawn_curves).save(out / "curves.png")
    files, grids = [out / "curves.png"], {}
    if model is not None:
        null = model.predict(model.abduct(images)).images
        traversals = traverse(model, images)
        for variable, (values, drawn) in traversals.items():
            grid = draw_traversal(model.spec, variable, values, drawn, null)
            files.append(out / f"traversal_{file_stem(variable)}.png")
            Image.fromarray(grid).save(files[-1])
            grids[variable] = data_uri(grid)
        files.append(write_gif(out / "traversals.gif", traversals))
    page = render_page(
        "run.html",
        name=name,
        metrics=len(curves),
        last_step=f"{max(float(steps[-1]) for steps, _ in curves.values()):.0f}",
        dataset=None if spec is None else spec.name,
        graph=None if spec is None else data_uri(draw_graph(spec.graph)),
        curves=data_uri(drawn_curves),
        traversals=grids,
        verdict=describe(read_responses(run), 0 if config is None else images_seen(config.parent)),
    )
    (out / "run.html").write_text(page, encoding="utf-8")
    return [*files, out / "run.html"]
