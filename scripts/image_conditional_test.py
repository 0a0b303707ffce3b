"""Counterfactuals of a label-conditional diffusion model (trained with configs/baselines/conditional.yaml).

    python scripts/image_conditional_test.py --model_path RUN --data_dir DATA --out_dir OUT

The interventions, flags and output files are those of image_causaldae_test.py.
The model has no encoder: the factual labels come from the data set.
"""

from image_causaldae_test import INTERVENTIONS

from causaldiffae.evaluation.image_test import run_test
from causaldiffae.script_util import run_cli


def main(argv: list[str]) -> None:
    print(run_test(argv, __doc__ or "", INTERVENTIONS, model_type="conditional"))


if __name__ == "__main__":
    run_cli(main)
