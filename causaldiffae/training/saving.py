"""Writing of a run's checkpoints and log rows when storage fails for a while.

A checkpoint that cannot be written or uploaded is a warning until `storage_patience` minutes have passed without
success, see `checkpoints.writer`. The last checkpoint of a run has no next one: its attempts are repeated every
`RETRY_SECONDS`. Log rows that cannot be written are a warning as well; checkpoints decide when the run ends.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from causaldiffae import dist_util
from causaldiffae.checkpoints.remote import RemoteRun
from causaldiffae.checkpoints.writer import CheckpointWriter
from causaldiffae.config import TrainConfig
from causaldiffae.datasets.reference import FILE as REFERENCE
from causaldiffae.files.storage import is_remote
from causaldiffae.logger import PROGRESS

LOGS: Final = (PROGRESS, "config.yaml", REFERENCE)
RETRY_SECONDS: Final = 30.0


def create_writer(train: TrainConfig, run_dir: Path) -> CheckpointWriter:
    """Creates the writer of a run; for a remote run directory, it uploads from the local folder `run_dir`."""
    return CheckpointWriter(
        run_dir,
        background=train.background_save,
        keep_last=train.keep_last,
        keep_every=train.keep_every or None,
        on_written=partial(_upload, train) if is_remote(train.run_dir) else None,
        patience=train.storage_patience,
    )


def upload_logs(train: TrainConfig, names: Sequence[str]) -> None:
    """Uploads files of a remote run directory on rank 0, see `RemoteRun.upload_logs`."""
    if is_remote(train.run_dir) and dist_util.is_main():
        RemoteRun(train.run_dir).upload_logs(names)


def _upload(train: TrainConfig, folder: Path) -> None:
    remote = RemoteRun(train.run_dir, train.keep_last, train.keep_every or None)
    remote.upload(folder)
    remote.upload_logs(LOGS)


@contextlib.contextmanager
def tolerated(what: str, patience: float) -> Iterator[None]:
    """Turns an error of the file system into a warning, unless `patience` is 0."""
    try:
        yield
    except OSError as error:
        if not patience:
            raise
        warnings.warn(f"{what}: cannot be written ({error}); training continues", stacklevel=3)


@torch.no_grad()
def all_finite(states: Iterable[Mapping[str, Tensor]]) -> bool:
    """Whether all floating-point tensors of some states are finite."""
    floating = [v for state in states for v in state.values() if v.is_floating_point() and v.numel()]
    # An infinity is the minimum or maximum, and NaN propagates to both.
    return bool(torch.stack([end for value in floating for end in torch.aminmax(value)]).isfinite().all())
