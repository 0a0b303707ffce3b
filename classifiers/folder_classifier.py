"""Trains the anti-causal predictor of an image folder, which reads all variables of its graph from an image.

    python classifiers/folder_classifier.py --data_dir my_images --out my_predictor

Continuous variables are regressed, binary and categorical ones classified; an image without some labels is used for the
others. `scripts/evaluate.py --predictor my_predictor` and `--label_predictor my_predictor` of the test scripts measure
counterfactuals with it. --image_size and --channels are those of the models, by default those of the graph file.
"""

from causaldiffae.script_util import run_cli
from causaldiffae.training.predictor import run_training


def main(argv: list[str]) -> None:
    print(run_training(argv, __doc__ or "", "folder", base_images=0))


if __name__ == "__main__":
    run_cli(main)
