"""Untrained models that several test files open."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny import randomise, small_config, squares_spec

from causaldiffae.checkpoints.checkpoint import export_weights
from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.predictors.noised_predictor import NoisedPredictor, NoisedPredictorConfig, save_noised_predictor
from causaldiffae.script_util import LoadedModel, create_model_and_diffusion, describe_checkpoint


def tiny_model(**changes: Any) -> LoadedModel:
    """A model of squares as a folder of images, which has no generator; `changes` to its configuration."""
    torch.manual_seed(0)
    config = small_config(**changes)
    spec = replace(squares_spec(4 if changes.get("class_cond") else None), name="folder")
    model, _ = create_model_and_diffusion(config, spec)
    randomise(model)
    return LoadedModel(model.eval(), config, spec, 7, "nowhere")


def write_diffscm(folder: Path) -> Path:
    """Writes a Diff-SCM of the digits with a noised predictor."""
    config = small_config(model_type="diffscm", dataset="mnist", label_cond=True, image_size=28, channel_mult="1,1")
    config = replace(config, model=replace(config.model, attention_resolutions="", patch_size=2))
    spec = dataset_spec("mnist")
    torch.manual_seed(0)
    model, _ = create_model_and_diffusion(config, spec)
    export_weights(folder, randomise(model, scale=0.02).state_dict(), describe_checkpoint(config, spec))
    predictor = NoisedPredictor(spec, NoisedPredictorConfig(channel_mult="1,1", patch_size=2))
    save_noised_predictor(folder / "predictor", predictor, config.diffusion, {})
    return folder
