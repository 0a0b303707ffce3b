"""The counterfactual images and labels that `CounterfactualModel` returns, and a grid to display them."""

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
    """N counterfactual images, or samples.

        from causaldiffae import CausalDiffAE

        model = CausalDiffAE.from_pretrained("morphomnist-mini")
        cf = model.counterfactual(model.examples(4), do={"thickness": 4.5})
        for factual, predicted in zip(cf.factual_labels["intensity"], cf.labels["intensity"]):
            print(f"intensity {factual:.0f} -> {predicted:.0f}")
        cf.save("grid.png")

    Attributes:
        images: (N, C, S, S) uint8.
        labels: variable -> (N,) values in label units, predicted by the structural model; the number of the category
            for a variable with named ones.
        do: the intervention.
        factual: (N, C, S, S) uint8 factual images; None for samples.
        factual_labels: variable -> (N,) values that the model infers from the factual images; None for samples.
        truth: (N, C, S, S) uint8 true counterfactuals; None if unknown.
        spec: names and units of the data set.
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
        """Up to `count` rows of factual image, counterfactual and true image with their labels, (H, W, 3) uint8."""
        count = min(count, len(self))
        do = (
            describe_do({k: v for k, v in self.do.items() if np.ndim(v) == 0}, self.spec)
            if self.do
            else "reconstruction"
        )
        columns = [("sample" if self.factual is None else do, self.images[:count])]
        captions = [self._captions(self.labels, count)]
        if self.factual is not None and self.factual_labels is not None:
            columns.insert(0, ("factual", self.factual[:count]))
            captions.insert(0, self._captions(self.factual_labels, count))
        if self.truth is not None:
            columns.append(("true", self.truth[:count]))
            captions.append([""] * count)
        return labelled_grid(columns, cell_captions=captions)

    def _captions(self, labels: Mapping[str, np.ndarray], count: int) -> list[str]:
        text, names = self.spec.format_value, self.spec.graph.names
        return ["\n".join(f"{name} {text(name, labels[name][i])}" for name in names) for i in range(count)]

    def show(self, count: int = _SHOWN) -> Image.Image:
        """`grid` as a PIL image, which notebooks display."""
        return Image.fromarray(self.grid(count))

    def save(self, path: str | Path, count: int = _SHOWN) -> Path:
        """Writes `grid` to an image file."""
        self.show(count).save(path)
        return Path(path)
