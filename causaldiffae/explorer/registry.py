"""The models that the explorer offers, and the images that each starts with.

The named model and all models in folders beside it are offered; each is opened when it is first used. Images come from
the data folder if one is given and fits the model, otherwise from the data set's examples.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

import torch

from causaldiffae.checkpoints.model_folders import PREDICTOR_TYPE, FoundModel, describe_folder, models_in
from causaldiffae.datasets.registry import example_images, has_examples, read_split
from causaldiffae.errors import DataError, InputError
from causaldiffae.explorer.session import Session, SourceImage, images_of
from causaldiffae.script_util import MODELS, load_model

IMAGES: Final = 12
_OPEN_AT_ONCE: Final = 4
_MODEL_TITLES: Final = {
    "causaldae": "CausalDiffAE",
    "diffscm": "Diff-SCM",
    "conditional": "label-conditional",
    "diffae": "DiffAE",
    "causalvae": "CausalVAE",
}


def find_models(model_path: Path) -> list[FoundModel]:
    """The model at `model_path`, then those in the folders beside it.

    Raises:
        DataError: if `model_path` holds no model of a type in `script_util.MODELS`.
    """
    named = describe_folder(model_path)
    if named is None:
        raise DataError(f"model_path: expected a run directory or a model folder, got {model_path}")
    if named.model_type not in MODELS:
        hint = "; a predictor reads labels and generates no images" if named.model_type == PREDICTOR_TYPE else ""
        raise DataError(f"{model_path}: expected one of {', '.join(MODELS)}, got a {named.model_type!r} model{hint}")
    beside = [found for found in models_in(model_path.resolve().parent) if found.model_type in MODELS]
    return [named, *(found for found in beside if found.path.resolve() != model_path.resolve())]


def titles_of(models: Sequence[FoundModel]) -> dict[str, FoundModel]:
    """The models by title, "pendulum · CausalDiffAE · mini"; equal titles get the folder added."""
    titles = []
    for found in models:
        rest = found.path.resolve().name.replace(found.dataset, "").replace(found.model_type, "")
        rest = re.sub(r"[_-]{2,}", "_", rest).strip("_-. ")
        parts = [found.dataset, _MODEL_TITLES.get(found.model_type, found.model_type), rest]
        titles.append(" · ".join(part for part in parts if part))
    return {
        title if titles.count(title) == 1 else f"{title} ({found.path.resolve()})": found
        for title, found in zip(titles, models, strict=True)
    }


class ModelRegistry:
    """Opens models and their images by title; `data_dir` is the folder of a data set, or ""."""

    def __init__(self, models: Sequence[FoundModel], data_dir: str = "", device: torch.device | str = "cpu") -> None:
        if not models:
            raise InputError("models: expected at least one model, got none")
        self.models, self.data_dir = titles_of(models), data_dir
        self.titles = list(self.models)
        self.max_variables = max(len(found.variables) for found in models)
        self._lock = threading.RLock()
        self._open_session = lru_cache(_OPEN_AT_ONCE)(
            lambda title: Session(load_model(str(self.models[title].path), device))
        )
        self._read_images = lru_cache(_OPEN_AT_ONCE)(self._find_images)

    def session(self, title: str) -> Session:
        """Opens a model; `InputError` for an unknown title or a damaged model."""
        if title not in self.models:
            raise InputError(f"model: expected one of {', '.join(self.models)}, got {title!r}")
        with self._lock:
            return self._open_session(title)

    def images(self, title: str) -> tuple[list[SourceImage], str]:
        """Images to start with, possibly none, and a note if they do not come from the given data folder."""
        with self._lock:
            return self._read_images(title)

    def _find_images(self, title: str) -> tuple[list[SourceImage], str]:
        spec, note = self.session(title).spec, ""
        if self.data_dir:
            try:
                return images_of(read_split(spec.name, self.data_dir, "test", limit=IMAGES, spec=spec)), ""
            except InputError as error:
                note = f"The data folder does not fit this model ({error})"
        if not has_examples(spec):
            return [], note or f"There are no example images of {spec.name!r}: upload an image, or use --data_dir."
        try:
            return images_of(example_images(spec, IMAGES)), f"{note}; these are example images." if note else ""
        except InputError as error:
            return [], f"{note} {error}".strip()
