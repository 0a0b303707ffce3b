"""Selection and validation of the checkpoint to resume from.

The model, the diffusion process, the data set, its graph and the labelled images must be those of the checkpoint. The
seed and the number of images per step may differ, with a warning: the batches then differ from those of an
uninterrupted run.
"""

from __future__ import annotations

import socket
import warnings
from pathlib import Path

import torch

from causaldiffae import dist_util
from causaldiffae.checkpoints.checkpoint import STEP_NAME, Checkpoint, latest_checkpoint
from causaldiffae.checkpoints.remote import RemoteRun, local_checkpoint
from causaldiffae.config import Config
from causaldiffae.errors import InputError
from causaldiffae.files.storage import is_remote
from causaldiffae.image_datasets import BatchSource


def checkpoint_to_resume(explicit: str, run_dir: str | Path) -> Path | None:
    """Returns the explicit step folder, or the newest intact one in the run directory; None if there is none.

    Rank 0 chooses the step. From object storage, the first process of every machine fetches it: the machines need no
    common folder. All processes must call this function.

    Raises:
        DataError: If there are checkpoints but all are damaged.
        InputError: If a local folder exists on the machine of rank 0, but not on another one.
    """
    chosen, exists = dist_util.from_main(lambda: _choose_checkpoint(explicit, run_dir))
    if chosen is None or not exists:  # a missing explicit folder is reported when it is read
        return chosen
    address = (explicit or str(run_dir)).rstrip("/")
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


def _choose_checkpoint(explicit: str, run_dir: str | Path) -> tuple[Path | None, bool]:
    if explicit:
        chosen: Path | None = local_checkpoint(explicit)
    else:
        chosen = RemoteRun(str(run_dir)).fetch_newest() if is_remote(run_dir) else latest_checkpoint(run_dir)
    return chosen, chosen is not None and chosen.exists()


def batch_order(source: BatchSource) -> dict[str, int]:
    """Returns the settings that determine the images of each step."""
    return {"seed": source.seed, "images of a step": source.batch_size}


def check_same_run(checkpoint: Checkpoint, config: Config, source: BatchSource) -> None:
    """Checks that a run can resume from a checkpoint with a training state.

    Raises:
        InputError: If the model, diffusion process, data set, graph or labelled images differ.
    """
    path, described, state = checkpoint.path, checkpoint.config, checkpoint.training_state
    saved = Config.from_dict(described.get("config"))
    for part in ("model", "diffusion"):
        for name, before in saved.to_dict()[part].items():
            if (value := config.to_dict()[part][name]) != before:
                raise InputError(
                    f"{name}: expected {before!r} as in {path}, got {value!r}; restore it or choose another run_dir"
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
