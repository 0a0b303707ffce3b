"""The benchmark: scores a model's counterfactuals against the true ones, and against doing nothing.

    python scripts/evaluate.py --model_path RUN --data_dir DATA --out results/NAME.json
    python scripts/evaluate.py --all weights --data_dir DATA --out results --report report.html
    python scripts/evaluate.py --out results --report report.html        # only the page, of the results there are

Every test image is asked one do() for every variable, at a value that follows from the seed and the image. `--all`
takes every checkpoint in a folder, and leaves out with a warning what cannot be scored (no predictor, no data); DATA
may hold several data sets, each in a folder of its name. Run the same command again to go on after an interruption.
Figures and their meaning: causaldiffae/metrics/.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from causaldiffae.errors import InputError
from causaldiffae.evaluation.protocol import ProtocolSettings
from causaldiffae.evaluation.report import write_report
from causaldiffae.evaluation.run import Job, evaluate, find_models, read_results, settings_from
from causaldiffae.evaluation.tables import tables
from causaldiffae.script_util import argument_parser, parse_flat, run_cli


def parse(argv: list[str]) -> dict[str, Any]:
    """The flags' values."""
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--model_path", default="", help="run directory, step folder or model folder")
    parser.add_argument("--all", default="", help="a folder: every checkpoint in it is evaluated")
    parser.add_argument(
        "--data_dir", default="", help="the data set's folder, or one that holds several by their names"
    )
    parser.add_argument("--out", default="", help="the results file, NAME.json; a folder with --all")
    parser.add_argument("--report", default="", help="also write this HTML page, of all results in the folder of --out")
    parser.add_argument("--predictor", default="", help="the judge's folder; by default weights/DATASET_SIZE_predictor")
    parser.add_argument("--inception_weights", default="", help="TorchScript file of the Inception network: true FID")
    parser.add_argument("--workers", type=int, default=1, help="processes; the figures do not depend on it")
    parser.add_class_arguments(ProtocolSettings, nested_key=None, skip={"variables"}, instantiate=False)
    parser.add_argument(
        "--variables", default="", help="variables to intervene on, separated by commas; all by default"
    )
    return vars(parse_flat(parser, argv))


def jobs_of(values: dict[str, Any]) -> list[Job]:
    """One job for each model that is asked for."""
    names = tuple(name.strip() for name in values["variables"].split(",") if name.strip())
    settings = settings_from({**values, "variables": names})
    models = find_models(values["all"]) if values["all"] else [values["model_path"]] if values["model_path"] else []
    if models and not values["data_dir"]:
        raise InputError("data_dir: it is not given; --data_dir must name it")
    if values["workers"] < 1:
        raise InputError(f"workers: {values['workers']} given, 1 or more is needed")
    first = Job(
        "", values["data_dir"], "", settings, values["predictor"], values["inception_weights"], values["workers"]
    )
    jobs = []
    for path in models:
        out = Path(values["out"], f"{Path(path).name}.json") if values["all"] else Path(values["out"])
        jobs.append(replace(first, model_path=path, out=str(out)))
    return jobs


def evaluate_each(jobs: list[Job]) -> list[dict[str, Any]]:
    """The results of all jobs; of several, those that cannot be served are left out with a warning.

    Raises:
        InputError: if none can be served.
    """
    found, refused = [], []
    for job in jobs:
        try:
            found.append(evaluate(job))
        except InputError as error:
            refused.append(f"{job.model_path}: {error}")
            if len(jobs) == 1:
                raise
    if not found and refused:
        raise InputError(f"none of {len(jobs)} models can be evaluated; {refused[0]}")
    for reason in refused:
        warnings.warn(f"left out: {reason}", stacklevel=1)
    return found


def main(argv: list[str]) -> None:
    values = parse(argv)
    if not values["out"]:
        raise InputError("out: it is not given; --out must name it")
    if values["all"] and values["model_path"]:
        raise InputError("model_path, all: both are given, one of them is needed")
    jobs = jobs_of(values)
    folder = Path(values["out"]) if values["all"] or not jobs else Path(values["out"]).parent
    if jobs and not values["all"] and not values["out"].endswith(".json"):
        raise InputError(f"out: {values['out']} given, a file NAME.json is needed")
    if not jobs and not values["report"]:
        raise InputError("model_path: it is not given; --model_path or --all must name it, or --report the page")
    folder.mkdir(parents=True, exist_ok=True)
    files = evaluate_each(jobs)
    if files:
        print(tables(files))
    if values["report"]:
        paths = sorted(folder.glob("*.json"))
        if not paths:
            raise InputError(f"report: {folder} holds no results")
        print(f"written to {write_report(values['report'], [(path, read_results(path)) for path in paths])}")


if __name__ == "__main__":
    run_cli(main)
