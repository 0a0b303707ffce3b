"""Counterfactuals of the test images by Diff-SCM: encoding without labels, decoding guided by an anti-causal predictor.

    python scripts/image_diffscm_test.py --model_path RUN --data_dir DATA --out_dir OUT --w 1.5
    python scripts/image_diffscm_test.py ... --do digit=5 --traverse digit      # rows factual, columns do(0) .. do(9)
    python scripts/image_diffscm_test.py ... --predictor_path none              # the implicit predictor
    python scripts/image_diffscm_test.py ... --stop 0.75 --rescale_quantile 0.99 --timestep_respacing 100   # published

--w is the paper's guidance scale s. The noised predictor is read from RUN/predictor or --predictor_path. Flags and
output files are those of image_causaldae_test.py; an independent predictor (--label_predictor) reads the labels of the
counterfactuals where the data set cannot measure them.
"""

from image_causaldae_test import INTERVENTIONS

from causaldiffae.evaluation.image_test import run_test
from causaldiffae.script_util import run_cli

CLASS_INTERVENTIONS = {"mnist": [{"digit": 5.0}], "fashion_mnist": [{"garment": 5.0}]}


def main(argv: list[str]) -> None:
    print(run_test(argv, __doc__ or "", INTERVENTIONS | CLASS_INTERVENTIONS, model_type="diffscm"))


if __name__ == "__main__":
    run_cli(main)
