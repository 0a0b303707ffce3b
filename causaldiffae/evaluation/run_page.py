"""A run on one page: its training curves, its causal graph, and what its model draws when one variable is turned.

Traversals abduct a few images once and set one variable after the other to values all over its range.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from PIL import Image

from causaldiffae.checkpoints.model_folders import config_file
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.files.reading import read_json
from causaldiffae.visualization.curves import draw_curves, read_curves
from causaldiffae.visualization.graph import draw_graph
from causaldiffae.visualization.image_grids import data_uri, labelled_grid, tile

VALUES: Final = 7
_FRAME_MS: Final = 160
_STYLE: Final = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1100px;padding:0 1em;color:#1c2430}
h1{font-size:1.5em}h2{margin-top:1.8em;font-size:1.15em}img{max-width:100%;height:auto}
.gif{image-rendering:pixelated;width:480px}code{background:#f2f5f8;padding:1px 5px}
"""


class TraversableModel(Protocol):
    """What of `CounterfactualModel` a traversal needs."""

    spec: DatasetSpec

    def abduct(self, images: Any) -> Any: ...

    def predict(self, abducted: Any, do: Any = None) -> Any: ...


def spec_of_run(run: Path) -> DatasetSpec | None:
    """The data set's spec out of the run's newest checkpoint, None where there is no checkpoint."""
    config = config_file(run)
    return None if config is None else DatasetSpec.from_dict(read_json(config).get("dataset"))


def traversals(model: TraversableModel, images: object) -> dict[str, tuple[list[float], list[np.ndarray]]]:
    """Of every variable: the values it is set to, and for each the images (N, C, S, S) uint8; one abduction for all."""
    abducted = model.abduct(images)
    found = {}
    for i, name in enumerate(model.spec.graph.names):
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
            (f"{name}\n= {spec.format_value(name, value)} {unit}".rstrip(), each)
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


def write_run_page(run: Path, out: Path, model: TraversableModel | None = None, images: object = None) -> list[Path]:
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
        unset = model.predict(model.abduct(images)).images
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
