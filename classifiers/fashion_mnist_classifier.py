"""Trains the judge of Fashion-MNIST's counterfactuals: the garment, read off one clean picture.

    python classifiers/fashion_mnist_classifier.py --data_dir DATA --out weights/fashion_mnist_28_predictor

It never sees a noised picture nor a generated one, and is independent of the predictor that guides Diff-SCM
(`noised_classifier.py`). It carries the VAE of CLD.
"""

from __future__ import annotations

from causaldiffae.script_util import run_cli
from causaldiffae.training.predictor import run_training


def main(argv: list[str]) -> None:
    print(run_training(argv, __doc__ or "", "fashion_mnist"))


if __name__ == "__main__":
    run_cli(main)
