"""True counterfactuals in an image folder, from `counterfactuals.csv`.

    file,do,true_file[,age,hat]
    im/7.png,age=60,true/7_age60.png
    im/7.png,"age=60,hat=straw",true/7_both.png

Each row names an image of the table, an intervention as `--do` takes it, and the image that the intervention really
gives. True labels are those in columns with the names of variables, or those of the true image if it is in the label
table; otherwise only the variables that are set and their non-descendants are known.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from causaldiffae.datasets.do_text import parse_do
from causaldiffae.datasets.folder.content import Content
from causaldiffae.datasets.folder.file_names import find_files
from causaldiffae.datasets.folder.image_cache import cached_images
from causaldiffae.datasets.folder.label_columns import read_with_spec
from causaldiffae.datasets.folder.label_table import MAX_TABLE_BYTES, Table, parse_table
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.datasets.images import TruePairs
from causaldiffae.datasets.spec import CheckedDo, DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.files.storage import FileStamp, Folder

PAIRS: Final = "counterfactuals.csv"


def read_true_pairs(
    folder: Folder, content: Content, rows: np.ndarray, label: str, problems: Problems
) -> TruePairs | None:
    """Reads the true counterfactuals of the images in `rows`; None if there are none. Problems are reported.

    Args:
        rows: rows of the label table; `TruePairs.rows` refers to this selection.
        label: see `cached_images`.
    """
    if not folder.has(PAIRS):
        return None
    assert content.spec is not None and content.labels is not None
    where, spec = f"{folder.where}/{PAIRS}", content.spec
    with problems.collect():
        table = parse_table(folder.read(PAIRS, MAX_TABLE_BYTES), where, problems, unique=False)
        missing = [name for name in ("do", "true_file") if name not in table.cells]
        if missing:
            problems.add(f"{where}: expected the columns file, do and true_file, got no {' and no '.join(missing)}")
            return None
        place = {content.table.files[row]: i for i, row in enumerate(rows)}
        _check_files(table, content.table, problems)
        chosen = [i for i, file in enumerate(table.files) if file in place]
        if not chosen:
            return None
        dos = _interventions(table, chosen, spec, problems)
        of = np.array([place[table.files[i]] for i in chosen], np.int64)
        true_files = [table.cells["true_file"].cells()[i].replace("\\", "/") for i in chosen]
        labels = _true_labels(table, chosen, true_files, of, dos, rows, content, problems)
        found = find_files(folder, true_files)
        for i, stamp in zip(chosen, found.stamps, strict=True):
            if not isinstance(stamp, FileStamp):
                problems.add(f"{table.at(i)}: true_file: {table.cells['true_file'].cells()[i]}: {stamp}")
        stamps = [stamp for stamp in found.stamps if isinstance(stamp, FileStamp)]
        if problems.count or len(stamps) != len(chosen):
            return None
        images = cached_images(folder, found.names, stamps, content.rule, f"true_{label}", problems)
        return TruePairs(of, dos, images, labels)
    return None


def _check_files(table: Table, labels: Table, problems: Problems) -> None:
    known = set(labels.files)
    lines = [
        f"{table.at(i)}: file: expected an image of {labels.where}, got {file!r:.200}"
        for i, file in enumerate(table.files)
        if file and file not in known
    ]
    problems.add_rows(lines, len(table.files), "use the paths of that table")


def _interventions(table: Table, chosen: list[int], spec: DatasetSpec, problems: Problems) -> list[CheckedDo]:
    texts, dos = table.cells["do"].cells(), []
    for i in chosen:
        try:
            text = texts[i]
            inner = text[3:-1] if text.startswith("do(") and text.endswith(")") else text
            dos.append(parse_do(inner, spec, warn=False))
        except InputError as error:
            problems.add(f"{table.at(i)}: {error}")
            dos.append(CheckedDo())
    return dos


def _true_labels(
    table: Table,
    chosen: list[int],
    true_files: list[str],
    of: np.ndarray,
    dos: list[CheckedDo],
    rows: np.ndarray,
    content: Content,
    problems: Problems,
) -> np.ndarray:
    """True labels (P, n) of the pairs, see the module docstring."""
    assert content.spec is not None and content.labels is not None
    spec, graph = content.spec, content.spec.graph
    listed = {file: row for row, file in enumerate(content.table.files)}
    given = np.full((len(chosen), len(graph)), np.nan, np.float32)
    for j, name in enumerate(graph.names):
        if name in table.cells:
            given[:, j] = read_with_spec(table, name, spec, problems)[chosen]
    for pair, (file, row, do) in enumerate(zip(true_files, of, dos, strict=True)):
        known = content.labels[listed[file]] if file in listed else content.labels[rows[row]].copy()
        if file not in listed:
            for name in graph.descendants(*do):
                known[graph.index(name)] = np.nan
            for name, value in do.items():
                known[graph.index(name)] = value
        given[pair] = np.where(np.isnan(given[pair]), known, given[pair])
    return given
