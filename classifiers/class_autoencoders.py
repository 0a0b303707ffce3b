"""Trains the autoencoders of the metrics IM1 and IM2: one for each class, and one for all classes.

    python classifiers/class_autoencoders.py --dataset mnist --data_dir DATA --out weights/mnist_28_autoencoders

Layers, epochs and optimizer follow the report cited in causaldiffae/metrics/interpretability.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from causaldiffae import dist_util
from causaldiffae.datasets.registry import read_split
from causaldiffae.errors import check_given, check_least
from causaldiffae.logger import progress_bar
from causaldiffae.metrics import interpretability
from causaldiffae.script_util import parse_flags, run_cli


@dataclass(frozen=True)
class AutoencoderTraining:
    """A training run.

    Attributes:
        dataset, data_dir: a data set of classes, and its folder.
        out: model folder to write.
        num_images: number of training images; 0 uses all.
        class_epochs, all_epochs: passes over the images.
        seed: random seed.
    """

    dataset: str = "mnist"
    data_dir: str = ""
    out: str = ""
    num_images: int = 0
    class_epochs: int = interpretability.CLASS_EPOCHS
    all_epochs: int = interpretability.ALL_EPOCHS
    seed: int = 0

    def __post_init__(self) -> None:
        check_given(self, "data_dir", "out")
        check_least(self, num_images=0, class_epochs=1, all_epochs=1, seed=0)


def main(argv: list[str]) -> None:
    config = parse_flags(AutoencoderTraining, argv, __doc__ or "")
    train = read_split(config.dataset, config.data_dir, "train", limit=config.num_images or None)
    interpretability.ClassAutoencoders(train.spec)  # refuses a data set without classes at once
    epochs = (config.class_epochs, config.all_epochs)
    with progress_bar(total=interpretability.steps_to_train(train, *epochs), desc="autoencoders", unit="step") as bar:
        networks, figures = interpretability.train_class_autoencoders(
            train, *epochs, config.seed, bar.update, dist_util.dev()
        )
    folder = interpretability.save_autoencoders(config.out, networks, figures)
    losses = ", ".join(f"{loss:.5f}" for loss in figures["class_losses"])
    print(f"mean squared error by class: {losses}; all classes: {figures['all_loss']:.5f}\n\nwritten to {folder}")


if __name__ == "__main__":
    run_cli(main)
