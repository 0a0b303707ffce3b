"""The pictures made while training: test images, their reconstructions, and what interventions make of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from causaldiffae.config import DiffusionConfig
from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.image_datasets import ImageData, model_inputs, to_uint8
from causaldiffae.pictures import tile
from causaldiffae.script_util import Model, create_gaussian_diffusion

PICTURE_STEPS = 25
PICTURE_IMAGES = 6


def draw_counterfactuals(model: Model, config: DiffusionConfig, test: ImageData, device: torch.device) -> np.ndarray:
    """Test images, their reconstructions, and each variable set to both ends of its range, as one picture (H, W, C)."""
    diffusion = create_gaussian_diffusion(config, str(min(PICTURE_STEPS, config.diffusion_steps)))
    engine = CounterfactualEngine(model.eval(), diffusion, test.spec)
    few = test.subset(list(range(min(PICTURE_IMAGES, len(test)))))
    x_start, classes, labels = model_inputs(few, device)
    interventions: list[dict[str, Any]] = [{}]
    for i, name in enumerate(test.spec.graph.names):
        interventions += [{name: test.spec.low[i]}, {name: test.spec.high[i]}]
    results = engine.predict(engine.abduct(x_start, classes, labels=labels), interventions)
    rows = np.stack([few.images, *[to_uint8(result.images.cpu().numpy()) for result in results]], axis=1)
    return tile(rows)
