"""What is shown while training: test images, what interventions make of them, and how near they come to what was asked.

Effectiveness here is a quick figure on a few images, measured on the pictures where the data set can do that: the mean
absolute error of the variable that was set, in label units. `scripts/evaluate.py` is the one to quote.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from causaldiffae.config import DiffusionConfig
from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.datasets.images import ImageData, model_inputs, to_uint8
from causaldiffae.datasets.registry import DATASETS, can_measure, measure
from causaldiffae.diff_scm import DiffScm
from causaldiffae.script_util import Model, create_gaussian_diffusion
from causaldiffae.visualization.image_grids import tile

PICTURE_STEPS = 25
PICTURE_IMAGES = 6


class TrainingPicture(NamedTuple):
    """The picture (H, W, C) uint8, and by variable the mean absolute error of what it was set to, in label units."""

    picture: np.ndarray
    effectiveness: dict[str, float]


def draw_counterfactuals(
    model: Model, config: DiffusionConfig, test: ImageData, device: torch.device
) -> TrainingPicture:
    """Test images, their reconstructions, and each variable set near both ends of its range.

    A Diff-SCM that has no predictor yet can only be asked for the reconstruction.
    """
    diffusion = create_gaussian_diffusion(config, str(min(PICTURE_STEPS, config.diffusion_steps)))
    engine = CounterfactualEngine(model.eval(), diffusion, test.spec)
    few = test.subset(list(range(min(PICTURE_IMAGES, len(test)))))
    x_start, classes, labels = model_inputs(few, device)
    asked: list[dict[str, Any]] = [{}]
    if not isinstance(model, DiffScm) or model.has_labels or model.predictor is not None:
        asked += [{name: value} for i, name in enumerate(test.spec.graph.names) for value in _ends(test, i)]
    results = engine.predict(engine.abduct(x_start, classes, labels=labels), asked)
    drawn = [to_uint8(result.images.cpu().numpy()) for result in results]
    errors: dict[str, list[float]] = {}
    if known_to_measure(test):
        for do, images in zip(asked[1:], drawn[1:], strict=True):
            for name, value in do.items():
                measured = measure(test.spec, images)[:, test.spec.graph.index(name)]
                errors.setdefault(name, []).append(float(np.abs(measured - value).mean()))
    found = {name: float(np.mean(values)) for name, values in errors.items() if np.isfinite(values).all()}
    return TrainingPicture(tile(np.stack([few.images, *drawn], axis=1)), found)


def known_to_measure(test: ImageData) -> bool:
    """Whether labels can be measured on this data set's pictures; tests have sets that are not registered."""
    return test.spec.name in DATASETS and can_measure(test.spec)


def _ends(test: ImageData, i: int) -> tuple[float, float]:
    """A tenth inside the range of variable i: the very ends are seen once in training; all of a category's range."""
    low, high = test.spec.low[i], test.spec.high[i]
    margin = 0.0 if test.spec.category_values(i) else 0.1 * (high - low)
    return low + margin, high - margin
