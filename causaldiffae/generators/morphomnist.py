"""MorphoMNIST thickness-intensity: handwritten digits, brighter the thicker they are (Pawlowski et al., 2020).

    t = 1/2 + g,  g ~ Gamma(10, rate 5)          i = 64 + 191 sigmoid(2 (t - 5/2) + e / 2),  e ~ N(0, 1)

A digit of MNIST is redrawn with mean stroke thickness t (pixels) and median intensity i (grey levels). The labels are
the sampled values. Both mechanisms are invertible, so the labels determine the exogenous noise (g, e), and with the
base digit the true counterfactual image: the same digit, redrawn at the counterfactual labels.

On disk, for `split` in train, t10k: `{split}-images-idx3-ubyte.gz`, `{split}-labels-idx1-ubyte.gz` (digits),
`{split}-morpho.csv` (index into MNIST, thickness, intensity) and, in our files only, `{split}-base-idx3-ubyte.gz`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from threadpoolctl import threadpool_limits

from causaldiffae.errors import DataError, InputError
from causaldiffae.files.idx import find_file, read_digits, read_text, write_idx
from causaldiffae.generators.common import Generator, check_labels, complete_folder, do_columns, is_finished
from causaldiffae.generators.morphology import (
    DIGIT_SIZE,
    REDRAW_SCALE,
    Stroke,
    mean_thickness,
    measure_intensity,
    redraw,
    strokes_of,
)
from causaldiffae.generators.workers import parallel_map
from causaldiffae.graphs import CausalGraph

GRAPH: Final = CausalGraph(("thickness", "intensity"), (("thickness", "intensity"),))

_LOWEST, _SPAN = 64.0, 191.0
_MAX_TABLE_BYTES: Final = 1 << 24  # unpacked; the published tables have 2.5 million
_CHUNK: Final = 64
_CACHED_DIGITS: Final = 4096  # 25 kB each


def sample_labels(n: int, rng: np.random.Generator) -> np.ndarray:
    """Draws (n, 2) float64 labels, thickness and intensity, from the structural causal model."""
    noise = np.stack([rng.gamma(10.0, 1.0 / 5.0, n), rng.standard_normal(n)], axis=1)
    return predict(noise, {})


def abduct(labels: Any) -> np.ndarray:
    """The exogenous noise (N, 2) float64 of labels (N, 2), g = t - 1/2 and e; intensities strictly in 64..255."""
    labels = check_labels(GRAPH, labels)
    share = (labels[:, 1] - _LOWEST) / _SPAN
    inside = (share > 0) & (share < 1)
    if not inside.all():
        given = labels[~inside, 1][0]
        raise InputError(f"intensity: expected a factual label strictly between 64 and 255, got {given:g}")
    logit = np.log(share) - np.log1p(-share)
    return np.stack([labels[:, 0] - 0.5, 2.0 * (logit - 2.0 * (labels[:, 0] - 2.5))], axis=1)


def predict(noise: Any, do: Mapping[str, Any]) -> np.ndarray:
    """Labels (N, 2) float64 for exogenous noise (N, 2) under an intervention: variable -> a number or (N,) numbers."""
    noise = check_labels(GRAPH, noise)
    columns = do_columns(GRAPH, do, len(noise))
    thickness = columns.get("thickness", 0.5 + noise[:, 0])
    logit = 2.0 * (thickness - 2.5) + 0.5 * noise[:, 1]
    intensity = columns.get("intensity", _LOWEST + _SPAN * 0.5 * (1.0 + np.tanh(logit / 2.0)))
    return np.stack([thickness, intensity], axis=1)


class MorphoMnistGenerator(Generator):
    """The structural causal model of MorphoMNIST: counterfactual labels, counterfactual images and measurement."""

    graph = GRAPH

    def __init__(self) -> None:
        self._strokes: dict[bytes, tuple[np.ndarray, float]] = {}

    def _update_effects(self, factual: np.ndarray, result: np.ndarray, effects: list[str]) -> None:
        if effects:  # the only effect is the intensity's, of thickness
            result[:, 1] = predict(abduct(factual), {"thickness": result[:, 0]})[:, 1]

    def counterfactual_images(self, base_images: np.ndarray, labels: Any, do: Mapping[str, Any]) -> np.ndarray:
        """The true counterfactual images, (N, 28, 28) uint8: each base digit redrawn at its counterfactual labels.

        Args:
            base_images: (N, 28, 28) uint8, the MNIST digits that the factual images were drawn from.
            labels, do: as `counterfactual_labels`.
        """
        target = self.counterfactual_labels(labels, do)
        if len(base_images) != len(target):
            raise InputError(f"base_images: expected {len(target)}, one per row of labels, got {len(base_images)}")
        images = np.empty((len(target), DIGIT_SIZE, DIGIT_SIZE), np.uint8)
        for start in range(0, len(target), _CHUNK):
            rows = slice(start, start + _CHUNK)
            bases = self._bases(base_images[rows])
            with threadpool_limits(1):
                images[rows] = [redraw(base, t, i) for base, (t, i) in zip(bases, target[rows], strict=True)]
        return images

    def _bases(self, images: np.ndarray) -> list[Stroke]:
        """Strokes of base digits; those of the last digits are kept, packed to a bit per pixel."""
        keys = [image.tobytes() for image in images]
        new = [i for i, key in enumerate(keys) if key not in self._strokes]
        if len(self._strokes) + len(new) > _CACHED_DIGITS:
            self._strokes.clear()
            new = list(range(len(keys)))
        for i, base in zip(new, strokes_of(images[new]) if new else [], strict=True):
            self._strokes[keys[i]] = (np.packbits(base.stroke), base.thickness)
        side = DIGIT_SIZE * REDRAW_SCALE
        cached = [self._strokes[key] for key in keys]
        return [Stroke(np.unpackbits(bits).astype(bool).reshape(side, side), thickness) for bits, thickness in cached]

    def measure(self, images: np.ndarray) -> np.ndarray:
        """Mean stroke thickness (pixels) and median intensity of images (N, 28, 28[, 1]) uint8, as (N, 2) float64.

        NaN for an image of one grey level. On true images the thickness differs from the label by about 0.1.
        """
        images = np.asarray(images)
        images = images[..., 0] if images.ndim == 4 and images.shape[-1] == 1 else images
        intensity = np.array([measure_intensity(image) for image in images])
        return np.stack([mean_thickness(images), intensity.reshape(len(images))], axis=1)


def read_morpho_csv(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads `index` (N,) int64 and thickness, intensity (N, 2) float64 from a CSV file, gzipped or not.

    Other columns are ignored. A file that is missing or damaged, lacks a column or has a cell that is not a number is a
    `DataError` that names the file and the line.
    """
    path, columns = Path(path), ("index", *GRAPH.names)
    rows = csv.DictReader(io.StringIO(read_text(path, _MAX_TABLE_BYTES), newline=""))
    try:
        rows.fieldnames = header = [cell.strip() for cell in rows.fieldnames or []]
        for name in columns:
            if header.count(name) != 1:
                found = ", ".join(header)[:200] or "nothing"
                raise DataError(f"{path}: header: expected column {name!r} once, got {found}")
        table = [[_number(path, rows.line_num, name, row[name]) for name in columns] for row in rows]
    except csv.Error as error:
        raise DataError(f"{path}: line {rows.line_num}: expected CSV ({error})") from None
    values = np.array(table, dtype=np.float64).reshape(-1, len(columns))
    index = values[:, 0].astype(np.int64)
    if len(np.unique(index)) != len(index):
        raise DataError(f"{path}: index: expected different values, got one twice")
    return index, values[:, 1:]


def _number(path: Path, line: int, name: str, cell: str | None) -> float:
    try:
        value = float(cell or "")
    except ValueError:
        value = math.nan
    expected = "a finite number" if name != "index" else "a non-negative integer"
    if not math.isfinite(value) or (name == "index" and not (value.is_integer() and 0 <= value < 2**53)):
        raise DataError(f"{path}: line {line}: {name}: expected {expected}, got {(cell or '')[:40]!r}")
    return value


def write_dataset(
    mnist_dir: str | Path,
    out: str | Path,
    *,
    labels: str | Path | None = None,
    seed: int = 0,
    num_train: int | None = None,
    num_test: int | None = None,
    workers: int = 2,
    progress: bool = True,
) -> Path:
    """Redraws MNIST as a MorphoMNIST data set in the folder `out`, which appears when complete.

    Args:
        mnist_dir: the folder with MNIST's four IDX files, gzipped or not, or with torchvision's `MNIST/raw`.
        out: a new or empty folder, or one that the same call has written before: then nothing is done.
        labels: a folder with `{train,t10k}-morpho.csv[.gz]`, or one of these files; by default labels are drawn.
        seed: of the drawn labels. The same seed gives the same bytes; a smaller set is the start of a larger one.
        num_train, num_test: number of images of each split; None for all. 0 leaves a split empty.
        workers: processes.
    """
    mnist_dir, out = Path(mnist_dir), Path(out)
    mnist_dir = mnist_dir / "MNIST" / "raw" if (mnist_dir / "MNIST" / "raw").is_dir() else mnist_dir
    if seed < 0:
        raise InputError(f"seed: expected 0 or more, got {seed}")
    sources = {}
    for number, (name, count) in enumerate((("train", num_train), ("t10k", num_test))):
        images, digits = read_digits(mnist_dir, name)
        if labels is None:
            index = np.arange(len(images))
            values = sample_labels(len(images), np.random.default_rng([seed, number]))
        else:
            index, values = _given_labels(Path(labels), name, len(images))
        if count is not None and not 0 <= count <= len(index):
            option = "num_train" if name == "train" else "num_test"
            raise InputError(f"{option}: expected 0..{len(index)}, got {count}")
        index, values = index[:count], values[:count].astype(np.float32)
        sources[name] = (index, values, images[index], digits[index])
    recipe = {
        "dataset": "morphomnist",
        "version": 1,
        "labels": "drawn" if labels is None else "given",
        "seed": seed if labels is None else None,
        "sources": {name: _digest(*arrays) for name, arrays in sources.items()},
    }
    if is_finished(out, recipe):
        return out
    with complete_folder(out, recipe) as folder:
        for name, (index, values, bases, digits) in sources.items():
            starts = range(0, len(bases), _CHUNK)
            pairs = [(bases[i : i + _CHUNK], values[i : i + _CHUNK]) for i in starts]
            drawn = list(parallel_map(_redraw_chunk, pairs, workers=workers, description=name, progress=progress))
            images = np.concatenate(drawn) if drawn else np.empty((0, DIGIT_SIZE, DIGIT_SIZE), np.uint8)
            write_idx(folder / f"{name}-images-idx3-ubyte.gz", images)
            write_idx(folder / f"{name}-labels-idx1-ubyte.gz", digits)
            write_idx(folder / f"{name}-base-idx3-ubyte.gz", bases)
            lines = [f"{i},{t!s},{v!s}\n" for i, (t, v) in zip(index, values, strict=True)]
            (folder / f"{name}-morpho.csv").write_text("".join(["index,thickness,intensity\n", *lines]))
    return out


def _given_labels(labels: Path, name: str, available: int) -> tuple[np.ndarray, np.ndarray]:
    path = find_file(labels.parent if labels.is_file() else labels, f"{name}-morpho.csv")
    index, values = read_morpho_csv(path)
    if len(index) and index.max() >= available:
        raise DataError(f"{path}: index: expected 0..{available - 1}, the digits of MNIST's {name}, got {index.max()}")
    inside = (values > 0) & (values <= (DIGIT_SIZE, 255))
    if not inside.all():
        row = values[~inside.all(axis=1)][0]
        raise DataError(f"{path}: expected thickness in (0, {DIGIT_SIZE}], intensity in (0, 255], got {row.tolist()}")
    return index, values


def _redraw_chunk(chunk: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    bases, values = chunk
    drawn = [redraw(base, float(t), float(i)) for base, (t, i) in zip(strokes_of(bases), values, strict=True)]
    return np.stack(drawn)


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr((array.dtype.str, array.shape)).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
