"""A folder of images with `labels.csv` and a graph is a data set too.

    my_images/labels.csv        file,age,hat          (label_table.py)
    my_images/graph.yaml        edges: [[age, hat]]   (folder_description.py, graph_files.py)
    my_images/photos/1.jpg ...                        (image_files.py, image_cache.py)

Its spec is worked out once, from the training split, and travels in the checkpoint like every other: the graph, shift
and scale (mean and standard deviation of the labels), their range, the categories, how images are resized and how the
images were split. With that spec a folder is read again without its graph file, so the data that a model is tested on
are read as those it was trained on.

Any data set can be laid out like this. Under a built-in data set's spec, the images and labels are bit for bit those
that its own form gives.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from causaldiffae.datasets.folder.label_table import SPLITS
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.datasets.folder.reader import TABLE, Request, open_image_folder, open_with_spec, read_images
from causaldiffae.datasets.images import ImageData, evenly_spread
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.storage import is_remote, open_folder


def is_image_folder(data_dir: str | Path) -> bool:
    """Whether a data set is laid out as described here."""
    return open_folder(data_dir).has(TABLE) if is_remote(data_dir) else Path(data_dir, TABLE).is_file()


def folder_spec(
    data_dir: str | Path,
    graph_path: str | Path | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    seed: int | None = None,
) -> DatasetSpec:
    """What a model has to know about a folder of images.

    Args:
        data_dir: the folder; a local path or an address like gs://bucket/set.
        graph_path: the graph's file; left out, `graph.yaml` (.yml, .json, .gml, .dot) in the folder.
        image_size, channels, seed: in place of what the graph's file says (image_size, channels, split_seed).

    Raises:
        DataError: naming the first thing that is wrong with the graph or the table, and how many more there are.
        InputError: for a size or a number of channels that cannot be.
    """
    problems = Problems()
    opened = open_image_folder(data_dir, problems, Request(graph_path, image_size, channels, seed))
    problems.refuse()
    assert opened.content is not None and opened.content.spec is not None
    return opened.content.spec


def read_image_folder(
    data_dir: str | Path,
    graph_path: str | Path | None = None,
    split: str = "train",
    image_size: int | None = None,
    channels: int | None = None,
    limit: int | None = None,
    seed: int | None = None,
    spec: DatasetSpec | None = None,
) -> ImageData:
    """Reads one split; its images are mapped from the cache, which the first call makes.

    Args:
        data_dir, graph_path, image_size, channels, seed: as for `folder_spec`.
        split: "train", "val" or "test".
        limit: take so many images only, evenly spread over the table's rows.
        spec: that of a model: the graph's file is not read, columns that the spec does not know are passed over, and
            the arguments beside it must be left out.

    Returns:
        The images with their labels; `labels` is NaN where there is none and `labelled` False where one is missing.

    Raises:
        DataError: naming the first thing that is wrong with the folder, and how many more there are.
        InputError: for a request that cannot be served.
    """
    if split not in SPLITS:
        raise InputError(f"split: {split!r} given, allowed are {', '.join(SPLITS)}")
    problems = Problems()
    if spec is None:
        folder, content = open_image_folder(data_dir, problems, Request(graph_path, image_size, channels, seed))
    elif (graph_path, image_size, channels, seed) == (None, None, None, None):
        folder, content = open_with_spec(data_dir, problems, spec)
    else:
        raise InputError("spec: it is given, so graph, image_size, channels and seed must not be")
    problems.refuse()
    assert content is not None and content.spec is not None and content.labels is not None
    rows = content.rows(split)
    if not len(rows):
        raise DataError(f"{content.table.where}: no image is in split {split}")
    if limit is not None and limit < len(rows):  # the first ones might all have one label
        rows = rows[evenly_spread(limit, len(rows))]
    images = read_images(folder, content, rows, split if limit is None else f"{split}_{limit}", problems)
    problems.refuse()
    labels = content.labels[rows]
    labelled = ~np.isnan(labels).any(1)
    return ImageData(
        spec=content.spec,
        split=split,
        images=images,
        labels=labels,
        classes=None,
        ids=[content.table.files[row] for row in rows],
        labelled=None if labelled.all() else labelled,
    )
