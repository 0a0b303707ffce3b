"""The counterfactual images and labels that `CounterfactualModel` returns: as text, table, picture and files."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from PIL import Image

from causaldiffae.counterfactual import Abduction, Counterfactual, CounterfactualEngine
from causaldiffae.datasets.captions import caption_note, caption_texts, class_captions, join_captions
from causaldiffae.datasets.images import finite_images, to_uint8
from causaldiffae.datasets.reference import TrainingReference
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError, check_local
from causaldiffae.evaluation.checks import Checks, check
from causaldiffae.evaluation.inputs import by_name
from causaldiffae.evaluation.interventions import describe_do
from causaldiffae.evaluation.verdict import l1_note, readings_of_truth, response_of
from causaldiffae.files.reading import file_stem
from causaldiffae.metrics.truth import l1_errors
from causaldiffae.training.responses import Reader, class_response, describe
from causaldiffae.visualization.display import show_image
from causaldiffae.visualization.image_grids import ImageRow, html_table, labelled_grid, spread_maps

if TYPE_CHECKING:
    import pandas as pd

LABELS: Final = "labels.csv"
_SHOWN: Final = 8
_SUFFIXES: Final = ("", "_factual", "_true", "_spread")


@dataclass(frozen=True, repr=False)
class Counterfactuals:
    """N counterfactual images, or samples.

        from causaldiffae import CausalDiffAE

        model = CausalDiffAE.from_pretrained("morphomnist-mini")
        cf = model.counterfactual(model.examples(4), do={"thickness": 4.5})
        print(cf)
        print(cf.to_dataframe()[["factual_intensity", "counterfactual_intensity"]])
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
        read_labels: variable -> (N,) values that are read from `images`, NaN where this fails; None if nothing can read
            them.
        reader: what reads them: "measured", "read by a predictor" or "read by the model's own encoder".
        read_factual: what it reads from the factual images.
        pixel_std: (N, 1, S, S) standard deviation over several abductions, in grey levels; None if none were drawn.
        label_std: variable -> (N,) that of the predicted labels; for a category, see `sampling.Spread`.
        checks: distances from the training data, and what is to be doubted; None if nothing was checked.
        factual_classes: (N,) classes of the factual images; None if the intervention does not set the class.
        read_classes: (N,) classes that a predictor reads from `images`, likewise, or None if nothing can read them.
        known_labels: variable -> (N,) labels that came with the factual images, NaN where one is missing; None for
            images without labels.
    """

    images: np.ndarray
    labels: dict[str, np.ndarray]
    do: dict[str, Any]
    factual: np.ndarray | None
    factual_labels: dict[str, np.ndarray] | None
    truth: np.ndarray | None
    spec: DatasetSpec
    read_labels: dict[str, np.ndarray] | None = None
    reader: str = ""
    read_factual: dict[str, np.ndarray] | None = None
    pixel_std: np.ndarray | None = None
    label_std: dict[str, np.ndarray] | None = None
    checks: Checks | None = None
    factual_classes: np.ndarray | None = None
    read_classes: np.ndarray | None = None
    known_labels: dict[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        known = [name for name in ("factual", "truth") if getattr(self, name) is not None]
        parts = [
            self._title,
            f"images {self.images.shape} {self.images.dtype}",
            *(f"{name} {self._range(name, values)}{self._read_range(name)}" for name, values in self.labels.items()),
            *([f"with {' and '.join(known)}"] if known else []),
        ]
        return f"{type(self).__name__}({self.spec.name}: {'; '.join(parts)})"

    def _repr_html_(self) -> str:
        """The first images as a table, which notebooks display: factual, counterfactual and true, with labels."""
        count = min(_SHOWN, len(self))
        rows = [
            ImageRow(heading, images[:count], {self._with_unit(n): each[:count] for n, each in labels.items()})
            for heading, images, labels in self._kinds()
        ]
        rest = f" ({count} of {len(self)} images)" if count < len(self) else ""
        return html_table(rows, f"{self.spec.name}: {self._title}{rest}; {caption_note(self.reader)}")

    @property
    def verdict(self) -> str:
        """In words, which share of the requested change these images show; "" where nothing can read it."""
        found, checked = {}, self.spec.check_do(self.do, len(self), warn=False)
        wanted = {name: np.broadcast_to(np.asarray(values, np.float64), len(self)) for name, values in checked.items()}
        if self.read_labels is not None and self.read_factual is not None:
            truth = readings_of_truth(self.truth, self.spec, self.reader)
            read_truth = {} if truth is None else by_name(self.spec, truth)
            for name in self.spec.names_of(self.do):
                pair = self.read_labels[name], self.read_factual[name]
                known = (self.known_labels or {}).get(name), read_truth.get(name)
                found[name] = response_of(*pair, wanted[name], self.spec, name, self.reader, *known)
        if self.read_classes is not None:
            name = self.spec.class_name
            found[name] = class_response(self.read_classes, self.factual_classes, wanted[name])
        note = ""
        if self.truth is not None and self.factual is not None:
            note = l1_note(*(float(l1_errors(images, self.truth).mean()) for images in (self.images, self.factual)))
        return "\n".join(describe(found, notes=dict.fromkeys(found, note)))

    def to_dataframe(self) -> pd.DataFrame:
        """One row per image, with columns `factual_NAME` and `counterfactual_NAME` of every variable.

        Samples have columns `NAME`. What is read from the images is in `read_NAME`, a spread in `std_NAME`, and
        distances from the training data in `image_distance` and `label_distance`. Categories are given by name, other
        labels in label units.

        Raises:
            InputError: if pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise InputError("to_dataframe: expected pandas, found none; run `pip install pandas`") from None
        return pd.DataFrame(self._columns(), index=pd.RangeIndex(len(self), name="image"))

    def pil(self) -> list[Image.Image]:
        """The counterfactual images as PIL images."""
        return [_pil(image) for image in self.images]

    def grid(self, count: int = _SHOWN) -> np.ndarray:
        """Up to `count` rows of factual image, counterfactual, spread and true image with labels, (H, W, 3) uint8."""
        if type(count) is not int or count < 1:
            raise InputError(f"count: expected a positive integer, got {count!r:.80}")
        count = min(count, len(self))
        columns, captions = [], []
        for heading, images, labels in self._kinds():
            columns.append((heading, images[:count]))
            captions.append(join_captions({n: texts[:count] for n, texts in labels.items()}) or [""] * count)
        return labelled_grid(columns, cell_captions=captions, title=caption_note(self.reader))

    def show(self, count: int = _SHOWN) -> Image.Image:
        """Displays `grid` in the notebook or in a window; without a screen, writes a file and prints its path.

        Returns:
            The grid as a PIL image.
        """
        image = Image.fromarray(self.grid(count))
        show_image(image, file_stem(re.sub(r"[(),= ]+", "_", self._title).strip("_")))
        return image

    def save(self, path: str | Path, count: int = _SHOWN) -> Path:
        """Writes the first images as a picture, or all images and their labels to a folder.

        Args:
            path: an image file such as grid.png, for up to `count` rows of `grid`; or a folder (a path without a
                suffix), for 0000.png, 0000_factual.png, 0000_true.png, 0000_spread.png (as in `grid`) and so on, and a
                table labels.csv, in place of those that were saved there before. Missing folders are created.

        Raises:
            InputError: for a URL, the suffix of another kind of file, or a count below 1.
        """
        check_local(path=path)
        path = Path(path)
        if path.suffix and not path.is_dir():
            if path.suffix.lower() not in Image.registered_extensions():
                raise InputError(f"path: expected an image file such as grid.png, or a folder, got {str(path)!r}")
            grid = Image.fromarray(self.grid(count))
            path.parent.mkdir(parents=True, exist_ok=True)
            grid.save(path)
            return path
        path.mkdir(parents=True, exist_ok=True)
        _remove_saved(path)
        names = _file_names(len(self))
        maps = None if self.pixel_std is None else spread_maps(self.pixel_std)[1]
        kinds = zip(_SUFFIXES, (self.images, self.factual, self.truth, maps), strict=True)
        for suffix, images in kinds:
            for name, image in zip(names, () if images is None else images, strict=images is not None):
                _pil(image).save(path / name.replace(".png", f"{suffix}.png"))
        columns = {"image": names, **self._columns()}
        with (path / LABELS).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for row in zip(*columns.values(), strict=True):
                writer.writerow([value if isinstance(value, str) else f"{value:.6g}" for value in row])
        return path

    # ------------------------------------------------------------------ texts

    @property
    def _title(self) -> str:
        """The intervention; values that differ between images as their range."""
        if not self.do:
            return "no intervention"
        checked = self.spec.check_do(self.do, len(self), warn=False)
        texts = {n: v if np.ndim(v) == 0 else self._range(n, checked[n]) for n, v in self.do.items()}
        return describe_do(texts, self.spec)

    def _range(self, name: str, values: np.ndarray) -> str:
        """ "4.5", "120 to 177", or the names of the categories."""
        distinct = np.unique(values)
        texts = list(dict.fromkeys(self.spec.format_value(name, value) for value in distinct))
        if name in self.spec.graph.names and self.spec.values_of(name):
            return ", ".join(texts)
        return texts[0] if len(texts) == 1 else f"{texts[0]} to {texts[-1]}"

    def _read_range(self, name: str) -> str:
        """ " (read 4.1 to 4.6)" for a variable that is set and can be read."""
        if self.read_labels is None or name not in self.do:
            return ""
        values = self.read_labels[name][np.isfinite(self.read_labels[name])]
        return f" (read {self._range(name, values)})" if len(values) else ""

    def _with_unit(self, name: str) -> str:
        unit = self.spec.units[self.spec.graph.index(name)] if self.spec.units else ""
        return f"{name} ({unit})" if unit else name

    def _kinds(self) -> list[tuple[str, np.ndarray, dict[str, list[str]]]]:
        """Heading, images and labels: factual, counterfactual, its spread and true, as far as they are known."""
        kinds = [(self._title, self.images, self._captions())]
        if self.pixel_std is not None:
            spread = {name: [f"± {value:.2g}" for value in each] for name, each in (self.label_std or {}).items()}
            kinds.append((*spread_maps(self.pixel_std), spread))
        if self.factual is not None and self.factual_labels is not None:
            texts = self._texts(self.factual_labels)
            if self.factual_classes is not None:
                texts[self.spec.class_name] = [f"{each}" for each in self.factual_classes]
            kinds.insert(0, ("factual", self.factual, texts))
        if self.truth is not None:
            kinds.append(("true", self.truth, {}))
        return kinds

    def _texts(self, labels: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
        return {name: [self.spec.format_value(name, value) for value in labels[name]] for name in self.spec.graph.names}

    def _captions(self) -> dict[str, list[str]]:
        """Texts of the labels of the counterfactuals: what is read, and what was requested or predicted."""
        unknown = {name: np.full(len(self), np.nan) for name in self.labels}
        tables = (self.labels, self.read_labels or unknown, self.factual_labels or unknown)
        requested, read, factual = (np.stack([each[n] for n in self.spec.graph.names], axis=1) for each in tables)
        texts = caption_texts(self.spec, requested, read, factual, self.do)
        if self.spec.class_name in self.do:
            texts[self.spec.class_name] = class_captions(self._set_classes(), self.read_classes)
        return texts

    def _set_classes(self) -> np.ndarray:
        """The class (N,) that the intervention sets."""
        checked = self.spec.check_do(self.do, len(self), warn=False)
        return np.broadcast_to(np.asarray(checked[self.spec.class_name], np.int64), len(self))

    def _columns(self) -> dict[str, list[str] | np.ndarray]:
        """Columns of the table of labels: numbers, or names of categories."""
        factual = self.factual_labels or {}
        columns: dict[str, list[str] | np.ndarray] = {}
        for i, name in enumerate(self.spec.graph.names):
            named = bool(self.spec.category_names(i))
            kinds = {f"factual_{name}": factual[name], f"counterfactual_{name}": self.labels[name]} if factual else {}
            kinds = kinds or {name: self.labels[name]}
            if self.read_labels is not None:
                kinds[f"read_{name}"] = self.read_labels[name]
            for column, values in kinds.items():
                columns[column] = [self.spec.format_value(name, v) for v in values] if named else values
            if self.label_std is not None:
                columns[f"std_{name}"] = self.label_std[name]
        if (name := self.spec.class_name) in self.do:
            classes = {
                "factual": self.factual_classes,
                "counterfactual": self._set_classes(),
                "read": self.read_classes,
            }
            columns |= {f"{kind}_{name}": values for kind, values in classes.items() if values is not None}
        if self.checks is not None:
            known = {"image_distance": self.checks.images, "label_distance": self.checks.labels}
            columns |= {name: values for name, values in known.items() if values is not None}
        return columns


def collect(
    engine: CounterfactualEngine,
    parts: Sequence[Counterfactual],
    do: Mapping[str, Any],
    abducted: Sequence[Abduction],
    reader: Reader | None,
    read_classes: Callable[[np.ndarray], np.ndarray | None] | None,
    reference: TrainingReference | None,
) -> Counterfactuals:
    """The counterfactuals of batches, with what is read from them and what is known of the factual images.

    Args:
        parts: results of `engine.predict` under `do`.
        abducted: of the same images; none for samples.
        reader: reads labels, if anything can.
        read_classes: reads classes (N,) from images (N, C, S, S) uint8, where the intervention sets the class.
        reference: of the training data.
    """
    spec = engine.spec
    text = ", ".join(f"{name}={value}" for name, value in do.items() if not np.ndim(value))
    decoded = finite_images(torch.cat([part.images for part in parts]), f"do({text:.200})" if do else "images")
    images, table = to_uint8(decoded).cpu().numpy(), torch.cat([part.labels for part in parts]).cpu().numpy()
    sources = [each.images for each in abducted if each.images is not None]
    factual = to_uint8(torch.cat(sources)).cpu().numpy() if sources else None
    known: dict[str, Any] = {"checks": check(reference, spec, do, table, factual)}
    if reader is not None:
        known |= {"read_labels": by_name(spec, reader.read(images)), "reader": reader.name}
    if read_classes is not None:
        known["read_classes"] = read_classes(images)
    encoded = None
    if factual is not None:
        encoded = by_name(spec, engine.read_labels(torch.cat([each.z for each in abducted])).cpu().numpy())
        known["read_factual"] = None if reader is None else by_name(spec, reader.read(factual))
        classes = [each.classes for each in abducted if each.classes is not None]
        known["factual_classes"] = torch.cat(classes).cpu().numpy() if classes and spec.class_name in do else None
    return Counterfactuals(images, by_name(spec, table), dict(do), factual, encoded, None, spec, **known)


def _file_names(count: int) -> list[str]:
    return [f"{i:04d}.png" for i in range(count)]


def _remove_saved(folder: Path) -> None:
    """Removes the images of an earlier `save` to a folder, which its table lists; other tables are left alone."""
    table = folder / LABELS
    lines = table.read_text(encoding="utf-8", errors="replace").splitlines() if table.is_file() else []
    head, *names = [line.partition(",")[0] for line in lines] or [""]
    if head == "image" and names == _file_names(len(names)):
        for name in names:
            for suffix in _SUFFIXES:
                (folder / name.replace(".png", f"{suffix}.png")).unlink(missing_ok=True)


def _pil(image: np.ndarray) -> Image.Image:
    """An image (C, H, W) uint8 with 1, 3 or 4 channels."""
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
