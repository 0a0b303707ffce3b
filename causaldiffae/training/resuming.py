"""Where a run goes on from, and what must be the same for that.

The networks, the diffusion process, the data set, its graph and the choice of labelled images must be those of the
checkpoint. The seed and the number of images of a step decide which batch comes next: another one is allowed, with a
warning, because the run is then no longer the one that was interrupted.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from causaldiffae import dist_util
from causaldiffae.checkpoints.checkpoint import Checkpoint, latest_checkpoint
from causaldiffae.checkpoints.remote import RemoteRun, local_checkpoint
from causaldiffae.config import Config
from causaldiffae.errors import InputError
from causaldiffae.files.storage import is_remote
from causaldiffae.image_datasets import BatchSource


def checkpoint_to_resume(explicit: str, run_dir: str | Path) -> Path | None:
    """The step folder that a run goes on from: the explicit one, or else the newest whole one in its directory.

    Raises:
        DataError: if there are checkpoints and none is whole.
    """
    if explicit:
        return local_checkpoint(explicit)
    return RemoteRun(str(run_dir)).fetch_newest() if is_remote(run_dir) else latest_checkpoint(run_dir)


def batch_order(source: BatchSource) -> dict[str, int]:
    """What decides which images a step sees."""
    return {"seed": source.seed, "images of a step": source.batch_size}


def check_same_run(checkpoint: Checkpoint, config: Config, source: BatchSource) -> None:
    """Compares a checkpoint that has its training state with the run that is to go on from it.

    Raises:
        InputError: if it is of another network, diffusion process, data set, graph or choice of labelled images.
    """
    path, described, state = checkpoint.path, checkpoint.config, checkpoint.training_state
    theirs = Config.from_dict(described.get("config"))
    if (theirs.model, theirs.diffusion) != (config.model, config.diffusion):
        raise InputError(f"{path}: a checkpoint of another configuration; give another run_dir, or the same flags")
    if described.get("dataset") != source.spec.to_dict():
        raise InputError(f"{path}: a checkpoint of another data set or graph; give another run_dir")
    labelled = state.get("labelled")
    if labelled is not None and not torch.equal(labelled, source.labelled.cpu()):
        raise InputError(f"{path}: other training images had labels; give another run_dir, or the same label_seed")
    ours = batch_order(source)
    for name, before in state.get("order", ours).items():
        if before != ours[name] and dist_util.is_main():
            warnings.warn(f"{path}: {name}: {before} before, {ours[name]} now: the batches are others", stacklevel=2)
