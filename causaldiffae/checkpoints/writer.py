"""Checkpoints written beside training: the state is copied at once, files are written by a thread.

Copying takes milliseconds; hashing, writing and flushing to disk take as long as the disk does and release Python's
lock meanwhile. What the thread meets is raised where training looks next.

How much a crash can take: while the checkpoint of step N is being written, that of the save point before is the newest
whole one, so every step that ends meanwhile is one more than an interval that may be lost. Training therefore computes
the gradients of the step behind N beside the thread, and waits with `wait_for_disk` before that step counts: at no
moment are more than `save_interval` steps unsaved. A write that takes no longer than a step costs nothing, a longer one
what it takes beyond that, once an interval. Copies to object storage go on beside training and are waited for at the
next save point only: where the address alone is left, up to two intervals are lost.
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
    """The same nested dicts, lists and tuples with tensors of their own, on the CPU."""
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
        background: write by a thread; else `write` returns when the files are on disk.
        keep_last, keep_every: as of `save_checkpoint`.
        afterwards: called with the folder of every checkpoint that was written, by the same thread.
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
        """Whether a checkpoint could not be written; `check` says why."""
        return self._error is not None

    def write(self, step: int, states: Mapping[str, Any]) -> None:
        """Starts writing the checkpoint of a step.

        Args:
            states: the keyword arguments `model_state`, `ema_states`, `training_state` and `config` of
                `save_checkpoint`; they may change as soon as this returns.

        After a checkpoint that failed nothing more is written until `check` has told of it.
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
        """Raises what a checkpoint met that could not be written; once."""
        if self._error is None:
            return
        (step, error), self._error = self._error, None
        if isinstance(error, OSError):
            raise InputError(
                f"{self.run_dir}: the checkpoint of step {step} could not be written ({error}); those before it are "
                "untouched: mend this and run the same command again"
            ) from error
        raise error

    def wait_for_disk(self) -> None:
        """Waits until the checkpoint that is under way is whole in the run directory, or has failed."""
        self._on_disk.wait()

    def finish(self) -> None:
        """Waits until nothing is under way, `afterwards` included."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()  # also when training ends by an error: what is under way is worth having
