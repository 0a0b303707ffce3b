"""Trains the anti-causal predictor p(y | x_t) that guides Diff-SCM, on noised images.

    python classifiers/noised_classifier.py --config configs/noised_mini.yaml \
        --score_config configs/mnist_diffscm_mini.yaml --data_dir DATA --out RUN/predictor

Works for any data set: a class (MNIST, Fashion-MNIST, categories of your own folder) is predicted by scores, a
continuous label (MorphoMNIST, Pendulum, CausalCircuit) by a Gaussian. Data set, image size and noise schedule must be
those of the guided score network; --score_config reads them from its configuration. Prints the errors at each noise
level. `scripts/image_diffscm_test.py --model_path RUN` finds the predictor in RUN/predictor.
"""

from causaldiffae.script_util import run_cli
from causaldiffae.training.noised_predictor import run_training


def main(argv: list[str]) -> None:
    print(run_training(argv, __doc__ or ""))


if __name__ == "__main__":
    run_cli(main)
