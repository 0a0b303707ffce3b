"""Trains the anti-causal predictor of CausalCircuit: arm, blue, green and red, read off one picture.

    python classifiers/circuit_classifier.py --data_dir DATA --out weights/circuit_32_predictor --image_size 32

Size is that of the models that `scripts/evaluate.py` judges with it; left out, 128 pixels. Of the published pictures
no generator is known, so they give observational images only.
"""

from __future__ import annotations

from causaldiffae.script_util import run_cli
from causaldiffae.training.predictor import run_training


def main(argv: list[str]) -> None:
    print(run_training(argv, __doc__ or "", "circuit", base_images=0, repeats=1))


if __name__ == "__main__":
    run_cli(main)
