"""The names of the files of a model folder, and which of them would be left over from another model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from causaldiffae.datasets.reference import FILE as REFERENCE
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import read_json
from causaldiffae.logger import PROGRESS

CONFIG, MODEL = "config.json", "model.safetensors"
PREDICTOR_FOLDER: Final = "reader"
"""Subfolder of a model folder with the predictor of labels and classes (predictors/predictor.py)."""
CORRECTION_FOLDER: Final = "correction_predictor"
"""Predictor that corrects labels, see `predictors/correction.py`; also the end of its name in `weights/`."""
NOISED_PREDICTOR_FOLDER: Final = "predictor"
"""Subfolder of a model folder with the noised predictor of a Diff-SCM (script_util.load_model)."""
AUTOENCODER_FOLDER: Final = "autoencoder"
"""Subfolder of a run or model folder with the autoencoder of a model in latent space (published/autoencoder.py)."""
AUTOENCODER_FILES: Final = ("config.json", "diffusion_pytorch_model.safetensors")
RESPONSES: Final = "responses.json"
"""Responses to interventions that training measured (training/responses.py)."""
README: Final = "README.md"
"""The model card (model_card.py)."""
BEST: Final = "best"
"""Model folder in a run directory with the weights of its best step."""
BEST_FILES: Final = tuple(f"{BEST}/{name}" for name in (MODEL, CONFIG, RESPONSES))
_OF_AUTOENCODER: Final = tuple(f"{AUTOENCODER_FOLDER}/{name}" for name in AUTOENCODER_FILES)
BESIDE_STEPS: Final = (*_OF_AUTOENCODER, REFERENCE)
"""Files of a run directory that the use of a step needs."""
_PREDICTORS: Final = (PREDICTOR_FOLDER, NOISED_PREDICTOR_FOLDER, CORRECTION_FOLDER)
KEPT_FILES: Final = (
    *(PROGRESS, RESPONSES, REFERENCE),
    *(f"{folder}/{name}" for folder in _PREDICTORS for name in (CONFIG, MODEL)),
)
"""Files of a run or model folder that are copied into a model folder that is written from it."""
HUB_FILES: Final = (CONFIG, MODEL, README, *_OF_AUTOENCODER, *KEPT_FILES)
"""All files of a model folder."""


def type_of(described: Mapping[str, Any]) -> str:
    """The type of a model by the content of config.json."""
    kind = str(described.get("config", {}).get("model", {}).get("model_type", described["model_type"]))
    return "causaldae" if kind == "causaldiffae" else kind  # its name in early checkpoints


def files_of_other_model(folder: Path, described: Mapping[str, Any]) -> list[Path]:
    """Files of another model in a folder to which a model is saved, which would be opened with the new one.

    Weights, configuration and model card are not among them, as they are replaced. A model of the same type and data
    set is the same: its folder may be the one that was opened.

    Args:
        described: content of the new config.json.

    Raises:
        InputError: if config.json is that of another program.
    """
    if not (folder / CONFIG).is_file():
        return []
    try:
        former = read_json(folder / CONFIG)
    except DataError:
        former = {"dataset": None}  # damaged
    if former and "dataset" not in former:
        raise InputError(f"{folder}: expected no model of another program; choose another output folder")
    try:
        same = type_of(former) == type_of(described)
        if same and DatasetSpec.from_dict(former["dataset"]) == DatasetSpec.from_dict(described["dataset"]):
            return []
    except (DataError, KeyError, TypeError, AttributeError):
        pass
    files = [folder / name for name in HUB_FILES if name not in (CONFIG, MODEL, README)]
    return [file for file in files if file.is_file()]
