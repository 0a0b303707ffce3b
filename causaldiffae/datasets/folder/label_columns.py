"""Columns of labels: their kinds, and their cells as numbers.

A column of undeclared kind is binary if it has two distinct values, continuous if it contains numbers, and categorical
if it contains other text. For mixed columns the majority determines the kind, and the other cells are errors.

missing     an empty cell, pandas' markers such as NA, NaN, None and null, `?`, and those declared as `missing`; a word
            that is a declared category is none
numbers     with a decimal point, or in the whole column with a decimal comma (1.234,5) or thousands separators
            (1,234.5); 1,234 alone is ambiguous and refused, except in a table that is separated by semicolons
categories  numbers of the same value are one (0 and 0.0), and so are spellings of truth values (TRUE and True)
order       numbers by value, words alphabetically; of two words, a negative one (no, without_hat) is the first
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from causaldiffae.datasets.folder.description import Variable
from causaldiffae.datasets.folder.label_table import MISSING, Table
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.datasets.folder.word_forms import NO_CATEGORY, describe_numbers
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.datasets.variables import category_indices
from causaldiffae.files.tables import TextColumn

MAX_CATEGORIES: Final = 1000
_LARGEST: Final = float(np.finfo(np.float32).max)
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity)", re.ASCII | re.IGNORECASE)
_WITH_COMMA: Final = re.compile(r"[+-]?(\d{1,3}(\.\d{3})+|\d*),\d+([eE][+-]?\d+)?", re.ASCII)
_POINT_GROUPS: Final = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+", re.ASCII)
_COMMA_GROUPS: Final = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?", re.ASCII)
_NEGATIVE: Final = re.compile(r"none|false|absent|negative|off|n|f|(no|not|non|without)([\W_].*)?", re.DOTALL)
_TRUTH_VALUES: Final = ({"false", "true"}, {"no", "yes"}, {"n", "y"}, {"f", "t"}, {"off", "on"})


@dataclass(frozen=True)
class Column:
    """A variable's column as numbers.

    Attributes:
        kind: one of `KINDS`.
        categories: names of the categories that `values` index; empty for numbers.
        values: (N,) float32, NaN where the label is missing or invalid.
    """

    kind: str
    categories: tuple[str, ...]
    values: np.ndarray


def read_column(table: Table, name: str, declared: Variable, problems: Problems, optional: bool = False) -> Column:
    """Converts a variable's column to numbers; every invalid cell is reported to `problems`.

    Args:
        optional: accept a column without any label.
    """
    column = _composed(table.cells[name])
    rows = dict(zip(column.words, column.counts().tolist(), strict=True))
    missing = _missing_words(column.words, declared)
    words = {word: count for word, count in rows.items() if word not in missing}
    where = f"{table.where}: {name}"
    if optional and not words:
        return Column(declared.kind or "continuous", (), np.full(len(column.codes), np.nan, np.float32))
    numbers, problem = _numbers(words, table.separator, where, problems)
    marks = _numeric_marks(declared)
    for word in [word for word, number in numbers.items() if number in marks and word not in declared.categories]:
        del numbers[word], words[word]  # a mark in another notation, such as -999,0
    joined = {} if declared.categories else _joined(words, numbers, where, problems)
    kind, categories, found = _kind(words, numbers, declared, joined)
    if categories and declared.kind is None and numbers:
        _hint_mixed(words, numbers, where, problems)
    marked = [word for word in missing if word and word not in declared.missing]
    if categories and marked and not _are_truth_values(words):
        _note_missing(marked, rows, where, problems)
    problem = found or ("" if categories else problem)
    if problem:
        problems.add(f"{where}: {problem}")
        return Column(kind, (), np.full(len(column.codes), np.nan, np.float32))
    if categories:
        lookup = _category_lookup(categories)
        values = {word: lookup(joined.get(word, word), numbers.get(word)) for word in words}
    else:
        values = {word: number for word, number in numbers.items() if abs(number) <= _LARGEST}
    wrong = [word for word in words if math.isnan(values.get(word, math.nan))]
    if wrong:
        _report(table, name, wrong, numbers, categories, problems)
    by_code = np.array([values.get(word, math.nan) for word in column.words], np.float32)
    return Column(kind, categories, by_code[column.codes])


def read_with_spec(table: Table, name: str, spec: DatasetSpec, problems: Problems) -> np.ndarray:
    """Converts a column to the labels (N,) of a variable of `spec`; one without any label is accepted.

    Every cell that the variable of the spec does not take is reported to `problems`.
    """
    i = spec.graph.index(name)
    categories, marks = spec.category_names(i), spec.missing[i] if spec.missing else ()
    kind = spec.kind(i) if categories else "continuous"
    values = read_column(table, name, Variable(kind, categories=categories, missing=marks), problems, True).values
    if not categories and spec.category_values(i):  # binary, with two numbers
        ends = np.array(spec.category_values(i))
        wrong = ~np.isnan(values) & ~np.isclose(values[:, None], ends, rtol=1e-6).any(axis=1)
        lines = [
            f"{table.at(row)}: {name}: expected {ends[0]:g} or {ends[1]:g}, as in training, got {values[row]:g}"
            for row in np.flatnonzero(wrong).tolist()
        ]
        problems.add_rows(lines, len(values))
    return values


def _composed(column: TextColumn) -> TextColumn:
    """The column with its words in Unicode's composed form (NFC), as in the graph file."""
    if all(map(str.isascii, column.words)):
        return column
    index: dict[str, int] = {}
    codes = [index.setdefault(unicodedata.normalize("NFC", word), len(index)) for word in column.words]
    return TextColumn(tuple(index), np.array(codes, np.int32)[column.codes])


def _numeric_marks(declared: Variable) -> set[float]:
    """The numbers that are declared as marks of missing labels."""
    return {float(mark) for mark in declared.missing if _NUMBER.fullmatch(mark)}


def _missing_words(words: Iterable[str], declared: Variable) -> set[str]:
    """The words that mark missing labels; numbers declared as `missing` match by value."""
    numbers = _numeric_marks(declared)
    return {
        word
        for word in words
        if word not in declared.categories
        and (word in MISSING or word in declared.missing or (_NUMBER.fullmatch(word) and float(word) in numbers))
    }


def _numbers(words: Mapping[str, int], separator: str, where: str, problems: Problems) -> tuple[dict[str, float], str]:
    """The words that are numbers, in one notation for the whole column.

    Returns:
        word -> its value, and a problem if the notation is ambiguous, or "".
    """
    plain = {word: re.sub("[\u00a0\u202f]", "", word).replace("\u2212", "-") for word in words}
    numbers = {word: float(text) for word, text in plain.items() if _NUMBER.fullmatch(text)}
    commas = {
        word: text for word, text in plain.items() if _WITH_COMMA.fullmatch(text) or _COMMA_GROUPS.fullmatch(text)
    }
    if not commas:
        return numbers, ""
    others = [plain[word] for word in numbers]
    decimal = all(map(_WITH_COMMA.fullmatch, commas.values()))
    decimal = decimal and all("." not in text or _POINT_GROUPS.fullmatch(text) for text in others)
    grouped = all(map(_COMMA_GROUPS.fullmatch, commas.values()))
    example = next(iter(commas))
    if decimal and (not grouped or separator == ";"):
        problems.note(f"{where}: numbers with a decimal comma, such as {example}")
        known = {word: text for word, text in plain.items() if word in numbers or word in commas}
        return {word: float(text.replace(".", "").replace(",", ".")) for word, text in known.items()}, ""
    if grouped and not decimal:
        problems.note(f"{where}: numbers with thousands separators, such as {example}")
        return numbers | {word: float(text.replace(",", "")) for word, text in commas.items()}, ""
    if grouped and 2 * sum(words[word] for word in (*numbers, *commas)) >= sum(words.values()):
        return numbers | {word: float(text.replace(",", ".", 1).replace(",", "")) for word, text in commas.items()}, (
            f"expected numbers with a decimal point, got {example!r:.40}, whose comma separates decimals or thousands; "
            "write the numbers without it"
        )
    return numbers, ""


def _are_truth_values(words: Iterable[str]) -> bool:
    return any({word.casefold() for word in words} <= pair for pair in _TRUTH_VALUES)


def _joined(words: Mapping[str, int], numbers: Mapping[str, float], where: str, problems: Problems) -> dict[str, str]:
    """Maps spellings of one category to the most frequent one: equal numbers, and truth values in any case."""
    groups: dict[str | float, list[str]] = defaultdict(list)
    are_truth_values = _are_truth_values(words)
    for word in sorted(words, key=lambda word: (-words[word], len(word), word)):
        has_zeros = re.match(r"[+-]?0\d", word) is not None  # a code such as 007
        key: str | float = numbers[word] if word in numbers and not has_zeros else word
        groups[word.casefold() if are_truth_values else key].append(word)
    if are_truth_values:
        for group in groups.values():
            if len(group) > 1:
                problems.note(f"{where}: {', '.join(sorted(group))} are read as one category")
    return {word: group[0] for group in groups.values() for word in group[1:]}


def _kind(
    words: Mapping[str, int], numbers: Mapping[str, float], declared: Variable, joined: Mapping[str, str]
) -> tuple[str, tuple[str, ...], str]:
    """Returns the kind of a column, its categories, and a problem of the whole column or "".

    Args:
        words: the distinct cells that are not missing, with their numbers of rows.
        numbers: the numeric ones among them.
        joined: see `_joined`.
    """
    kind, categories = declared.kind, declared.categories
    all_numbers = len(numbers) == len(words)
    distinct = {joined.get(word, word) for word in words}
    different = len(set(numbers.values())) if all_numbers else len(distinct)
    if kind is None:
        mostly_numbers = all_numbers or 2 * sum(words[word] for word in numbers) >= sum(words.values())
        ends = {end for end in (declared.low, declared.high) if end is not None}
        two = different == 2 and (not all_numbers or ends <= set(numbers.values()))
        kind = "binary" if two else "continuous" if mostly_numbers else "categorical"
    if not words:
        return kind, (), "expected labels, got an empty column"
    if kind == "continuous" and not numbers:
        shown = ", ".join(map(repr, list(words)[:3]))[:200]
        return kind, (), f"expected numbers, got words only, such as {shown}; declare `kind: categorical`"
    if kind == "continuous" or categories or (kind == "binary" and different == 2 and all_numbers):
        return kind, categories, ""
    if kind == "binary" and different != 2:
        shown = ", ".join(sorted(words)[:5])[:200]
        return kind, (), f"expected 2 distinct values for a binary variable, got {different} ({shown})"
    if len(distinct) > MAX_CATEGORIES:
        advice = describe_numbers(list(words)) or NO_CATEGORY
        return kind, (), f"expected at most {MAX_CATEGORIES} categories, got {len(distinct)}; {advice}"
    if kind == "binary" and not numbers:
        ordered = sorted(distinct, key=lambda word: (not _NEGATIVE.fullmatch(word.casefold()), word.casefold(), word))
    else:
        ordered = sorted(distinct, key=lambda word: (numbers.get(word, math.inf), word))
    return kind, tuple(ordered), ""


def _hint_mixed(words: Mapping[str, int], numbers: Mapping[str, float], where: str, problems: Problems) -> None:
    """Hints at a column of undeclared kind whose categories are numbers in some rows and other text in others."""
    others = [word for word in words if word not in numbers]
    if not others:
        return
    shown = []
    for group in (list(numbers), others):
        more = " ..." if len(group) > 3 else ""
        shown.append(f"{', '.join(map(repr, group[:3]))[:80]}{more} in {sum(words[word] for word in group)} rows")
    problems.hint(
        f"{where}: mixed: numbers ({shown[0]}) and other text ({shown[1]}) are read as categories; in the graph file, "
        "list marks of missing labels in `missing`, or declare the `kind` of the variable"
    )


def _note_missing(marked: Sequence[str], rows: Mapping[str, int], where: str, problems: Problems) -> None:
    """Notes the words of a column of categories that count as missing labels, since they may be categories."""
    shown = ", ".join(f"{word} ({rows[word]} row{'s' if rows[word] > 1 else ''})" for word in sorted(marked))
    problems.note(f"{where}: read as missing: {shown}; a category of this name must be declared in `categories`")


def _category_lookup(categories: tuple[str, ...]) -> Callable[[str, float | None], float]:
    """The function (word, its number or None) -> index of the category, or NaN.

    A word is a category by its spelling, by its value if all categories are numbers, or by its spelling in another case
    if that is unique.
    """
    indices = category_indices(categories)
    folded: dict[str, list[int]] = defaultdict(list)
    for i, category in enumerate(categories):
        folded[category.casefold()].append(i)

    def find(word: str, number: float | None) -> float:
        other = folded.get(word.casefold(), [])
        return float(indices.get(word, indices.get(number, other[0] if len(other) == 1 else math.nan)))

    return find


def _report(
    table: Table,
    name: str,
    wrong: list[str],
    numbers: Mapping[str, float],
    categories: tuple[str, ...],
    problems: Problems,
) -> None:
    """Reports the cells with the words `wrong`, in the order of the rows."""
    column = _composed(table.cells[name])
    is_wrong = np.array([word in set(wrong) for word in column.words])
    lines = []
    for row in np.nonzero(is_wrong[column.codes])[0].tolist():
        cell = column.words[column.codes[row]]
        expected = f"a {'finite 32-bit ' if cell in numbers else ''}number"
        expected = f"one of {', '.join(categories)[:500]}" if categories else expected
        lines.append(f"{table.at(row)}: {name}: expected {expected}, got {cell!r:.80}")
    problems.add_rows(lines, len(column.codes))
    counts = column.counts()
    for word in wrong[:5]:
        count = int(counts[column.words.index(word)])
        if count > 1 and not categories and word not in numbers:
            problems.hint(
                f"{table.where}: {name}: {word!r:.40} ({count} rows) is no number; if it marks missing labels, add "
                f"`missing: [{word:.40}]` to the graph file"
            )
