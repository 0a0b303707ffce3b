"""Previews during training: images, their reconstructions, and counterfactuals near both ends of every range."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from causaldiffae.config import DiffusionConfig
from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.datasets.captions import caption_texts, join_captions
from causaldiffae.datasets.do_text import describe_do
from causaldiffae.datasets.images import ImageData, model_inputs, to_uint8
from causaldiffae.diff_scm import DiffScm
from causaldiffae.guidance import default_guidance
from causaldiffae.nn import ImageCodec
from causaldiffae.script_util import SOLVER, Model, create_solver
from causaldiffae.visualization.image_grids import headed_tile

PREVIEW_STEPS = 25
PREVIEW_IMAGES = 6
LabelReader = Callable[[np.ndarray], np.ndarray]
"""Reads labels (N, n), in label units, off images (N, C, H, W) uint8."""


def can_intervene(model: Model) -> bool:
    """False for a Diff-SCM that has neither labels nor a predictor, such as one in training."""
    return not isinstance(model, DiffScm) or model.has_labels or model.predictor is not None


def draw_preview(
    model: Model,
    config: DiffusionConfig,
    test: ImageData,
    device: torch.device,
    reader: LabelReader | None = None,
    codec: ImageCodec | None = None,
) -> np.ndarray:
    """Draws images, their reconstructions, and counterfactuals with each variable near both ends of its range.

    Returns a grid (H, W, 3) uint8 with headings; below the counterfactuals is what `reader` reads of the variable that
    is set. A Diff-SCM without a predictor yields reconstructions only; a model that needs labels, without images that
    have all labels, the images only.
    """
    solver = create_solver(config, SOLVER if config.few_steps else "ddim", min(PREVIEW_STEPS, config.diffusion_steps))
    guidance = default_guidance(model, config.few_steps > 0)
    engine = CounterfactualEngine(model.eval(), solver, test.spec, guidance=guidance, codec=codec)
    rows = np.arange(len(test))
    if model.needs_labels or model.unconditional_abduction:
        rows = rows[test.observed.all(axis=1)]
    few = test.subset(rows[:PREVIEW_IMAGES])
    if not len(few):
        return headed_tile([("factual", test.images[:PREVIEW_IMAGES])])
    x_start, classes, labels = model_inputs(few, device)
    interventions: list[dict[str, Any]] = [{}]
    if can_intervene(model):
        ends = [(name, value) for i, name in enumerate(test.spec.graph.names) for value in _ends(test, i)]
        interventions += [test.spec.do_labels({name: value}) for name, value in ends]
    results = engine.predict(engine.abduct(x_start, classes, labels=labels), interventions)
    images = [to_uint8(result.images.cpu().numpy()) for result in results]
    spec, texts = test.spec, ["reconstruction"]
    for do in interventions[1:]:
        texts.append(describe_do({name: spec.format_value(name, value) for name, value in do.items()}))
    columns = [("factual", few.images), *zip(texts, images, strict=True)]
    return headed_tile(columns, _captions(few, interventions, images, reader) if len(columns) > 2 else None)


def _captions(
    few: ImageData,
    interventions: Sequence[Mapping[str, float]],
    images: Sequence[np.ndarray],
    reader: LabelReader | None,
) -> list[list[str]]:
    """Captions of the columns: of a counterfactual, the variable that is set."""
    spec, unread = few.spec, np.full(few.labels.shape, np.nan)
    read_factual = unread if reader is None else reader(few.images)
    factual = np.where(np.isnan(few.labels), read_factual, few.labels)
    captions = [[""] * len(few), [""] * len(few)]
    for do, drawn in zip(interventions[1:], images[1:], strict=True):
        requested, read = factual.copy(), unread if reader is None else reader(drawn)
        for name, value in do.items():
            requested[:, spec.graph.index(name)] = value
        texts = caption_texts(spec, requested, read, factual, do)
        captions.append(join_captions({name: texts[name] for name in do}))
    return captions


def _ends(test: ImageData, i: int) -> tuple[float, float]:
    """Returns both ends of the range of variable i, moved inwards by 10 % if it is continuous: extremes are rare."""
    low, high = test.spec.low[i], test.spec.high[i]
    margin = 0.0 if test.spec.category_values(i) else 0.1 * (high - low)
    return low + margin, high - margin
