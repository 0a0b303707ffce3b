"""Trains the anti-causal predictor of Pendulum, which reads angle, light and the shadow's length and position.

    python classifiers/pendulum_classifier.py --data_dir DATA --out OUT --image_size 32 --channels 3

--image_size and --channels are those of the models to evaluate with it, by default 96 pixels RGBA.
"""

from causaldiffae.script_util import run_cli
from causaldiffae.training.predictor import run_training


def main(argv: list[str]) -> None:
    print(run_training(argv, __doc__ or "", "pendulum", base_images=0))


if __name__ == "__main__":
    run_cli(main)
