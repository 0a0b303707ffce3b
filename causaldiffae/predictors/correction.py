"""Label correction: counterfactual images whose labels are those that the structural model predicts.

A decoder follows its latents only approximately. A predictor reads the labels of its images, and the decoder is asked
again for labels that differ by the error (fixed-point iteration):

    request_0 = target,    request_{k+1} = request_k + target - predictor(decode(request_k))

The target of a variable that the intervention changes is its counterfactual label. Where a class is set, all pixels
change, and the other variables are corrected too, to what the predictor reads from the factual image, so that its own
errors cancel; otherwise they shall keep what it reads from the first counterfactual image. A new image replaces the
former one only if the sum of its errors is smaller; otherwise the next step is halved. Only continuous variables are
corrected, by a shift of their latents, whose mean is the normalised label; wrong categories and classes count as
errors.

The results are evaluated by other means: `evaluation/` uses another predictor, or measures labels in the images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from causaldiffae.checkpoints.model_folders import CORRECTION_FOLDER
from causaldiffae.datasets.images import to_uint8
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.predictors.predictor import Predictor, open_predictor, shipped_folder

ROUNDS: Final = 2
ROUNDS_HELP: Final = "decode again, up to this many times, images whose labels are not as predicted; 0 for never"
PREDICTOR_HELP: Final = (
    "predictor for these corrections, or 'none'; default: correction_predictor/ in model_path, or from weights/"
)
TOLERANCE: Final = 0.003
"""Errors up to this fraction of the range of a variable are not corrected."""
LIMIT: Final = 0.05
"""Largest correction of a request, as a fraction of the range of the variable; more lets pictures that are unlike the
training images, which the predictor misreads, drift away from the truth."""

Redraw = Callable[[Tensor, Tensor], Tensor]
"""(rows (R,) of the batch, change (R, n) of their labels, in label units) -> images (R, C, H, W) in [-1, 1]."""


class LabelCorrection:
    """Corrects the labels that are requested of a decoder.

    Args:
        predictor: reads labels and classes, in evaluation mode. It should be trained on observational images only, and
            not be the one that evaluates the results.
        rounds: largest number of further decodings of an image, at least 1.
    """

    def __init__(self, predictor: Predictor, rounds: int = ROUNDS) -> None:
        if rounds < 1:
            raise InputError(f"corrections: expected a number of at least 1, got {rounds}")
        self.predictor, self.rounds, spec = predictor, rounds, predictor.spec
        self.range = np.asarray(spec.high, float) - np.asarray(spec.low, float)
        self.continuous = np.array([spec.kind(i) == "continuous" for i in range(len(spec.graph))])

    def apply(
        self,
        images: Tensor,
        factual: Tensor,
        labels: Tensor,
        changed: Tensor,
        classes: Tensor | None,
        sets_class: bool,
        redraw: Redraw,
    ) -> Tensor:
        """Returns the images (B, C, H, W) in [-1, 1], with some of them drawn again.

        Args:
            images: (B, C, H, W) in [-1, 1], drawn with the predicted labels. Those with NaN are not changed.
            factual: (B, C, H, W) the images before the intervention.
            labels: (B, n) predicted counterfactual labels, in label units.
            changed: (B, n) bool, the variables that the intervention changes.
            classes: (B,) the classes that the images should have, or None.
            sets_class: whether the intervention sets the class.
            redraw: see `Redraw`.
        """
        moved, wanted = changed.cpu().numpy(), labels.cpu().double().numpy()
        target = np.where(moved, wanted, self._read(factual if sets_class else images)[0])
        corrected = self.continuous & (moved | sets_class)
        wanted_classes = None if classes is None else classes.cpu().numpy()
        images, change, step = images.clone(), np.zeros_like(wanted), np.ones((len(wanted), 1))
        error, total = self._errors(images, target, wanted_classes)
        for _ in range(self.rounds):
            off = corrected & (np.abs(error) > TOLERANCE)
            rows = np.flatnonzero(off.any(axis=1) & np.isfinite(total))
            if not len(rows):
                break
            asked = np.clip(change[rows] - step[rows] * np.where(off, error, 0.0)[rows], -LIMIT, LIMIT)
            drawn = redraw(torch.from_numpy(rows).to(images.device), torch.from_numpy(asked * self.range).to(images))
            found = self._errors(drawn, target[rows], None if wanted_classes is None else wanted_classes[rows])
            better = found[1] < total[rows]
            images[torch.from_numpy(rows[better]).to(images.device)] = drawn[torch.from_numpy(better).to(drawn.device)]
            step[rows[~better]] /= 2
            change[rows[better]], error[rows[better]], total[rows[better]] = (each[better] for each in (asked, *found))
        return images

    def _read(self, images: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        """Labels (B, n) and classes (B,) or None of images; NaN is read as 0."""
        labels, classes, _ = self.predictor.read(to_uint8(images.nan_to_num()).cpu().numpy())
        return labels, classes

    def _errors(
        self, images: Tensor, target: np.ndarray, wanted_classes: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Errors (B, n) of labels as fractions of their range, and their sums (B,); infinite for images with NaN."""
        labels, classes = self._read(images)
        error = (labels - target) / self.range
        total = np.where(self.continuous, np.abs(error), np.abs(labels - target) > 1e-6).sum(axis=1)
        if wanted_classes is not None and classes is not None:
            total += classes != wanted_classes
        total[~images.isfinite().flatten(1).all(dim=1).cpu().numpy()] = np.inf
        return error, total


def find_correction(spec: DatasetSpec, model_path: str, given: str = "") -> str:
    """The folder of the predictor that corrects labels; "" if there is none.

    Args:
        given: a folder, or "none"; by default `CORRECTION_FOLDER` in the model folder, or else the shipped one.
    """
    if given:
        return "" if given == "none" else given
    own = Path(model_path) / CORRECTION_FOLDER
    return str(own) if (own / "config.json").is_file() else shipped_folder(spec, CORRECTION_FOLDER) or ""


@lru_cache(maxsize=4)
def load_correction(path: str, spec: DatasetSpec, rounds: int, device: torch.device) -> LabelCorrection:
    """Opens a predictor as `LabelCorrection`; raises as `open_predictor`."""
    return LabelCorrection(open_predictor(spec, path, device).predictor, rounds)
