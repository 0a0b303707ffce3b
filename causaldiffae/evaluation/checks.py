"""What is to be doubted about counterfactuals: inputs and labels unlike the training data, in numbers and sentences.

Python, the test scripts and the explorer use the same distances (`datasets/reference.py`) and the same sentences.
Predicted labels keep their value where it is beyond the training labels, because the decoder is given that value.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from causaldiffae.datasets.reference import TrainingReference
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.evaluation.interventions import InterventionResult, describe_do

_OUTSIDE: Final = 0.02  # share of the range of a variable; mechanisms are not exact


def beyond_range(spec: DatasetSpec, i: int, values: np.ndarray | float) -> np.ndarray:
    """Whether values of a continuous variable are beyond its training labels by more than 2 % of their range."""
    slack = _OUTSIDE * (spec.high[i] - spec.low[i])
    outside = (values < spec.low[i] - slack) | (values > spec.high[i] + slack)
    return np.asarray(outside & (not spec.category_values(i)))


def _which(flags: np.ndarray, one: str, several: str) -> str:
    """ "the image is", or "3 of 8 images are"."""
    if len(flags) == 1:
        return f"the {one} is"
    return f"{int(flags.sum())} of {len(flags)} {several} {'is' if flags.sum() == 1 else 'are'}"


def _times(distance: float) -> str:
    return f"{distance:.2g}" if distance < 100 else f"{distance:.0f}"


@dataclass(frozen=True, eq=False)
class Checks:
    """What is to be doubted about N counterfactuals.

    Attributes:
        images: (N,) distances of the factual images from the training images; above 1 they are farther than ordinary
            ones. None if they cannot be compared.
        labels: (N,) likewise for the combinations of labels of the counterfactuals.
        beyond: variable -> (N,) bool, whether a predicted label is beyond the training labels; only where one is.
        notes: sentences about all of these; empty if there is nothing to doubt.
    """

    images: np.ndarray | None
    labels: np.ndarray | None
    beyond: Mapping[str, np.ndarray]
    notes: tuple[str, ...]

    def warn(self, stacklevel: int) -> None:
        """Warns of every note; for `stacklevel` see `warnings.warn`."""
        for note in self.notes:
            warnings.warn(note, stacklevel=stacklevel)


def check(
    reference: TrainingReference | None,
    spec: DatasetSpec,
    do: Iterable[str] = (),
    labels: np.ndarray | None = None,
    images: np.ndarray | None = None,
) -> Checks:
    """Compares images and counterfactual labels with the training data.

    Args:
        reference: of the model; without one, only the ranges of labels are known.
        do: the variables that are set.
        labels: (N, n) predicted labels of counterfactuals, in label units.
        images: (N, C, S, S) uint8 factual images.
    """
    names, notes = list(do), []
    image_distances = None if reference is None or images is None else reference.image_distances(images)
    if image_distances is not None and (far := image_distances > 1).any():
        notes.append(
            f"images: {_which(far, 'image', 'images')} far from the training images ({_times(image_distances.max())} "
            "times the largest ordinary distance); labels and counterfactuals of such images are not reliable"
        )
    beyond = {}
    if labels is not None:
        set_by_hand = set(names)
        for i, name in enumerate(spec.graph.names):
            outside = beyond_range(spec, i, labels[:, i])
            if name not in set_by_hand and outside.any():
                beyond[name] = outside
                notes.append(_range_note(spec, i, labels[outside, i], len(labels)))
    compared = None if reference is None or labels is None else reference.label_distances(labels, names)
    if compared is not None and (far := compared.values > 1).any():
        which = "" if len(far) == 1 else f" of {int(far.sum())} of {len(far)} counterfactuals"
        distance = f"{_times(compared.values.max())} times the largest ordinary distance"
        notes.append(f"labels{which}: {compared.farthest} ({distance}); the counterfactual is an extrapolation")
    return Checks(image_distances, None if compared is None else compared.values, beyond, tuple(notes))


def _range_note(spec: DatasetSpec, i: int, outside: np.ndarray, count: int) -> str:
    name, low, high = spec.graph.names[i], spec.low[i], spec.high[i]
    farthest = outside[np.maximum(low - outside, outside - high).argmax()]
    text = spec.format_value(name, float(farthest))
    which = f"{len(outside)} of {count} predictions, such as {text}, are"
    if len(outside) == 1:
        which = f"the prediction {text} is" if count == 1 else f"1 of {count} predictions, {text}, is"
    return f"{name}: {which} beyond the training data, {low:g} to {high:g}; the value is an extrapolation"


# ---------------------------------------------------------------------- test scripts


def with_distances(
    results: Sequence[InterventionResult], reference: TrainingReference | None
) -> list[InterventionResult]:
    """Adds the distances from the training data to results on the same images; unchanged without a reference."""
    if reference is None:
        return list(results)
    images, added = reference.image_distances(results[0].factual), []
    for result in results:
        labels = reference.label_distances(result.predicted_labels, result.do)
        added.append(replace(result, image_distance=images, label_distance=None if labels is None else labels.values))
    return added


def checks_of_test(
    results: Sequence[InterventionResult], spec: DatasetSpec, reference: TrainingReference | None
) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Sentences about the images and the interventions of a test, and shares of images by intervention.

    The shares are `images_far` and `labels_far` (distances above 1, where they are known), and `beyond_NAME` for every
    variable whose prediction is beyond the training data.
    """
    first = results[0]
    of_images = check(reference, spec, images=first.factual)
    lines, shares = list(of_images.notes), {}
    for result in results:
        checks = check(reference, spec, result.do, result.predicted_labels)
        do = describe_do(result.do, spec)
        lines += [f"{do}: {note}" for note in checks.notes]
        far = {"images_far": of_images.images, "labels_far": checks.labels}
        shares[do] = {name: float((values > 1).mean()) for name, values in far.items() if values is not None}
        shares[do] |= {f"beyond_{name}": float(outside.mean()) for name, outside in checks.beyond.items()}
    return lines, shares
