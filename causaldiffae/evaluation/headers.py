"""The header of a results file: everything that the figures depend on, its digests, and versions."""

from __future__ import annotations

import hashlib
import platform
import sys
import warnings
from importlib import metadata
from typing import Any, Final

import numpy as np
import torch

from causaldiffae.datasets.images import ImageData
from causaldiffae.datasets.registry import truth_is_known
from causaldiffae.evaluation.digests import json_digest, state_digest
from causaldiffae.evaluation.protocol import PROTOCOL, VERSION, ProtocolSettings, Task
from causaldiffae.metrics.realism import check_inception
from causaldiffae.nn import count_parameters
from causaldiffae.predictors.correction import LabelCorrection
from causaldiffae.predictors.predictor import LoadedPredictor
from causaldiffae.script_util import LoadedModel
from causaldiffae.training.predictor import data_digest

PACKAGES: Final = ("torch", "numpy", "scipy", "scikit-learn", "scikit-image", "causaldiffae")
NOT_OF_THE_RECIPE: Final = (
    *("data_dir", "run_dir", "seed", "resume_checkpoint"),
    *("device", "compile", "use_bf16", "channels_last", "data_on_device"),
    *("log_interval", "save_interval", "sample_interval", "keep_last", "keep_every", "background_save"),
    *("storage_patience", "max_hours", "tensorboard", "dry_run"),
)
"""Options of training that depend on the machine or concern files only, so seeds of several machines are grouped."""


def describe_model(loaded: LoadedModel) -> dict[str, Any]:
    """The model in the header of a results file, as far as figures depend on it."""
    config = loaded.config.to_dict()
    train = {key: value for key, value in config.get("train", {}).items() if key not in NOT_OF_THE_RECIPE}
    return {
        "type": loaded.config.model.model_type,
        "step": loaded.step,
        "digest": state_digest(loaded.model),
        "parameters": count_parameters(loaded.model),
        "seed": loaded.config.train.seed,
        "recipe": json_digest({**config, "train": train, "dataset": loaded.spec.to_dict()}),
    }


def describe(
    model: dict[str, Any],
    task: Task,
    settings: ProtocolSettings,
    predictor: LoadedPredictor,
    inception_weights: str = "",
    trust_inception: bool = False,
    correction: LabelCorrection | None = None,
) -> dict[str, Any]:
    """The header of a results file: everything the figures depend on, its digests, and versions.

    Args:
        model: the model or, for the answers of another system, their digest.
        correction: the label correction of the engine.
    """
    corrected_by = "none" if correction is None else state_digest(correction.predictor)
    spec = task.data.spec
    header: dict[str, Any] = {
        "protocol": {"name": PROTOCOL, "version": VERSION},
        "model": model,
        "data": {
            "dataset": spec.name,
            "digest": data_digest(task.data),
            "split": "test",
            "images": len(task),
            "image_size": spec.image_size,
            "channels": spec.channels,
            "variables": list(spec.graph.names),
            "units": list(spec.units),
            "truth": _describe_truth(task.data),
        },
        "settings": {**settings.to_dict(), "variables": list(task.variables), "correction_predictor": corrected_by},
    }
    header["asked"] = json_digest(header)  # everything the outputs depend on; not the predictor
    header["predictor"] = {"digest": state_digest(predictor.predictor), "figures": predictor.figures}
    warn_of_same_predictor(correction, predictor)
    if inception_weights:
        content = check_inception(inception_weights, trust_inception)
        header["settings"]["inception"] = hashlib.sha256(content).hexdigest()[:16]
    header["digest"] = json_digest(header)
    named = {name: list(spec.category_names(i)) for i, name in enumerate(spec.graph.names)}
    header["data"]["categories"] = {name: names for name, names in named.items() if names}
    header["predictor"]["path"] = predictor.path
    header["versions"] = versions(next(predictor.predictor.parameters()).device)
    return header


def warn_of_same_predictor(correction: LabelCorrection | None, predictor: LoadedPredictor) -> None:
    """Warns if the predictor that reads the labels of the images also corrects them."""
    if correction is not None and state_digest(correction.predictor) == state_digest(predictor.predictor):
        warnings.warn(f"predictor: {predictor.path} also corrects the labels that it reads; name another", stacklevel=3)


def _describe_truth(data: ImageData) -> str:
    """The source of the true counterfactuals; that in a folder with a digest."""
    if truth_is_known(data):
        return "drawn by the generator"
    if data.pairs is None:
        return "not known"
    content = [data.pairs.rows.tolist(), [sorted(do.items()) for do in data.pairs.dos], data.pairs.labels.tolist()]
    images = hashlib.sha256(np.ascontiguousarray(data.pairs.images).tobytes()).hexdigest()
    return f"{len(data.pairs.dos)} pairs in the folder ({json_digest([str(content), images])})"


def versions(device: torch.device) -> dict[str, str]:
    """Versions of Python and of the packages that the figures depend on."""
    found = {"python": platform.python_version(), "device": str(device), "platform": sys.platform}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
