"""Background writing of checkpoints: the state is copied immediately, a thread writes the files.

Copying takes milliseconds. Hashing, writing and flushing depend on the disk and release the GIL. Errors of the thread
are raised by `check`.

Training computes the gradients of the next step while the thread writes, and calls `wait_for_disk` before that step is
counted. At most `save_interval` steps are therefore unsaved, and a write that is faster than a step does not slow
training. Uploads to object storage continue until the next checkpoint, so losing the local folder may lose the steps of
two intervals.
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
    """Copies nested dicts, lists and tuples, and their tensors to the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: copy_to_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copy_to_cpu(item) for item in value)
    return value


class CheckpointWriter:
    """Writes checkpoints to a run directory, one at a time.

    Args:
        run_dir: local run directory.
        background: write in a thread; otherwise `write` blocks until the files are on disk.
        keep_last, keep_every: passed to `save_checkpoint`.
        on_written: called in the same thread with the folder of every written checkpoint.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        background: bool = True,
        keep_last: int | None = None,
        keep_every: int | None = None,
        on_written: Callable[[Path], None] | None = None,
    ) -> None:
        self.run_dir, self.background, self.on_written = run_dir, background, on_written
        self.keep_last, self.keep_every = keep_last, keep_every
        self._thread: threading.Thread | None = None
        self._on_disk = threading.Event()
        self._on_disk.set()
        self._error: tuple[int, BaseException] | None = None

    @property
    def failed(self) -> bool:
        """Whether writing a checkpoint failed; `check` raises the error."""
        return self._error is not None

    def write(self, step: int, states: Mapping[str, Any]) -> None:
        """Starts writing the checkpoint of a step; does nothing after a failure until `check` is called.

        `states` holds the arguments `model_state`, `ema_states`, `training_state` and `config` of `save_checkpoint`;
        they may be modified after this method returns.
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
            if self.on_written is not None:
                self.on_written(folder)
        except BaseException as error:
            self._error = (step, error)
        finally:
            self._on_disk.set()

    def check(self) -> None:
        """Raises the error of a failed checkpoint, once."""
        if self._error is None:
            return
        (step, error), self._error = self._error, None
        if isinstance(error, OSError):
            raise InputError(
                f"{self.run_dir}: failed to write the checkpoint of step {step} ({error}); earlier checkpoints are "
                "intact; fix the cause and run the same command again"
            ) from error
        raise error

    def wait_for_disk(self) -> None:
        """Waits until the current checkpoint is on disk or has failed."""
        self._on_disk.wait()

    def finish(self) -> None:
        """Waits until the thread has ended, including `on_written`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()  # completes the current checkpoint, also after an error in training
