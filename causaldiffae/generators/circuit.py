"""CausalCircuit: a robot finger presses buttons, lights respond (Brehmer et al., 2022). Our own stand-in for it.

Four variables: `arm` is the position of the finger along its sweep; `blue`, `green` and `red` are the brightness of the
lights; all in 0..1. b_k is how far the finger presses button k (`circuit_scene.pressed`), and

    v_blue = 1/5 + 3/5 b_blue    v_green = 1/5 + 3/5 b_green    v_red = 1/5 + 3/5 clip(green + blue + b_red, 0, 1)

    arm = e_arm        light = F^-1(e; 5 v, 5 (1 - v)),   e ~ U(0, 1),   F the distribution function of a Beta variable

F is invertible, so the labels determine the exogenous noise e = F(light), and with it the true counterfactual labels
and, through the renderer, the true counterfactual image.

The published files are by Qualcomm AI Research and look different. Everything drawn here is marked as a stand-in.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import numpy as np
from scipy import ndimage, special

from causaldiffae.generators.circuit_scene import lamp_shares, pressed, render, tip_column
from causaldiffae.generators.common import Generator, check_labels, do_columns, measure_in_blocks
from causaldiffae.graphs import CausalGraph

_EDGES: Final = (("arm", "blue"), ("arm", "green"), ("arm", "red"), ("blue", "red"), ("green", "red"))
GRAPH: Final = CausalGraph(("arm", "blue", "green", "red"), _EDGES)
FILE_ORDER: Final = ("red", "green", "blue", "arm")  # of the columns in the files
IMAGE_SIZE: Final = 128

_UNIT: Final = (0.0, 1.0)
_ARM, _BLUE, _GREEN, _RED = range(4)
# Mean colour of a lamp's inner part, unlit and fully lit (red, green, blue lamp), and of the bare table, as `render`
# draws them at 128 px.
_UNLIT: Final = np.array([(56.0, 12.4, 12.5), (9.3, 43.4, 14.2), (14.4, 18.7, 73.0)])
_LIT: Final = np.array([(242.0, 21.7, 17.7), (21.6, 238.5, 30.3), (30.3, 64.1, 241.7)])
_TABLE: Final = np.array([67.0, 71.0, 80.0])
_OFF_COLOUR: Final = 60.0  # grey levels; a colour further from the line between unlit and lit is not a lamp's
_TIP_ROWS: Final = (0.42, 0.64)  # rows in which the fingertip may be, as shares of the image


def strength(name: str, labels: np.ndarray) -> np.ndarray:
    """The expected brightness v, (N,) in 0.2..0.8, of the light `name` for labels (N, 4) of its causes."""
    red, green, blue = np.moveaxis(pressed(labels[:, _ARM]), -1, 0)
    if name == "red":
        push = np.clip(labels[:, _GREEN] + labels[:, _BLUE] + red, 0.0, 1.0)
    else:
        push = {"blue": blue, "green": green}[name]
    return 0.2 + 0.6 * push


def predict(noise: Any, do: Mapping[str, Any]) -> np.ndarray:
    """Labels (N, 4) float64 for exogenous noise (N, 4) under an intervention: variable -> a number or (N,) numbers."""
    noise = check_labels(GRAPH, noise, _UNIT, "noise")
    columns = do_columns(GRAPH, do, len(noise), _UNIT)
    labels = np.empty_like(noise)
    for i, name in enumerate(GRAPH.names):  # causes come first in this order
        if name in columns:
            labels[:, i] = columns[name]
        elif i == _ARM:
            labels[:, i] = noise[:, i]
        else:
            labels[:, i] = special.betaincinv(*_beta(strength(name, labels)), noise[:, i])
    return labels


def abduct(labels: Any) -> np.ndarray:
    """The exogenous noise (N, 4) float64, each in 0..1, of labels (N, 4): the inverse of `predict` without `do`."""
    labels = check_labels(GRAPH, labels, _UNIT)
    noise = labels.copy()
    for i, name in enumerate(GRAPH.names):
        if i != _ARM:
            noise[:, i] = special.betainc(*_beta(strength(name, labels)), labels[:, i])
    return noise


def sample_noise(count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws exogenous noise (count, 4) float64, uniform in 0..1."""
    return rng.random((count, len(GRAPH)))


def _beta(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return 5.0 * v, 5.0 * (1.0 - v)


class CircuitGenerator(Generator):
    """The structural causal model of the stand-in: counterfactual labels, counterfactual images and measurement.

    A light whose expected brightness the intervention does not change keeps its label bit for bit.
    """

    graph = GRAPH
    within = _UNIT

    def _update_effects(self, factual: np.ndarray, result: np.ndarray, effects: list[str]) -> None:
        noise = abduct(factual)
        for name in effects:
            i = self.graph.index(name)
            before, v = strength(name, factual), strength(name, result)
            moved = special.betaincinv(*_beta(v), noise[:, i])
            result[:, i] = np.where(v == before, factual[:, i], moved)

    def counterfactual_images(self, labels: Any, do: Mapping[str, Any], image_size: int = IMAGE_SIZE) -> np.ndarray:
        """The true counterfactual images, (N, image_size, image_size, 3) uint8, by `circuit_scene.render`."""
        images = [render(row, image_size) for row in self.counterfactual_labels(labels, do)]
        return np.stack(images) if images else np.empty((0, image_size, image_size, 3), np.uint8)

    def measure(self, images: np.ndarray) -> np.ndarray:
        """Reads arm, blue, green and red off images of the stand-in's scene, by colour and geometry; needs no MuJoCo.

        A lamp's brightness is the position of its inner part's mean colour between unlit and lit; the arm follows from
        the column of the yellow fingertip's centroid.

        Args:
            images: (N, S, S, C) uint8 with C >= 3 (RGB first), S at least 16.

        Returns:
            (N, 4) float64 in label units; NaN where an object is not found, or the image is not of this scene.
        """
        return measure_in_blocks(_measure, images, len(GRAPH), smallest=16)


def _measure(images: np.ndarray) -> np.ndarray:
    images = images[..., :3].astype(np.float32)
    found = np.column_stack([_measure_arm(images), _measure_lamps(images)[:, ::-1]])
    # The lowest strip of this scene's images shows only the table.
    strip = images[:, -max(images.shape[1] // 24, 1) :]
    found[np.abs(strip.mean(axis=(1, 2)) - _TABLE).max(axis=1) >= 25.0] = np.nan
    return found


def _measure_lamps(images: np.ndarray) -> np.ndarray:
    """Brightness (N, 3) of the red, green and blue lamp; NaN where the colour is not a lamp's."""
    shares = lamp_shares(images.shape[1])
    found = np.empty((len(images), 3))
    for i in range(3):
        rows, columns = np.nonzero(shares[i] >= min(1.0, shares[i].max()))
        colour = images[:, rows, columns].mean(axis=1) - _UNLIT[i]
        line = _LIT[i] - _UNLIT[i]
        along = colour @ line / (line @ line)
        off = np.linalg.norm(colour - along[:, None] * line, axis=1)
        found[:, i] = np.where(off < _OFF_COLOUR, along, np.nan)
    return found


def _measure_arm(images: np.ndarray) -> np.ndarray:
    """The arm (N,) from the fingertip's column; NaN where there is too little yellow."""
    size = images.shape[1]
    first, last = (round(share * size) for share in _TIP_ROWS)
    band = images[:, first:last]
    yellow = np.clip((band[..., :2].min(axis=-1) - band[..., 2] - 20.0) / 80.0, 0.0, 1.0)
    window = max(round(0.09 * size), 2)  # the tip's diameter
    densest = ndimage.uniform_filter(yellow, (0, window, window), mode="constant").max(axis=1).argmax(axis=1)
    near = np.abs(np.arange(size) - densest[:, None]) <= 0.75 * window + 1.0
    profile = yellow.sum(axis=1) * near
    mass = profile.sum(axis=1)
    mass = np.where(mass > 0.002 * size**2, mass, np.nan)  # a whole tip has three times as much
    column = profile @ ((np.arange(size) + 0.5) / size) / mass
    columns, arms = _arm_table()
    return np.interp(column, columns, arms)


@cache
def _arm_table() -> tuple[np.ndarray, np.ndarray]:
    """Columns of the fingertip's centroid in the image, in rising order, and the arm for each."""
    arms = np.linspace(-0.02, 1.02, 1041)
    # Light falls from the left, so the tip's bright side, and with it the centroid, moves with the arm.
    return tip_column(arms) - 0.0019 + 0.0036 * arms, arms
