"""Trains the anti-causal predictor of MorphoMNIST, which reads thickness, intensity and the digit from an image.

    python classifiers/morphomnist_classifier.py --data_dir DATA --out weights/morphomnist_28_predictor

`scripts/evaluate.py` reads counterfactual images with it. Prints the errors on true images, those of the data set
(observational) and those with independently drawn labels (interventional).
"""

from causaldiffae.script_util import run_cli
from causaldiffae.training.predictor import run_training


def main(argv: list[str]) -> None:
    print(run_training(argv, __doc__ or "", "morphomnist"))


if __name__ == "__main__":
    run_cli(main)
