"""Evaluation: scores a model's counterfactuals against the true ones, and against doing nothing.

    python scripts/evaluate.py --model_path RUN --data_dir DATA --out results/NAME.json
    python scripts/evaluate.py --all weights --data_dir DATA --out results --report report.html
    python scripts/evaluate.py --out results --report report.html        # only the report, of existing results

Every test image gets one intervention on each variable, at a value determined by the seed and the image. `--all`
evaluates every checkpoint in a folder, and skips with a warning those that lack a predictor or data; DATA may hold
several data sets, each in a folder of its name. Run the same command again to resume an interrupted evaluation.
The figures are defined in causaldiffae/metrics/. `--protocol melistas` measures what other counterfactual models report
on MorphoMNIST (causaldiffae/evaluation/peers.py), with the true factual labels and without them:

    python scripts/evaluate.py --protocol melistas --model_path RUN --data_dir DATA --out results/NAME_melistas.json
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from causaldiffae import dist_util
from causaldiffae.counterfactual import AbductionKind
from causaldiffae.datasets.registry import read_split
from causaldiffae.errors import InputError
from causaldiffae.evaluation import peers
from causaldiffae.evaluation.protocol import ProtocolSettings
from causaldiffae.evaluation.report import write_report
from causaldiffae.evaluation.run import Job, evaluate, find_models, read_results, settings_from
from causaldiffae.evaluation.tables import tables
from causaldiffae.guidance import Guidance
from causaldiffae.logger import progress_bar
from causaldiffae.model import CausalAutoencoder
from causaldiffae.predictors.predictor import open_predictor
from causaldiffae.script_util import argument_parser, load_model, parse_flat, run_cli
from causaldiffae.training.devices import add_device_flag, use_device

STANDARD = "standard"
FLAGS = {
    "model_path": "run directory, step folder or model folder",
    "all": "a folder; every checkpoint in it is evaluated",
    "data_dir": "the data set's folder, or a folder that holds several data sets under their names",
    "out": "the results file, NAME.json; a folder with --all",
    "report": "also write an HTML report of all results in the folder of --out to this file",
    "predictor": "folder of the predictor that reads labels; by default weights/DATASET_SIZE_predictor",
    "inception_weights": "TorchScript file of the Inception network, for the FID",
    "variables": "variables to intervene on, separated by commas; by default all",
}


def parse(argv: list[str]) -> dict[str, Any]:
    """Reads the flags and checks that they fit together."""
    parser = argument_parser(__doc__ or "")
    for name, text in FLAGS.items():
        parser.add_argument(f"--{name}", default="", help=text)
    parser.add_argument(
        "--trust_inception",
        type=bool,
        default=False,
        help="accept any file as --inception_weights, not only NVIDIA's inception-2015-12-05.pt; loading it executes "
        "the code in it",
    )
    add_device_flag(parser)
    parser.add_argument("--protocol", choices=(STANDARD, peers.NAME), default=STANDARD, help="see above")
    parser.add_argument("--workers", type=int, default=1, help="number of processes; does not change the figures")
    parser.add_class_arguments(ProtocolSettings, nested_key=None, skip={"variables"}, instantiate=False)
    values = vars(parse_flat(parser, argv))
    values["variables"] = tuple(name.strip() for name in values["variables"].split(",") if name.strip())
    if not values["out"]:
        raise InputError("out: expected a value, got none; set --out")
    if values["all"] and values["model_path"]:
        raise InputError("model_path, all: expected one of them, got both")
    if not (values["all"] or values["model_path"] or values["report"]):
        raise InputError("model_path: expected a value, got none; set --model_path, --all or --report")
    if (values["all"] or values["model_path"]) and not values["data_dir"]:
        raise InputError("data_dir: expected a value, got none; set --data_dir")
    if values["model_path"] and not values["out"].endswith(".json"):
        raise InputError(f"out: expected a file NAME.json, got {values['out']}")
    if values["protocol"] == peers.NAME and not values["model_path"]:
        raise InputError(f"protocol: expected --model_path with {peers.NAME}, got none")
    if values["workers"] < 1:
        raise InputError(f"workers: expected 1 or more, got {values['workers']}")
    return values


def evaluate_each(jobs: list[Job]) -> list[dict[str, Any]]:
    """Runs all jobs; of several, those that cannot be run are skipped with a warning.

    Raises:
        InputError: if none can be run.
    """
    results, refused = [], []
    for job in jobs:
        try:
            results.append(evaluate(job))
        except InputError as error:
            if len(jobs) == 1:
                raise
            refused.append(f"{job.model_path}: {error}")
    if refused and not results:
        raise InputError(f"none of {len(jobs)} models can be evaluated; {refused[0]}")
    for reason in refused:
        warnings.warn(f"skipped: {reason}", stacklevel=1)
    return results


def evaluate_as_peers(values: dict[str, Any], settings: ProtocolSettings) -> None:
    """Applies the protocol of other models, with and without the true factual labels, and writes its figures."""
    device = dist_util.dev()
    loaded = load_model(values["model_path"], device, settings.ema or None)
    spec = loaded.spec
    data = read_split(spec.name, values["data_dir"], "test", limit=settings.num_images or None, spec=spec)
    predictor = open_predictor(spec, values["predictor"], device)
    found: dict[str, Any] = {}
    for use_labels in (True, False):
        if not (use_labels or isinstance(loaded.model, CausalAutoencoder)):
            continue  # without an encoder, the labels are always given
        engine = loaded.engine(
            settings.steps,
            settings.solver,
            settings.grid,
            abduction=AbductionKind(settings.abduction),
            stop=settings.stop,
            guidance=Guidance(settings.w),
            use_labels=use_labels,
        )
        name = "true labels" if use_labels else "the image"
        with progress_bar(total=len(data), desc=f"from {name}", unit="image") as bar:
            found[name] = peers.evaluate_peers(
                engine,
                data,
                predictor.predictor,
                settings.seed,
                settings.chunk,
                settings.cycle_images,
                device,
                bar.update,
            )
    protocol = {"name": peers.NAME, "version": peers.VERSION, "settings": asdict(settings)}
    report = {"protocol": protocol, "model": loaded.path, "predictor": predictor.path, "abduction": found}
    Path(values["out"]).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"{peers.peers_table(found, spec)}\nwritten to {values['out']}")


def main(argv: list[str]) -> None:
    values = parse(argv)
    use_device(values["device"])
    settings, out = settings_from(values), Path(values["out"])
    if values["protocol"] == peers.NAME:
        out.parent.mkdir(parents=True, exist_ok=True)
        return evaluate_as_peers(values, settings)
    models = find_models(values["all"]) if values["all"] else [values["model_path"]] if values["model_path"] else []
    jobs = [
        Job(
            model,
            values["data_dir"],
            str(out / f"{Path(model).name}.json" if values["all"] else out),
            settings,
            values["predictor"],
            values["inception_weights"],
            values["trust_inception"],
            values["workers"],
        )
        for model in models
    ]
    folder = out.parent if values["model_path"] else out
    folder.mkdir(parents=True, exist_ok=True)
    results = evaluate_each(jobs)
    if results:
        print(tables(results))
    if values["report"]:
        paths = sorted(folder.glob("*.json"))
        if not paths:
            raise InputError(f"report: {folder} holds no results")
        print(f"written to {write_report(values['report'], [(path, read_results(path)) for path in paths])}")


if __name__ == "__main__":
    run_cli(main)
