"""Counterfactuals of digits and pendulums beside the true ones, in minutes, with the shipped weights.

    ./scripts/demo.sh [OUT]

Makes a share of MorphoMNIST and the Pendulum data set in OUT/data, opens weights/{dataset}_causaldae_mini, applies two
interventions to each, and compares the counterfactuals with the true images. Nothing is trained here;
scripts/train_{dataset}_causaldae.sh with SIZE=mini trained these weights. Prints a table and writes
OUT/counterfactuals.png and OUT/report.json.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from causaldiffae import dist_util
from causaldiffae.datasets.captions import caption_note
from causaldiffae.datasets.registry import read_split
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError, check_local
from causaldiffae.evaluation.grids import draw_grid
from causaldiffae.evaluation.interventions import InterventionResult, evaluate_interventions, summary
from causaldiffae.files.reading import without_nan, write_json
from causaldiffae.generators import morphomnist, pendulum
from causaldiffae.logger import progress_bar
from causaldiffae.script_util import STEPS, load_model, run_cli
from causaldiffae.training.devices import add_device_flag, use_device
from causaldiffae.training.responses import MEASURED
from causaldiffae.visualization.image_grids import save_png

ROOT = Path(__file__).resolve().parent.parent
ROWS = 3
TABLE = ("variable", "requested", "measured", "do_nothing_l1", "counterfactual_l1", "seconds")


@dataclass(frozen=True)
class Demo:
    """What is shown of one data set.

    Attributes:
        interventions: two interventions on roots, whose descendants must follow.
        images: number of test images.
        steps: network evaluations in each direction, with exact DDIM.
    """

    dataset: str
    interventions: tuple[dict[str, float], dict[str, float]]
    images: int = 96
    steps: int = STEPS


DEMOS = (
    Demo("morphomnist", ({"thickness": 2.0}, {"thickness": 3.5})),
    Demo("pendulum", ({"angle": 30.0}, {"light": 80.0})),
)


def figures_of(result: InterventionResult, spec: DatasetSpec) -> dict[str, Any]:
    """Means over the images; pixel errors on 0..255, labels in their own units."""
    figures = {name: round(value, 3) for name, value in summary(result, spec).items()}
    (variable, value), *_ = result.do.items()
    return {
        **{key: figures[key] for key in ("do_nothing_l1", "counterfactual_l1", "counterfactual_l1_interval")},
        "variable": variable,
        "requested": value,
        "measured": figures[f"measured_{variable}"],
        "mean_error_of_measured_labels": {name: figures[f"measured_error_{name}"] for name in spec.graph.names},
    }


def run_demo(demo: Demo, folder: Path, images: int, workers: int) -> tuple[dict[str, Any], np.ndarray]:
    """Makes the data set, applies the interventions, and returns the entry of report.json and the grid."""
    started, device = time.perf_counter(), dist_util.dev()
    loaded = load_model(str(ROOT / "weights" / f"{demo.dataset}_causaldae_mini"), device)
    if demo.dataset == "morphomnist":
        morphomnist.write_dataset(ROOT / "assets" / "mnist_share", folder, num_train=0, workers=workers)
    else:
        pendulum.write_dataset(folder, workers=workers)
    spec = loaded.spec
    data = read_split(demo.dataset, folder, "test", spec.image_size, spec.channels, images or demo.images)
    engine = loaded.engine(demo.steps)
    with progress_bar(total=len(data), desc=f"counterfactuals of {demo.dataset}", unit="image") as bar:
        results = evaluate_interventions(engine, data, demo.interventions, 32, device, bar.update)
    entry = {
        **figures_of(results[0], spec),
        "seconds": round(time.perf_counter() - started, 1),
        "images": len(data),
        "reconstruction_l1": round(float(results[0].reconstruction_l1.mean()), 3),
        "steps_each_way": demo.steps,
        "weights": f"weights/{demo.dataset}_causaldae_mini, evaluated only",
        "also": figures_of(results[1], spec),
    }
    title = f"{demo.dataset}: {caption_note(MEASURED)}"
    return entry, draw_grid(results, spec, ROWS, title=title)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder to write to; default %(default)s")
    parser.add_argument("--images", type=int, default=0, help="images per data set; default 96")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw the data; default %(default)s")
    add_device_flag(parser)
    args = parser.parse_args(argv)
    check_local(out=args.out)
    use_device(args.device)
    if args.images < 0 or args.workers < 1:
        raise InputError("--images: expected 0 or more, --workers: expected 1 or more")
    args.out.mkdir(parents=True, exist_ok=True)
    print("Evaluating the weights in weights/*_causaldae_mini; nothing is trained here.", flush=True)
    report, grids = {}, []
    for demo in DEMOS:
        report[demo.dataset], grid = run_demo(demo, args.out / "data" / demo.dataset, args.images, args.workers)
        grids.append(grid)
    width = max(grid.shape[1] for grid in grids)
    padded = [np.pad(grid, ((0, 0), (0, width - grid.shape[1]), (0, 0)), constant_values=255) for grid in grids]
    save_png(args.out / "counterfactuals.png", np.concatenate(padded))
    write_json(args.out / "report.json", without_nan(report))
    print("means over the images; L1 (0..255) to the true image, for the factual image and for the counterfactual")
    print(f"{'':14s}" + "".join(f"{key:>19s}" for key in TABLE))
    for dataset, entry in report.items():
        for name, row in ((dataset, entry), ("  also", entry["also"])):
            print(f"{name:14s}" + "".join(f"{row.get(key, '')!s:>19s}" for key in TABLE))
    print(f"written to {args.out / 'counterfactuals.png'} and {args.out / 'report.json'}")


if __name__ == "__main__":
    run_cli(main)
