"""Logging of a run: scalars and images to progress.csv, PNG files and TensorBoard, messages to standard error.

The method names are those of guided-diffusion. `dumpkvs` writes one row: `logkv_mean` averages the values since the
last row, `logkv` keeps the last value. Only rank 0 writes; to log an average over processes, compute it first with
`dist_util.all_reduce_mean`.

If the file system fails, the methods raise an `OSError`, and the next call writes the rows that are missing.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from causaldiffae import dist_util
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import replace_file

PROGRESS = "progress.csv"
STEP = "step"


class Logger:
    """Writes scalars and images of a run.

    Args:
        run_dir: run directory, created if necessary.
        use_tensorboard: also write event files to `run_dir/tensorboard`.
        resume_step: step to resume from, 0 for a new run; rows and events of later steps are removed.

    Raises:
        DataError: If an existing progress.csv was not written by this class.
    """

    def __init__(
        self, run_dir: str | os.PathLike[str], use_tensorboard: bool = True, resume_step: int | None = None
    ) -> None:
        self.run_dir = Path(run_dir)
        self.enabled = dist_util.is_main()
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._unwritten: list[dict[str, str]] = []
        self._use_tensorboard, self._tensorboard = use_tensorboard and self.enabled, None
        if not self.enabled:
            return
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._path = self.run_dir / PROGRESS
        self._columns, rows = read_progress(self._path) if self._path.exists() else ([STEP], [])
        self._rewrite([row for row in rows if resume_step is None or int(row[STEP]) <= resume_step])
        if use_tensorboard:
            self._tensorboard = self._open_tensorboard(None if resume_step is None else resume_step + 1)

    def logkv(self, key: str, value: Any) -> None:
        """Sets a scalar of the next row."""
        self._sums[key], self._counts[key] = _number(key, value), 1

    def logkvs(self, values: Mapping[str, Any]) -> None:
        """Sets several scalars of the next row."""
        for key, value in values.items():
            self.logkv(key, value)

    def logkv_mean(self, key: str, value: Any) -> None:
        """Adds a value to an average of the next row."""
        self._sums[key] = self._sums.get(key, 0.0) + _number(key, value)
        self._counts[key] = self._counts.get(key, 0) + 1

    def dumpkvs(self, step: int) -> dict[str, float]:
        """Writes a row and resets all scalars; returns the row on every rank."""
        values = {key: self._sums[key] / self._counts[key] for key in self._sums}
        self._sums.clear()
        self._counts.clear()
        if not self.enabled:
            return values
        self._unwritten.append({STEP: str(step), **{key: repr(value) for key, value in values.items()}})
        self._write_rows()
        with self._events() as events:
            for key, value in values.items() if events is not None else ():
                events.add_scalar(key, value, step)
            if events is not None:
                events.flush()
        return values

    def log_image(self, name: str, image: np.ndarray, step: int) -> Path | None:
        """Writes an image (H, W, C) uint8 with C = 1, 3 or 4 to `run_dir/images` and TensorBoard; returns its path."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3, 4) or not image.size:
            raise InputError(
                f"image {name!r}: expected an array (H, W, 1, 3 or 4) of uint8, got {image.shape} of {image.dtype}"
            )
        if not self.enabled:
            return None
        path = self.run_dir / "images" / f"{re.sub(r'[^A-Za-z0-9_-]+', '_', name)[:80] or 'image'}_{step:07d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(path)
        with self._events() as events:
            if events is not None:
                events.add_image(name, image, step, dataformats="HWC")
        return path

    def info(self, message: str) -> None:
        """Writes a line to standard error, above the progress bar."""
        if self.enabled:
            tqdm.write(message, file=sys.stderr)

    def close(self) -> None:
        """Writes the rows that are missing, and closes the TensorBoard writer."""
        if self._unwritten:
            self._write_rows()
        if self._tensorboard is not None:
            self._tensorboard.close()
        self._use_tensorboard, self._tensorboard = False, None

    def _open_tensorboard(self, purge_step: int | None = None) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.run_dir / "tensorboard"), purge_step=purge_step)

    @contextlib.contextmanager
    def _events(self) -> Iterator[Any]:
        """Yields the TensorBoard writer or None. A writer that has failed refuses further events, and is replaced."""
        if self._use_tensorboard and self._tensorboard is None:
            self._tensorboard = self._open_tensorboard()
        try:
            yield self._tensorboard
        except OSError:
            self._tensorboard = None
            raise

    def _write_rows(self) -> None:
        """Appends the new row; after a failure, which may have truncated the last line, rewrites the table instead."""
        new = [key for key in dict.fromkeys(key for row in self._unwritten for key in row) if key not in self._columns]
        if new or len(self._unwritten) > 1:
            self._columns += new
            steps = {row[STEP] for row in self._unwritten}
            rows = [row for row in read_progress(self._path)[1] if row[STEP] not in steps]
            self._rewrite([*rows, *self._unwritten])
        else:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                file.write(self._lines(self._unwritten))
        self._unwritten.clear()

    def _lines(self, rows: Iterable[Mapping[str, str]], header: bool = False) -> str:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def _rewrite(self, rows: Iterable[Mapping[str, str]]) -> None:
        """Replaces the table atomically."""
        replace_file(self._path, self._lines(rows, header=True).encode())


def read_progress(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Reads the columns and rows of a progress.csv, ignoring a truncated last line.

    Raises:
        DataError: If the file was not written by `Logger`.
    """
    try:
        text = path.read_bytes().decode("utf-8")
        lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: expected a CSV table ({error})") from error
    if not lines:
        return [STEP], []
    columns, *table = lines
    if STEP not in columns or len(set(columns)) != len(columns):
        raise DataError(f"{path}: expected a header of unique column names including `{STEP}`, got {columns}")
    rows = []
    for number, line in enumerate(table, start=2):
        row = dict(zip(columns, line, strict=False))
        if len(line) != len(columns) or not re.fullmatch(r"[0-9]{1,12}", row[STEP]):
            raise DataError(
                f"{path}: line {number}: expected {len(columns)} columns and an integer step, got {len(line)} columns"
            )
        rows.append(row)
    return columns, rows


def _number(key: str, value: Any) -> float:
    if key == STEP or not key or not key.isprintable():
        raise InputError(f"logger: expected a printable name other than `{STEP}`, got {key!r}")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"logger: {key}: expected a single number, got {type(value).__name__}") from error


def progress_bar(**options: Any) -> tqdm:
    """Creates a tqdm progress bar on rank 0, updated every 30 seconds if standard error is not a terminal."""
    terminal = sys.stderr.isatty()
    defaults = {
        "disable": not dist_util.is_main(),
        "dynamic_ncols": terminal,
        "mininterval": 0.2 if terminal else 30.0,
        "ascii": None if terminal else True,
    }
    return tqdm(**{**defaults, **options})
