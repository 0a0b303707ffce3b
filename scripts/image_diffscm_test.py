"""Counterfactuals of the test images by Diff-SCM: x_T encoded without labels, decoded under an anti-causal predictor.

    python scripts/image_diffscm_test.py --model_path RUN --data_dir DATA --out_dir OUT --w 1.5
    python scripts/image_diffscm_test.py ... --do digit=5 --traverse digit      # rows factual, columns do(0) .. do(9)
    python scripts/image_diffscm_test.py ... --predictor_path none              # the implicit predictor
    python scripts/image_diffscm_test.py ... --stop 0.75 --rescale_quantile 0.99 --timestep_respacing 100   # published

--w is the paper's scale s. The noised predictor is found in RUN/predictor, or named by --predictor_path. Flags and
files written are those of image_causaldae_test.py; labels of counterfactuals are read by an independent predictor
(--judge) where the data set cannot measure them.
"""

from __future__ import annotations

from image_causaldae_test import INTERVENTIONS

from causaldiffae.evaluation.image_test import run_test
from causaldiffae.script_util import run_cli

CLASS_INTERVENTIONS = {"mnist": [{"digit": 5.0}], "fashion_mnist": [{"garment": 5.0}]}


def main(argv: list[str]) -> None:
    print(run_test(argv, __doc__ or "", INTERVENTIONS | CLASS_INTERVENTIONS, model_type="diffscm"))


if __name__ == "__main__":
    run_cli(main)
