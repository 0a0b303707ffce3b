"""Generators: the true structural causal models behind the data sets.

A generator knows the truth. It samples labels, draws them, and for an image's exogenous noise and an intervention it
gives the true counterfactual labels and the true counterfactual image; `measure` reads the labels back off a picture.
Each module holds one data set: its `GRAPH`, its mechanisms, its renderer and `write_dataset`.

This module holds what they share: a folder appears under its final name only when it is complete.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import read_json
from causaldiffae.generators.workers import worker_pool
from causaldiffae.graphs import CausalGraph

RECIPE_FILE = "recipe.json"

Item = TypeVar("Item")
Result = TypeVar("Result")


def do_column(name: str, value: Any, count: int) -> np.ndarray:
    """One intervention value per row: a number or `count` numbers, as (count,) float64; else `InputError`."""
    try:
        column = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"do: {name} is {value!r}, a number is needed") from None
    if column.shape not in ((), (1,), (count,)):
        raise InputError(f"do: {name} has shape {column.shape}, a number or one number per image ({count}) is needed")
    if not np.isfinite(column).all():
        raise InputError(f"do: {name} is not finite, a finite number is needed")
    return np.broadcast_to(column, (count,)).copy()


def do_columns(graph: CausalGraph, do: Mapping[str, Any], count: int) -> dict[str, np.ndarray]:
    """Checks an intervention's names against the graph and spreads every value to (count,) float64."""
    for name in do:
        graph.index(name)
    return {name: do_column(name, value, count) for name, value in do.items()}


def check_labels(graph: CausalGraph, labels: Any) -> np.ndarray:
    """`labels` as (N, n) float64, one column for each variable of the graph; else `InputError`."""
    array = np.asarray(labels, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != len(graph):
        raise InputError(
            f"labels: shape {array.shape}, (images, {len(graph)}) is needed, columns {', '.join(graph.names)}"
        )
    return array


def parallel_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    description: str,
    progress: bool,
    unit: str = "batch",
) -> Iterator[Result]:
    """`map(function, items)` in order, over `workers` processes (1: in this one), with a progress bar.

    Raises:
        InputError: if `workers` is below 1.
    """
    work = list(items)
    if workers < 1:
        raise InputError(f"workers: {workers} given, 1 or more is needed")
    with tqdm(total=len(work), desc=description, unit=unit, disable=not progress) as bar:
        if workers == 1 or len(work) < 2:
            for item in work:
                with threadpool_limits(1):  # matrices here are small: more threads only wait for each other
                    result = function(item)
                yield result
                bar.update()
            return
        # One thread of linear algebra each: the processes share the cores already.
        with worker_pool(min(workers, len(work))) as pool:
            try:
                for result in pool.map(function, work):
                    yield result
                    bar.update()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def is_finished(out: Path, recipe: Mapping[str, Any]) -> bool:
    """Whether `out` is a complete data set of this recipe.

    Raises:
        InputError: if `out` is a file, or a folder with other content.
    """
    if not out.exists():
        return False
    if not out.is_dir():
        raise InputError(f"{out}: it is a file, a new or empty folder is needed")
    if not any(out.iterdir()):
        return False
    try:
        found = read_json(out / RECIPE_FILE)
    except DataError:
        raise InputError(f"{out}: the folder is not empty and no data set of ours, a new one is needed") from None
    if found != json.loads(json.dumps(recipe)):
        raise InputError(f"{out}: the folder holds a data set of another recipe, a new one is needed")
    return True


@contextmanager
def complete_folder(out: Path, recipe: Mapping[str, Any]) -> Iterator[Path]:
    """Gives a temporary folder beside `out`; renames it to `out` at the end, or removes it if anything fails.

    The recipe is written last, as `recipe.json`: a folder that has it is complete.
    """
    out = out.absolute()
    partial = out.parent / f".{out.name}.partial-{secrets.token_hex(4)}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except OSError as error:
        raise InputError(f"{out}: cannot be created ({error.strerror}), a writable place is needed") from None
    try:
        yield partial
        (partial / RECIPE_FILE).write_text(json.dumps(recipe, indent=2, sort_keys=True) + "\n")
        partial.replace(out)
    finally:
        if partial.exists():
            shutil.rmtree(partial)
