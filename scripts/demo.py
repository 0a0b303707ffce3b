"""Counterfactuals of digits and pendulums beside the truth, in minutes, with the small weights that come with the
repository.

    ./scripts/demo.sh [OUT]

Makes a share of both data sets, opens weights/{dataset}_causaldae_mini (trained by
scripts/train_{dataset}_causaldae.sh with SIZE=mini; the log is beside them), asks one question of each, and compares
the answer with the true counterfactual images. Nothing is trained here. Writes OUT/counterfactuals.png and
OUT/report.json, and prints a table.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from causaldiffae import dist_util
from causaldiffae.datasets.images import ImageData
from causaldiffae.datasets.registry import read_split
from causaldiffae.errors import InputError
from causaldiffae.evaluation.interventions import InterventionResult, draw_grid, evaluate_interventions, summary
from causaldiffae.generators import morphomnist, pendulum
from causaldiffae.logger import progress_bar
from causaldiffae.script_util import LoadedModel, load_model, run_cli
from causaldiffae.visualization.image_grids import save_png

ROOT = Path(__file__).resolve().parent.parent
ROWS = 6
CAPTION = "numbers: labels; under counterfactuals as measured on the picture"


@dataclass(frozen=True)
class Question:
    """What the demo asks of one data set.

    Attributes:
        variable, value: an intervention on a root, whose descendants must follow; the report's main figures are of it.
        also: a second intervention, shown and reported beside it.
        images: how many test images; steps: evaluations of the network each way, by DPM-Solver++(2M).
    """

    dataset: str
    variable: str
    value: float
    also: dict[str, float]
    images: int = 96
    steps: int = 25


QUESTIONS = (
    Question("morphomnist", "thickness", 2.0, also={"thickness": 3.5}),
    Question("pendulum", "angle", 30.0, also={"light": 80.0}),
)


def make_data(dataset: str, folder: Path, workers: int) -> None:
    """A share of the data set: 256 digits, or the whole grid of pendulums; finished folders are left as they are."""
    if dataset == "morphomnist":
        morphomnist.write_dataset(ROOT / "assets" / "mnist_share", folder, num_train=0, workers=workers)
    else:
        pendulum.write_dataset(folder, workers=workers)


def answer(question: Question, loaded: LoadedModel, data: ImageData, device: torch.device) -> list[InterventionResult]:
    """The question's two interventions on every image, which is abducted once for both."""
    engine = loaded.engine(question.steps)
    with progress_bar(total=len(data), desc=f"counterfactuals of {question.dataset}", unit="image") as bar:
        interventions = [{question.variable: question.value}, question.also]
        return evaluate_interventions(engine, data, interventions, batch_size=32, device=device, on_batch=bar.update)


def figures_of(result: InterventionResult, loaded: LoadedModel) -> dict[str, Any]:
    """The figures of one intervention, means over its images; pixel errors on 0..255, labels in their own units."""
    figures = summary(result, loaded.spec)
    (variable, value), *_ = result.do.items()
    return {
        "do_nothing_l1": round(figures["do_nothing_l1"], 3),
        "counterfactual_l1": round(figures["counterfactual_l1"], 3),
        "counterfactual_l1_interval": round(figures["counterfactual_l1_interval"], 3),
        "variable": variable,
        "requested": value,
        "measured": round(figures[f"measured_{variable}"], 3),
        "mean_error_of_measured_labels": {
            name: round(figures[f"measured_error_{name}"], 3) for name in loaded.spec.graph.names
        },
    }


def report_entry(
    question: Question, results: list[InterventionResult], loaded: LoadedModel, seconds: float
) -> dict[str, Any]:
    """What report.json says of one data set."""
    return {
        **figures_of(results[0], loaded),
        "seconds": round(seconds, 1),
        "images": len(results[0].factual),
        "reconstruction_l1": round(float(results[0].reconstruction_l1.mean()), 3),
        "steps_each_way": question.steps,
        "weights": f"weights/{question.dataset}_causaldae_mini, evaluated only",
        "also": figures_of(results[1], loaded),
    }


def draw(answers: list[tuple[Question, list[InterventionResult], LoadedModel]]) -> np.ndarray:
    """Both data sets above each other: factual, reconstruction, then each counterfactual beside the truth."""
    pictures = [
        draw_grid(results, loaded.spec, ROWS, title=f"{question.dataset}: what if ...? ({CAPTION})")
        for question, results, loaded in answers
    ]
    width = max(picture.shape[1] for picture in pictures)
    padded = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
    return np.concatenate(padded)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder to write to; default %(default)s")
    parser.add_argument("--images", type=int, default=0, help="images per data set; default 96")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw the data; default %(default)s")
    args = parser.parse_args(argv)
    if args.images < 0 or args.workers < 1:
        raise InputError("--images must be 0 or more, --workers 1 or more")
    device, out = dist_util.dev(), args.out
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, dict[str, Any]] = {}
    answers = []
    print("Evaluating the weights in weights/*_causaldae_mini; nothing is trained here.", flush=True)
    for question in QUESTIONS:
        started = time.perf_counter()
        loaded = load_model(str(ROOT / "weights" / f"{question.dataset}_causaldae_mini"), device)
        make_data(question.dataset, out / "data" / question.dataset, args.workers)
        spec, count = loaded.spec, args.images or question.images
        data = read_split(
            question.dataset, out / "data" / question.dataset, "test", spec.image_size, spec.channels, count
        )
        results = answer(question, loaded, data, device)
        report[question.dataset] = report_entry(question, results, loaded, time.perf_counter() - started)
        answers.append((question, results, loaded))
    save_png(out / "counterfactuals.png", draw(answers))
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print_table(report)
    print(f"written to {out / 'counterfactuals.png'} and {out / 'report.json'}")


def print_table(report: dict[str, dict[str, Any]]) -> None:
    """The report's main figures; L1 is the mean pixel error to the true counterfactual, on 0..255."""
    keys = ("variable", "requested", "measured", "do_nothing_l1", "counterfactual_l1", "seconds")
    print(f"{'':14s}" + "".join(f"{key:>19s}" for key in keys))
    for dataset, entry in report.items():
        for name, row in ((dataset, entry), ("  also", entry["also"])):
            print(f"{name:14s}" + "".join(f"{row.get(key, '')!s:>19s}" for key in keys))


if __name__ == "__main__":
    run_cli(main)
