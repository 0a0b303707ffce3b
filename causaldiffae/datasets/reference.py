"""Distances from the training data: of images, and of combinations of labels.

A model answers every question, also about images and labels unlike all that it was trained on. `TrainingReference` is a
sample of the training data, stored beside the model (`FILE`), that tells them apart. It needs no network, so it is the
same for every model of a data set, with an encoder or without.

Images are compared by their layout and statistics (`image_features.py`). Labels are compared by families, a variable
and its causes, since the joint density of a causal graph is the product of the densities of variables given their
causes: thickness 5 is known and intensity 70 is known, but not together. Both distances are those to the nearest row of
the sample (as in Sun et al., 2022, arXiv 2204.06507), divided by the largest ordinary one, so values above 1 are out of
distribution:

    images   the 99.8 % quantile over training images that are not in the sample; copies of an image count once, and
             images of one group, such as the views of a scene, are all in it or all outside
    labels   0.25 standard deviations, or the 99.5 % quantile over training rows, each without itself, if that is larger
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from causaldiffae.datasets.image_features import ImageFeatures, layout, statistics
from causaldiffae.datasets.images import ImageData
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError
from causaldiffae.files.reading import read_tensors, write_tensors
from causaldiffae.graphs import CausalGraph

FILE: Final = "reference.safetensors"
MAX_ROWS: Final = 1000
"""Images of the sample, and rows of the sample of labels of a family."""
MIN_IMAGES: Final = 100
MIN_ROWS: Final = 30
"""A data set with fewer images, or rows with all labels of a family, has no reference for them."""
_MAX_IMAGES: Final = 4000
_MAX_LABELS: Final = 100_000
_IMAGE_QUANTILE: Final = 0.998
_LABEL_QUANTILE: Final = 0.995
_LEAST: Final = 0.05  # smallest threshold of images; half precision moves the rows by up to 0.03
_TOLERANCE: Final = 0.25  # standard deviations; the labels of a model are not exact
_BETWEEN_CATEGORIES: Final = 3.0  # standard deviations; larger than every threshold


# ---------------------------------------------------------------------- images


class ImageReference(NamedTuple):
    """Features (M, F) of a sample of training images, and the distance that is the largest ordinary one."""

    features: ImageFeatures
    rows: np.ndarray
    threshold: float

    @classmethod
    def fit(
        cls, images: np.ndarray, rng: np.random.Generator, groups: np.ndarray | None = None
    ) -> ImageReference | None:
        """Fits a reference to images (N, C, H, W) uint8; None for too few distinct ones, or a single group.

        Args:
            groups: (N,) numbers or names, equal for images of the same scene or person; by default all differ.
        """
        if len(images) < MIN_IMAGES:
            return None
        drawn = _distinct(images, rng.permutation(len(images)), _MAX_IMAGES)
        some, others = _halves(drawn, np.arange(len(images)) if groups is None else groups)
        if len(drawn) < MIN_IMAGES or not len(some):
            return None
        kept, sample, others = (images[np.sort(chosen)] for chosen in (some[:MAX_ROWS], some, others))
        features = ImageFeatures.fit(sample)
        rows = features(kept).astype(np.float16).astype(np.float64)
        ordinary = float(np.quantile(cdist(features(others), rows).min(axis=1), _IMAGE_QUANTILE))
        return cls(features, rows, max(ordinary, _LEAST))

    def distances(self, images: np.ndarray) -> np.ndarray:
        """Distances (N,) of images (N, C, H, W) uint8, 1 for the largest ordinary one."""
        return cdist(self.features(images), self.rows).min(axis=1) / self.threshold


def _distinct(images: np.ndarray, order: np.ndarray, count: int) -> np.ndarray:
    """The first `count` indices of `order` (N,) whose images differ from all before them."""
    found: dict[bytes, int] = {}
    for i in order.tolist():
        if len(found) == count:
            break
        found.setdefault(hashlib.sha256(images[i].tobytes()).digest(), i)
    return np.array(list(found.values()), np.int64)


def _halves(order: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divides `order` (N,) into two parts without a common group; the first is empty for a single group.

    The first part has the groups that appear first, up to half of the images.
    """
    _, first, inverse = np.unique(groups[order], return_index=True, return_inverse=True)
    place = first[inverse]  # of the first image of the same group
    middle = min(np.sort(place)[(len(order) - 1) // 2], place.max() - 1)
    return order[place <= middle], order[place > middle]


# ---------------------------------------------------------------------- labels


def families(graph: CausalGraph) -> list[tuple[int, ...]]:
    """Indices of every variable and its causes; a cause alone only if it has no effect."""
    found = [tuple(sorted(map(graph.index, (name, *graph.parents[name])))) for name in graph.names]
    joined = {i for family in found if len(family) > 1 for i in family}
    return [family for family in found if len(family) > 1 or family[0] not in joined]


def _coordinates(labels: np.ndarray, family: tuple[int, ...], scale: np.ndarray, spec: DatasetSpec) -> np.ndarray:
    """Labels (N, n) of a family in standard deviations, (N, k); categories are equally far from each other."""
    columns = []
    for i in family:
        values = np.asarray(spec.category_values(i))
        if len(values):
            nearest = np.abs(labels[:, i, None] - values).argmin(axis=1)
            columns.append(np.eye(len(values))[nearest] * (_BETWEEN_CATEGORIES / 2**0.5))
        else:
            columns.append(np.clip(labels[:, i, None], spec.low[i], spec.high[i]) / scale[i])
    return np.concatenate(columns, axis=1)


def _covering(points: np.ndarray, count: int) -> np.ndarray:
    """Indices of up to `count` points of (N, k), each the farthest from those before it (Gonzalez, 1985)."""
    chosen = [int(((points - points.mean(axis=0)) ** 2).sum(axis=1).argmin())]
    nearest = ((points - points[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < count and nearest.max() > 0:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
    return np.array(chosen)


class FamilyReference(NamedTuple):
    """Labels (M, n) of a sample of training images, NaN outside the family, and the largest ordinary distance."""

    family: tuple[int, ...]
    rows: np.ndarray
    threshold: float

    @classmethod
    def fit(
        cls, labels: np.ndarray, family: tuple[int, ...], scale: np.ndarray, spec: DatasetSpec, rng: np.random.Generator
    ) -> FamilyReference | None:
        """Fits a reference to labels (N, n), NaN where one is missing; None for too few rows."""
        complete = np.flatnonzero(np.isfinite(labels[:, family]).all(axis=1))
        if len(complete) < MIN_ROWS:
            return None
        labels = labels[rng.permutation(complete)[:_MAX_LABELS]]
        points = _coordinates(labels, family, scale, spec)
        sample = _covering(points, MAX_ROWS)
        cover = float(cdist(points[:: max(1, len(points) // 2000)], points[sample]).min(axis=1).max())
        others = KDTree(points).query(points[:2000], k=2)[0][:, 1]
        ordinary = max(_TOLERANCE, float(np.quantile(others, _LABEL_QUANTILE)))
        rows = np.full((len(sample), len(spec.graph)), np.nan, np.float32)
        rows[:, family] = labels[sample][:, family]
        return cls(family, rows, min(ordinary + cover, 0.9 * _BETWEEN_CATEGORIES))


class LabelDistances(NamedTuple):
    """Distances (N,) of combinations of labels, 1 for the largest ordinary one, and the farthest one in words."""

    values: np.ndarray
    farthest: str


@dataclass(frozen=True, eq=False)
class TrainingReference:
    """A sample of the training data; see the module docstring.

    Attributes:
        spec: the data set.
        images: None if there were too few.
        families: those with enough labels.
        scale: (n,) standard deviation of every label.
    """

    spec: DatasetSpec
    images: ImageReference | None
    families: tuple[FamilyReference, ...]
    scale: np.ndarray

    @classmethod
    def fit(cls, data: ImageData, seed: int = 0) -> TrainingReference:
        """Fits a reference to a training split, from its labels that may be used."""
        rng, spec = np.random.default_rng(seed), data.spec
        labels = np.where(data.observed, data.labels, np.nan).astype(np.float64)
        known = np.isfinite(labels)
        scale = np.array([labels[known[:, i], i].std() if known[:, i].any() else 1.0 for i in range(len(spec.graph))])
        scale = np.where(scale > 0, scale, 1.0)
        images = ImageReference.fit(data.images, rng, data.groups)
        found = [FamilyReference.fit(labels, family, scale, spec, rng) for family in families(spec.graph)]
        return cls(spec, images, tuple(each for each in found if each is not None), scale)

    def image_distances(self, images: np.ndarray) -> np.ndarray | None:
        """Distances (N,) of images (N, C, S, S) uint8 from the training images; None if there is no sample of them."""
        return None if self.images is None else self.images.distances(images)

    def label_distances(self, labels: np.ndarray, do: Iterable[str]) -> LabelDistances | None:
        """Distances of counterfactual labels (N, n) from those of training images.

        Args:
            do: the variables that are set; families that they do not affect are left out. Values beyond the range of a
                variable count as its end, as they have a message of their own.

        Returns:
            None if no family can be compared.
        """
        graph, spec = self.spec.graph, self.spec
        names = set(spec.names_of(do))
        affected = {graph.index(name) for name in names.union(*(graph.descendants(name) for name in names))}
        labels, found = labels.astype(np.float64), []
        for reference in self.families:
            if affected & set(reference.family):
                rows = _coordinates(reference.rows.astype(np.float64), reference.family, self.scale, spec)
                between = cdist(_coordinates(labels, reference.family, self.scale, spec), rows)
                found.append((between.min(axis=1) / reference.threshold, between.argmin(axis=1), reference))
        if not found or not len(labels):
            return None
        values = np.stack([distances for distances, _, _ in found])
        which, image = np.unravel_index(values.argmax(), values.shape)
        _, nearest, reference = found[which]
        asked, seen = (self._text(row, reference.family) for row in (labels[image], reference.rows[nearest[image]]))
        return LabelDistances(values.max(axis=0), f"no training image is like {asked}; the nearest has {seen}")

    def _text(self, row: np.ndarray, family: tuple[int, ...]) -> str:
        names = self.spec.graph.names
        return ", ".join(f"{names[i]} {self.spec.format_value(names[i], float(row[i]))}" for i in family)

    # ------------------------------------------------------------------ files

    def write(self, folder: Path) -> None:
        """Writes `FILE` into a run or model folder; nothing if the data were too few."""
        state = {"labels.scale": torch.from_numpy(self.scale)}
        if self.images is not None:
            state |= {f"images.{key}": torch.from_numpy(v).float() for key, v in self.images.features._asdict().items()}
            state["images.rows"] = torch.from_numpy(self.images.rows).half()
            state["images.threshold"] = torch.tensor([self.images.threshold])
        for reference in self.families:
            key = _family_key(reference.family)
            state[f"{key}.rows"] = torch.from_numpy(reference.rows[:, reference.family]).contiguous()
            state[f"{key}.threshold"] = torch.tensor([reference.threshold])
        if len(state) > 1:
            write_tensors(folder / FILE, state)

    @classmethod
    def read(cls, file: Path, spec: DatasetSpec) -> TrainingReference:
        """Reads the file of a model of this data set; raises `DataError` for one that is damaged or of another."""
        state, sizes = read_tensors(file), {"n": len(spec.graph)}

        def array(key: str, *shape: str | int) -> np.ndarray:
            """A finite tensor as float64; equal letters in shapes are equal sizes, known ones in `sizes`."""
            tensor = state.get(key)
            fits = tensor is not None and tensor.is_floating_point() and tensor.dim() == len(shape)
            if tensor is not None and fits:
                given = zip(shape, tensor.shape, strict=True)
                fits = all(n == (sizes.setdefault(each, n) if isinstance(each, str) else each) for each, n in given)
            if tensor is None or not fits or not tensor.numel() or not bool(tensor.isfinite().all()):
                raise DataError(f"{file}: {key}: expected finite numbers of shape {shape}, as of {spec.name}")
            return tensor.double().numpy()

        def threshold(key: str) -> float:
            value = float(array(f"{key}.threshold", 1)[0])
            if value <= 0:
                raise DataError(f"{file}: {key}.threshold: expected a positive number, got {value:g}")
            return value

        scale, found = array("labels.scale", "n"), []
        images: ImageReference | None = None
        if not (scale > 0).all():
            raise DataError(f"{file}: labels.scale: expected positive numbers")
        if "images.rows" in state:
            blank = np.zeros((1, spec.channels, spec.image_size, spec.image_size), np.uint8)
            sizes |= {"D": layout(blank).shape[1], "S": statistics(blank).shape[1]}
            shapes: tuple[tuple[str | int, ...], ...] = (("D",), ("K", "D"), ("K",), (2,), ("S",), ("J", "S"))
            names = zip(ImageFeatures._fields, shapes, strict=True)
            features = ImageFeatures(*(array(f"images.{name}", *shape) for name, shape in names))
            width = len(features.spread) + 1 + len(features.whitening)
            images = ImageReference(features, array("images.rows", "M", width), threshold("images"))
        for family in families(spec.graph):
            if f"{_family_key(family)}.rows" in state:
                rows = np.full((len(state[f"{_family_key(family)}.rows"]), len(spec.graph)), np.nan, np.float32)
                rows[:, family] = array(f"{_family_key(family)}.rows", "rows of " + str(family), len(family))
                found.append(FamilyReference(family, rows, threshold(_family_key(family))))
        return cls(spec, images, tuple(found), scale)


def _family_key(family: tuple[int, ...]) -> str:
    return "labels." + "-".join(map(str, family))


def reference_of_model(path: str | Path, spec: DatasetSpec) -> TrainingReference | None:
    """The reference of the model at `path`: a model folder, or a step of a run; None if there is none.

    Warns:
        UserWarning: if there is one that cannot be used.
    """
    file = next((file for each in (Path(path), Path(path).parent) if (file := each / FILE).is_file()), None)
    try:
        return None if file is None else TrainingReference.read(file, spec)
    except DataError as error:
        warnings.warn(f"{error}; inputs are not compared with the training data", stacklevel=2)
        return None
