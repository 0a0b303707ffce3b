"""What a run tells: scalars in progress.csv and TensorBoard, pictures, and lines on the console.

Between two dumps every value of `logkv_mean` is averaged, every value of `logkv` is the last one; a dump is one row of
the table. The names are guided-diffusion's. Ranks other than 0 may call everything and write nothing, so the numbers
are rank 0's unless the caller averages them first (`dist_util.all_reduce_mean`).
"""

from __future__ import annotations

import csv
import io
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from causaldiffae import dist_util
from causaldiffae.errors import DataError, InputError

PROGRESS = "progress.csv"
STEP = "step"


class Logger:
    """Writes a run's numbers and pictures to `run_dir`.

    Args:
        run_dir: folder of the run; made if it is missing.
        use_tensorboard: also write event files to `run_dir/tensorboard`.
        resume_step: step the run goes on from. Rows and events of later steps, which a run wrote after its last
            checkpoint, are dropped: they come again.

    Raises:
        DataError: if there is a progress.csv that is no such table.
    """

    def __init__(
        self, run_dir: str | os.PathLike[str], use_tensorboard: bool = True, resume_step: int | None = None
    ) -> None:
        self.run_dir = Path(run_dir)
        self.enabled = dist_util.is_main()
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._columns: list[str] = [STEP]
        self._tensorboard: Any = None
        if not self.enabled:
            return
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._path = self.run_dir / PROGRESS
        self._columns, rows = read_progress(self._path) if self._path.exists() else ([STEP], [])
        if resume_step is not None:
            rows = [row for row in rows if float(row[STEP]) <= resume_step]
        self._rewrite(rows)
        if use_tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            purge = None if resume_step is None else resume_step + 1
            self._tensorboard = SummaryWriter(str(self.run_dir / "tensorboard"), purge_step=purge)

    def logkv(self, key: str, value: Any) -> None:
        """Sets a scalar for the next dump; the last value counts."""
        self._sums[key], self._counts[key] = _number(key, value), 1

    def logkvs(self, values: Mapping[str, Any]) -> None:
        """`logkv` for each entry."""
        for key, value in values.items():
            self.logkv(key, value)

    def logkv_mean(self, key: str, value: Any, count: int = 1) -> None:
        """Adds a value, itself a mean over `count` things, to the mean for the next dump."""
        self._sums[key] = self._sums.get(key, 0.0) + _number(key, value) * count
        self._counts[key] = self._counts.get(key, 0) + count

    def dumpkvs(self, step: int) -> dict[str, float]:
        """Writes one row and starts anew; returns the row's values on every rank."""
        values = {key: self._sums[key] / self._counts[key] for key in self._sums}
        self._sums.clear()
        self._counts.clear()
        if not self.enabled:
            return values
        row = {STEP: str(step), **{key: repr(value) for key, value in values.items()}}
        new = [key for key in row if key not in self._columns]
        if new:
            rows = read_progress(self._path)[1]
            self._columns += new
            self._rewrite([*rows, row])
        else:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                file.write(_csv_lines([[row.get(column, "") for column in self._columns]]))
        if self._tensorboard is not None:
            for key, value in values.items():
                self._tensorboard.add_scalar(key, value, step)
            self._tensorboard.flush()
        return values

    def log_image(self, name: str, image: np.ndarray, step: int) -> Path | None:
        """Writes a picture (H, W, C) of uint8, C = 1, 3 or 4, to `run_dir/images` and TensorBoard; returns the file."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3, 4) or not image.size:
            raise InputError(
                f"image {name!r}: an array (H, W, 1, 3 or 4) of uint8 is needed, got {image.shape} of {image.dtype}"
            )
        if not self.enabled:
            return None
        folder = self.run_dir / "images"
        folder.mkdir(exist_ok=True)
        path = folder / f"{re.sub(r'[^A-Za-z0-9_-]+', '_', name)[:80] or 'image'}_{step:07d}.png"
        Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(path)
        if self._tensorboard is not None:
            self._tensorboard.add_image(name, image, step, dataformats="HWC")
        return path

    def info(self, message: str) -> None:
        """A line on the console, above a progress bar if there is one."""
        if self.enabled:
            write_line(message)

    def close(self) -> None:
        """Writes what TensorBoard still holds."""
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        # Under another name first: whoever reads meanwhile, or a crash, finds the old table or the new one.
        path = self._path.with_name(f".{PROGRESS}.tmp")
        lines = [self._columns, *([row.get(column, "") for column in self._columns] for row in rows)]
        with path.open("w", newline="", encoding="utf-8") as file:
            file.write(_csv_lines(lines))
            file.flush()
            os.fsync(file.fileno())
        path.replace(self._path)


def read_progress(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a progress.csv; a last line that was cut off by a crash is left out.

    Raises:
        DataError: if the file is no such table.
    """
    try:
        text = path.read_bytes().decode("utf-8")
        lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: it is no CSV table ({error})") from error
    if not lines:
        return [STEP], []
    columns, *table = lines
    if STEP not in columns or len(set(columns)) != len(columns):
        raise DataError(f"{path}: its first line must name each column once, `{STEP}` among them")
    rows = []
    for number, line in enumerate(table, start=2):
        row = dict(zip(columns, line, strict=False))
        if len(line) != len(columns) or not re.fullmatch(r"[0-9]{1,12}", row[STEP]):
            raise DataError(
                f"{path}: line {number} has {len(line)} of {len(columns)} columns, or no whole number as step"
            )
        rows.append(row)
    return columns, rows


def _csv_lines(lines: Iterable[Iterable[str]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _number(key: str, value: Any) -> float:
    if key == STEP or not key or not key.isprintable():
        raise InputError(f"logger: {key!r} is no name for a value")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"logger: {key} needs a single number, got {type(value).__name__}") from error


def write_line(message: str) -> None:
    """One line on the console (standard error) from rank 0, above a progress bar if there is one."""
    if dist_util.is_main():
        tqdm.write(message, file=sys.stderr)


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """tqdm on rank 0, silent elsewhere; where the output is no terminal, a line at most every 30 seconds."""
    terminal = sys.stderr.isatty()
    defaults = {
        "disable": not dist_util.is_main(),
        "dynamic_ncols": terminal,
        "mininterval": 0.2 if terminal else 30.0,
        "ascii": None if terminal else True,
    }
    return tqdm(iterable, **{**defaults, **options})
