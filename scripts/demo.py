"""Counterfactuals of digits and pendulums beside the truth, in minutes, with the small weights that come with the
repository.

    ./scripts/demo.sh [OUT]

Makes a share of both data sets, opens weights/{dataset}_causaldae_mini (trained by
scripts/train_{dataset}_causaldae.sh with SIZE=mini; the log is beside them), asks one question of each, and compares
the answer with the true counterfactual image. Nothing is trained here. Writes OUT/counterfactuals.png and
OUT/report.json, and prints a table.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from causaldiffae import dist_util
from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.errors import InputError
from causaldiffae.evaluation import InterventionResult, describe_do, evaluate_interventions, summary
from causaldiffae.generators import morphomnist, pendulum
from causaldiffae.image_datasets import ImageData, read_split
from causaldiffae.logger import progress_bar
from causaldiffae.pictures import labelled_grid, save_png
from causaldiffae.script_util import LoadedModel, load_model, run_cli

ROOT = Path(__file__).resolve().parent.parent
ROWS = 6


@dataclass(frozen=True)
class Question:
    """What the demo asks of one data set: an intervention on a root, whose descendants must follow."""

    dataset: str
    variable: str
    value: float
    images: int
    steps: str
    w: float


QUESTIONS = (
    Question("morphomnist", "thickness", 4.0, images=96, steps="50", w=1.0),
    Question("pendulum", "angle", 30.0, images=96, steps="50", w=1.0),
)


def make_data(dataset: str, folder: Path, workers: int) -> None:
    """A share of the data set: 256 digits, or the whole grid of pendulums; finished folders are left as they are."""
    if dataset == "morphomnist":
        morphomnist.write_dataset(ROOT / "assets" / "mnist_share", folder, num_train=0, workers=workers)
    else:
        pendulum.write_dataset(folder, workers=workers)


def answer(question: Question, loaded: LoadedModel, data: ImageData, device: torch.device) -> InterventionResult:
    """The question's intervention on every image."""
    engine = CounterfactualEngine(loaded.model, loaded.diffusion(question.steps), loaded.spec, w=question.w)
    with progress_bar(total=len(data), desc=f"counterfactuals of {question.dataset}", unit="image") as bar:
        do = {question.variable: question.value}
        return evaluate_interventions(engine, data, [do], batch_size=32, device=device, on_batch=bar.update)[0]


def report_entry(
    question: Question, result: InterventionResult, loaded: LoadedModel, seconds: float
) -> dict[str, object]:
    """The figures of one data set, means over its images."""
    figures = summary(result, loaded.spec.graph.names)
    return {
        "do_nothing_l1": round(figures["do_nothing_l1"], 3),
        "counterfactual_l1": round(figures["counterfactual_l1"], 3),
        "variable": question.variable,
        "requested": question.value,
        "measured": round(figures[f"measured_{question.variable}"], 3),
        "seconds": round(seconds, 1),
        "counterfactual_l1_interval": round(figures["counterfactual_l1_interval"], 3),
        "images": len(result.factual),
        "reconstruction_l1": round(figures["reconstruction_l1"], 3),
        "mean_error_of_measured_labels": {
            name: round(figures[f"measured_error_{name}"], 3) for name in loaded.spec.graph.names
        },
        "steps_each_way": int(question.steps),
        "weights": f"weights/{question.dataset}_causaldae_mini, evaluated only",
    }


def draw(results: list[tuple[Question, InterventionResult, LoadedModel]]) -> np.ndarray:
    """Both data sets above each other: factual, reconstruction, counterfactual, the truth, and what differs from it."""
    pictures = []
    for question, result, loaded in results:
        assert result.truth is not None and result.true_labels is not None
        rows = slice(0, ROWS)
        difference = np.abs(result.counterfactual.astype(np.int16) - result.truth).astype(np.uint8)
        factual = captions(loaded, result.factual_labels)
        columns = [
            ("factual", result.factual[rows]),
            ("reconstruction", result.reconstruction[rows]),
            (describe_do(result.do), result.counterfactual[rows]),
            ("the truth", result.truth[rows]),
            ("difference", difference[rows]),
        ]
        texts = [factual, [""] * ROWS, captions(loaded, result.measured_labels), captions(loaded, result.true_labels)]
        texts.append([f"L1 {v:.1f}" for v in np.asarray(result.counterfactual_l1)[rows]])
        pictures.append(labelled_grid(columns, cell_captions=texts, title=f"{question.dataset}: what if ...?"))
    width = max(picture.shape[1] for picture in pictures)
    padded = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
    return np.concatenate(padded)


def captions(loaded: LoadedModel, labels: np.ndarray) -> list[str]:
    """One short text per row: the first letters of every variable and its value."""
    names = ["".join(part[:3] for part in name.split("_")) for name in loaded.spec.graph.names]
    texts = []
    for row in labels[:ROWS]:
        parts = [f"{name} {value:.3g}" for name, value in zip(names, row, strict=True)]
        texts.append("\n".join(", ".join(parts[i : i + 2]) for i in range(0, len(parts), 2)))
    return texts


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
    report, results = {}, []
    print("Evaluating the weights in weights/*_causaldae_mini; nothing is trained here.", flush=True)
    for question in QUESTIONS:
        started = time.perf_counter()
        loaded = load_model(str(ROOT / "weights" / f"{question.dataset}_causaldae_mini"), device)
        make_data(question.dataset, out / "data" / question.dataset, args.workers)
        spec, count = loaded.spec, args.images or question.images
        data = read_split(
            question.dataset, out / "data" / question.dataset, "test", spec.image_size, spec.channels, count
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            result = answer(question, loaded, data, device)
        report[question.dataset] = report_entry(question, result, loaded, time.perf_counter() - started)
        results.append((question, result, loaded))
    save_png(out / "counterfactuals.png", draw(results))
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print_table(report)
    print(f"written to {out / 'counterfactuals.png'} and {out / 'report.json'}")


def print_table(report: dict[str, dict[str, object]]) -> None:
    """The report's main figures; L1 is the mean pixel error to the true counterfactual, on 0..255."""
    keys = ("variable", "requested", "measured", "do_nothing_l1", "counterfactual_l1", "seconds")
    print(f"{'':14s}" + "".join(f"{key:>19s}" for key in keys))
    for dataset, row in report.items():
        print(f"{dataset:14s}" + "".join(f"{row[key]!s:>19s}" for key in keys))


if __name__ == "__main__":
    run_cli(main)
