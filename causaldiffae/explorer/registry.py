"""Which models the explorer offers, and the pictures that each begins with.

Offered are the model that was named and all that lie in folders beside it; a model is opened when it is first asked.
Pictures come from the data folder where one was given and fits the model, else from `examples.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from causaldiffae.checkpoints.model_folders import PREDICTOR_TYPE, FoundModel, describe_folder, models_in
from causaldiffae.datasets.registry import example_images, has_examples, read_split
from causaldiffae.errors import DataError, InputError
from causaldiffae.explorer.session import Picture, Remembered, Session, pictures_of
from causaldiffae.script_util import MODELS, load_model

SHOWN: Final = 12
_OPEN_AT_ONCE: Final = 4
TITLES: Final = {
    "causaldae": "CausalDiffAE",
    "diffscm": "Diff-SCM",
    "conditional": "label-conditional",
    "diffae": "DiffAE",
    "causalvae": "CausalVAE",
}


def find_models(model_path: Path) -> list[FoundModel]:
    """The model at `model_path` first, then those in the folders beside it.

    Raises:
        DataError: if there is none at `model_path`, or it is none of `script_util.MODELS`.
    """
    named = describe_folder(model_path)
    if named is None:
        raise DataError(f"{model_path}: it holds no model; a run directory or a model folder is needed")
    if named.model_type not in MODELS:
        hint = "; a predictor reads labels and draws nothing" if named.model_type == PREDICTOR_TYPE else ""
        raise DataError(f"{model_path}: a {named.model_type!r} model, one of {', '.join(MODELS)} is needed{hint}")
    beside = [found for found in models_in(model_path.resolve().parent) if found.model_type in MODELS]
    return [named, *(found for found in beside if found.path.resolve() != model_path.resolve())]


def title(found: FoundModel) -> str:
    """For people: "pendulum · CausalDiffAE · mini" for a folder pendulum_causaldae_mini."""
    folder = found.path.resolve().name
    rest = folder.replace(found.dataset, "").replace(found.model_type, "").strip("_-. ")
    return " · ".join([found.dataset, TITLES.get(found.model_type, found.model_type), *filter(None, [rest])])


def titles_of(models: Sequence[FoundModel]) -> dict[str, FoundModel]:
    """The models by title; where two would have the same, the folder's name comes behind it."""
    titles = [title(found) for found in models]
    return {
        text if titles.count(text) == 1 else f"{text} ({found.path.resolve()})": found
        for text, found in zip(titles, models, strict=True)
    }


class ModelRegistry:
    """The models on offer.

    Args:
        models: as `find_models` gives them; the first is shown first.
        data_dir: a data set's folder, or "".
        device: where models are opened.
    """

    def __init__(self, models: Sequence[FoundModel], data_dir: str = "", device: torch.device | str = "cpu") -> None:
        if not models:
            raise InputError("explorer: there is no model to show")
        self.models = titles_of(models)
        self.data_dir, self.device = data_dir, device
        self._sessions: Remembered[str, Session] = Remembered(_OPEN_AT_ONCE)
        self._pictures: Remembered[str, tuple[list[Picture], str]] = Remembered(_OPEN_AT_ONCE)
        self._lock = threading.Lock()

    @property
    def titles(self) -> list[str]:
        """All models by title."""
        return list(self.models)

    @property
    def most_variables(self) -> int:
        """Of any model's graph."""
        return max(len(found.variables) for found in self.models.values())

    def session(self, model: str) -> Session:
        """The session of a model by its title; `InputError` (or `DataError`) where it cannot be opened."""
        if model not in self.models:
            raise InputError(f"model: {model!r} is not on offer")
        with self._lock:
            return self._sessions.get(model, lambda: Session(load_model(str(self.models[model].path), self.device)))

    def pictures(self, model: str) -> tuple[list[Picture], str]:
        """Pictures to begin with, and a note where they are not those of the folder that was given; may be none."""
        session = self.session(model)
        with self._lock:
            return self._pictures.get(model, lambda: self._find_pictures(session))

    def _find_pictures(self, session: Session) -> tuple[list[Picture], str]:
        spec, note = session.spec, ""
        if self.data_dir:
            try:
                return pictures_of(read_split(spec.name, self.data_dir, "test", limit=SHOWN, spec=spec)), ""
            except InputError as error:
                note = f"The data folder does not fit this model ({error})"
        if not has_examples(spec):
            return [], note or f"There are no examples of {spec.name!r}: upload a picture, or give --data_dir."
        try:
            return pictures_of(example_images(spec, SHOWN)), f"{note}; these are examples." if note else ""
        except InputError as error:
            return [], f"{note} {error}".strip()
