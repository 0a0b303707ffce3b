"""Counterfactuals of a CausalVAE-style model (configs/baselines/causalvae.yaml).

    python scripts/image_causalvae_test.py --model_path RUN --data_dir DATA --out_dir OUT

The interventions, flags and output files are those of image_causaldae_test.py.
The model has no x_T: abduction, steps and guidance have no effect.
"""

from image_causaldae_test import INTERVENTIONS

from causaldiffae.evaluation.image_test import run_test
from causaldiffae.script_util import run_cli


def main(argv: list[str]) -> None:
    print(run_test(argv, __doc__ or "", INTERVENTIONS, model_type="causalvae"))


if __name__ == "__main__":
    run_cli(main)
