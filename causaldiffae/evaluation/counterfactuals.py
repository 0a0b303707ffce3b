"""What a notebook gets back from a model: images, labels by name, and a picture of them side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.evaluation.interventions import describe_do
from causaldiffae.visualization.image_grids import labelled_grid

_SHOWN: Final = 8


@dataclass(frozen=True)
class Counterfactuals:
    """What would have been seen, N images.

    Attributes:
        images: (N, C, S, S) uint8.
        labels: every variable's (N,) values, label units, as the structural model predicts them.
        do: the intervention.
        factual: (N, C, S, S) uint8 images that were asked about; None for samples.
        factual_labels: every variable's (N,) values as the model reads them off the factual images; None for samples.
        truth: (N, C, S, S) uint8 true counterfactuals, None where they are not known.
        spec: the data set's names and units.
    """

    images: np.ndarray
    labels: dict[str, np.ndarray]
    do: dict[str, Any]
    factual: np.ndarray | None
    factual_labels: dict[str, np.ndarray] | None
    truth: np.ndarray | None
    spec: DatasetSpec

    def __len__(self) -> int:
        return len(self.images)

    def grid(self, count: int = _SHOWN) -> np.ndarray:
        """Up to `count` rows, factual, counterfactual and truth side by side with their labels: (H, W, 3) uint8."""
        shown = min(count, len(self))
        said = describe_do({k: v for k, v in self.do.items() if np.ndim(v) == 0}) if self.do else "reconstruction"
        columns, captions = [(said if self.factual is not None else "sample", self.images[:shown])], []
        captions.append(self._captions(self.labels, shown))
        if self.factual is not None and self.factual_labels is not None:
            columns.insert(0, ("factual", self.factual[:shown]))
            captions.insert(0, self._captions(self.factual_labels, shown))
        if self.truth is not None:
            columns.append(("the truth", self.truth[:shown]))
            captions.append([""] * shown)
        return labelled_grid(columns, cell_captions=captions)

    def _captions(self, labels: Mapping[str, np.ndarray], count: int) -> list[str]:
        return ["\n".join(f"{name} {labels[name][i]:.3g}" for name in self.spec.graph.names) for i in range(count)]

    def show(self, count: int = _SHOWN) -> Image.Image:
        """`grid` as a PIL image, which a notebook shows as a cell's last value."""
        return Image.fromarray(self.grid(count))

    def save(self, path: str | Path, count: int = _SHOWN) -> Path:
        """Writes `grid` to a picture file."""
        self.show(count).save(path)
        return Path(path)
