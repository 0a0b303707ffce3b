"""MNIST and Fashion-MNIST as a causal model of two variables, class -> image, as in Diff-SCM.

Both consist of four IDX files, `{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]`. The class is a categorical root
variable. True counterfactual images are unknown.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Final

import numpy as np

from causaldiffae.datasets.dataset import Dataset, PredictorDefaults, asset, register
from causaldiffae.datasets.images import ImageData, resize_area
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError
from causaldiffae.files.idx import SPLIT_FILES, find_file, read_digits
from causaldiffae.generators.common import complete_folder, is_finished
from causaldiffae.graphs import CausalGraph

_TORCHVISION_FOLDERS: Final = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
FILES: Final = tuple(
    f"{split}-{kind}-ubyte" for split in SPLIT_FILES.values() for kind in ("images-idx3", "labels-idx1")
)


def _spec(name: str, variable: str, *categories: str) -> DatasetSpec:
    """The spec of a data set with one variable; the normalised label is the class index."""
    return DatasetSpec(
        name=name,
        image_size=28,
        channels=1,
        graph=CausalGraph((variable,)),
        shift=(0.0,),
        scale=(1.0,),
        low=(0.0,),
        high=(len(categories) - 1.0,),
        units=("",),
        kinds=("categorical",),
        categories=(categories,),
    )


def read_classes(spec: DatasetSpec, data_dir: Path, split: str, limit: int | None) -> ImageData:
    """Reads the first `limit` images of one split; raises `DataError` for a missing or damaged file."""
    images, classes = read_digits(data_dir, SPLIT_FILES[split])
    if not len(images):
        raise DataError(f"{data_dir}: {SPLIT_FILES[split]}-images-idx3-ubyte: expected at least one image, got none")
    resized = resize_area(images[:limit, None], spec.image_size)
    ids = [str(i) for i in range(len(resized))]
    return ImageData(spec, split, resized, classes[:limit, None].astype(np.float32), None, ids)


def copy_files(name: str, source: str | Path, out: str | Path) -> Path:
    """Checks the four IDX files of a folder and copies them to the new folder `out`.

    Args:
        name: name of the data set.
        source: the folder of the files, or the torchvision root that contains `MNIST/raw` or `FashionMNIST/raw`.

    Raises:
        InputError: if `out` has other content.
        DataError: if a file is missing or damaged.
    """
    source, out = Path(source), Path(out)
    nested = source / _TORCHVISION_FOLDERS[name] / "raw"
    source = nested if nested.is_dir() else source
    digests = {}
    for split in SPLIT_FILES.values():
        images, classes = read_digits(source, split)
        digests[split] = hashlib.sha256(images.tobytes() + classes.tobytes()).hexdigest()
    recipe = {"dataset": name, "version": 1, "sources": digests}
    if is_finished(out, recipe):
        return out
    with complete_folder(out, recipe) as folder:
        for file in FILES:
            path = find_file(source, file)
            shutil.copyfile(path, folder / path.name)
    return out


def one_of_each_class(digits: np.ndarray, count: int) -> np.ndarray:
    """Indices of the first image of every class, then of the second ones, and so on."""
    rank = np.array([np.count_nonzero(digits[:i] == digit) for i, digit in enumerate(digits)])
    return np.lexsort((digits, rank))[:count]


def _examples(spec: DatasetSpec, count: int) -> ImageData:
    data = read_classes(spec, asset("mnist_share"), "test", None)
    return data.subset(one_of_each_class(data.labels[:, 0], count))


register(
    Dataset(
        name="mnist",
        spec=_spec("mnist", "digit", *"0123456789"),
        read=read_classes,
        source="MNIST (CC BY-SA 3.0).",
        examples=_examples,
        predictor=PredictorDefaults(shift=2),
        light_on_dark=True,
    )
)
_GARMENTS = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
register(
    Dataset(
        name="fashion_mnist",
        spec=_spec("fashion_mnist", "garment", *_GARMENTS),
        read=read_classes,
        source="Fashion-MNIST (MIT licence, Zalando SE).",
        predictor=PredictorDefaults(shift=1),
    )
)
