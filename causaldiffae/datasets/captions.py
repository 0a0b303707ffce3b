"""Labels below pictures: what is read from a picture, beside what was requested of it.

    4.43 (4.5)       read from the picture, and what was requested
    3.1 (4.5) !      the same, where the difference is notable, see `notable_difference`
    4.5 requested    nothing can read this label
    181 predicted    the same, for a variable that the intervention does not set

The second value of a variable that is not set is the prediction of the structural model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import numpy as np

from causaldiffae.datasets.spec import DatasetSpec

NOTABLE_SHARE: Final = 0.2
"""Share of the requested change that a picture may miss; `training.responses` calls variables "followed" by it."""
NOTABLE_RANGE: Final = 0.05
"""Share of a variable's range that a picture may miss, where little or no change was requested."""
NOTABLE_ERRORS: Final = 2.0
"""A picture may miss this multiple of the mean error of what reads it."""
MARK: Final = "!"
_LINE, _NUMBER, _SINGLE = 36, 5, 4  # characters of a line and of a number; most variables with a line each


def notable_difference(
    read: np.ndarray,
    requested: np.ndarray,
    factual: np.ndarray,
    span: float,
    categories: Sequence[float] = (),
    reader_error: float = 0.0,
) -> np.ndarray:
    """Whether readings of one variable differ notably from what was requested, (N,) bool; False where NaN is read.

    A number differs notably by more than the largest of three shares of what is known: `NOTABLE_SHARE` of the requested
    change, `NOTABLE_RANGE` of the range and `NOTABLE_ERRORS` times the reader's own error. A category differs if it is
    another one.

    Args:
        read, requested, factual: (N,) in label units; NaN in `factual` where it is not known.
        span: length of the variable's range.
        categories: values of its categories; empty for a number.
        reader_error: mean absolute error of the reader on real images.
    """
    if len(categories):
        values = np.asarray(categories)
        nearest = [values[np.abs(each[:, None] - values).argmin(axis=1)] for each in (read, requested)]
        return np.isfinite(read) & (nearest[0] != nearest[1])
    change = np.abs(np.nan_to_num(requested - factual))
    least = max(NOTABLE_RANGE * span, NOTABLE_ERRORS * reader_error)
    return np.abs(read - requested) > np.maximum(NOTABLE_SHARE * change, least)


def notable_differences(
    spec: DatasetSpec,
    read: np.ndarray,
    requested: np.ndarray,
    factual: np.ndarray,
    reader_error: Sequence[float] | np.ndarray = (),
) -> np.ndarray:
    """`notable_difference` of all variables, (N, n) bool, for labels (N, n); `reader_error` is (n,) or empty."""
    errors = np.nan_to_num(np.asarray(reader_error, np.float64)) if len(reader_error) else np.zeros(len(spec.graph))
    columns = [
        notable_difference(
            read[:, i], requested[:, i], factual[:, i], spec.high[i] - spec.low[i], spec.category_values(i), errors[i]
        )
        for i in range(len(spec.graph))
    ]
    return np.stack(columns, axis=1)


def caption_text(requested: str, read: str = "", differs: bool = False, is_set: bool = True) -> str:
    """The text of one label, see the head of this file; `read` is empty where nothing can read it."""
    if not read:
        return f"{requested} {'requested' if is_set else 'predicted'}"
    return f"{read} ({requested}){f' {MARK}' if differs else ''}"


def caption_texts(
    spec: DatasetSpec,
    requested: np.ndarray,
    read: np.ndarray,
    factual: np.ndarray,
    do: Collection[str] = (),
    reader_error: Sequence[float] | np.ndarray = (),
) -> dict[str, list[str]]:
    """The texts of all labels (N, n) of counterfactuals: variable -> N texts.

    Args:
        requested: values that are set, and predictions for the others.
        read: NaN where nothing can read the label.
        factual: labels before the intervention; NaN where they are not known.
        do: names of the variables that are set.
        reader_error: (n,) mean errors of the reader, if they are known.
    """
    differs = notable_differences(spec, read, requested, factual, reader_error)
    texts: dict[str, list[str]] = {}
    for i, name in enumerate(spec.graph.names):
        pairs = zip(plain_texts(spec, name, requested[:, i]), plain_texts(spec, name, read[:, i], ""), strict=True)
        texts[name] = [caption_text(*pair, bool(differs[k, i]), name in do) for k, pair in enumerate(pairs)]
    return texts


def class_captions(requested: np.ndarray, read: np.ndarray | None) -> list[str]:
    """The texts of classes (N,) that are set, and that are read from the counterfactuals if something can."""
    shown = ["" for _ in requested] if read is None else [f"{each:g}" for each in read]
    return [caption_text(f"{want:g}", each, each != f"{want:g}") for want, each in zip(requested, shown, strict=True)]


def plain_texts(spec: DatasetSpec, name: str, values: np.ndarray, unknown: str = "?") -> list[str]:
    """The values (N,) of one variable as texts."""
    return [unknown if np.isnan(value) else spec.format_value(name, value) for value in values]


def label_captions(spec: DatasetSpec, labels: np.ndarray) -> list[str]:
    """Captions of labels (N, n) that are known, such as those of factual images; NaN is "?"."""
    known = {name: plain_texts(spec, name, labels[:, i]) for i, name in enumerate(spec.graph.names)}
    widths = [max(map(len, spec.category_names(i)), default=_NUMBER) for i in range(len(spec.graph))]
    return join_captions(known, widths)


def join_captions(texts: Mapping[str, Sequence[str]], widths: Sequence[int] = ()) -> list[str]:
    """Joins the texts of all variables (variable -> N texts) into N captions of several lines.

    Two variables share a line. Where they do not fit, up to four variables have a line each, and the names of more are
    shortened to three letters per word; pairs that still do not fit have a line each.

    Args:
        widths: least widths of the texts in characters, so that captions of several pictures look alike.
    """
    names = {name: name for name in texts}
    longest = [max(map(len, each), default=0) for each in texts.values()]
    needed = [max(pair) for pair in zip(longest, widths or longest, strict=True)]

    def lengths() -> list[int]:
        return [len(name) + 2 + width for name, width in zip(names.values(), needed, strict=True)]

    def pairs_that_fit() -> list[bool]:
        full = lengths()
        return [sum(full[i : i + 2]) <= _LINE for i in range(0, len(full), 2)]

    pairs = pairs_that_fit()
    if not all(pairs) and not widths and len(names) <= _SINGLE and max(lengths()) <= _LINE:
        pairs = [False] * len(pairs)
    elif not all(pairs):
        names = {name: "".join(part[:3] for part in name.split("_")) for name in names}
        pairs = pairs_that_fit()
    captions = []
    for row in zip(*texts.values(), strict=True):
        parts = [f"{short} {text}" for short, text in zip(names.values(), row, strict=True)]
        lines = [(", " if pair else "\n").join(parts[2 * i : 2 * i + 2]) for i, pair in enumerate(pairs)]
        captions.append("\n".join(lines))
    return captions


def caption_note(reader: str) -> str:
    """A title that says where the labels below counterfactuals come from; `reader` is empty if nothing reads them."""
    if not reader:
        return "labels of counterfactuals: requested or predicted, not read"
    return f"labels of counterfactuals: {reader} (requested or predicted); {MARK} marks a notable difference"
