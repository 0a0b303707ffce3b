"""A small MorphoMNIST and an untrained predictor, for tests of the evaluation."""

from pathlib import Path

import torch
from paths import REPO

from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.generators import morphomnist
from causaldiffae.predictors.predictor import Predictor, save_predictor


def write_digits(root: Path) -> None:
    """Writes 30 training and 6 test digits to `morphomnist`, and the predictor to `predictor`."""
    share = REPO / "assets" / "mnist_share"
    morphomnist.write_dataset(share, root / "morphomnist", num_train=30, num_test=6, workers=1, progress=False)
    torch.manual_seed(0)
    save_predictor(root / "predictor", Predictor(dataset_spec("morphomnist")), {"observational": {"thickness": 0.5}})
