"""Evaluation: scores a model's counterfactuals against the true ones, and against doing nothing.

    python scripts/evaluate.py --model_path RUN --data_dir DATA --out results/NAME.json
    python scripts/evaluate.py --all weights --data_dir DATA --out results --report report.html
    python scripts/evaluate.py --out results --report report.html        # only the report, of existing results

Every test image gets one intervention on each variable, at a value determined by the seed and the image. `--all`
evaluates every checkpoint in a folder, and skips with a warning those that lack a predictor or data; DATA may hold
several data sets, each in a folder of its name. Run the same command again to resume an interrupted evaluation.
The figures are defined in causaldiffae/metrics/. `--protocol melistas` measures what other counterfactual models report
on MorphoMNIST (causaldiffae/evaluation/peers.py), with the true factual labels and without them, and is resumed too:

    python scripts/evaluate.py --protocol melistas --model_path RUN --data_dir DATA --out results/NAME_melistas.json

Any other system is scored by the same protocol: it answers exported questions (causaldiffae/evaluation/questions.py):

    python scripts/evaluate.py --export_questions DIR --dataset morphomnist --data_dir DATA --num_images 1000
    python scripts/evaluate.py --answers DIR --data_dir DATA --out results/NAME.json
"""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from causaldiffae.errors import InputError, check_given, check_local
from causaldiffae.evaluation import peers, questions
from causaldiffae.evaluation.peers_run import evaluate_as_peers
from causaldiffae.evaluation.protocol import ProtocolSettings
from causaldiffae.evaluation.report import write_report
from causaldiffae.evaluation.run import Job, evaluate, find_models, read_results, settings_from
from causaldiffae.evaluation.tables import tables
from causaldiffae.predictors.predictor import shipped_sizes
from causaldiffae.script_util import argument_parser, parse_flat, run_cli
from causaldiffae.training.devices import add_device_flag, use_device

STANDARD = "standard"
FLAGS = {
    "model_path": "run directory, step folder, model folder or shipped name",
    "all": "a folder; every checkpoint in it is evaluated",
    "export_questions": "write the questions of the protocol to this new folder, to be answered by another system",
    "answers": "folder of exported questions and their answers, which are scored",
    "dataset": "data set of the exported questions",
    "data_dir": "the data set's folder, or a folder that holds several data sets under their names",
    "out": "the results file, NAME.json; a folder with --all",
    "report": "also write an HTML report of all results in the folder of --out to this file",
    "predictor": "folder of the predictor that reads labels; by default weights/DATASET_SIZE_predictor",
    "predictor_path": "noised predictor of a Diff-SCM, or 'none'; by default predictor/ in its folder",
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
    parser.add_argument("--image_size", type=int, default=0, help="of the exported questions; by default as published")
    add_device_flag(parser)
    parser.add_argument("--protocol", choices=(STANDARD, peers.NAME), default=STANDARD, help="see above")
    parser.add_argument("--workers", type=int, default=1, help="number of processes; does not change the figures")
    parser.add_class_arguments(ProtocolSettings, nested_key=None, skip={"variables"}, instantiate=False)
    values = vars(parse_flat(parser, argv))
    values["variables"] = tuple(name.strip() for name in values["variables"].split(",") if name.strip())
    tasks = [name for name in ("model_path", "all", "export_questions", "answers") if values[name]]
    if len(tasks) > 1:
        raise InputError(f"{tasks[0]}, {tasks[1]}: expected one of them, got both")
    if not (tasks or values["report"]):
        raise InputError("model_path: expected a value, got none; set --model_path, --all or --report")
    required = ["dataset"] if values["export_questions"] else ["out"]
    check_given(SimpleNamespace(**values), *required, *(["data_dir"] if tasks else []))
    check_local(**{name: values[name] for name in ("out", "report", "export_questions")})
    if (values["model_path"] or values["answers"]) and not values["out"].endswith(".json"):
        raise InputError(f"out: expected a file NAME.json, got {values['out']}")
    if values["protocol"] == peers.NAME and not values["model_path"]:
        raise InputError(f"protocol: expected --model_path with {peers.NAME}, got none")
    if values["protocol"] == peers.NAME and (
        given := [name for name in ("variables", "report", "use_labels") if values[name]]
    ):
        raise InputError(f"{given[0]}: expected none with protocol {peers.NAME}, got {values[given[0]]}")
    several = not (values["model_path"] or values["answers"] or values["export_questions"])
    if several and values["out"].endswith(".json"):
        raise InputError(f"out: expected the folder of the results, got the file {values['out']}")
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
        raise InputError(f"all: expected a model that can be evaluated, got none of {len(jobs)}; {refused[0]}")
    for reason in refused:
        warnings.warn(f"skipped: {reason}", stacklevel=1)
    return results


def export(values: dict[str, Any], settings: ProtocolSettings) -> None:
    """Writes the questions of a data set."""
    folder, data_dir = Path(values["export_questions"]), values["data_dir"]
    asked = (values["dataset"], values["image_size"] or None, data_dir, values["predictor"])
    spec, predictor = questions.spec_and_predictor(*asked)
    if predictor is None:
        sizes = ", ".join(f"--image_size {size}" for size in shipped_sizes(spec.name))
        warnings.warn(
            f"predictor: found no shipped one for {spec.name} at {spec.image_size} px; score the answers with "
            f"--predictor DIR{f', or export the questions with {sizes}' if sizes else ''}",
            stacklevel=1,
        )
    count = questions.export_questions(folder, questions.open_task(spec, data_dir, settings), settings)
    print(f"{count} questions written to {folder}; write the answers to the paths in {folder}/questions.csv")


def score_answers(values: dict[str, Any]) -> dict[str, Any]:
    """Scores the answers of another system to exported questions."""
    folder, data_dir, out = Path(values["answers"]), values["data_dir"], Path(values["out"])
    task, settings = questions.read_questions(folder, data_dir)
    answers = questions.read_answers(folder, task)
    options = {name: values[name] for name in ("predictor", "inception_weights", "trust_inception")}
    return questions.score_answers(answers, task, settings, data_dir, name=out.stem, out=out, **options)


def main(argv: list[str]) -> None:
    values = parse(argv)
    use_device(values["device"])
    settings, out = settings_from(values), Path(values["out"])
    if values["export_questions"]:
        export(values, settings)
        return
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
            values["predictor_path"],
        )
        for model in models
    ]
    folder = out.parent if values["model_path"] or values["answers"] else out
    folder.mkdir(parents=True, exist_ok=True)
    if values["protocol"] == peers.NAME:
        found = evaluate_as_peers(jobs[0])
        print(f"{peers.peers_table(found)}\nwritten to {out}")
        return
    results = [score_answers(values)] if values["answers"] else evaluate_each(jobs)
    if results:
        print(tables(results))
    if values["report"]:
        paths = [path for path in sorted(folder.glob("*.json")) if not peers.is_report(path)]
        if not paths:
            raise InputError(f"report: expected results in {folder}, got none")
        print(f"written to {write_report(values['report'], [(path, read_results(path)) for path in paths])}")


if __name__ == "__main__":
    run_cli(main)
