"""Trains the anti-causal predictor of CausalCircuit, which reads arm, blue, green and red from an image.

    python classifiers/circuit_classifier.py --data_dir DATA --out weights/circuit_32_predictor --image_size 32

--image_size is that of the models to evaluate with it, by default 128 pixels. There is no generator for the published
images, so the predictor learns from observational images only.
"""

from causaldiffae.script_util import run_cli
from causaldiffae.training.predictor import run_training


def main(argv: list[str]) -> None:
    print(run_training(argv, __doc__ or "", "circuit", base_images=0, repeats=1))


if __name__ == "__main__":
    run_cli(main)
