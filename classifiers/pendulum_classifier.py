"""Trains the anti-causal predictor of Pendulum: angle, light, shadow length and position, read off one picture.

    python classifiers/pendulum_classifier.py --data_dir DATA --out OUT --image_size 32 --channels 3

Size and channels are those of the models that `scripts/evaluate.py` judges with it; left out, 96 pixels RGBA. Labels
are those that the pictures show, where file names hold truncated ones.
"""

from __future__ import annotations

from causaldiffae.script_util import run_cli
from causaldiffae.training.predictor import run_training


def main(argv: list[str]) -> None:
    print(run_training(argv, __doc__ or "", "pendulum", base_images=0))


if __name__ == "__main__":
    run_cli(main)
