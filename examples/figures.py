"""Example of figures: pictures with four continuous variables and a categorical one, and their true counterfactuals.

    python examples/figures.py --out figures
    causaldiffae check figures
    SIZE=mini ./scripts/train.sh --data_dir figures
    SIZE=mini ./scripts/counterfactual.sh --data_dir figures --do position=22 --do shape=triangle

A figure lies on a textured background. Larger figures tend to be brighter:

    size -> brightness,  position,  hue,  shape

Texture and height of the figure are not among the labels; a counterfactual must keep them. With `--label_height`, the
height is a sixth variable, in the same pictures. The files are those of `attributes.py`: `counterfactuals.csv` lists
true counterfactuals of test images.
"""

from __future__ import annotations

import argparse
import colorsys
import math
from typing import NamedTuple

import numpy as np
from attributes import OVERSAMPLING, SHAPES, SIDE, World
from PIL import Image, ImageDraw

from causaldiffae.script_util import run_cli

NAMES: tuple[str, ...] = ("position", "size", "hue", "shape", "brightness")
POSITIONS, SIZES, HUES = (18.0, 46.0), (8.0, 16.0), (0.0, 0.7)  # pixels, radius in pixels, hue in [0, 1]
DARKEST, SLOPE = 0.4, 0.5  # brightness of the smallest figures; logits of brightness per pixel of radius
INTERVENTIONS: tuple[tuple[str, str | float], ...] = (
    *(("position", value) for value in (22.0, 42.0)),
    *(("size", value) for value in (9.0, 15.0)),
    *(("hue", value) for value in (0.1, 0.6)),
    *(("shape", value) for value in SHAPES),
    *(("brightness", value) for value in (0.45, 0.95)),
)
GRAPH = """\
edges: [[size, brightness]]
variables:
  position: {unit: pixels}
  size: {unit: pixels}
  hue: {kind: continuous}
  shape: {kind: categorical, categories: [disc, square, triangle]}
  brightness: {kind: continuous}
image_size: 64
channels: 3
"""


class Noise(NamedTuple):
    """What determines a picture besides interventions: roots, noise of the brightness, height and texture."""

    position: float
    size: float
    hue: float
    shape: str
    brightness: float
    height: float
    texture: np.ndarray


def draw_noise(rng: np.random.Generator) -> Noise:
    return Noise(
        position=rng.uniform(*POSITIONS),
        size=rng.uniform(*SIZES),
        hue=rng.uniform(*HUES),
        shape=str(rng.choice(SHAPES)),
        brightness=rng.normal(),
        height=rng.uniform(26, 38),
        texture=14 * rng.normal(size=(8, 8)) + rng.uniform(60, 110),
    )


def labels_of(noise: Noise, do: dict[str, str | float] | None = None) -> dict[str, str | float]:
    """Labels of a picture, or of its counterfactual under `do`."""
    do = do or {}
    labels: dict[str, str | float] = {name: do.get(name, getattr(noise, name)) for name in (*NAMES[:4], "height")}
    logit = SLOPE * (float(labels["size"]) - sum(SIZES) / 2) + noise.brightness
    return labels | {"brightness": do.get("brightness", DARKEST + (1 - DARKEST) / (1 + math.exp(-logit)))}


def picture(labels: dict[str, str | float], noise: Noise) -> Image.Image:
    """Draws the picture (64, 64) of the labels, RGB."""
    side = SIDE * OVERSAMPLING
    ground = Image.fromarray(noise.texture.clip(0, 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    image = ground.convert("RGB")
    x, y, r = (OVERSAMPLING * float(value) for value in (labels["position"], labels["height"], labels["size"]))
    colour = tuple(
        round(255 * part) for part in colorsys.hsv_to_rgb(float(labels["hue"]), 0.8, float(labels["brightness"]))
    )
    paint = ImageDraw.Draw(image)
    if labels["shape"] == "disc":
        paint.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif labels["shape"] == "square":
        half = 1.15 * math.sqrt(0.5) * r
        paint.rectangle((x - half, y - half, x + half, y + half), fill=colour)
    else:
        turns = (0, 2 * math.pi / 3, -2 * math.pi / 3)
        paint.polygon([(x + r * math.sin(turn), y - r * math.cos(turn)) for turn in turns], fill=colour)
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def main(argv: list[str]) -> None:
    flags = argparse.ArgumentParser(add_help=False)
    flags.add_argument("--label_height", action="store_true", help="make the height of the figure a variable")
    names, graph = NAMES, GRAPH
    if flags.parse_known_args(argv)[0].label_height:
        names, graph = (*NAMES, "height"), GRAPH.replace("image_size", "  height: {unit: pixels}\nimage_size")
    World(names, graph, INTERVENTIONS, draw_noise, labels_of, picture).write(argv, __doc__ or "", 3750, [flags])


if __name__ == "__main__":
    run_cli(main)
