"""MorphoMNIST thickness-intensity: handwritten digits whose brightness follows their thickness (Pawlowski et al. 2020).

    t = 1/2 + g,  g ~ Gamma(10, rate 5)          i = 64 + 191 sigmoid(2 (t - 5/2) + e / 2),  e ~ N(0, 1)

A digit of MNIST is redrawn with mean stroke thickness t (pixels) and median intensity i (grey levels). The labels are
the sampled values. Both mechanisms invert, so an image's exogenous noise (g, e) is known from its labels, and with its
base digit the true counterfactual image is known: the same digit, redrawn at the counterfactual labels.

On disk, for `split` in train, t10k: `{split}-images-idx3-ubyte.gz`, `{split}-labels-idx1-ubyte.gz` (digits),
`{split}-morpho.csv` (index into MNIST, thickness, intensity) and, ours alone, `{split}-base-idx3-ubyte.gz`.
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
from causaldiffae.generators import check_labels, complete_folder, do_columns, is_finished, parallel_map
from causaldiffae.generators.morphology import Stroke, mean_thickness, measure_intensity, redraw, strokes_of
from causaldiffae.graphs import CausalGraph

GRAPH: Final = CausalGraph(("thickness", "intensity"), (("thickness", "intensity"),))

_LOWEST, _SPAN = 64.0, 191.0
_MAX_TABLE_BYTES: Final = 1 << 24  # unpacked; the published ones have 2.5 million
_CHUNK: Final = 64
_CACHED_DIGITS: Final = 4096  # 25 kB each


def sample_labels(n: int, rng: np.random.Generator) -> np.ndarray:
    """Draws (n, 2) float64 labels, thickness and intensity, from the true model."""
    noise = np.stack([rng.gamma(10.0, 1.0 / 5.0, n), rng.standard_normal(n)], axis=1)
    return predict(noise, {})


def abduct(labels: Any) -> np.ndarray:
    """The exogenous noise (N, 2) float64 of labels (N, 2): g = t - 1/2 and e.

    Raises:
        InputError: if an intensity is not strictly between 64 and 255, where alone the mechanism has an inverse.
    """
    labels = check_labels(GRAPH, labels)
    share = (labels[:, 1] - _LOWEST) / _SPAN
    if not ((share > 0) & (share < 1)).all():
        wrong = labels[~((share > 0) & (share < 1)), 1][0]
        raise InputError(f"intensity: {wrong:g} given, a factual label strictly between 64 and 255 is needed")
    logit = np.log(share) - np.log1p(-share)
    return np.stack([labels[:, 0] - 0.5, 2.0 * (logit - 2.0 * (labels[:, 0] - 2.5))], axis=1)


def predict(noise: Any, do: Mapping[str, Any]) -> np.ndarray:
    """Labels (N, 2) float64 of exogenous noise (N, 2) under an intervention: variable -> a number or (N,) numbers."""
    noise = check_labels(GRAPH, noise)
    columns = do_columns(GRAPH, do, len(noise))
    thickness = columns.get("thickness", 0.5 + noise[:, 0])
    logit = 2.0 * (thickness - 2.5) + 0.5 * noise[:, 1]
    intensity = columns.get("intensity", _LOWEST + _SPAN * 0.5 * (1.0 + np.tanh(logit / 2.0)))
    return np.stack([thickness, intensity], axis=1)


class MorphoMnistGenerator:
    """The truth behind MorphoMNIST: counterfactual labels and pictures, and what can be measured on a picture."""

    graph: CausalGraph = GRAPH

    def __init__(self) -> None:
        self._strokes: dict[bytes, tuple[np.ndarray, float]] = {}

    def counterfactual_labels(self, labels: Any, do: Mapping[str, Any]) -> np.ndarray:
        """True labels (N, 2) float64 after the intervention; what it does not reach keeps its value bit for bit.

        Args:
            labels: (N, 2) factual labels, label units.
            do: variable -> a number or (N,) numbers.

        Raises:
            InputError: for an unknown variable, a value that is no finite number, wrong shapes, or a factual
                intensity outside (64, 255) where it has to be abducted.
        """
        result = check_labels(self.graph, labels).copy()
        columns = do_columns(self.graph, do, len(result))
        touched = self.graph.descendants(*columns) - set(columns)
        if touched:
            predicted = predict(abduct(result), columns)
            for name in touched:
                result[:, self.graph.index(name)] = predicted[:, self.graph.index(name)]
        for name, column in columns.items():
            result[:, self.graph.index(name)] = column
        return result

    def counterfactual_images(self, base_images: np.ndarray, labels: Any, do: Mapping[str, Any]) -> np.ndarray:
        """The true counterfactual pictures, (N, 28, 28) uint8: each base digit redrawn at its counterfactual labels.

        Args:
            base_images: (N, 28, 28) uint8, the MNIST digits that the factual pictures were drawn from.
            labels, do: as `counterfactual_labels`.
        """
        target = self.counterfactual_labels(labels, do)
        if len(base_images) != len(target):
            raise InputError(f"base_images: {len(base_images)} given for {len(target)} rows of labels")
        images = np.empty((len(target), 28, 28), np.uint8)
        for start in range(0, len(target), _CHUNK):
            rows = slice(start, start + _CHUNK)
            bases = self._bases(base_images[rows])
            with threadpool_limits(1):
                images[rows] = [redraw(base, t, i) for base, (t, i) in zip(bases, target[rows], strict=True)]
        return images

    def _bases(self, images: np.ndarray) -> list[Stroke]:
        keys = [image.tobytes() for image in images]
        new = [i for i, key in enumerate(keys) if key not in self._strokes]
        if len(self._strokes) + len(new) > _CACHED_DIGITS:
            self._strokes.clear()
            new = list(range(len(keys)))
        for i, base in zip(new, strokes_of(images[new]) if new else [], strict=True):
            self._strokes[keys[i]] = (np.packbits(base.stroke), base.thickness)
        side = 28 * 16
        return [
            Stroke(np.unpackbits(bits).astype(bool).reshape(side, side), thickness)
            for bits, thickness in (self._strokes[key] for key in keys)
        ]

    def measure(self, images: np.ndarray) -> np.ndarray:
        """Mean stroke thickness (pixels) and median intensity of pictures (N, 28, 28[, 1]) uint8, as (N, 2) float64.

        NaN for a picture of one grey level. On true pictures the thickness differs from the label by about 0.1.
        """
        images = np.asarray(images)
        images = images[..., 0] if images.ndim == 4 and images.shape[-1] == 1 else images
        intensity = np.array([measure_intensity(image) for image in images])
        return np.stack([mean_thickness(images), intensity.reshape(len(images))], axis=1)


def read_morpho_csv(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads `index` (N,) int64 and thickness, intensity (N, 2) float64 from a CSV file, gzipped or not.

    Other columns are allowed and not read.

    Raises:
        DataError: naming the file and the line, if it is missing or damaged, a column or a cell is missing, or a cell
            is no finite number (`index`: no whole number of 0 or more, or one given twice).
    """
    path = Path(path)
    rows = csv.reader(io.StringIO(read_text(path, _MAX_TABLE_BYTES), newline=""))
    try:
        header = [cell.strip() for cell in next(rows, [])]
        for name in ("index", *GRAPH.names):
            if header.count(name) != 1:
                found = ", ".join(header)[:200] or "nothing"
                raise DataError(f"{path}: column {name!r} must be there once, the header has {found}")
        places = [header.index(name) for name in ("index", *GRAPH.names)]
        table = [_parse_row(path, rows.line_num, row, places) for row in rows if row]
    except csv.Error as error:
        raise DataError(f"{path}: line {rows.line_num} is no CSV ({error})") from None
    index = np.array([row[0] for row in table], dtype=np.int64)
    if len(np.unique(index)) != len(index):
        raise DataError(f"{path}: column 'index' holds a value twice")
    return index, np.array([row[1:] for row in table], dtype=np.float64).reshape(-1, len(GRAPH))


def _parse_row(path: Path, line: int, row: list[str], places: list[int]) -> tuple[int, float, float]:
    if len(row) <= max(places):
        raise DataError(f"{path}: line {line} has {len(row)} cells, {max(places) + 1} or more are needed")
    values = []
    for name, place in zip(("index", *GRAPH.names), places, strict=True):
        try:
            value = float(row[place])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{path}: line {line}, {name} is {row[place][:40]!r}, a finite number is needed")
        values.append(value)
    if values[0] != int(values[0]) or not 0 <= values[0] < 2**53:
        raise DataError(f"{path}: line {line}, index is {row[places[0]][:40]!r}, a whole number of 0 or more is needed")
    return int(values[0]), values[1], values[2]


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
        mnist_dir: the folder with MNIST's four IDX files, gzipped or not; torchvision's `MNIST/raw` in it is found.
        labels: a folder with `{train,t10k}-morpho.csv[.gz]`, or one of these files; left out, labels are drawn.
        seed: of the drawn labels. The same seed gives the same bytes; a smaller set is the start of a larger one.
        num_train, num_test: how many of either to write; left out, all. 0 leaves a split empty.

    Raises:
        InputError: if an argument cannot be served, `out` holds anything else, or a file is not what it should be.
    """
    mnist_dir, out = Path(mnist_dir), Path(out)
    mnist_dir = mnist_dir / "MNIST" / "raw" if (mnist_dir / "MNIST" / "raw").is_dir() else mnist_dir
    if seed < 0:
        raise InputError(f"seed: {seed} given, 0 or more is needed")
    sources = {}
    for number, (name, count) in enumerate((("train", num_train), ("t10k", num_test))):
        images, digits = read_digits(mnist_dir, name)
        if labels is None:
            index = np.arange(len(images))
            values = sample_labels(len(images), np.random.default_rng([seed, number]))
        else:
            index, values = _given_labels(Path(labels), name, len(images))
        option = "num_train" if name == "train" else "num_test"
        if count is not None and not 0 <= count <= len(index):
            raise InputError(f"{option}: {count} given, 0..{len(index)} are there")
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
            _write_split(folder, name, index, values, bases, digits, workers, progress)
    return out


def _given_labels(labels: Path, name: str, available: int) -> tuple[np.ndarray, np.ndarray]:
    path = find_file(labels.parent if labels.is_file() else labels, f"{name}-morpho.csv")
    index, values = read_morpho_csv(path)
    if len(index) and index.max() >= available:
        raise DataError(f"{path}: it names index {index.max()}, MNIST's {name} has 0..{available - 1}")
    if len(values) and not ((values > 0).all() and values[:, 0].max() <= 28 and values[:, 1].max() <= 255):
        raise DataError(f"{path}: thickness must be in (0, 28] and intensity in (0, 255]")
    return index, values


def _write_split(
    folder: Path,
    name: str,
    index: np.ndarray,
    values: np.ndarray,
    bases: np.ndarray,
    digits: np.ndarray,
    workers: int,
    progress: bool,
) -> None:
    chunks = [(bases[start : start + _CHUNK], values[start : start + _CHUNK]) for start in range(0, len(bases), _CHUNK)]
    drawn = list(parallel_map(_redraw_chunk, chunks, workers=workers, description=name, progress=progress))
    images = np.concatenate(drawn) if drawn else np.empty((0, 28, 28), np.uint8)
    write_idx(folder / f"{name}-images-idx3-ubyte.gz", images)
    write_idx(folder / f"{name}-labels-idx1-ubyte.gz", digits)
    write_idx(folder / f"{name}-base-idx3-ubyte.gz", bases)
    lines = [f"{i},{t!s},{v!s}" for i, (t, v) in zip(index, values, strict=True)]
    (folder / f"{name}-morpho.csv").write_text("\n".join(["index,thickness,intensity", *lines]) + "\n")


def _redraw_chunk(chunk: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    bases, values = chunk
    drawn = [redraw(base, float(t), float(i)) for base, (t, i) in zip(strokes_of(bases), values, strict=True)]
    return np.stack(drawn)


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr((array.dtype.str, array.shape)).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
