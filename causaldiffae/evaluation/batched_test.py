"""Runs a test in batches, whose results are on disk as soon as they are known, so that it can be resumed.

    OUT/unfinished/               one file for each finished batch, removed when the test is complete
    OUT/counterfactuals.csv       grows with every batch

Batches belong to a digest of everything that they depend on; those of another digest are discarded.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import numpy as np

from causaldiffae.datasets.images import ImageData
from causaldiffae.evaluation.interventions import InterventionResult, write_csv
from causaldiffae.files.npz import read_arrays, write_arrays
from causaldiffae.files.reading import read_file
from causaldiffae.logger import progress_bar

TABLE: Final = "counterfactuals.csv"
FOLDER: Final = "unfinished"
FEW_STEPS: Final = (2, 6)
_MAX_BYTES: Final = 1 << 36
_SHARED: Final = ("factual", "reconstruction", "factual_labels", "factual_classes")
"""Arrays that are the same for all interventions."""
_ARRAYS: Final = tuple(field.name for field in fields(InterventionResult) if field.name != "do")


def batches_of(data: ImageData, batch_size: int) -> Iterator[ImageData]:
    """Splits data into batches, in order."""
    for start in range(0, len(data), batch_size):
        yield data.subset(range(start, min(start + batch_size, len(data))))


def join_batches(batches: Sequence[Sequence[InterventionResult]]) -> list[InterventionResult]:
    """Concatenates the results of batches; one list entry for each intervention.

    What is unknown in one batch, such as the truth, is None for all of them.
    """
    joined = []
    for parts in zip(*batches, strict=True):
        values: dict[str, Any] = {name: [getattr(part, name) for part in parts] for name in _ARRAYS}
        unknown = {name for name, each in values.items() if any(array is None for array in each)}
        arrays: dict[str, Any] = {n: None if n in unknown else np.concatenate(each) for n, each in values.items()}
        joined.append(InterventionResult(parts[0].do, **arrays))
    return joined


class FinishedBatches:
    """The batches in the folder of a test.

    Args:
        out: output folder of the test; created if it does not exist.
        digest: of model, data, interventions and settings.
    """

    def __init__(self, out: Path, digest: str) -> None:
        self.out, self.folder = out, out / FOLDER
        mark = self.folder / "digest"
        if self.folder.is_dir() and not (mark.is_file() and read_file(mark, 1 << 10) == digest.encode()):
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(digest, encoding="utf-8")

    def _path(self, number: int) -> Path:
        return self.folder / f"batch_{number:05d}.npz"

    def write(self, number: int, results: Sequence[InterventionResult]) -> None:
        """Stores a batch."""
        arrays: dict[str, np.ndarray] = {}
        for i, result in enumerate(results):
            for name in _ARRAYS:
                value = getattr(result, name)
                if value is not None and (i == 0 or name not in _SHARED):
                    arrays[f"{i}/{name}"] = value
        write_arrays(self._path(number), arrays)

    def read(self, number: int, dos: Sequence[Mapping[str, float]]) -> list[InterventionResult] | None:
        """Reads a batch with these interventions; None if it is missing or damaged."""
        arrays = read_arrays(self._path(number), _MAX_BYTES)
        if arrays is None:
            return None
        results = []
        for i, do in enumerate(dos):
            found = {name: arrays.get(f"{0 if name in _SHARED else i}/{name}") for name in _ARRAYS}
            results.append(InterventionResult(do, **found))  # type: ignore[arg-type]
        return results

    def append_to_table(self, results: Sequence[InterventionResult], data: ImageData, first: bool) -> None:
        """Adds the rows of a batch to the table in the output folder, which the first batch starts."""
        rows = self.folder / "rows.csv"
        write_csv(rows, results, data)
        text = rows.read_bytes()
        with (self.out / TABLE).open("wb" if first else "ab") as file:
            file.write(text if first else text.partition(b"\n")[2])

    def remove(self) -> None:
        """Removes the batches of a complete test."""
        shutil.rmtree(self.folder, ignore_errors=True)


def run_batches(
    finished: FinishedBatches,
    evaluate: Callable[[ImageData, int], list[InterventionResult]],
    data: ImageData,
    dos: Sequence[Mapping[str, float]],
    batch_size: int,
    *,
    seed: int = 0,
    in_table: int | None = None,
    announce: Callable[[int], str] | None = None,
) -> list[InterventionResult]:
    """Evaluates the batches that are not finished, and returns the results of all.

    Args:
        finished: the batches on disk.
        evaluate: computes the results of a batch, with the seed of that batch.
        dos: the interventions, in the order of the results.
        in_table: the number of interventions whose labels go to the table; by default all.
        announce: text to print before the first batch, given the number of images that are left.

    Raises:
        KeyboardInterrupt: with the number of finished images.
    """
    parts = list(batches_of(data, batch_size))
    batches = [finished.read(number, dos) for number in range(len(parts))]
    done = sum(len(part) for part, batch in zip(parts, batches, strict=True) if batch is not None)
    with progress_bar(total=len(data), initial=done, desc="counterfactuals", unit="image") as bar:
        try:
            if announce is not None and done < len(data):
                bar.write(announce(len(data) - done), file=sys.stderr)
            for number, part in enumerate(parts):
                batch = batches[number]
                if batch is None:
                    batch = batches[number] = evaluate(part, seed + number * batch_size)
                    finished.write(number, batch)
                    bar.update(len(part))
                    done += len(part)
                finished.append_to_table(batch[:in_table], part, first=number == 0)
        except KeyboardInterrupt:
            said = f"interrupted after {done} of {len(data)} images; run the same command to resume"
            raise KeyboardInterrupt(said) from None
    return join_batches([batch for batch in batches if batch is not None])


def expected_seconds(trial: Callable[[int], object], steps: int) -> float:
    """Time of `trial(steps)`, extrapolated linearly from few steps."""
    trial(FEW_STEPS[0])  # a warm-up
    seconds = []
    for few in FEW_STEPS:
        start = time.perf_counter()
        trial(few)
        seconds.append(time.perf_counter() - start)
    per_step = max(0.0, seconds[1] - seconds[0]) / (FEW_STEPS[1] - FEW_STEPS[0])
    return seconds[0] + (steps - FEW_STEPS[0]) * per_step


def format_duration(seconds: float) -> str:
    """ "less than a minute", "about 12 minutes" or "about 3.4 hours"."""
    if seconds < 60:
        return "less than a minute"
    minutes = seconds / 60
    if minutes < 90:
        return f"about {minutes:.0f} minute{'s' if minutes >= 1.5 else ''}"
    return f"about {minutes / 60:.1f} hours"
