"""Counterfactuals of a diffusion autoencoder without a graph (configs/baselines/diffae.yaml, diffae_aligned.yaml).

    python scripts/image_diffae_test.py --model_path RUN --data_dir DATA --out_dir OUT

The interventions, flags and output files are those of image_causaldae_test.py.
The model has no graph: an intervention changes its own variable only.
"""

from image_causaldae_test import INTERVENTIONS

from causaldiffae.evaluation.image_test import run_test
from causaldiffae.script_util import run_cli


def main(argv: list[str]) -> None:
    print(run_test(argv, __doc__ or "", INTERVENTIONS, model_type="diffae"))


if __name__ == "__main__":
    run_cli(main)
