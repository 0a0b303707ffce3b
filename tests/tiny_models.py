"""An untrained model that several test files open."""

from dataclasses import replace
from typing import Any

import torch
from tiny import randomise, small_config, squares_spec

from causaldiffae.script_util import LoadedModel, create_model_and_diffusion


def tiny_model(**changes: Any) -> LoadedModel:
    """A model of squares as a folder of images, which has no generator; `changes` to its configuration."""
    torch.manual_seed(0)
    config = small_config(**changes)
    spec = replace(squares_spec(4 if changes.get("class_cond") else None), name="folder")
    model, _ = create_model_and_diffusion(config, spec)
    randomise(model)
    return LoadedModel(model.eval(), config, spec, 7, "nowhere")
