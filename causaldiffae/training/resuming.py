"""Selection, validation and restoring of the checkpoint to resume from.

The model, the diffusion process, the data set, its graph, the labelled images and the autoencoder of a model in latent
space must be those of the checkpoint. The
seed and the number of images per step may differ, with a warning: the batches then differ from those of an
uninterrupted run. Other options take their new values, and the log lists them.
"""

from __future__ import annotations

import contextlib
import socket
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from causaldiffae import dist_util
from causaldiffae.checkpoints.checkpoint import STEP_NAME, Checkpoint, latest_checkpoint
from causaldiffae.checkpoints.remote import RemoteRun, local_checkpoint
from causaldiffae.config import Config
from causaldiffae.datasets.label_subsets import labelled_mask
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.storage import is_remote
from causaldiffae.image_datasets import BatchSource
from causaldiffae.published.autoencoder import LatentSpace, check_same_autoencoder
from causaldiffae.script_util import describe_checkpoint, load_model

Changes = dict[str, tuple[Any, Any]]
"""Options by name, with their values before and now."""
SCHEDULED: Final = ("lr", "params")
"""Entries of an optimizer group that are no options: the training loop sets the learning rate of each step."""
OF_MEMORY: Final = ("use_checkpoint",)
"""Options of the model that change neither its weights nor its results."""
NOT_LISTED: Final = ("resume_checkpoint", "init_weights", "dry_run", "device")


def checkpoint_to_resume(explicit: str, run_dir: str | Path) -> Path | None:
    """Returns the explicit step folder, or the newest intact one in the run directory; None if there is none.

    If the explicit folder is outside the run directory, a later step of the run is preferred: a job that is started
    again with the same options continues. Rank 0 chooses the step. From object storage, the first process of every
    machine fetches it: the machines need no common folder. All processes must call this function.

    Raises:
        DataError: If there are checkpoints but all are damaged.
        InputError: If a local folder exists on the machine of rank 0, but not on another one.
    """
    chosen, exists, address = dist_util.from_main(lambda: _choose_checkpoint(explicit, run_dir))
    if chosen is None or not exists:  # a missing explicit folder is reported when it is read
        return chosen
    if is_remote(address):
        run = address.rpartition("/")[0] if STEP_NAME.fullmatch(address.rpartition("/")[2]) else address
        return dist_util.once_per_machine(
            lambda: chosen if dist_util.is_main() else local_checkpoint(f"{run}/{chosen.name}")
        )

    def check() -> Path:
        if not chosen.is_dir():
            raise InputError(
                f"run_dir: expected a folder that all machines share, got {chosen}, which is missing on "
                f"{socket.gethostname()}; move the run to a shared folder or to gs:// or az://"
            )
        return chosen

    return dist_util.once_per_machine(check)


def _choose_checkpoint(explicit: str, run_dir: str | Path) -> tuple[Path | None, bool, str]:
    """The folder, whether it exists, and the address of the step or run that it comes from."""
    run, named = str(run_dir).rstrip("/"), explicit.rstrip("/")
    if not named:
        chosen = _newest(run)
        return chosen, chosen is not None, run
    folder = local_checkpoint(named)
    if is_remote(run) and named.startswith(f"{run}/"):
        return folder, folder.exists(), named
    within = not is_remote(run) and Path(named).resolve().is_relative_to(Path(run).resolve())
    with contextlib.suppress(DataError):  # the run has no intact step
        own = _newest(run)
        if own is not None and _step_of(own) > _step_of(folder):
            if not within:
                return own, True, run
            warnings.warn(
                f"resume_checkpoint: {folder} is used every time this command is started, although the run has "
                f"{own.name}; to continue from it, remove the later steps, and drop resume_checkpoint afterwards",
                stacklevel=2,
            )
    return folder, folder.exists(), named


def _newest(run: str) -> Path | None:
    if not is_remote(run):
        return latest_checkpoint(run)
    remote = RemoteRun(run)
    remote.upload_pending()
    return remote.fetch_newest()


def _step_of(folder: Path) -> int:
    match = STEP_NAME.fullmatch(folder.name)
    return int(match[1]) if match else -1


def batch_order(source: BatchSource) -> dict[str, int]:
    """Returns the settings that determine the images of each step."""
    return {"seed": source.seed, "images of a step": source.batch_size}


def check_same_run(
    checkpoint: Checkpoint,
    config: Config,
    source: BatchSource,
    model: torch.nn.Module,
    codec: LatentSpace | None = None,
) -> None:
    """Checks that a run can resume from a checkpoint with a training state.

    Args:
        model: with its initial weights, those of the teacher in a distillation, whose frozen parts are compared.

    Raises:
        InputError: If the model, diffusion process, autoencoder, teacher, data set, graph or labelled images differ.
    """
    path, described, state = checkpoint.path, checkpoint.config, checkpoint.training_state
    check_same_autoencoder(described, codec, str(path))
    saved = Config.from_dict(described.get("config"))
    for part in ("model", "diffusion"):
        for name, before in saved.to_dict()[part].items():
            if (value := config.to_dict()[part][name]) != before and name not in OF_MEMORY:
                raise InputError(
                    f"{name}: expected {before!r} as in {path}, got {value!r}; restore it or choose another run_dir"
                )
    if config.diffusion.few_steps:
        for name, frozen in model.named_parameters():
            if not frozen.requires_grad and not torch.equal(frozen.cpu(), checkpoint.model_state[name].cpu()):
                raise InputError(
                    f"init_weights: expected the teacher of {path}, got another model; choose another run_dir"
                )
    dataset, spec = described.get("dataset"), source.spec.to_dict()  # old checkpoints lack some keys
    if not isinstance(dataset, dict) or any(spec.get(key) != value for key, value in dataset.items()):
        raise InputError(f"{path}: expected the data set and graph of this checkpoint; choose another run_dir")
    labelled = state.get("labelled")
    if labelled is not None and not np.array_equal(labelled.numpy(), labelled_mask(source.observed)):
        raise InputError(
            f"{path}: expected the labelled images of this checkpoint; restore label_seed or choose another run_dir"
        )
    now = batch_order(source)
    for name, before in state.get("order", now).items():
        if before != now[name] and dist_util.is_main():
            warnings.warn(f"{path}: {name}: was {before}, now {now[name]}; the batches will differ", stacklevel=2)


def load_initial_weights(
    model: torch.nn.Module, path: str, config: Config, spec: DatasetSpec, codec: LatentSpace | None = None
) -> None:
    """Loads the weights of a model folder or checkpoint into a new model.

    Raises:
        InputError: If they belong to another network, data set, image size, graph or autoencoder.
    """
    loaded = load_model(dist_util.once_per_machine(lambda: str(local_checkpoint(path))))
    found, expected = asdict(loaded.config.model), asdict(config.model)
    others = [f"--{name} {found[name]}" for name in found if found[name] != expected[name] and name not in OF_MEMORY]
    if others:
        raise InputError(f"init_weights: expected weights of this network, got {path}; set {' '.join(others)}")
    if loaded.spec.to_dict() != spec.to_dict():
        raise InputError(f"init_weights: expected weights of this data set, image size and graph, got {path}")
    check_same_autoencoder(describe_checkpoint(config, spec, loaded.codec), codec, path)
    state = loaded.model.state_dict()  # a Diff-SCM includes the noised predictor found in its folder
    model.load_state_dict({name: state[name] for name in model.state_dict()})


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> Changes:
    """Loads the moments of an optimizer, keeps the options of this run, and returns those that differ.

    Moments are stored contiguously. They get the memory layout of their parameters, because fused optimizers walk
    through the memory of parameter, gradient and moments in parallel, without regard to strides.
    """
    groups = optimizer.state_dict()["param_groups"]
    changed = {
        name: (before[name], value)
        for before, group in zip(state["param_groups"], groups, strict=True)
        for name, value in group.items()
        if name not in SCHEDULED and name in before and before[name] != value
    }
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                moments[name] = with_layout_of(parameter, value)
    return changed


def with_layout_of(like: Tensor, value: Tensor) -> Tensor:
    """Returns `value` with the strides of `like`, a dense tensor of the same shape."""
    if value.stride() == like.stride():
        return value
    return torch.empty_like(like, dtype=value.dtype, device=value.device).copy_(value)


def changed_options(checkpoint: Checkpoint, config: Config) -> Changes:
    """Returns the options of the loss and of training that differ from those of a checkpoint."""
    saved, now = Config.from_dict(checkpoint.config.get("config")).to_dict(), config.to_dict()
    return {
        name: (before, now[part][name])
        for part in ("loss", "train")
        for name, before in saved[part].items()
        if before != now[part][name] and name not in NOT_LISTED
    }


def listed(changes: Changes) -> str:
    """Formats changed options for a log line."""
    return ", ".join(f"{name}: {before!r} -> {now!r}" for name, (before, now) in changes.items())
