"""Background writing of checkpoints: the state is copied immediately, a thread writes the files.

Copying takes milliseconds. Hashing, writing and flushing depend on the disk and release the GIL. Errors of the thread
are raised by `check`.

Storage may fail for a while: a full disk, a network file system or an object store that does not respond. A checkpoint
that cannot be written or uploaded is a warning, and the next one is the next attempt. Only if none has succeeded for
`patience` minutes, the failure is an error.

Training computes the gradients of the next step while the thread writes, and calls `wait_for_disk` before that step is
counted. At most `save_interval` steps are therefore unsaved, and a write that is faster than a step does not slow
training. Uploads to object storage continue until the next checkpoint, so losing the local folder may lose the steps of
two intervals.
"""

from __future__ import annotations

import threading
import time
import warnings
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
        on_written: called in the same thread with the folder of every written checkpoint; uploads it.
        patience: minutes of failures of the file system or of uploads (`OSError`) before they are an error.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        background: bool = True,
        keep_last: int | None = None,
        keep_every: int | None = None,
        on_written: Callable[[Path], None] | None = None,
        patience: float = 0.0,
    ) -> None:
        self.run_dir, self.background, self.on_written, self.patience = run_dir, background, on_written, patience
        self.keep_last, self.keep_every = keep_last, keep_every
        self._thread: threading.Thread | None = None
        self._on_disk = threading.Event()
        self._on_disk.set()
        self._error: tuple[int, BaseException] | None = None
        self._failing_since: float | None = None  # in seconds of a monotonic clock
        self._not_uploaded: tuple[int, Path] | None = None

    @property
    def failed(self) -> bool:
        """Whether writing a checkpoint failed for good; `check` raises the error."""
        return self._error is not None

    @property
    def behind(self) -> bool:
        """Whether the last checkpoint was not written or uploaded, so that `write` must be called again."""
        return self._failing_since is not None

    def write(self, step: int, states: Mapping[str, Any]) -> None:
        """Starts writing the checkpoint of a step; does nothing after an error until `check` is called.

        A step that was written and not uploaded is not written again.

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
            if self._not_uploaded is None or self._not_uploaded[0] != step or not self._not_uploaded[1].is_dir():
                folder = save_checkpoint(
                    self.run_dir, step, keep_last=self.keep_last, keep_every=self.keep_every, **states
                )
                self._not_uploaded = step, folder
            self._on_disk.set()
            if self.on_written is not None:
                self.on_written(self._not_uploaded[1])
            self._not_uploaded = self._failing_since = None
        except OSError as error:
            self._postpone(step, error)
        except BaseException as error:
            self._error = (step, error)
        finally:
            self._on_disk.set()

    def _postpone(self, step: int, error: OSError) -> None:
        """Warns about a failed attempt, or makes it an error if storage has failed for too long."""
        now = time.monotonic()
        self._failing_since = now if self._failing_since is None else self._failing_since
        if now - self._failing_since >= 60.0 * self.patience:
            self._error = (step, error)
            return
        uploading = self._not_uploaded is not None and self._not_uploaded[0] == step
        what, kept = ("upload", f"; it is kept in {self.run_dir}") if uploading else ("write", "")
        warnings.warn(
            f"failed to {what} the checkpoint of step {step} ({error}){kept}; the next checkpoint is the next attempt; "
            f"without success, the run ends after {self.patience:g} minutes (storage_patience)",
            stacklevel=2,
        )

    def check(self) -> None:
        """Raises the error of a failed checkpoint, once."""
        if self._error is None:
            return
        (step, error), self._error = self._error, None
        if isinstance(error, OSError):
            tried = f" and for the last {self.patience:g} minutes" if self.patience else ""
            raise InputError(
                f"{self.run_dir}: failed to write the checkpoint of step {step}{tried} ({error}); earlier checkpoints "
                "are intact; fix the cause and run the same command again"
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
