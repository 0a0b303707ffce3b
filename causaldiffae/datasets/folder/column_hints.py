"""Checks of labels, and hints at likely mistakes: outliers, circles, categories, splits, and divided groups."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import Final

import numpy as np

from causaldiffae.datasets.folder.circles import describe_circle
from causaldiffae.datasets.folder.description import Variable
from causaldiffae.datasets.folder.label_columns import Column
from causaldiffae.datasets.folder.label_table import MISSING, SPLIT_WORDS, Table
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.datasets.folder.word_forms import NO_CATEGORY, describe_numbers

_SENTINEL: Final = re.compile(r"-?9{2,6}|-1|-9|-8+")
_MARKS: Final = ("unknown", "missing", "not available", "undefined", "n.a.", "na.", "-", "--", ".", "nil", "not known")
_GROUP: Final = re.compile(
    r"patient|subject|person|identity|scene|^group([_ ]?id|s)$|participant|specimen|animal", re.IGNORECASE
)
_LONGEST_END: Final = 60
_FEW: Final = range(3, 11)
_MANY_UNSEEN: Final = 5
_FAR: Final = 10.0
_FAR_LOGARITHM: Final = 4.0
"""Distances from the middle half of the values, in widths of this half, from which a value is an outlier."""


def check_training_labels(
    table: Table, columns: Mapping[str, Column], in_training: np.ndarray, problems: Problems
) -> None:
    """Checks that every column has training labels, that they vary, and that every category occurs among them."""
    for name, column in columns.items():
        known = in_training & ~np.isnan(column.values)
        values = column.values[known].astype(np.float64)
        if not len(values):
            if not np.isnan(column.values).all():  # a column without any label was reported when it was read
                problems.add(f"{table.where}: {name}: expected labels of images of split train, got none")
            continue
        if values.max() - values.min() <= 1e-6 * np.abs(values).max():
            shown = column.categories[int(values[0])] if column.categories else f"{values[0]:g}"
            where = f"all {len(values)} labelled training images"
            differ = not column.categories and len(np.unique(table.cells[name].codes[known])) > 1
            advice = "; if they differ by less than a millionth, subtract a constant from all" if differ else ""
            problems.add(f"{table.where}: {name}: expected two or more values, got {shown} in {where}{advice}")
        unseen = [i for i in range(len(column.categories)) if not (values == i).any()]
        if len(unseen) > _MANY_UNSEEN or (unseen and len(column.categories) > len(values) / 2):
            problems.add(
                f"{table.where}: {name}: expected training labels of all {len(column.categories)} categories, got none "
                f"of {len(unseen)}, such as {column.categories[unseen[0]]!r:.80}; "
                f"{describe_numbers(column.categories) or NO_CATEGORY}"
            )
            continue
        for i in unseen:
            rows = np.nonzero(column.values == i)[0]
            first = f" (first in line {table.lines[rows[0]]})" if len(rows) else ""
            problems.add(f"{table.where}: {name}: expected training labels {column.categories[i]!r}, got none{first}")


def hint_labels(
    table: Table, columns: Mapping[str, Column], declared: Mapping[str, Variable], problems: Problems
) -> None:
    """Hints at values of each column that are likely mistakes."""
    for name, column in columns.items():
        where = f"{table.where}: {name}"
        if column.categories:
            _hint_categories(where, column.categories, problems)
            refused = any(line.startswith(f"{where}:") for line in problems.lines)
            if declared[name].kind is None and not refused and (advice := describe_numbers(column.categories)):
                problems.hint(f"{where}: categories such as {column.categories[0]!r:.40}: {advice}")
        elif column.kind == "continuous":
            values = column.values[~np.isnan(column.values)].astype(np.float64)
            _hint_outliers(where, values, declared[name], problems)
            if declared[name].kind is None:
                if circle := describe_circle(name, declared[name].unit, values):
                    problems.hint(f"{where}: {circle}")
                else:
                    _hint_whole_numbers(where, name, values, problems)
    _hint_one_hot(table.where, columns, problems)


def _hint_categories(where: str, categories: tuple[str, ...], problems: Problems) -> None:
    folded: dict[str, list[str]] = defaultdict(list)
    for category in categories:
        folded[" ".join(re.split(r"[\s_-]+", category.casefold())).strip()].append(category)
    for group in folded.values():
        if len(group) > 1:
            shown = ", ".join(map(repr, group[:5]))[:300]
            problems.hint(
                f"{where}: the categories {shown} differ in case or spacing only; if they are one, write them alike or "
                "declare `categories` in the graph file"
            )
    for category in categories:
        if category.casefold() in _MARKS:
            problems.hint(
                f"{where}: category {category!r} may mark missing labels; if so, add `missing: [{category!r}]` to the "
                "graph file"
            )


def _hint_outliers(where: str, values: np.ndarray, declared: Variable, problems: Problems) -> None:
    """Hints at values far from all others, and at the usual marks of missing numbers."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) < 3:
        return
    far = _is_far(distinct, values, _FAR)
    if distinct[0] > 0:  # a heavy tail is not far on a logarithmic scale
        far &= _is_far(np.log(distinct), np.log(values), _FAR_LOGARITHM)
    if far.sum() > 5 or counts[far].sum() > 0.25 * len(values):
        far[:] = False
    far |= _sentinels(distinct)
    for value in (declared.low, declared.high):
        far &= distinct != value
    if not far.any() or far.all():
        return
    rest = distinct[~far]
    shown = " and ".join(
        f"{value:g} ({count} row{'s' if count > 1 else ''})"
        for value, count in zip(distinct[far], counts[far], strict=True)
    )
    marks = ", ".join(f"{value:g}" for value in distinct[far])
    problems.hint(
        f"{where}: {shown} far from the other values, {rest[0]:g}..{rest[-1]:g}; if they mark missing labels, add "
        f"`missing: [{marks}]` to the graph file"
    )


def _is_far(distinct: np.ndarray, values: np.ndarray, limit: float) -> np.ndarray:
    lower, upper = np.percentile(values, [25, 75])
    margin = limit * (upper - lower)
    return ((distinct < lower - margin) | (distinct > upper + margin)) & (margin > 0)


def _sentinels(distinct: np.ndarray) -> np.ndarray:
    """Which values look like marks of missing numbers: -1, -9, -99, 999 and so on, beyond a gap."""
    found = np.zeros(len(distinct), bool)
    named = np.array([_SENTINEL.fullmatch(f"{value:g}") is not None for value in distinct])
    rest = distinct[~named]
    if len(rest) < 2:
        return found
    span = rest[-1] - rest[0]
    for i in np.nonzero(named)[0]:
        gap = max(rest[0] - distinct[i], distinct[i] - rest[-1])
        is_negative = distinct[i] < 0 < rest[0]  # the only values below zero
        found[i] = gap > span * (0.1 if is_negative else 0.5)
    return found


def _hint_whole_numbers(where: str, name: str, values: np.ndarray, problems: Problems) -> None:
    distinct = np.unique(values)
    if len(distinct) in _FEW and (distinct == np.rint(distinct)).all() and len(values) >= 3 * len(distinct):
        shown = ", ".join(f"{value:g}" for value in distinct)
        problems.hint(
            f"{where}: {len(distinct)} whole numbers ({shown}) are read as continuous; if they are categories, add "
            f"`variables: {{{name}: {{kind: categorical}}}}` to the graph file"
        )


def _hint_one_hot(where: str, columns: Mapping[str, Column], problems: Problems) -> None:
    """Hints at binary columns of which exactly one is set in every row, as `pandas.get_dummies` writes categories."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in (name for name, column in columns.items() if column.kind == "binary"):
        for group in {"", re.sub(r"[\W_]+[^\W_]+$", "", name)}:
            groups[group].append(name)
    for names in groups.values():
        values = np.stack([columns[name].values for name in names], axis=1)
        values = values[~np.isnan(values).any(axis=1)]
        if len(names) > 1 and len(values) and ((values == values.max(axis=0)).sum(axis=1) == 1).all():
            problems.hint(
                f"{where}: {', '.join(names)[:300]}: exactly one is set in every row, but an intervention on one does "
                "not unset the others; write them as one column of categories"
            )
            return


def hint_splits(table: Table, names: Collection[str], problems: Problems) -> None:
    """Hints at a column of splits that has another name than `split`, so that images are divided at random."""
    for name, column in table.cells.items() if table.splits is None else ():
        words = {word.casefold() for word in column.words if word not in MISSING}
        if name not in names and len(words) > 1 and words <= SPLIT_WORDS.keys():
            problems.hint(
                f"{table.where}: column {name!r:.80} holds splits, but is not used; rename it to `split` for that"
            )


def hint_groups(table: Table, splits: np.ndarray, names: Collection[str], problems: Problems) -> None:
    """Hints at images that belong together but are in different splits, by another column or by their file names.

    Args:
        names: the variables of the graph, which are no groups.
    """
    images = len(table.files)
    for name, column in table.cells.items():
        is_group = name not in names and _GROUP.search(name)
        if is_group and 1 < len(column.words) < images and _divided(column.codes, splits):
            problems.hint(
                f"{table.where}: images with the same {name} are in different splits; to keep them together, add "
                f"`group: {name}` to the graph file"
            )
            return
    stems = [_stem(file) for file in table.files]
    distinct, codes, counts = np.unique(stems, return_inverse=True, return_counts=True)
    shared = counts[codes] > 1
    if shared.mean() > 0.5 and 1 < len(distinct) <= images / 2 and _divided(codes, splits):
        problems.hint(
            f"{table.where}: the names of {images} files have {len(distinct)} stems, such as {distinct[0][:60]!r}, "
            "whose files are in different splits; if they belong together (slices of a patient, views of a scene), "
            "add a column and `group: COLUMN` to the graph file"
        )


def _stem(file: str) -> str:
    """A path without its last number, if another number remains, by which images of one source are named."""
    path = str(PurePosixPath(file).with_suffix("")) if file else ""
    head, end = path[:-_LONGEST_END], path[-_LONGEST_END:]
    stem = head + re.sub(r"[-_. ]*(?:[A-Za-z]*[-_. ]*)?\d+$", "", end)
    return stem if re.search(r"\d", stem) else path


def _divided(codes: np.ndarray, splits: np.ndarray) -> bool:
    """Whether rows with the same code are in different splits."""
    names, split_codes = np.unique(splits, return_inverse=True)
    return len(np.unique(codes.astype(np.int64) * len(names) + split_codes)) > len(np.unique(codes))
