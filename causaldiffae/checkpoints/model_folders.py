"""Where trained models lie: a folder of the user's, the weights shipped beside the package, or the Hugging Face Hub.

A model's name is tried in this order. Shipped names are short forms of the folders in `weights/`:
"pendulum-mini" stands for `weights/pendulum_causaldae_mini`, "pendulum-diffae-mini" for `weights/pendulum_diffae_mini`.
From the hub only JSON, safetensors and text are fetched: nothing that could be unpickled ever arrives.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from causaldiffae.checkpoints.checkpoint import CONFIG, MODEL
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.places import WEIGHTS
from causaldiffae.files.reading import read_json

PREDICTOR_FOLDER: Final = "reader"
"""The folder in a model folder that holds what reads labels and classes off images (predictors.py)."""
NOISED_PREDICTOR_FOLDER: Final = "predictor"
"""The folder that holds a Diff-SCM's noised predictor (script_util.load_model)."""
HUB_FILES: Final = (
    *(
        f"{place}{name}"
        for place in ("", f"{PREDICTOR_FOLDER}/", f"{NOISED_PREDICTOR_FOLDER}/")
        for name in (CONFIG, MODEL)
    ),
    "progress.csv",
    "README.md",
)
PREDICTOR_TYPE: Final = "predictor"
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_STEP: Final = re.compile(r"step_[0-9]{7,12}")


@dataclass(frozen=True)
class FoundModel:
    """A folder that says it holds a model; nothing but its config.json has been read.

    Attributes:
        path: the folder; for a run, the run's.
        model_type: a key of `script_util.MODELS`, or "predictor".
        dataset: the data set's name.
        variables: of its graph.
    """

    path: Path
    model_type: str
    dataset: str
    variables: tuple[str, ...]


def config_file(folder: Path) -> Path | None:
    """config.json of a model folder, or of a run's newest step; None where there is neither."""
    if (folder / MODEL).is_file() and (folder / CONFIG).is_file():
        return folder / CONFIG
    steps = [path for path in folder.glob("step_*") if _STEP.fullmatch(path.name)] if folder.is_dir() else []
    return max(steps, key=lambda path: int(path.name[5:])) / CONFIG if steps else None


def describe_folder(folder: Path) -> FoundModel | None:
    """What a model folder or a run says about itself; None where it holds neither."""
    config = config_file(folder)
    if config is None:
        return None
    try:
        described = read_json(config)
        dataset = described["dataset"]
        model = described.get("config", {}).get("model", {})
        name = str(model.get("model_type", described["model_type"]))
        variables = tuple(str(each) for each in dataset["graph"]["names"])
        # "causaldiffae" is what checkpoints said before there were several models
        return FoundModel(folder, "causaldae" if name == "causaldiffae" else name, str(dataset["name"]), variables)
    except (DataError, OSError, KeyError, TypeError, AttributeError):
        return None


def models_in(folder: Path) -> list[FoundModel]:
    """The models in the folders right under `folder`, sorted by name; predictors are left out."""
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []
    found = [describe_folder(path) for path in inside]
    return [each for each in found if each is not None and each.model_type != PREDICTOR_TYPE]


def shipped_models() -> dict[str, FoundModel]:
    """The models in `weights/` beside the package by their short names; none where only the package was installed."""
    return {short_name(found.path.name): found for found in models_in(WEIGHTS)}


def short_name(folder: str) -> str:
    """ "pendulum_causaldae_mini" -> "pendulum-mini"."""
    return folder.replace("_causaldae_", "_").replace("_", "-")


def find_model(name: str | Path, revision: str | None = None) -> Path:
    """The folder of a model, fetched first where it lies on the hub.

    Args:
        name: a folder (model folder, run directory or step), a shipped name or folder name, or "owner/repository".
        revision: of a hub repository: a branch, tag or commit.

    Raises:
        InputError: if there is nothing of this name; the message lists what is shipped.
        DataError: if the hub does not give it.
    """
    given = Path(name)
    if given.is_dir() or given.is_file():
        return given
    shipped = shipped_models()
    for short, found in shipped.items():
        if str(name) in (short, found.path.name):
            return found.path
    if _HUB_NAME.fullmatch(str(name)):
        return _from_hub(str(name), revision)
    if shipped:
        there = f"shipped are {', '.join(shipped)}"
    else:
        there = f"no weights are shipped here: {WEIGHTS} is missing; they come with a clone of the repository"
    raise InputError(f"model {str(name)!r}: there is no such folder, and no hub name is owner/repository; {there}")


def _from_hub(name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(
            f"model {name!r}: there is no such folder; to look on the Hugging Face Hub, "
            "pip install 'causaldiffae[hub]' is needed"
        ) from None
    options: dict[str, Any] = {"allow_patterns": list(HUB_FILES), "revision": revision}
    try:
        return Path(snapshot_download(name, **options))
    except (OSError, ValueError) as error:  # its errors are of these two kinds: not found, not reachable, no such name
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"model {name!r}: the Hugging Face Hub did not give it ({reason})") from None


def push_folder(folder: Path, name: str, *, private: bool, token: str | None, message: str) -> str:
    """Makes the repository where there is none, and uploads the files of a model folder in one commit.

    Args:
        folder: files that are none of `HUB_FILES` stay here.
        name: "owner/repository".
        private: of a repository that is made now; one that exists stays as it is.
        token: of the hub; None takes the one that `hf auth login` has left.

    Returns:
        The commit's address.

    Raises:
        InputError: if the name is none, or huggingface_hub is not installed.
        DataError: if the hub refuses or is not reachable.
    """
    if not _HUB_NAME.fullmatch(name):
        raise InputError(f"hub name: {name[:80]!r} given, owner/repository is needed")
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise InputError(
            "push_to_hub: huggingface_hub is not installed; pip install 'causaldiffae[hub]' is needed"
        ) from None
    api = HfApi(token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name, folder_path=str(folder), commit_message=message, allow_patterns=list(HUB_FILES)
        )
    except Exception as error:
        from_below = type(error).__module__.startswith("httpx")  # no connection: not wrapped as it is when reading
        if not (from_below or isinstance(error, OSError | ValueError)):
            raise
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{name}: the Hugging Face Hub did not take it ({reason}); it takes a token that may write"
        ) from None
    return str(getattr(commit, "commit_url", commit))
