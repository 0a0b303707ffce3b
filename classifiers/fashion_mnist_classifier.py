"""Trains the predictor that evaluates counterfactuals of Fashion-MNIST: it reads the garment from a clean image.

    python classifiers/fashion_mnist_classifier.py --data_dir DATA --out weights/fashion_mnist_28_predictor

It sees neither noised nor generated images, and is independent of the predictor that guides Diff-SCM
(`noised_classifier.py`). It also holds the VAE of CLD.
"""

from causaldiffae.script_util import run_cli
from causaldiffae.training.predictor import run_training


def main(argv: list[str]) -> None:
    print(run_training(argv, __doc__ or "", "fashion_mnist"))


if __name__ == "__main__":
    run_cli(main)
