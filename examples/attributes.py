"""Example of attributes: pictures with continuous, binary and categorical variables, and their true counterfactuals.

    python examples/attributes.py --out attributes
    causaldiffae check attributes
    SIZE=mini ./scripts/train.sh --data_dir attributes
    SIZE=mini ./scripts/counterfactual.sh --data_dir attributes --do shape=square --do size=17

A figure of some size, shape and pattern lies on a grey background; a white ring may surround it. Large figures tend to
have a ring, and each shape has a usual pattern:

    size -> ring,  shape -> pattern,  brightness

Place and colour of the figure are not among the labels; a counterfactual must keep them. The ring follows a logistic
model of the size, the pattern a logit for each shape, both with Gumbel noise. The noise of each picture is known, so
`counterfactuals.csv` lists true counterfactuals of test images, against which `evaluate.py` scores a model.
"""

from __future__ import annotations

import argparse
import colorsys
import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from causaldiffae.errors import InputError
from causaldiffae.script_util import run_cli

SIDE = 64
OVERSAMPLING = 4  # pictures are drawn at this multiple of their side
SHAPES = ("disc", "square", "triangle")
PATTERNS = ("plain", "stripes", "dots")
NAMES = ("size", "shape", "brightness", "ring", "pattern")
SIZES, LEVELS = (10.0, 18.0), (0.15, 0.6)  # radius in pixels, level of the background in [0, 1]
RING_SLOPE = 1.5  # logits of a ring per pixel of radius above the middle of the range
USUAL_LOGIT = 3.0  # of the usual pattern of a shape; 0 for the others
INTERVENTIONS: tuple[tuple[str, str | float], ...] = (
    *(("size", value) for value in (11.0, 14.0, 17.0)),
    *(("shape", value) for value in SHAPES),
    *(("brightness", value) for value in (0.2, 0.55)),
    *(("ring", value) for value in ("no", "yes")),
    *(("pattern", value) for value in PATTERNS),
)
GRAPH = """\
edges: [[size, ring], [shape, pattern]]
variables:
  size: {unit: pixels}
  shape: {kind: categorical, categories: [disc, square, triangle]}
  brightness: {kind: continuous}
  ring: {kind: binary, categories: ["no", "yes"]}
  pattern: {kind: categorical, categories: [plain, stripes, dots]}
image_size: 64
channels: 3
"""


class Noise(NamedTuple):
    """What determines a picture besides interventions: roots, Gumbel noise of the effects, place and colour."""

    size: float
    shape: str
    brightness: float
    ring: np.ndarray
    pattern: np.ndarray
    centre: tuple[float, float]
    hue: float


def draw_noise(rng: np.random.Generator) -> Noise:
    return Noise(
        size=rng.uniform(*SIZES),
        shape=str(rng.choice(SHAPES)),
        brightness=rng.uniform(*LEVELS),
        ring=rng.gumbel(size=2),
        pattern=rng.gumbel(size=3),
        centre=(rng.uniform(24, 40), rng.uniform(24, 40)),
        hue=rng.uniform(),
    )


def labels_of(noise: Noise, do: dict[str, str | float] | None = None) -> dict[str, str | float]:
    """Labels of a picture, or of its counterfactual under `do`."""
    do = do or {}
    labels: dict[str, str | float] = {"size": noise.size, "shape": noise.shape, "brightness": noise.brightness}
    labels |= {name: value for name, value in do.items() if name in labels}
    ring_logit = RING_SLOPE * (float(labels["size"]) - sum(SIZES) / 2)
    ring = ("no", "yes")[int(np.argmax(np.array([0.0, ring_logit]) + noise.ring))]
    usual = np.array([USUAL_LOGIT * (SHAPES.index(str(labels["shape"])) == i) for i in range(3)])
    pattern = PATTERNS[int(np.argmax(usual + noise.pattern))]
    return labels | {"ring": do.get("ring", ring), "pattern": do.get("pattern", pattern)}


def draw(labels: dict[str, str | float], centre: tuple[float, float], hue: float) -> Image.Image:
    """Draws the picture (64, 64) of the labels, RGB."""
    scale, radius = OVERSAMPLING, float(labels["size"])
    grey = round(255 * float(labels["brightness"]))
    picture = Image.new("RGB", (SIDE * scale, SIDE * scale), (grey, grey, grey))
    x, y = centre[0] * scale, centre[1] * scale

    def circle(on: ImageDraw.ImageDraw, px: float, py: float, r: float, **how: Any) -> None:
        on.ellipse((px - r, py - r, px + r, py + r), **how)

    mask = Image.new("L", picture.size)
    outline, r = ImageDraw.Draw(mask), radius * scale
    if labels["shape"] == "disc":
        circle(outline, x, y, r, fill=255)
    elif labels["shape"] == "square":
        half = r * math.sqrt(0.5)
        outline.rectangle((x - half, y - half, x + half, y + half), fill=255)
    else:
        corners = [
            (x + r * math.sin(angle), y - r * math.cos(angle)) for angle in (0, 2 * math.pi / 3, -2 * math.pi / 3)
        ]
        outline.polygon(corners, fill=255)
    colour = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.8, 0.95))
    figure = Image.new("RGB", picture.size, colour)
    paint, dark = ImageDraw.Draw(figure), tuple(part // 4 for part in colour)
    step = 6 * scale
    for i in range(-4, 5):
        if labels["pattern"] == "stripes":
            paint.rectangle((0, y + i * step - 0.2 * step, SIDE * scale, y + i * step + 0.2 * step), fill=dark)
        elif labels["pattern"] == "dots":
            for j in range(-4, 5):
                circle(paint, x + j * step, y + i * step, 0.3 * step, fill=dark)
    picture.paste(figure, mask=mask)
    if labels["ring"] == "yes":
        circle(ImageDraw.Draw(picture), x, y, r + 4 * scale, outline=(255, 255, 255), width=2 * scale)
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


class World(NamedTuple):
    """What defines a set of pictures; `figures.py` is another one.

    Attributes:
        names: the variables, columns of the label table.
        graph: text of graph.yaml.
        interventions: (variable, value) of the true counterfactuals.
        draw_noise: random generator -> noise of a picture.
        labels_of: (noise, do) -> labels by name.
        picture: (labels, noise) -> the picture.
    """

    names: Sequence[str]
    graph: str
    interventions: Sequence[tuple[str, str | float]]
    draw_noise: Callable[[np.random.Generator], Any]
    labels_of: Callable[[Any, dict[str, str | float] | None], dict[str, str | float]]
    picture: Callable[[dict[str, str | float], Any], Image.Image]

    def cells(self, labels: dict[str, str | float]) -> list[str]:
        return [value if isinstance(value, str) else f"{value:.4f}" for value in (labels[name] for name in self.names)]

    def write_split(self, out: Path, split: str, noises: list[Any], writer: Any) -> None:
        for i, noise in enumerate(noises):
            name, labels = f"{split}/{i:05d}.png", self.labels_of(noise, None)
            self.picture(labels, noise).save(out / name)
            writer.writerow([name, split, *self.cells(labels)])

    def write_pairs(self, out: Path, noises: list[Any]) -> None:
        """Writes the true counterfactuals of the first test images, and the table that lists them."""
        with (out / "counterfactuals.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "do", "true_file", *self.names])
            for i, noise in enumerate(noises):
                for name, value in self.interventions:
                    labels, true = self.labels_of(noise, {name: value}), f"true/{i:05d}_{name}_{value}.png"
                    self.picture(labels, noise).save(out / true)
                    writer.writerow([f"test/{i:05d}.png", f"{name}={value}", true, *self.cells(labels)])

    def write(
        self, argv: list[str], description: str, count: int, flags: Sequence[argparse.ArgumentParser] = ()
    ) -> None:
        """Writes the data set that the command line describes, by default of `count` pictures.

        Args:
            flags: parsers of further flags, which the caller has read.
        """
        parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, parents=flags
        )
        parser.add_argument("--out", type=Path, required=True, help="folder to write")
        parser.add_argument("--num", type=int, default=count, help="number of pictures; default %(default)s")
        parser.add_argument(
            "--pairs", type=int, help="test images with known truth; default 100, at most a tenth of --num"
        )
        parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
        args = parser.parse_args(argv)
        if args.num < 10:
            raise InputError(f"--num: expected 10 or more, got {args.num}")
        if args.out.exists():
            raise InputError(f"--out: expected a new folder, got {args.out}, which exists")
        rng, tenth = np.random.default_rng(args.seed), args.num // 10
        pairs = min(100, tenth) if args.pairs is None else args.pairs
        if not 0 <= pairs <= tenth:
            raise InputError(f"--pairs: expected 0..{tenth}, a tenth of the pictures, got {pairs}")
        noises = [self.draw_noise(rng) for _ in range(args.num)]
        for folder in ("train", "val", "test", "true"):
            (args.out / folder).mkdir(parents=True)
        with (args.out / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "split", *self.names])
            self.write_split(args.out, "test", noises[:tenth], writer)
            self.write_split(args.out, "val", noises[tenth : 2 * tenth], writer)
            self.write_split(args.out, "train", noises[2 * tenth :], writer)
        self.write_pairs(args.out, noises[:pairs])
        (args.out / "graph.yaml").write_text(self.graph, encoding="utf-8")
        print(f"written to {args.out}")


def picture(labels: dict[str, str | float], noise: Noise) -> Image.Image:
    return draw(labels, noise.centre, noise.hue)


def main(argv: list[str]) -> None:
    World(NAMES, GRAPH, INTERVENTIONS, draw_noise, labels_of, picture).write(argv, __doc__ or "", 5000)


if __name__ == "__main__":
    run_cli(main)
