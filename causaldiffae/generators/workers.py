"""Worker processes: spawned, limited to one thread of linear algebra each, and ended with the process they serve.

Ctrl-C reaches every process of a terminal. Workers ignore it, and the process they serve terminates them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from threadpoolctl import threadpool_limits
from tqdm import tqdm

from causaldiffae.errors import InputError

ATTEMPTS: Final = 3
"""How many times in a row worker processes may die without a new result."""
DIED: Final = "a worker process died (a crash of a library, or too little memory)"

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerPool(ProcessPoolExecutor):
    """A pool of spawned processes; leaving its `with` block by an exception terminates them.

    They are spawned, because a forked child inherits locks that other threads hold. They exit when the parent process
    is killed; those of a plain `ProcessPoolExecutor` would wait for work forever.
    """

    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        super().__init__(workers, mp_context=context, initializer=_initialise)
        self._others = set(multiprocessing.active_children())

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Adds a call, and starts a process for it if all are busy."""
        with _interrupts_held():
            return super().submit(fn, *args, **kwargs)

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> bool | None:
        if kind is not None:
            self.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - self._others:
                process.terminate()
        return super().__exit__(kind, *rest)


def worker_pool(workers: int) -> WorkerPool:
    """A pool of `workers` processes."""
    return WorkerPool(workers)


def _initialise() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threadpool_limits(1)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Delays SIGINT of this thread, and blocks it in processes that it starts, which inherit the mask.

    A worker would otherwise die with a traceback while it starts, before `_initialise`.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def parallel_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    description: str,
    progress: bool,
) -> Iterator[Result]:
    """`map(function, items)` in order, in `workers` processes (1: in this process), with a progress bar.

    If a worker process dies, for example because a renderer crashes, new ones compute the items whose results have not
    been returned yet.

    Raises:
        InputError: if processes die `ATTEMPTS` times in a row without a new result.
    """
    work = list(items)
    if workers < 1:
        raise InputError(f"workers: expected 1 or more, got {workers}")
    with tqdm(total=len(work), desc=description, unit="batch", disable=not progress) as bar:
        if workers == 1 or len(work) < 2:
            for item in work:
                with threadpool_limits(1):  # the matrices are small: more threads only wait for each other
                    result = function(item)
                yield result
                bar.update()
            return
        failures = 0
        while work:
            try:
                with worker_pool(min(workers, len(work))) as pool:
                    for result in pool.map(function, tuple(work)):
                        yield result
                        bar.update()
                        failures = 0
                        del work[0]
            except BrokenProcessPool as error:
                if not work:
                    return
                failures += 1
                if failures == ATTEMPTS:
                    raise InputError(f"{description}: {DIED}; try again with fewer workers") from error
                left = "1 batch" if len(work) == 1 else f"{len(work)} batches"
                warnings.warn(f"{description}: {DIED}; starting again with {left} left", stacklevel=2)
