"""Previews during training: images, their reconstructions, and counterfactuals near both ends of every range."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from causaldiffae.config import DiffusionConfig
from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.datasets.do_text import describe_do
from causaldiffae.datasets.images import ImageData, model_inputs, to_uint8
from causaldiffae.diff_scm import DiffScm
from causaldiffae.script_util import Model, create_gaussian_diffusion
from causaldiffae.visualization.image_grids import headed_tile

PREVIEW_STEPS = 25
PREVIEW_IMAGES = 6


def can_intervene(model: Model) -> bool:
    """False for a Diff-SCM that has neither labels nor a predictor, such as one in training."""
    return not isinstance(model, DiffScm) or model.has_labels or model.predictor is not None


def draw_preview(model: Model, config: DiffusionConfig, test: ImageData, device: torch.device) -> np.ndarray:
    """Draws images, their reconstructions, and counterfactuals with each variable near both ends of its range.

    Returns a grid (H, W, 3) uint8 with headings. A Diff-SCM without a predictor yields reconstructions only; a model
    that needs labels, without images that have all labels, the images only.
    """
    diffusion = create_gaussian_diffusion(config, str(min(PREVIEW_STEPS, config.diffusion_steps)))
    engine = CounterfactualEngine(model.eval(), diffusion, test.spec)
    rows = np.arange(len(test))
    if model.needs_labels or model.unconditional_abduction:
        rows = rows[test.observed.all(axis=1)]
    few = test.subset(rows[:PREVIEW_IMAGES])
    if not len(few):
        return headed_tile([("factual", test.images[:PREVIEW_IMAGES])])
    x_start, classes, labels = model_inputs(few, device)
    interventions: list[dict[str, Any]] = [{}]
    if can_intervene(model):
        interventions += [{name: value} for i, name in enumerate(test.spec.graph.names) for value in _ends(test, i)]
    results = engine.predict(engine.abduct(x_start, classes, labels=labels), interventions)
    images = [to_uint8(result.images.cpu().numpy()) for result in results]
    spec, texts = test.spec, ["reconstruction"]
    for do in interventions[1:]:
        texts.append(describe_do({name: spec.format_value(name, value) for name, value in do.items()}))
    return headed_tile([("factual", few.images), *zip(texts, images, strict=True)])


def _ends(test: ImageData, i: int) -> tuple[float, float]:
    """Returns both ends of the range of variable i, moved inwards by 10 % if it is continuous: extremes are rare."""
    low, high = test.spec.low[i], test.spec.high[i]
    margin = 0.0 if test.spec.category_values(i) else 0.1 * (high - low)
    return low + margin, high - margin
