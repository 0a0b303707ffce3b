"""Writes a model folder: everything that a trained model needs elsewhere, and a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from causaldiffae.checkpoints import model_folders as folders
from causaldiffae.checkpoints.checkpoint import CONFIG, export_weights
from causaldiffae.checkpoints.model_card import CardFacts, check_metrics, write_card
from causaldiffae.datasets.registry import find_dataset
from causaldiffae.diff_scm import own_weights
from causaldiffae.errors import InputError
from causaldiffae.files.reading import read_json
from causaldiffae.nn import count_parameters
from causaldiffae.predictors.correction import find_correction_predictor
from causaldiffae.predictors.predictor import LoadedPredictor, save_predictor
from causaldiffae.published.autoencoder import keep_with_model
from causaldiffae.script_util import LoadedModel, describe_checkpoint
from causaldiffae.training import responses

_PATHS: Final = ("data_dir", "run_dir", "graph", "resume_checkpoint", "init_weights", "label_predictor", "vae_path")


def write_model_folder(
    loaded: LoadedModel,
    folder: str | Path,
    predictor: LoadedPredictor | None = None,
    *,
    dtype: torch.dtype | None = None,
    metrics: Mapping[str, float] | None = None,
    name: str = "",
) -> Path:
    """Writes weights, configuration, model card, training log and predictors; returns the folder.

    Args:
        predictor: reads the labels or classes that the model needs.
        dtype, metrics, name: as in `CounterfactualModel.save_pretrained`.

    Raises:
        InputError: for published weights for pixels in 0..1, which config.json cannot express.
    """
    check_metrics(metrics or {})
    model, spec, source = loaded.model, loaded.spec, Path(loaded.path)
    if loaded.pixel_range != (-1.0, 1.0):
        raise InputError(f"{source}: expected pixels in -1..1, got published weights for pixels in 0..1")
    steps = loaded.step or read_json(source / CONFIG).get("trained_steps")
    described = describe_checkpoint(loaded.config, spec, loaded.codec)
    described["config"]["train"] |= dict.fromkeys(_PATHS, "")
    described |= {"trained_steps": steps, "images_seen": responses.images_seen(source)}
    target = export_weights(folder, own_weights(model), described, dtype)
    keep_with_model(loaded.codec, target)
    without = () if getattr(model, "predictor", None) is not None else (folders.NOISED_PREDICTOR_FOLDER,)
    folders.copy_files(source, target, without)
    if predictor is not None:
        save_predictor(target / folders.PREDICTOR_FOLDER, predictor.predictor, predictor.figures)
    if corrects := find_correction_predictor(spec, loaded.path):
        save_predictor(target / folders.CORRECTION_FOLDER, corrects.predictor, corrects.figures)
    facts = CardFacts(loaded.config, spec, count_parameters(model), steps, find_dataset(spec.name).source, name)
    write_card(target, facts, metrics)
    return target
