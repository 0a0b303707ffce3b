"""What the generators share: checked labels and interventions, counterfactual labels, complete data set folders."""

from __future__ import annotations

import json
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import read_json
from causaldiffae.graphs import CausalGraph

RECIPE_FILE: Final = "recipe.json"
_BLOCK: Final = 256


Range = tuple[float, float]


def do_columns(
    graph: CausalGraph, do: Mapping[str, Any], count: int, within: Range | None = None
) -> dict[str, np.ndarray]:
    """The values of an intervention, variable -> a number or `count` numbers, as (count,) float64 each.

    Unknown variables, and values that are not finite, out of range or of another shape, are an `InputError`.
    """
    columns = {}
    for name, value in do.items():
        graph.index(name)
        try:
            column = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            raise InputError(f"do: {name}: expected a number, got {value!r}") from None
        if column.shape not in ((), (1,), (count,)):
            raise InputError(f"do: {name}: expected one number or {count}, one per image, got shape {column.shape}")
        low, high = within or (-np.inf, np.inf)
        wrong = column[~(np.isfinite(column) & (column >= low) & (column <= high))]
        if wrong.size:
            expected = f"a number in {low:g}..{high:g}" if within else "a finite number"
            raise InputError(f"do: {name}: expected {expected}, got {wrong.flat[0]:g}")
        columns[name] = np.broadcast_to(column, (count,)).copy()
    return columns


def check_labels(graph: CausalGraph, labels: Any, within: Range | None = None, name: str = "labels") -> np.ndarray:
    """`labels` as (N, n) float64, one column per variable of the graph; else, or out of range, `InputError`."""
    array = np.asarray(labels, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != len(graph):
        columns = ", ".join(graph.names)
        raise InputError(f"{name}: expected shape (images, {len(graph)}), columns {columns}, got {array.shape}")
    if within is not None:
        wrong = np.argwhere(~((array >= within[0]) & (array <= within[1])))
        if len(wrong):
            row, i = wrong[0]
            expected = f"a number in {within[0]:g}..{within[1]:g}"
            raise InputError(f"{name}: row {row}, {graph.names[i]}: expected {expected}, got {array[row, i]:g}")
    return array


class Generator(ABC):
    """The structural causal model of a data set.

    Attributes:
        graph: the variables and their causes.
        within: the range of all labels; None for no bound.
    """

    graph: CausalGraph
    within: Range | None = None

    def counterfactual_labels(self, labels: Any, do: Mapping[str, Any]) -> np.ndarray:
        """True labels (N, n) float64 after the intervention; what it does not affect keeps its value bit for bit.

        Args:
            labels: (N, n) factual labels, in label units.
            do: variable -> a number or (N,) numbers.
        """
        factual = check_labels(self.graph, labels, self.within)
        columns = do_columns(self.graph, do, len(factual), self.within)
        result = factual.copy()
        for name, column in columns.items():
            result[:, self.graph.index(name)] = column
        effects = self.graph.descendants(*columns)
        self._update_effects(factual, result, [name for name in self.graph.topological_order if name in effects])
        return result

    @abstractmethod
    def _update_effects(self, factual: np.ndarray, result: np.ndarray, effects: list[str]) -> None:
        """Recomputes the columns `effects`, causes first, of `result`, in which the intervention is set already."""


def measure_in_blocks(
    function: Callable[[np.ndarray], np.ndarray], images: np.ndarray, variables: int, smallest: int = 1
) -> np.ndarray:
    """`function` of blocks of images (N, S, S, C) uint8, RGB first, as (N, variables) float64; bounds the memory."""
    if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] < 3 or images.dtype != np.uint8:
        raise InputError(f"images: expected uint8 (N, S, S, 3 or more), got {images.dtype} {images.shape}")
    if images.shape[1] < smallest:
        raise InputError(f"images: expected {smallest} or more pixels per side, got {images.shape[1]}")
    measured = np.empty((len(images), variables))
    for start in range(0, len(images), _BLOCK):
        measured[start : start + _BLOCK] = function(images[start : start + _BLOCK])
    return measured


def is_finished(out: Path, recipe: Mapping[str, Any]) -> bool:
    """Whether `out` is a complete data set of this recipe; `InputError` if it is a file or has other content."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise InputError(f"{out}: expected a new or empty folder, got a file")
    if not any(out.iterdir()):
        return False
    try:
        found = read_json(out / RECIPE_FILE)
    except DataError:
        raise InputError(f"{out}: expected a new or empty folder, got one with other files") from None
    if found != json.loads(json.dumps(recipe)):
        raise InputError(f"{out}: expected a new or empty folder, got a data set of another recipe")
    return True


@contextmanager
def complete_folder(out: Path, recipe: Mapping[str, Any]) -> Iterator[Path]:
    """A temporary folder beside `out`, renamed to `out` at the end, or removed if anything fails.

    The recipe is written last, as `recipe.json`: a folder that has it is complete.
    """
    out = out.absolute()
    partial = out.parent / f".{out.name}.partial-{secrets.token_hex(4)}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except OSError as error:
        raise InputError(f"{out}: expected a writable place, cannot create it ({error.strerror})") from None
    try:
        yield partial
        (partial / RECIPE_FILE).write_text(json.dumps(recipe, indent=2, sort_keys=True) + "\n")
        partial.replace(out)
    finally:
        if partial.exists():
            shutil.rmtree(partial)
