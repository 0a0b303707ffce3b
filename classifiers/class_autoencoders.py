"""Trains the autoencoders of the metrics IM1 and IM2: one for each class, and one for all classes.

    python classifiers/class_autoencoders.py --dataset mnist --data_dir DATA --out weights/mnist_28_autoencoders

Layers, epochs and optimizer follow the report cited in causaldiffae/metrics/interpretability.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from causaldiffae import dist_util
from causaldiffae.config import DEVICE_HELP, flag, with_help
from causaldiffae.datasets.registry import read_split
from causaldiffae.errors import check_given, check_least, check_local
from causaldiffae.logger import progress_bar
from causaldiffae.metrics import interpretability
from causaldiffae.predictors.common import check_output
from causaldiffae.script_util import parse_flags, run_cli
from causaldiffae.training.devices import use_device


@with_help
@dataclass(frozen=True)
class AutoencoderTraining:
    """Options of the training run."""

    dataset: str = flag("mnist", "name of a data set with classes")
    data_dir: str = flag("", "folder of the data set")
    out: str = flag("", "output model folder")
    num_images: int = flag(0, "training images; 0 for all")
    class_epochs: int = flag(interpretability.CLASS_EPOCHS, "epochs of the autoencoder of each class")
    all_epochs: int = flag(interpretability.ALL_EPOCHS, "epochs of the autoencoder of all classes")
    device: str = flag("auto", DEVICE_HELP)
    seed: int = flag(0, "random seed")

    def __post_init__(self) -> None:
        check_given(self, "data_dir", "out")
        check_local(out=self.out)
        check_least(self, num_images=0, class_epochs=1, all_epochs=1, seed=0)


def main(argv: list[str]) -> None:
    config = parse_flags(AutoencoderTraining, argv, __doc__ or "")
    check_output(config.out, interpretability.MODEL_TYPE)
    use_device(config.device)
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
