"""Label correction: counterfactual images whose labels are those that the structural model predicts.

A decoder follows its latents only approximately. A predictor reads the labels of the images, and images with other
labels are decoded again under shifted latents (damped fixed-point iteration; the step is 1, and halved after each
decoding that is worse):

    request_0 = target,    request_{k+1} = request_k + step (target - predictor(decode(request_k)))

The target of a variable that the intervention changes is its counterfactual label. If the intervention sets a class,
all pixels change: the other continuous variables are corrected too, to the labels that the predictor reads from the
factual image, so that its bias cancels. Otherwise they are not corrected, but a change of their labels counts as an
error. An image is replaced only by one with a smaller sum of errors; a wrong category or class is an error of 1.

Latents are shifted by the change of the normalised label, which is their mean; categories are not shifted. Evaluations
use another predictor, or labels that are measured in the images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from causaldiffae.checkpoints.checkpoint import CONFIG, STEP_NAME
from causaldiffae.checkpoints.model_folders import CORRECTION_FOLDER
from causaldiffae.datasets.images import to_uint8
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.predictors.predictor import LoadedPredictor, Predictor, check_fits, load_predictor, shipped_folder

LABEL_CORRECTIONS: Final = 2
TOLERANCE: Final = 0.003
"""Errors up to this fraction of the range of a variable are not corrected; about what the best predictors miss."""
LIMIT: Final = 0.05
"""Largest shift of a request, as a fraction of the range. The predictor misreads images unlike its training data; with
0.25, L1 under do(thickness) of MorphoMNIST is 9.7 instead of 8.6."""
KEPT_LIMIT: Final = 0.15
"""The same for variables that keep the label of the factual image while the intervention sets the class."""

Decode = Callable[[Tensor, Tensor], Tensor]
"""(rows (R,) of the batch, shift (R, n) of their labels, in label units) -> images (R, C, H, W) in [-1, 1]."""


class LabelCorrection:
    """Corrects the labels that are requested of a decoder.

    Args:
        predictor: reads labels and classes, in evaluation mode. It should be trained on observational images only, and
            not be the one that evaluates the results.
        count: largest number of further decodings of an image, at least 1.
    """

    def __init__(self, predictor: Predictor, count: int = LABEL_CORRECTIONS) -> None:
        if count < 1:
            raise InputError(f"label_corrections: expected a number of at least 1, got {count}")
        self.predictor, self.count, spec = predictor, count, predictor.spec
        self.range = np.asarray(spec.high, float) - np.asarray(spec.low, float)
        self.continuous = np.array([not values for values in spec.all_category_values()])

    def apply(
        self,
        images: Tensor,
        labels: Tensor,
        corrected: Tensor,
        reference: Tensor,
        classes: Tensor | None,
        decode: Decode,
    ) -> Tensor:
        """Returns the images (B, C, H, W) in [-1, 1], some of them decoded again.

        Args:
            images: (B, C, H, W) in [-1, 1], decoded under the predicted labels. Those with NaN are not changed.
            labels: (B, n) target labels in label units; NaN for the label that is read from `reference`.
            corrected: (B, n) bool, the variables to correct.
            reference: (B, C, H, W) in [-1, 1].
            classes: (B,) the classes that the images should have, or None.
            decode: see `Decode`.
        """
        target = labels.cpu().double().numpy()
        limit = np.where(np.isnan(target), KEPT_LIMIT, LIMIT)
        target = np.where(np.isnan(target), self._read(reference)[0], target)
        wanted = None if classes is None else classes.cpu().numpy()
        images, shift, step = images.clone(), np.zeros_like(target), np.ones((len(target), 1))
        error, total = self._errors(images, target, wanted)
        correctable = self.continuous & corrected.cpu().numpy()
        for _ in range(self.count):
            too_large = correctable & (np.abs(error) > TOLERANCE)
            proposed = np.clip(shift - step * np.where(too_large, error, 0.0), -limit, limit)
            rows = np.flatnonzero((proposed != shift).any(axis=1) & np.isfinite(total))
            if not len(rows):
                break
            shifts = torch.from_numpy(proposed[rows] * self.range).float().to(images.device)
            decoded = decode(torch.from_numpy(rows).to(images.device), shifts)
            found = self._errors(decoded, target[rows], None if wanted is None else wanted[rows])
            better = found[1] < total[rows]
            kept = torch.from_numpy(better).to(images.device)
            images[torch.from_numpy(rows[better]).to(images.device)] = decoded[kept]
            shift[rows[better]] = proposed[rows[better]]
            error[rows[better]], total[rows[better]] = (each[better] for each in found)
            step[rows[~better]] /= 2
        return images

    def _read(self, images: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        """Labels (B, n) and classes (B,) or None of images; NaN is read as 0."""
        labels, classes, _ = self.predictor.read(to_uint8(images.nan_to_num()).cpu().numpy())
        return labels, classes

    def _errors(self, images: Tensor, target: np.ndarray, classes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Errors (B, n) of labels as fractions of their range, and their sums (B,); infinite for images with NaN."""
        labels, found = self._read(images)
        error = (labels - target) / self.range
        nearest = self.predictor.spec.nearest_categories
        wrong = nearest(torch.from_numpy(labels)) != nearest(torch.from_numpy(target))
        total = np.where(self.continuous, np.abs(error), wrong).sum(axis=1)
        if classes is not None and found is not None:
            total += found != classes
        total[~images.isfinite().flatten(1).all(dim=1).cpu().numpy()] = np.inf
        return error, total


def find_correction_predictor(
    spec: DatasetSpec, model_path: str, given: str = "", device: torch.device | str = "cpu"
) -> LoadedPredictor | None:
    """Opens the predictor for label corrections; None if there is none.

    Args:
        model_path: model folder, or a step of a run; its folder `CORRECTION_FOLDER` is preferred to a shipped one.
        given: a folder, or "none".

    Raises:
        InputError, DataError: for a folder that was given, or that of the model, which is damaged or does not fit.
    """
    if given == "none":
        return None
    path = Path(model_path)
    places = (path, path.parent) if STEP_NAME.fullmatch(path.name) else (path,)
    own = next((place / CORRECTION_FOLDER for place in places if (place / CORRECTION_FOLDER / CONFIG).is_file()), None)
    folder = given or own or shipped_folder(spec, CORRECTION_FOLDER)
    if folder is None:
        return None
    loaded = _load(str(folder), device)
    try:
        check_fits(loaded.predictor, spec, loaded.path)
    except InputError:
        if given or own:
            raise
        return None  # a shipped one, for images with other channels
    return loaded


_load = lru_cache(maxsize=4)(load_predictor)
