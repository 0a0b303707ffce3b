"""Counterfactuals of the test images under the interventions of the table below.

    python scripts/image_causaldae_test.py --model_path RUN --data_dir DATA --out_dir OUT
    python scripts/image_causaldae_test.py ... --do thickness=4.5 --do thickness=1.5,intensity=220
    python scripts/image_causaldae_test.py ... --sweep_w 0,0.25,0.5,0.75,1 --traverse thickness
    python scripts/image_causaldae_test.py --model_path model035000.pt --recipe reference ...   # as the published code

Edit the table, or give interventions with --do (each --do is one intervention; a comma sets several variables at once).
Writes counterfactuals.png (factual, reconstruction, counterfactual and, where it is known, the true counterfactual),
counterfactuals.csv (requested, predicted, measured and true labels of every image), summary.json and
counterfactuals.npz; with --sweep_w and --traverse also sweep_w.png and traversal_NAME.png with their .csv files.
"""

from causaldiffae.evaluation.image_test import run_test
from causaldiffae.script_util import run_cli

# ------------------------------------------------------------------------------------------------------------------
# The interventions, in the labels' own units. One line is one intervention on one or several variables.
INTERVENTIONS: dict[str, list[dict[str, float]]] = {
    "morphomnist": [
        {"thickness": 4.0},  # a root: intensity follows
        {"thickness": 1.5},
        {"intensity": 90.0},  # an effect: thickness stays
        {"thickness": 4.0, "intensity": 120.0},  # both at once
    ],
    "pendulum": [
        {"angle": 30.0},  # a root: both shadow variables follow, the light stays
        {"light": 80.0},
        {"shadow_length": 6.0},  # an effect: nothing else moves
        {"angle": -20.0, "light": 130.0},
    ],
    "circuit": [
        {"arm": 0.5},  # a root, to the green button: the lights follow
        {"arm": 0.83},  # to the blue button
        {"green": 0.9},  # red follows; blue and the arm stay
        {"red": 0.1},  # an effect: nothing else moves
    ],
}
# ------------------------------------------------------------------------------------------------------------------


def main(argv: list[str]) -> None:
    print(run_test(argv, __doc__ or "", INTERVENTIONS, model_type="causaldae"))


if __name__ == "__main__":
    run_cli(main)
