"""Data sets: what is known about each (`DatasetSpec`), one split in memory (`ImageData`), and batches of it.

Labels speak in their own units everywhere; `DatasetSpec.normalise` maps them to (y - shift) / scale and nothing else
does. Images are uint8 (N, C, H, W) at rest and float in [-1, 1] at the network. A picture that is not of the wanted
size is averaged over the area of each new pixel (`resize_area`), true counterfactuals by the same rule.

Adding a data set is one `DatasetEntry` in `DATASETS`: its spec, how to read a split, its true counterfactuals and its
measuring eye. Batches are stateless: batch `step` is a function of (seed, step) alone, so training that resumes at a
step sees the very images it would have seen, and two processes share the batch that one would have had.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import torch

from causaldiffae.errors import DataError, InputError
from causaldiffae.folders.reading_rules import RESIZE_RULES, SPLIT_SHARES, check_shares, one_of, whole_number
from causaldiffae.folders.variable_kinds import category_label, check_kinds, is_number
from causaldiffae.graphs import CausalGraph
from causaldiffae.safe_files import read_file
from causaldiffae.safe_images import open_image, without_size_warnings

SPLITS: Final = ("train", "test")

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")  # it ends in names of files and folders
_LARGEST: Final = {"image_size": 4096, "channels": 64, "num_classes": 10_000}

Labels = TypeVar("Labels", np.ndarray, torch.Tensor)


@dataclass(frozen=True)
class DatasetSpec:
    """What a model has to know about its data; it travels inside the checkpoint.

    Attributes:
        name: the data set's name, a key of `DATASETS`.
        image_size, channels: of the images as the network sees them.
        graph: the causal graph; its names are the label columns.
        shift, scale: normalised label = (label - shift) / scale, one entry for each variable.
        low, high: range of the training labels, in label units.
        num_classes: number of classes where images have one, else None.
        units: the label units, for display.
        kinds, categories: of each variable, see variable_kinds.py; empty where all are continuous.
        resize, split_seed, split_shares: how a folder with a table is read, see image_folder.py.
    """

    name: str
    image_size: int
    channels: int
    graph: CausalGraph
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    num_classes: int | None = None
    units: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    categories: tuple[tuple[str, ...], ...] = ()
    resize: str = "area"
    split_seed: int = 0
    split_shares: tuple[float, ...] = SPLIT_SHARES

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            shown = repr(self.name)[:80]
            raise DataError(f"data set: name is {shown}, up to 64 letters, digits, - and _ are needed")
        if not isinstance(self.graph, CausalGraph):
            raise DataError(f"data set {self.name}: graph is {self.graph!r}, a CausalGraph is needed")
        for key in ("image_size", "channels", "num_classes"):
            value = getattr(self, key)
            if not (_is_int(value) and value > 0) and not (key == "num_classes" and value is None):
                raise DataError(f"data set {self.name}: {key} is {value!r}, a whole number above 0 is needed")
            if value is not None and value > _LARGEST[key]:
                raise DataError(f"data set {self.name}: {key} is {value}, at most {_LARGEST[key]} is allowed")
        for key in ("shift", "scale", "low", "high"):
            object.__setattr__(self, key, self._check_numbers(key, getattr(self, key)))
        if not all(value > 0 for value in self.scale):
            raise DataError(f"data set {self.name}: scale is {list(self.scale)}, numbers above 0 are needed")
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise DataError(f"data set {self.name}: low {list(self.low)} is not below high {list(self.high)}")
        units = tuple(self.units)
        if isinstance(self.units, str) or len(units) not in (0, len(self.graph)):
            raise DataError(f"data set {self.name}: units is {self.units!r}, one for each variable or none is needed")
        if not all(isinstance(unit, str) for unit in units):
            raise DataError(f"data set {self.name}: units is {self.units!r}, strings are needed")
        object.__setattr__(self, "units", units)
        self._check_reading()

    def _check_reading(self) -> None:
        where = f"data set {self.name}"
        try:
            kinds, categories = check_kinds(self.kinds, self.categories, len(self.graph))
        except InputError as error:
            raise DataError(f"{where}: {error}") from None
        object.__setattr__(self, "kinds", kinds)
        object.__setattr__(self, "categories", categories)
        one_of(self.resize, f"{where}: resize", RESIZE_RULES)
        object.__setattr__(self, "split_seed", whole_number(self.split_seed, f"{where}: split_seed", 0))
        object.__setattr__(self, "split_shares", check_shares(self.split_shares, f"{where}: split_shares"))

    def _check_numbers(self, key: str, values: Any) -> tuple[float, ...]:
        where = f"data set {self.name}: {key} is {values!r}"
        if not isinstance(values, list | tuple) or len(values) != len(self.graph):
            raise DataError(f"{where}, a list of {len(self.graph)} numbers is needed")
        if not all(is_number(value) and math.isfinite(value) for value in values):
            raise DataError(f"{where}, finite numbers are needed")
        return tuple(float(value) for value in values)

    def normalise(self, labels: Labels) -> Labels:
        """Labels (..., n) in label units to normalised units; a floating dtype is kept."""
        shift, scale = self._constants(labels)
        return (labels - shift) / scale

    def denormalise(self, labels: Labels) -> Labels:
        """Inverse of `normalise`."""
        shift, scale = self._constants(labels)
        return labels * scale + shift

    def _constants(self, labels: Labels) -> tuple[Labels, Labels]:
        if labels.shape[-1:] != (len(self.graph),):
            raise InputError(f"labels: shape {tuple(labels.shape)} given, the last axis must be {len(self.graph)}")
        if isinstance(labels, torch.Tensor):
            dtype = labels.dtype if labels.is_floating_point() else torch.float32
            shift, scale = (torch.tensor(c, dtype=dtype, device=labels.device) for c in (self.shift, self.scale))
        else:
            dtype = labels.dtype if np.issubdtype(labels.dtype, np.floating) else np.float64
            shift, scale = np.asarray(self.shift, dtype), np.asarray(self.scale, dtype)
        return shift, scale

    def category_values(self, i: int) -> tuple[float, ...]:
        """The labels, in label units, that a categorical or binary variable i can have; none for a continuous one."""
        if not self.kinds or self.kinds[i] == "continuous":
            return ()
        names = self.categories[i] if self.categories else ()
        return tuple(float(place) for place in range(len(names))) or (self.low[i], self.high[i])

    def say(self, name: str, value: float) -> str:
        """A variable's value as people read it: the category's name, or three digits."""
        i = self.graph.index(name)
        names = self.categories[i] if self.categories else ()
        return names[int(value)] if names and value in range(len(names)) else f"{value:.3g}"

    def check_do(self, do: Mapping[str, Any]) -> dict[str, float]:
        """An intervention in label units, checked; a value outside the training labels' range is done with a warning.

        A categorical or binary variable takes its category by name or number (`variable_kinds.category_label`).

        Raises:
            InputError: for an unknown variable, a value that is no finite number, or an unknown category.
        """
        if not isinstance(do, Mapping):
            raise InputError(f"do: {do!r} given, a mapping from variable to value is needed")
        checked = {}
        for name, value in do.items():
            if name not in self.graph.names:
                raise InputError(f"do: unknown variable {name!r}, known are {', '.join(self.graph.names)}")
            if isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 0:
                value = value.item()
            if self.kinds and self.kinds[self.graph.index(name)] != "continuous":
                place = self.graph.index(name)
                names = self.categories[place] if self.categories else ()
                checked[name] = category_label(name, value, names, self.low[place], self.high[place])
                continue
            if not is_number(value) or not math.isfinite(value):
                raise InputError(f"do: {name} is {value!r}, a finite number is needed")
            low, high = self.low[self.graph.index(name)], self.high[self.graph.index(name)]
            slack = 1e-6 * (high - low)  # the ends themselves, as float32 or printed
            if not low - slack <= value <= high + slack:
                message = (
                    f"do: {name}={value:g} is outside the training labels' range {low:g}..{high:g}; the answer is "
                )
                message += "extrapolated, a value inside is surer"
                warnings.warn(message, UserWarning, stacklevel=2)
            checked[name] = float(value)
        return checked

    def normalise_do(self, do: Mapping[str, Any], count: int = 1) -> dict[str, Any]:
        """`check_any_do`, then every value in normalised units."""
        index = self.graph.index
        return {
            name: (value - self.shift[index(name)]) / self.scale[index(name)]
            for name, value in self.check_any_do(do, count).items()
        }

    def check_any_do(self, do: Mapping[str, Any], count: int) -> dict[str, Any]:
        """`check_do`, or `check_do_each` where a value is an array of one axis."""
        each = isinstance(do, Mapping) and any(getattr(value, "ndim", 0) == 1 for value in do.values())
        return self.check_do_each(do, count) if each else self.check_do(do)

    def check_do_each(self, do: Mapping[str, Any], count: int) -> dict[str, np.ndarray]:
        """An intervention whose values differ between `count` images: a number or (count,) numbers for each variable.

        Returns:
            (count,) float64 for each variable, in label units; for the rest as `check_do`.
        """
        columns = {}
        for name, value in do.items():
            values = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
            if values.shape not in ((), (count,)):
                given = f"do: {name} has shape {values.shape}"
                raise InputError(f"{given}, a number or one for each image, ({count},), is needed")
            if np.issubdtype(values.dtype, np.number) and not np.isfinite(values).all():
                raise InputError(f"do: {name} holds NaN or infinity, finite numbers are needed")
            distinct, places = np.unique(values, return_inverse=True)
            # of a continuous variable the ends are enough: there is nothing to look up, and one warning will do
            asked = distinct if self.kinds else distinct[[0, -1]] if len(distinct) else distinct
            checked = [self.check_do({name: each.item()})[name] for each in asked]
            column = np.asarray(checked, np.float64) if self.kinds else distinct.astype(np.float64)
            columns[name] = np.broadcast_to(column[places.reshape(values.shape)], (count,)).copy()
        return columns

    def to_dict(self) -> dict[str, Any]:
        """The plain JSON form that `from_dict` reads."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**{key: _as_lists(value) for key, value in plain.items()}, "graph": self.graph.to_dict()}

    @classmethod
    def from_dict(cls, description: Any) -> DatasetSpec:
        """Reads what `to_dict` wrote; anything missing, unknown or out of range is a `DataError`."""
        if not isinstance(description, dict):
            raise DataError(f"data set: a mapping is needed, got {type(description).__name__}")
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(map(str, description)) - set(known))
        if unknown:
            raise DataError(f"data set: unknown key {unknown[0]!r}, allowed are {', '.join(known)}")
        newer = ("kinds", "categories", "resize", "split_seed", "split_shares")  # checkpoints were written before them
        missing = [key for key in known if key not in description and key not in newer]
        if missing:
            raise DataError(f"data set: key {missing[0]!r} is missing")
        if not isinstance(description["units"], list | tuple):
            raise DataError(f"data set: units is {description['units']!r}, a list is needed")
        try:
            graph = CausalGraph.from_dict(description["graph"])
        except (InputError, TypeError) as error:
            raise DataError(f"data set: {error}") from None
        return cls(**{**description, "graph": graph})


def _as_lists(value: Any) -> Any:
    return [_as_lists(each) for each in value] if isinstance(value, tuple) else value


@dataclass
class ImageData:
    """One split of a data set, in memory.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N, n) float32, label units, columns in the graph's order.
        classes: (N,) int64 where the data set has classes.
        ids: what each image is called on disk: a file name, or its index.
        base_images: (N, 28, 28) uint8, the digits that the images were drawn from, where the folder holds them.
        labelled: (N,) bool, the images whose labels may be used; None for all.
    """

    spec: DatasetSpec
    split: str
    images: np.ndarray
    labels: np.ndarray
    classes: np.ndarray | None
    ids: list[str]
    base_images: np.ndarray | None = None
    labelled: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageData:
        """The images at `indices` (integers, in this order)."""
        places = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            images=self.images[places],
            labels=self.labels[places],
            classes=None if self.classes is None else self.classes[places],
            ids=[self.ids[i] for i in places],
            base_images=None if self.base_images is None else self.base_images[places],
            labelled=None if self.labelled is None else self.labelled[places],
        )


@dataclass(frozen=True)
class DatasetEntry:
    """Everything that is particular to one data set.

    Attributes:
        spec: (image_size or None, channels or None) -> the spec; None stands for the published one.
        read: (spec, folder, split, limit) -> one split.
        counterfactual: (data, checked do) -> true labels (N, n) float64 and images (N, C, H, W) uint8 of any size;
            None where no generator is known.
        knows_truth: whether `counterfactual` can answer for these data.
        measure: images (N, C, H, W) uint8 -> labels (N, n) float64 read off the picture, NaN where nothing is found;
            None where nobody can.
    """

    spec: Callable[[int | None, int | None], DatasetSpec]
    read: Callable[[DatasetSpec, Path, str, int | None], ImageData]
    counterfactual: Callable[[ImageData, dict[str, Any]], tuple[np.ndarray, np.ndarray]] | None
    measure: Callable[[np.ndarray], np.ndarray] | None
    knows_truth: Callable[[ImageData], bool]


def dataset_spec(
    dataset: str,
    image_size: int | None = None,
    channels: int | None = None,
    *,
    data_dir: str | Path | None = None,
    graph: str | Path | None = None,
) -> DatasetSpec:
    """The spec of a data set at an image size; an unknown name, size or channel count is an `InputError`.

    A folder of images ("folder") has no spec of its own: `data_dir` and `graph` are read for it (`folder_spec`).
    """
    if dataset != "folder" or not data_dir:
        _refuse_graph(dataset, graph)
        return _entry(dataset).spec(image_size, channels)
    from causaldiffae.folders.image_folder import folder_spec

    return folder_spec(data_dir, graph, image_size, channels)


def read_split(
    dataset: str,
    data_dir: str | Path,
    split: str,
    image_size: int | None = None,
    channels: int | None = None,
    limit: int | None = None,
    *,
    graph: str | Path | None = None,
    spec: DatasetSpec | None = None,
) -> ImageData:
    """Reads one split into memory.

    Args:
        dataset: a key of `DATASETS`.
        data_dir: the folder as published or as `scripts/make_dataset.py` writes it; or any folder with a `labels.csv`
            (image_folder.py), which may also be an address like gs://bucket/set.
        split: "train" or "test", and "val" where there is one.
        image_size, channels: as wanted; left out, as published.
        limit: read so many images only: the first or, where the files are sorted by a label, evenly spread ones.
        graph: the graph's file, of data set "folder"; left out, `graph.yaml` in the folder.
        spec: a model's, in place of `image_size`, `channels` and `graph`: the data are read as those it learned from.

    Raises:
        InputError: for an unknown name or a value that cannot be served.
        DataError: naming the file or folder whose content is not what it should be.
    """
    entry = _entry(dataset)
    if limit is not None and not (_is_int(limit) and limit > 0):
        raise InputError(f"limit: {limit!r} given, a whole number above 0 is needed")
    if spec is not None and (image_size, channels, graph) != (None, None, None):
        raise InputError("spec: it is given, so image_size, channels and graph must not be")
    from causaldiffae.folders.image_folder import is_image_folder, read_image_folder

    if dataset == "folder" and spec is None:
        return read_image_folder(data_dir, graph, split, image_size, channels, limit)
    spec = spec or dataset_spec(dataset, image_size, channels, graph=graph)
    if dataset == "folder" or is_image_folder(data_dir):
        return _read_folder(spec, data_dir, split, limit)
    if split not in SPLITS:
        raise InputError(f"split: {split!r} given, allowed are {', '.join(SPLITS)}")
    folder = Path(data_dir)
    if not folder.is_dir():
        raise DataError(f"{folder}: the folder is missing")
    return entry.read(spec, folder, split, limit)


def truth_is_known(data: ImageData) -> bool:
    """Whether `true_counterfactual` can answer: the generator is known and the folder carries what it draws from."""
    return _entry(data.spec.name).knows_truth(data)


def true_counterfactual(data: ImageData, do: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The truth after an intervention: labels (N, n) float32, label units, and images (N, C, H, W) uint8 as `data`'s.

    Args:
        do: variable -> a number, or (N,) numbers, one for each image.

    Raises:
        InputError: for an intervention that `DatasetSpec.check_do` refuses or that cannot be drawn, or where the
            truth is not known (base digits are missing).
    """
    entry, checked = _entry(data.spec.name), data.spec.check_any_do(do, len(data))
    if entry.counterfactual is None:
        raise InputError(f"true counterfactual: data set {data.spec.name} has no generator, so the truth is not known")
    labels, images = entry.counterfactual(data, checked)
    return labels.astype(np.float32), resize_area(images, data.spec.image_size)


def measure(spec: DatasetSpec, images: np.ndarray) -> np.ndarray:
    """Reads labels off pictures (N, C, H, W) uint8 by geometry: (N, n) float64, NaN where nothing is found."""
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4:
        raise InputError("images: a numpy uint8 array (N, C, H, W) is needed")
    if images.shape[1] != spec.channels or images.shape[2] != images.shape[3]:
        raise InputError(f"images: shape {images.shape} given, (N, {spec.channels}, S, S) is needed")
    measured = _entry(spec.name).measure
    return np.full((len(images), len(spec.graph)), np.nan) if measured is None else measured(images)


_RESIZED_AT_ONCE: Final = 1 << 24  # pixels


def can_measure(spec: DatasetSpec) -> bool:
    """Whether `measure` can read any label off a picture of this data set."""
    return _entry(spec.name).measure is not None


def resize_area(images: np.ndarray, size: int) -> np.ndarray:
    """Resizes square (N, C, S, S) uint8 to (N, C, size, size): every new pixel averages the area it covers.

    For a whole ratio this is Pillow's box filter; for others the shares of split pixels are exact too.
    """
    if images.shape[-1] == size:
        return images
    weights = _area_weights(images.shape[-1], size)
    planes = images.reshape(-1, *images.shape[2:])
    resized = np.empty((len(planes), size, size), np.uint8)
    step = max(min(_RESIZED_AT_ONCE // planes[0].size, 1024), 1) if len(planes) else 1  # bounds the memory
    for start in range(0, len(planes), step):
        block = weights @ planes[start : start + step].astype(np.float32) @ weights.T
        resized[start : start + step] = np.clip(np.rint(block), 0, 255)
    return resized.reshape(*images.shape[:2], size, size)


@lru_cache(maxsize=16)  # a folder's images may all be of another size, and each is some megabytes
def _area_weights(old: int, new: int) -> np.ndarray:
    """(new, old) float32: the share of each old pixel in each new one; rows sum to 1."""
    edges, pixels = np.arange(new + 1) * (old / new), np.arange(old)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.clip(overlap, 0.0, None) * (new / old)).astype(np.float32)


def to_model_range(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 images to float32 in [-1, 1], 0 to -1 and 255 to 1; a tensor stays on its device."""
    tensor = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
    if tensor.dtype != torch.uint8:
        raise InputError(f"images: {tensor.dtype} given, uint8 is needed")
    return tensor.float() / 127.5 - 1.0


def to_uint8(images: Any) -> Any:
    """Images in [-1, 1] to uint8, rounded and clipped; tensor to tensor (same device), array to array."""
    if isinstance(images, torch.Tensor):
        return ((images.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return np.clip(np.rint((np.asarray(images, np.float32) + 1.0) * 127.5), 0, 255).astype(np.uint8)


class ModelInputs(NamedTuple):
    """Images as models are asked about them: x_start (N, C, H, W) in [-1, 1], classes (N,) or None, labels (N, n)."""

    x_start: torch.Tensor
    classes: torch.Tensor | None
    labels: torch.Tensor


def model_inputs(data: ImageData, device: torch.device | str = "cpu") -> ModelInputs:
    """All images of a split on a device, with their classes and labels; labels keep their own units."""
    classes = None if data.classes is None else torch.from_numpy(data.classes).to(device)
    return ModelInputs(to_model_range(data.images).to(device), classes, torch.from_numpy(data.labels).to(device))


def evenly_spread(count: int, total: int) -> np.ndarray:
    """(count,) places in 0..total-1, rising, from the first to the last."""
    return np.linspace(0, total - 1, count).round().astype(np.int64)


class Batch(NamedTuple):
    """One process's share of a batch.

    Images (B, C, H, W) in [-1, 1]; labels (B, n) normalised, and 0 where there are none; classes (B,) or None; indices
    (B,) in the split; labelled (B,) bool; labelled_share: of the whole batch, all processes together.
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: torch.Tensor | None
    indices: torch.Tensor
    labelled: torch.Tensor
    labelled_share: float


def fits_on(device: torch.device, size: int) -> bool:
    """Whether so many bytes of images leave a GPU two thirds of its free memory; processors read files as they lie."""
    return device.type != "cuda" or 3 * size <= torch.cuda.mem_get_info(device)[0]


class BatchSource:
    """Endless batches of a split that lies on the device as a whole where it fits, and else stays where it was read.

    The images of all epochs form one long row, each epoch in an order of its own that follows from (seed, epoch);
    batch `step` is the piece [step * batch_size, (step + 1) * batch_size) of it. No image is dropped at an epoch's
    end, and process `rank` of `world` takes its share of the piece, so the piece does not depend on `world`.

    Args:
        data: the split.
        batch_size: of the global batch.
        seed: of the order.
        shuffle: False: the order on disk in every epoch.
        device: where the data lie.
        rank, world: this process and their number.

    Raises:
        InputError: if there are no images, or the batch cannot be shared equally.
    """

    def __init__(
        self,
        data: ImageData,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not len(data):
            raise InputError(f"data set {data.spec.name}: split {data.split} has no images")
        if not (_is_int(batch_size) and batch_size > 0):
            raise InputError(f"batch_size: {batch_size!r} given, a whole number above 0 is needed")
        if not 0 <= rank < world:
            raise InputError(f"rank: {rank} given, 0..{world - 1} are allowed")
        if batch_size % world:
            raise InputError(f"batch_size: {batch_size} given, a multiple of the {world} processes is needed")
        if not (_is_int(seed) and 0 <= seed < 2**63):
            raise InputError(f"seed: {seed!r} given, a whole number of 0 or more is needed")
        self.spec, self.batch_size, self.seed, self.shuffle = data.spec, batch_size, seed, shuffle
        self.rank, self.world, self.device = rank, world, torch.device(device)
        images = torch.from_numpy(np.ascontiguousarray(data.images))
        self.images = images.to(self.device) if fits_on(self.device, images.nbytes) else images
        self.is_labelled = np.ones(len(data), bool) if data.labelled is None else data.labelled
        self.labelled = torch.from_numpy(self.is_labelled).to(self.device)
        labels = data.spec.normalise(torch.from_numpy(data.labels.astype(np.float32))).to(self.device)
        self.labels = torch.where(self.labelled[:, None], labels, torch.zeros_like(labels))  # nothing can leak
        self.classes = None if data.classes is None else torch.from_numpy(data.classes).to(self.device)
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def __len__(self) -> int:
        return len(self.images)

    def _draw_order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(len(self))
        return np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(len(self))

    def indices(self, step: int) -> np.ndarray:
        """Places (batch_size,) int64 in the split of the whole global batch `step`."""
        if not (_is_int(step) and step >= 0):
            raise InputError(f"step: {step!r} given, a whole number of 0 or more is needed")
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, offsets = np.divmod(places, len(self))
        result = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(epochs):
            result[epochs == epoch] = self._order(int(epoch))[offsets[epochs == epoch]]
        return result

    def batch(self, step: int) -> Batch:
        """This process's share of batch `step`."""
        share, whole = self.batch_size // self.world, self.indices(step)
        indices = torch.from_numpy(whole[self.rank * share : (self.rank + 1) * share]).to(self.device)
        return Batch(
            images=to_model_range(self.images[indices.to(self.images.device)].to(self.device)),
            labels=self.labels[indices],
            classes=None if self.classes is None else self.classes[indices],
            indices=indices,
            labelled=self.labelled[indices],
            labelled_share=float(self.is_labelled[whole].mean()),
        )


def load_data(
    *,
    dataset: str,
    data_dir: str | Path,
    batch_size: int,
    image_size: int | None = None,
    class_cond: bool = False,
    deterministic: bool = False,
    channels: int | None = None,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
    start_step: int = 0,
    graph: str | Path | None = None,
) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """guided-diffusion's data loader: an endless iterator of (images, cond).

    `cond["c"]` are the normalised labels (B, n); with `class_cond`, `cond["y"]` are the classes (B,). Files are read,
    and refused, at the call. `deterministic` keeps the order on disk. Batches are `BatchSource`'s, from `start_step`.
    """
    data = read_split(dataset, data_dir, split, image_size, channels, limit, graph=graph)
    if class_cond and data.classes is None:
        raise InputError(f"class_cond: data set {dataset} has no classes")
    source = BatchSource(data, batch_size, seed=seed, shuffle=not deterministic, device=device, rank=rank, world=world)
    return _endless(source, class_cond, start_step)


def _endless(source: BatchSource, class_cond: bool, step: int) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
    while True:
        batch = source.batch(step)
        yield batch.images, {"c": batch.labels, **({"y": batch.classes} if class_cond else {})}
        step += 1


def _entry(dataset: str) -> DatasetEntry:
    if dataset not in DATASETS:
        raise InputError(f"dataset: {dataset!r} given, known are {', '.join(DATASETS)}")
    return DATASETS[dataset]


def _refuse_graph(dataset: str, graph: str | Path | None) -> None:
    if graph and dataset != "folder":
        raise InputError(f"graph: {graph} given, but data set {dataset} has its own; a graph is for --dataset folder")


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_size(dataset: str, image_size: int, channels: int, allowed: tuple[int, ...]) -> None:
    """`InputError` for a size or a number of channels that a data set cannot be had in."""
    if not (_is_int(image_size) and 8 <= image_size <= 512):
        raise InputError(f"image_size: {image_size!r} given, data set {dataset} needs a whole number in 8..512")
    if channels not in allowed:
        raise InputError(f"channels: {channels!r} given, data set {dataset} has {' or '.join(map(str, allowed))}")


# --- Pendulum ---------------------------------------------------------------------------------------------------------

_PENDULUM_NAME: Final = re.compile(r"a_(-?\d{1,6})_(-?\d{1,6})_(-?\d{1,6})_(-?\d{1,6})\.png", re.ASCII)
_MAX_PNG_BYTES: Final = 1 << 20


def _pendulum_spec(image_size: int | None, channels: int | None) -> DatasetSpec:
    from causaldiffae.generators.pendulum import GRAPH, IMAGE_SIZE

    image_size, channels = image_size or IMAGE_SIZE, channels or 4
    check_size("pendulum", image_size, channels, (3, 4))
    return DatasetSpec(
        name="pendulum",
        image_size=image_size,
        channels=channels,
        graph=GRAPH,
        shift=(2.0, 104.0, 7.5, 11.0),
        scale=(42.0, 44.0, 4.5, 8.0),
        low=(-40.0, 60.0, 3.0, 2.0),
        high=(43.0, 147.0, 12.58, 19.61),
        units=("pi/200 rad", "pi/200 rad", "axes units", "axes units"),
    )


def parse_pendulum_name(name: str) -> tuple[int, int, int, int]:
    """Labels (angle, light, length, position) in a file name `a_{angle}_{light}_{length}_{position}.png`.

    Raises:
        DataError: if the name has another form.
    """
    match = _PENDULUM_NAME.fullmatch(name)
    if not match:
        raise DataError(f"{name}: the file name must be a_ANGLE_LIGHT_LENGTH_POSITION.png with whole numbers")
    angle, light, length, position = (int(part) for part in match.groups())
    return angle, light, length, position


def _read_pendulum(spec: DatasetSpec, data_dir: Path, split: str, limit: int | None) -> ImageData:
    folder = data_dir / split
    if not folder.is_dir():
        raise DataError(f"{folder}: the folder is missing")
    labelled = sorted((_name_labels(path), path) for path in folder.glob("*.png"))
    if not labelled:
        raise DataError(f"{folder}: the folder has no PNG images")
    if limit is not None and limit < len(labelled):  # the first ones would all have one angle
        labelled = [labelled[i] for i in evenly_spread(limit, len(labelled))]
    images = np.empty((len(labelled), spec.channels, spec.image_size, spec.image_size), np.uint8)
    with ThreadPoolExecutor() as pool, without_size_warnings():  # Pillow decodes outside Python's lock
        for start in range(0, len(labelled), 256):  # small pieces: the full-size pictures need not all be in memory
            pictures = list(pool.map(_read_pendulum_png, [path for _, path in labelled[start : start + 256]]))
            block = np.stack(pictures)[..., : spec.channels].transpose(0, 3, 1, 2)
            images[start : start + 256] = resize_area(block, spec.image_size)
    labels = np.array([row for row, _ in labelled], dtype=np.float32)
    return ImageData(spec, split, images, labels, None, [path.name for _, path in labelled])


def _name_labels(path: Path) -> tuple[int, int, int, int]:
    try:
        return parse_pendulum_name(path.name)
    except DataError as error:
        raise DataError(f"{path.parent}/{error}") from None


def _read_pendulum_png(path: Path) -> np.ndarray:
    """One (96, 96, 4) uint8 picture. Size and mode are checked in the header, before anything is decoded."""
    with open_image(read_file(path, _MAX_PNG_BYTES), ("PNG",), str(path)) as picture:
        if picture.size != (96, 96) or picture.mode != "RGBA":
            width, height = picture.size
            raise DataError(f"{path}: it is {width}x{height} {picture.mode}, 96x96 RGBA is needed")
        return np.array(picture)


def _pendulum_counterfactual(data: ImageData, do: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    from causaldiffae.generators.pendulum import PendulumGenerator

    generator = PendulumGenerator()
    images = generator.counterfactual_images(data.labels, do)[..., : data.spec.channels].transpose(0, 3, 1, 2)
    return generator.counterfactual_labels(data.labels, do), images


def _measure_pendulum(images: np.ndarray) -> np.ndarray:
    from causaldiffae.generators.pendulum import PendulumGenerator

    return PendulumGenerator().measure(images.transpose(0, 2, 3, 1))


# --- MorphoMNIST ------------------------------------------------------------------------------------------------------


def _morphomnist_spec(image_size: int | None, channels: int | None) -> DatasetSpec:
    from causaldiffae.generators.morphomnist import GRAPH, NUM_CLASSES

    image_size, channels = image_size or 28, channels or 1
    check_size("morphomnist", image_size, channels, (1,))
    return DatasetSpec(
        name="morphomnist",
        image_size=image_size,
        channels=channels,
        graph=GRAPH,
        # mean and standard deviation of the published training labels
        shift=(2.50325, 158.01584),
        scale=(0.63176, 48.37930),
        low=(0.875, 66.6),
        high=(6.256, 254.91),
        num_classes=NUM_CLASSES,
        units=("pixels", "grey levels"),
    )


def _read_morphomnist(spec: DatasetSpec, data_dir: Path, split: str, limit: int | None) -> ImageData:
    from causaldiffae.generators import morphomnist

    name = morphomnist.SPLITS[split]
    images, digits = morphomnist.read_digits(data_dir, name)
    table = morphomnist.find_file(data_dir, f"{name}-morpho.csv")
    index, labels = morphomnist.read_morpho_csv(table)
    if len(index) != len(images):
        raise DataError(f"{table}: it has {len(index)} rows, {data_dir}/{name}-images-idx3-ubyte has {len(images)}")
    if not len(images):
        raise DataError(f"{data_dir}: {name}-images-idx3-ubyte has no images")
    bases = None
    if any((data_dir / f"{name}-base-idx3-ubyte{ending}").exists() for ending in (".gz", "")):
        base_file = morphomnist.find_file(data_dir, f"{name}-base-idx3-ubyte")
        bases = morphomnist.read_idx(base_file)
        if bases.shape != images.shape:
            raise DataError(f"{base_file}: its shape is {bases.shape}, {images.shape} is needed")
        bases = bases[:limit]
    return ImageData(
        spec=spec,
        split=split,
        images=resize_area(images[:limit, None], spec.image_size),
        labels=labels[:limit].astype(np.float32),
        classes=digits[:limit].astype(np.int64),
        ids=[str(i) for i in index[:limit]],
        base_images=bases,
    )


@cache
def _morphomnist_generator() -> Any:
    """One for all calls: it remembers the digits it has prepared."""
    from causaldiffae.generators.morphomnist import MorphoMnistGenerator

    return MorphoMnistGenerator()


def _morphomnist_counterfactual(data: ImageData, do: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    if data.base_images is None:
        raise InputError(
            "true counterfactual: the folder holds no base digits ({train,t10k}-base-idx3-ubyte.gz), so the truth is "
            "not known; write the data set with scripts/make_dataset.py"
        )
    generator = _morphomnist_generator()
    labels = generator.counterfactual_labels(data.labels, do)
    return labels, generator.counterfactual_images(data.base_images, data.labels, do)[:, None]


def _measure_morphomnist(images: np.ndarray) -> np.ndarray:
    return _morphomnist_generator().measure(resize_area(images, 28)[:, 0])


def _circuit() -> Any:
    """CausalCircuit's own module, which builds on this one."""
    from causaldiffae import circuit_files

    return circuit_files


def _class_entry(name: str) -> DatasetEntry:
    """MNIST or Fashion-MNIST, whose own module builds on this one."""

    def spec(image_size: int | None, channels: int | None) -> DatasetSpec:
        from causaldiffae.mnist_files import class_spec

        return class_spec(name, image_size, channels)

    def read(spec: DatasetSpec, data_dir: Path, split: str, limit: int | None) -> ImageData:
        from causaldiffae.mnist_files import read_classes

        return read_classes(spec, data_dir, split, limit)

    return DatasetEntry(spec, read, None, None, lambda data: False)


# --- A folder of images, see image_folder.py --------------------------------------------------------------------------


def _folder_spec(image_size: int | None, channels: int | None) -> DatasetSpec:
    raise InputError("data_dir: it is not given; what a folder of images holds can only be read there")


def _read_folder(spec: DatasetSpec, data_dir: str | Path, split: str, limit: int | None) -> ImageData:
    from causaldiffae.folders.image_folder import read_image_folder

    return read_image_folder(data_dir, split=split, limit=limit, spec=spec)


DATASETS: Final[dict[str, DatasetEntry]] = {
    "pendulum": DatasetEntry(
        _pendulum_spec, _read_pendulum, _pendulum_counterfactual, _measure_pendulum, lambda data: True
    ),
    "morphomnist": DatasetEntry(
        _morphomnist_spec,
        _read_morphomnist,
        _morphomnist_counterfactual,
        _measure_morphomnist,
        lambda data: data.base_images is not None,
    ),
    "circuit": DatasetEntry(
        lambda image_size, channels: _circuit().circuit_spec(image_size, channels),
        lambda spec, data_dir, split, limit: _circuit().read_circuit(spec, data_dir, split, limit),
        lambda data, do: _circuit().counterfactual(data, do),
        lambda images: _circuit().measure(images),
        lambda data: _circuit().truth_is_known(data),
    ),
    "mnist": _class_entry("mnist"),
    "fashion_mnist": _class_entry("fashion_mnist"),
    "folder": DatasetEntry(_folder_spec, _read_folder, None, None, lambda data: False),
}
