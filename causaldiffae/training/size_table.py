"""Which size of a configuration fits this machine: estimates of several sizes and image sides in one table."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Final, NamedTuple

import torch

from causaldiffae.config import Config
from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.published.autoencoder import network_spec
from causaldiffae.script_util import parse_config
from causaldiffae.training.codes import open_codec
from causaldiffae.training.devices import describe_device
from causaldiffae.training.estimate import BUSY, Estimate, duration, estimate

SIZES: Final = ("mini", "fast", "paper")
START, END = "<!-- sizes -->", "<!-- end of sizes -->"
HEADER: Final = (
    *("size", "pixels", "parameters", "batch", "memory, GiB", "fits here", "1,000 steps", "images/hour"),
    "whole run, hours",
)


class Row(NamedTuple):
    """The estimate of a size at an image side, or the reason why there is none."""

    size: str
    side: int
    found: Estimate | None
    reason: str = ""
    batch: int = 0

    def cells(self) -> list[str]:
        """The row as text."""
        if self.found is None:
            return [self.size, str(self.side or ""), self.reason, *[""] * (len(HEADER) - 3)]
        found = self.found
        fits = "yes" if found.fits else f"--microbatch {found.fitting_images}" if found.fitting_images else "no"
        each = "" if found.images == self.batch else f" ({found.images} at a time)"
        return [
            *(self.size, str(self.side), f"{found.parameters / 1e6:,.1f} M", f"{self.batch}{each}"),
            *(f"{found.memory_mib / 1024:,.1f}", fits, duration(1000 * found.step_seconds)),
            *(f"{3600 * found.images_per_second:,.0f}", f"{found.hours:,.1f}"),
        ]


def config_files(folder: Path, dataset: str, model: str, sizes: Iterable[str]) -> dict[str, list[Path]]:
    """The files of every size, by size; a baseline without files of its own has those of causaldae and one over them.

    Args:
        folder: `configs/`.
        sizes: sizes to find; all there are if empty, smallest first.

    Raises:
        InputError: for a data set, model or size without a configuration.
    """
    own = {path.stem.rpartition("_")[2]: [path] for path in sorted(folder.glob(f"{dataset}_{model}_*.yaml"))}
    over = folder / "baselines" / f"{model}.yaml"
    if not own and over.is_file():
        own = {
            path.stem.rpartition("_")[2]: [path, over] for path in sorted(folder.glob(f"{dataset}_causaldae_*.yaml"))
        }
    if not own:
        raise InputError(f"dataset, model: expected a configuration configs/{dataset}_{model}_SIZE.yaml, got none")
    ordered = sorted(own, key=lambda size: SIZES.index(size) if size in SIZES else len(SIZES))
    for size in sizes:
        if size not in own:
            raise InputError(f"size: expected {', '.join(ordered)} for {dataset}, got {size!r}")
    return {size: own[size] for size in [*sizes] or ordered}


def make_rows(
    files: dict[str, list[Path]], argv: Sequence[str], sides: Sequence[int], device: torch.device
) -> list[Row]:
    """Estimates every size at every side; options that do not fit are the reason of their row.

    Args:
        files: configuration files by size.
        argv: flags of the configuration, which override the files.
        sides: image sides in pixels; empty for that of the configuration.
    """
    rows = []
    for size, paths in files.items():
        for side in sides or [0]:
            flags = [*(f"--config={path}" for path in paths), *argv, *([f"--image_size={side}"] if side else [])]
            rows.append(_row(size, side, parse_config(flags), device))
    return rows


def _row(size: str, side: int, config: Config, device: torch.device) -> Row:
    train = config.train
    channels, folder = train.channels or None, train.data_dir or None
    spec: DatasetSpec = dataset_spec(
        train.dataset, train.image_size or None, channels, data_dir=folder, graph=train.graph or None
    )
    if size == "latent" and not train.vae_path:
        return Row(size, side or spec.image_size, None, "set --vae_path, an autoencoder (see docs/training.md)")
    try:
        found = estimate(config, network_spec(spec, open_codec(train, spec)), device)
    except InputError as error:
        return Row(size, side or spec.image_size, None, str(error))
    return Row(size, spec.image_size, found, batch=train.batch_size)


def conclusion(rows: Sequence[Row]) -> str:
    """Which sizes fit, in a sentence."""
    fitting = [row for row in rows if row.found is not None and row.found.fits]
    if not fitting:
        return "no size fits the free memory of this machine; see --microbatch, --use_checkpoint, --num_channels"
    largest = max(fitting, key=lambda row: row.found.memory_mib if row.found else 0)
    assert largest.found is not None
    pixels = f" at {largest.side} pixels" if len({row.side for row in rows}) > 1 else ""
    waited = max(row.found.waited for row in rows if row.found is not None)
    busy = f"\ntimes are those of an idle machine; this one was busy {100 * waited:.0f} % of the time"
    return (
        f"the largest that fits: {largest.size}{pixels}, {largest.found.hours:,.1f} hours for the whole run"
        f"{busy if waited >= BUSY else ''}"
    )


def as_text(rows: Sequence[Row]) -> str:
    """The rows in aligned columns."""
    cells = [list(HEADER), *(row.cells() for row in rows)]
    measured = [line for line, row in zip(cells[1:], rows, strict=True) if row.found]
    widths = [max(len(line[i]) for line in [cells[0], *measured]) for i in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def as_markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [HEADER, ["---"] * len(HEADER), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_table(path: Path, rows: Sequence[Row], command: Sequence[str], device: torch.device) -> None:
    """Replaces the text between two comments of a Markdown file by the table, its command and this machine.

    Raises:
        DataError: if the file does not have both comments.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: expected a Markdown file, got {error.strerror}") from error
    if not re.search(f"{START}.*{END}", text, re.DOTALL):
        raise DataError(f"{path}: expected the lines {START} and {END}, between which the table is written")
    counted = "measured" if device.type == "cuda" else "counted"
    note = textwrap.fill(
        f"Written {date.today()} on {machine(device)}. Times are measured on trial steps, in the precision that "
        f"training chooses, not compiled, without waiting for other processes; memory is {counted}.",
        100,
    )
    block = f"{START}\n```bash\n{shlex.join(command)}\n```\n\n{note}\n\n{as_markdown(rows)}\n{END}"
    path.write_text(re.sub(f"{START}.*{END}", lambda _: block, text, flags=re.DOTALL), encoding="utf-8")


def machine(device: torch.device) -> str:
    """Names the device; of a processor, its model."""
    if device.type != "cpu":
        return describe_device()
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return f"{describe_device()}{f' of {found[1].strip()}' if found else ''}"
