"""Worker processes: spawned, limited to one thread of linear algebra each, and ended with the process they serve."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits
from tqdm import tqdm

from causaldiffae.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """A pool of `workers` processes.

    They are spawned, because a forked child inherits locks that other threads hold. They exit when the parent process
    is killed; those of a plain `ProcessPoolExecutor` would wait for work forever.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_initialise)


def _initialise() -> None:
    threadpool_limits(1)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def parallel_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    description: str,
    progress: bool,
) -> Iterator[Result]:
    """`map(function, items)` in order, in `workers` processes (1: in this process), with a progress bar."""
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
        with worker_pool(min(workers, len(work))) as pool:
            try:
                for result in pool.map(function, work):
                    yield result
                    bar.update()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
