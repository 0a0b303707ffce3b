"""Previews during training: test images, their counterfactuals, and a rough effectiveness.

Effectiveness is the mean absolute error of the intervened variable in label units, or the error rate of a category,
measured on a few images if the data set supports it. It shows progress only; use `scripts/evaluate.py` for reported
results.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from causaldiffae.config import DiffusionConfig
from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.datasets.do_text import describe_do
from causaldiffae.datasets.images import ImageData, model_inputs, to_uint8
from causaldiffae.datasets.registry import DATASETS, can_measure, measure
from causaldiffae.diff_scm import DiffScm
from causaldiffae.metrics.effectiveness import label_errors
from causaldiffae.script_util import Model, create_gaussian_diffusion
from causaldiffae.visualization.image_grids import headed_tile

PREVIEW_STEPS = 25
PREVIEW_IMAGES = 6


class Preview(NamedTuple):
    """Image grid (H, W, 3) uint8 with headings, and the effectiveness by variable."""

    image: np.ndarray
    effectiveness: dict[str, float]


def draw_preview(model: Model, config: DiffusionConfig, test: ImageData, device: torch.device) -> Preview:
    """Draws test images, their reconstructions, and counterfactuals with each variable near both ends of its range.

    A Diff-SCM without a predictor yields reconstructions only, and a model that needs labels, without images that
    have all labels, the test images only.
    """
    diffusion = create_gaussian_diffusion(config, str(min(PREVIEW_STEPS, config.diffusion_steps)))
    engine = CounterfactualEngine(model.eval(), diffusion, test.spec)
    rows = np.arange(len(test))
    if model.needs_labels or model.unconditional_abduction:
        rows = rows[test.observed.all(axis=1)]
    few = test.subset(rows[:PREVIEW_IMAGES])
    if not len(few):
        return Preview(headed_tile([("factual", test.images[:PREVIEW_IMAGES])]), {})
    x_start, classes, labels = model_inputs(few, device)
    interventions: list[dict[str, Any]] = [{}]
    if not isinstance(model, DiffScm) or model.has_labels or model.predictor is not None:
        interventions += [{name: value} for i, name in enumerate(test.spec.graph.names) for value in _ends(test, i)]
    results = engine.predict(engine.abduct(x_start, classes, labels=labels), interventions)
    images = [to_uint8(result.images.cpu().numpy()) for result in results]
    errors: dict[str, list[float]] = {}
    if test.spec.name in DATASETS and can_measure(test.spec):
        for do, counterfactuals in zip(interventions[1:], images[1:], strict=True):
            for name, value in do.items():
                i = test.spec.graph.index(name)
                measured = measure(test.spec, counterfactuals)[:, [i]]
                wrong = label_errors(measured, np.full_like(measured, value), [test.spec.category_values(i)])
                errors.setdefault(name, []).append(float(wrong.mean()))
    effectiveness = {name: float(np.mean(values)) for name, values in errors.items() if np.isfinite(values).all()}
    spec, texts = test.spec, ["reconstruction"]
    for do in interventions[1:]:
        texts.append(describe_do({name: spec.format_value(name, value) for name, value in do.items()}))
    return Preview(headed_tile([("factual", few.images), *zip(texts, images, strict=True)]), effectiveness)


def _ends(test: ImageData, i: int) -> tuple[float, float]:
    """Returns both ends of the range of variable i, moved inwards by 10 % if it is continuous: extremes are rare."""
    low, high = test.spec.low[i], test.spec.high[i]
    margin = 0.0 if test.spec.category_values(i) else 0.1 * (high - low)
    return low + margin, high - margin
