"""MNIST and Fashion-MNIST as a causal model of two variables: class -> image, Diff-SCM's own data.

Both come as IDX files of the same names, `{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]`, which are read as they
are. The class is a categorical variable without causes, so that `do(digit=5)` asks what an image would have been,
had its digit been another one. Nobody knows the true counterfactual image.
"""

from __future__ import annotations

import hashlib
import shutil
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from causaldiffae.datasets.dataset import Dataset, PredictorDefaults, asset, register
from causaldiffae.datasets.images import ImageData, resize_area
from causaldiffae.datasets.spec import DatasetSpec, check_size
from causaldiffae.errors import DataError
from causaldiffae.files.idx import SPLIT_FILES, find_file, read_digits
from causaldiffae.generators.common import complete_folder, is_finished
from causaldiffae.graphs import CausalGraph

CLASSES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "mnist": ("digit", tuple("0123456789")),
    "fashion_mnist": (
        "garment",
        ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"),
    ),
}
"""By data set: the variable's name and its categories' names, in the files' order."""
FILES: Final = tuple(
    f"{split}-{kind}-ubyte" for split in SPLIT_FILES.values() for kind in ("images-idx3", "labels-idx1")
)


def class_spec(name: str, image_size: int | None, channels: int | None) -> DatasetSpec:
    """The spec of a data set of `CLASSES`; the normalised label is the class's number."""
    variable, categories = CLASSES[name]
    image_size, channels = image_size or 28, channels or 1
    check_size(name, image_size, channels, (1,))
    return DatasetSpec(
        name=name,
        image_size=image_size,
        channels=channels,
        graph=CausalGraph((variable,), ()),
        shift=(0.0,),
        scale=(1.0,),
        low=(0.0,),
        high=(float(len(categories) - 1),),
        units=("",),
        kinds=("categorical",),
        categories=(categories,),
    )


def read_classes(spec: DatasetSpec, data_dir: Path, split: str, limit: int | None) -> ImageData:
    """One split, the first `limit` images of it; `DataError` for a missing or damaged file."""
    images, classes = read_digits(data_dir, SPLIT_FILES[split])
    if not len(images):
        raise DataError(f"{data_dir}: {SPLIT_FILES[split]}-images-idx3-ubyte has no images")
    return ImageData(
        spec=spec,
        split=split,
        images=resize_area(images[:limit, None], spec.image_size),
        labels=classes[:limit, None].astype(np.float32),
        classes=None,
        ids=[str(i) for i in range(len(images[:limit]))],
    )


def copy_files(name: str, source: str | Path, out: str | Path) -> Path:
    """Copies the four IDX files of a folder, checked, into the folder `out`, which appears when complete.

    Args:
        name: of the data set.
        source: the folder with the files, or torchvision's folder around `MNIST/raw` or `FashionMNIST/raw`.

    Raises:
        InputError: if `out` holds anything else; as `DataError` if a file is missing or damaged.
    """
    source, out = Path(source), Path(out)
    source = next((folder for folder in sorted(source.glob("*/raw")) if folder.is_dir()), source)
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
    """Places of the first digit of every class, then of the second ones, and so on."""
    rank = np.array([np.count_nonzero(digits[:i] == digit) for i, digit in enumerate(digits)])
    return np.lexsort((digits, rank))[:count]


def _examples(spec: DatasetSpec, count: int) -> ImageData:
    """Digits of the share of MNIST in `assets/`."""
    data = read_classes(spec, asset("mnist_share"), "test", None)
    return data.subset(one_of_each_class(data.labels[:, 0], count))


MNIST: Final = register(
    Dataset(
        name="mnist",
        spec=partial(class_spec, "mnist"),
        read=read_classes,
        source="MNIST (CC BY-SA 3.0).",
        examples=_examples,
        predictor=PredictorDefaults(shift=2),
        light_on_dark=True,
    )
)
FASHION_MNIST: Final = register(
    Dataset(
        name="fashion_mnist",
        spec=partial(class_spec, "fashion_mnist"),
        read=read_classes,
        source="Fashion-MNIST (MIT licence, Zalando SE).",
        predictor=PredictorDefaults(shift=1),
    )
)
