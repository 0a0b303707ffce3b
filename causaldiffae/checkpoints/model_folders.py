"""Lookup of trained models in local folders, the shipped weights and the Hugging Face Hub, in this order.

Shipped models have short names: "pendulum-mini" is `weights/pendulum_causaldae_mini`, "pendulum-diffae-mini" is
`weights/pendulum_diffae_mini`. Only JSON, safetensors and text files are downloaded from the hub.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from causaldiffae.checkpoints.checkpoint import STEP_NAME
from causaldiffae.checkpoints.folder_layout import AUTOENCODER_FILES as AUTOENCODER_FILES
from causaldiffae.checkpoints.folder_layout import AUTOENCODER_FOLDER as AUTOENCODER_FOLDER
from causaldiffae.checkpoints.folder_layout import CONFIG, HUB_FILES, KEPT_FILES, MODEL, type_of
from causaldiffae.checkpoints.folder_layout import CORRECTION_FOLDER as CORRECTION_FOLDER
from causaldiffae.checkpoints.folder_layout import NOISED_PREDICTOR_FOLDER as NOISED_PREDICTOR_FOLDER
from causaldiffae.checkpoints.folder_layout import PREDICTOR_FOLDER as PREDICTOR_FOLDER
from causaldiffae.checkpoints.remote import local_checkpoint
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.paths import WEIGHTS
from causaldiffae.files.reading import file_size, read_json

PREDICTOR_TYPE: Final = "predictor"
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class FoundModel:
    """A model folder or run directory, described by its config.json."""

    path: Path
    model_type: str  # a key of `script_util.MODELS`, or "predictor"
    dataset: str
    variables: tuple[str, ...]


def config_file(folder: Path) -> Path | None:
    """Returns config.json of a model folder or of the newest step of a run; None if there is neither."""
    if (folder / MODEL).is_file() and (folder / CONFIG).is_file():
        return folder / CONFIG
    steps = [path for path in folder.glob("step_*") if STEP_NAME.fullmatch(path.name)] if folder.is_dir() else []
    return max(steps, key=lambda path: int(path.name[5:])) / CONFIG if steps else None


def describe_folder(folder: Path) -> FoundModel | None:
    """Describes a model folder or run directory by its configuration; returns None for other folders."""
    config = config_file(folder)
    if config is None:
        return None
    try:
        described = read_json(config)
        dataset = described["dataset"]
        kind = type_of(described)
        variables = tuple(str(name) for name in dataset["graph"]["names"])
    except (DataError, OSError, KeyError, TypeError, AttributeError):
        return None
    return FoundModel(folder, kind, str(dataset["name"]), variables)


def models_in(folder: Path) -> list[FoundModel]:
    """Returns the models in the subfolders of `folder`, sorted by name, without predictors."""
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []
    found = [describe_folder(path) for path in inside]
    return [each for each in found if each is not None and each.model_type != PREDICTOR_TYPE]


def shipped_models() -> dict[str, FoundModel]:
    """Returns the models in `weights/` by short name; empty if the package was installed without a clone."""
    return {short_name(found.path.name): found for found in models_in(WEIGHTS)}


def short_name(folder: str) -> str:
    """ "pendulum_causaldae_mini" -> "pendulum-mini"."""
    return folder.replace("_causaldae_", "_").replace("_", "-")


def find_model(name: str | Path, revision: str | None = None) -> Path:
    """Returns the folder of a model, downloading it from the hub or from object storage if necessary.

    Args:
        name: model folder, run directory or step folder, shipped name or folder name, "owner/repository", or the URL of
            a run directory or step, of which a local copy is returned.
        revision: branch, tag or commit of a hub repository.

    Raises:
        InputError: If there is no such model; the message lists the shipped models.
        DataError: If the download fails.
        StorageError: If the storage service cannot be reached.
    """
    given = local_checkpoint(name)
    if given.is_dir() or given.is_file():
        return given
    if (path := shipped_path(str(name))) != str(name):
        return Path(path)
    if _HUB_NAME.fullmatch(str(name)):
        return _download(str(name), revision)
    models = [
        short for short, found in shipped_models().items() if found.model_type != "class_autoencoders"
    ]  # for IM1 and IM2
    known = ", ".join(models) or f"none: {WEIGHTS} not found; clone the repository to get it"
    raise InputError(f"model {str(name)!r}: folder not found; expected a folder, owner/repository, or one of {known}")


def shipped_path(name: str) -> str:
    """The folder of a shipped model, for its name or folder name; other names, and files, are returned as given."""
    known = {} if Path(name).exists() else shipped_models()
    return next((str(found.path) for short, found in known.items() if name in (short, found.path.name)), name)


def _hub(what: str) -> Any:
    try:
        return import_module("huggingface_hub")
    except ImportError:
        raise InputError(f"{what}: huggingface_hub is not installed; run pip install 'causaldiffae[hub]'") from None


def _download(name: str, revision: str | None) -> Path:
    hub = _hub(f"model {name!r}: folder not found, cannot download it")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(HUB_FILES), revision=revision))
    except (OSError, ValueError) as error:  # not found, not reachable, invalid name
        raise DataError(
            f"model {name!r}: folder not found, and the download from the Hugging Face Hub failed ({str(error)[:200]})"
        ) from None


def push_folder(folder: Path, name: str, *, private: bool, token: str | None, message: str) -> str:
    """Uploads the `HUB_FILES` of a model folder in one commit, and returns the URL of the commit.

    Args:
        folder: model folder.
        name: "owner/repository", created if it does not exist.
        private: visibility of a new repository.
        token: hub token; None uses the token stored by `hf auth login`.
        message: commit message.

    Raises:
        InputError: If the name is invalid, or huggingface_hub is not installed.
        DataError: If the upload fails.
    """
    if not _HUB_NAME.fullmatch(name):
        raise InputError(f"hub name: expected owner/repository, got {name[:80]!r}")
    api = _hub("push_to_hub").HfApi(token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name, folder_path=str(folder), commit_message=message, allow_patterns=list(HUB_FILES)
        )
    except Exception as error:
        if not (isinstance(error, OSError | ValueError) or type(error).__module__.startswith("httpx")):
            raise
        raise DataError(
            f"{name}: upload to the Hugging Face Hub failed ({str(error)[:200]}); use a write token"
        ) from None
    return str(getattr(commit, "commit_url", commit))


def copy_files(source: Path, target: Path, without: Collection[str] = ()) -> None:
    """Copies the `KEPT_FILES` of a model folder, or of a step and its run, but for the files and folders `without`."""
    for name in KEPT_FILES:
        if name.partition("/")[0] not in without:
            copy_beside(source, Path(name), target)


def copy_beside(source: Path, file: Path, target: Path) -> None:
    """Copies a file that lies in the folder `source` or in its parent (a run's step lies in the run)."""
    found = next((place / file for place in (source, source.parent) if (place / file).is_file()), None)
    if found is not None and found.resolve() != (target / file).resolve():
        file_size(found)  # rejects links to files outside the folder, which an upload would publish
        (target / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(found, target / file)
