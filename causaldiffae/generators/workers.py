"""Processes that share work: started afresh, one thread of linear algebra each, gone when their starter is gone."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor

from threadpoolctl import threadpool_limits

PATIENCE = 1.0


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """A pool of so many processes.

    They are spawned, since a forked child would inherit locks that other threads hold. Where the process that started
    them is killed they end within a second or so: a pool's own would wait for work for ever.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(os.getpid(),))


def _begin(starter: int) -> None:
    threadpool_limits(1)
    threading.Thread(target=_end_with, args=(starter,), daemon=True).start()


def _end_with(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(PATIENCE)
    os._exit(1)
