"""Finding the checkpoint to resume from, and checking that it belongs to the run.

The networks, the diffusion process, the data set, its graph and the choice of labelled images must be those of the
checkpoint. The seed and the number of images per step may differ, with a warning: the resumed run then sees other
batches than the uninterrupted run would have seen.
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
    """The explicit step folder, or else the newest intact one in the run directory; `None` if there is none.

    Raises:
        DataError: if there are checkpoints but all are damaged.
    """
    if explicit:
        return local_checkpoint(explicit)
    return RemoteRun(str(run_dir)).fetch_newest() if is_remote(run_dir) else latest_checkpoint(run_dir)


def batch_order(source: BatchSource) -> dict[str, int]:
    """The settings that determine which images a step sees."""
    return {"seed": source.seed, "images of a step": source.batch_size}


def check_same_run(checkpoint: Checkpoint, config: Config, source: BatchSource) -> None:
    """Checks that a run can resume from a checkpoint, which must include its training state.

    Raises:
        InputError: if network, diffusion process, data set, graph or the choice of labelled images differ.
    """
    path, described, state = checkpoint.path, checkpoint.config, checkpoint.training_state
    saved = Config.from_dict(described.get("config"))
    if (saved.model, saved.diffusion) != (config.model, config.diffusion):
        raise InputError(
            f"{path}: expected the model and diffusion options of this checkpoint; restore them or choose another "
            "run_dir"
        )
    if described.get("dataset") != source.spec.to_dict():
        raise InputError(f"{path}: expected the data set and graph of this checkpoint; choose another run_dir")
    labelled = state.get("labelled")
    if labelled is not None and not torch.equal(labelled, source.labelled.cpu()):
        raise InputError(
            f"{path}: expected the labelled images of this checkpoint; restore label_seed or choose another run_dir"
        )
    now = batch_order(source)
    for name, before in state.get("order", now).items():
        if before != now[name] and dist_util.is_main():
            warnings.warn(f"{path}: {name}: was {before}, now {now[name]}; the batches will differ", stacklevel=2)
