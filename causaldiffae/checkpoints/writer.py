"""Checkpoints written beside training: the state is copied at once, and a thread writes the files.

Copying takes milliseconds. Hashing, writing and flushing take as long as the disk does, and release Python's lock. An
error of the thread is raised by `check`, which training calls after each step.

Training computes the gradients of the next step beside the thread, and calls `wait_for_disk` before that step counts:
at no time are more than `save_interval` steps unsaved, and a write that takes no longer than a step costs no time.
Uploads to object storage continue until the next checkpoint; if the local folder is lost, so are up to two intervals.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from causaldiffae.checkpoints.checkpoint import save_checkpoint
from causaldiffae.errors import InputError


def copy_to_cpu(value: Any) -> Any:
    """Copies nested dicts, lists and tuples; tensors are copied to the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: copy_to_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copy_to_cpu(item) for item in value)
    return value


class CheckpointWriter:
    """Writes checkpoints to a run directory, one after the other.

    Args:
        run_dir: local folder of the run.
        background: write in a thread; otherwise `write` returns when the files are on disk.
        keep_last, keep_every: passed to `save_checkpoint`.
        afterwards: called in the same thread with the folder of every checkpoint that was written.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        background: bool = True,
        keep_last: int | None = None,
        keep_every: int | None = None,
        afterwards: Callable[[Path], None] | None = None,
    ) -> None:
        self.run_dir, self.background, self.afterwards = run_dir, background, afterwards
        self.keep_last, self.keep_every = keep_last, keep_every
        self._thread: threading.Thread | None = None
        self._on_disk = threading.Event()
        self._on_disk.set()
        self._error: tuple[int, BaseException] | None = None

    @property
    def failed(self) -> bool:
        """Whether a checkpoint could not be written; `check` raises the reason."""
        return self._error is not None

    def write(self, step: int, states: Mapping[str, Any]) -> None:
        """Starts writing the checkpoint of a step; after a failure nothing is written until `check` was called.

        `states` holds the keyword arguments `model_state`, `ema_states`, `training_state` and `config` of
        `save_checkpoint`; they may change as soon as this returns.
        """
        self.finish()
        if self.failed:
            return
        if not self.background:
            self._run(step, states)
            return
        self._on_disk.clear()
        self._thread = threading.Thread(target=self._run, args=(step, copy_to_cpu(states)), name="checkpoint")
        self._thread.start()

    def _run(self, step: int, states: Mapping[str, Any]) -> None:
        try:
            folder = save_checkpoint(self.run_dir, step, keep_last=self.keep_last, keep_every=self.keep_every, **states)
            self._on_disk.set()
            if self.afterwards is not None:
                self.afterwards(folder)
        except BaseException as error:
            self._error = (step, error)
        finally:
            self._on_disk.set()

    def check(self) -> None:
        """Raises the error of a checkpoint that could not be written, once."""
        if self._error is None:
            return
        (step, error), self._error = self._error, None
        if isinstance(error, OSError):
            raise InputError(
                f"{self.run_dir}: the checkpoint of step {step} could not be written ({error}); earlier checkpoints "
                "are intact: fix the cause and run the same command again"
            ) from error
        raise error

    def wait_for_disk(self) -> None:
        """Waits until the current checkpoint is complete in the run directory, or has failed."""
        self._on_disk.wait()

    def finish(self) -> None:
        """Waits until the thread has ended, `afterwards` included."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()  # also after an error in training, so that the current checkpoint is completed
