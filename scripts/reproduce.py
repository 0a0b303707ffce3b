"""Trains and evaluates every model of the comparison at one budget, one after the other.

    ./scripts/reproduce.sh morphomnist mini --dry_run True       # the commands, with estimated hours
    ./scripts/reproduce.sh morphomnist mini --total_steps 2000
    ./scripts/reproduce.sh all mini --only causaldae,labels_10 --seeds 0
    ./scripts/reproduce.sh [DATASET] [SIZE] ...                  # by default all data sets at size mini

DATASET is morphomnist, pendulum, circuit or all; SIZE is mini, fast or paper, as in configs/. The same command again
resumes what was interrupted and skips what is finished. Every command is printed before it runs and can be run by
itself. Writes OUT/DATASET_SIZE/report.html, summary.json and table.md; `--update_docs .` also
writes the tables of docs/.
"""

from __future__ import annotations

import sys
from pathlib import Path

from causaldiffae import dist_util
from causaldiffae.errors import InputError
from causaldiffae.evaluation.markdown_tables import find_pages, update_pages
from causaldiffae.evaluation.report import write_report
from causaldiffae.evaluation.reproduction import DATASETS, Plan, ReproductionSettings
from causaldiffae.evaluation.reproduction_run import Runner, estimated_hours, shown_command
from causaldiffae.evaluation.reproduction_summary import write_summary
from causaldiffae.evaluation.result_tables import reproduction_errors, reproduction_labels, reproduction_table
from causaldiffae.evaluation.run import read_results
from causaldiffae.files.reading import read_json
from causaldiffae.script_util import parse_flags, run_cli
from causaldiffae.training.devices import use_device

ROOT = Path(__file__).resolve().parent.parent


def print_plan(plan: Plan) -> None:
    """Prints the commands of a plan, with estimated hours of what is left."""
    hours = estimated_hours(plan, dist_util.dev())
    for step in plan.steps():
        note = "finished" if step.is_finished() else f"{hours[step.name]:.2g} h" if step.name in hours else "minutes"
        print(f"# {step.name}: {note}\n{shown_command(step.command)}")
    print(f"# {plan.dataset} {plan.size}: about {sum(hours.values()):.2g} hours, compilation and data not included\n")


def write_outputs(plan: Plan) -> None:
    """Writes report, summary and tables of the results that there are."""
    files = sorted((plan.folder / "results").glob("*.json"))
    if not files:
        return
    summary = write_summary(plan)
    found = read_json(summary)
    text = "\n\n".join(make(found) for make in (reproduction_table, reproduction_errors, reproduction_labels))
    (plan.folder / "table.md").write_text(text + "\n", encoding="utf-8")
    report = write_report(plan.folder / "report.html", [(path, read_results(path)) for path in files])
    print(f"{text}\n\nwritten to {report}, {summary} and {plan.folder / 'table.md'}")
    if plan.settings.update_docs:
        added = {f"reproduce_{plan.dataset}_{plan.size}": summary}
        print("updated", *update_pages(Path(plan.settings.update_docs), added))


def main(argv: list[str]) -> None:
    count = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    names, flags = argv[:count], argv[count:]
    if len(names) > 2:
        raise InputError(f"arguments: expected DATASET and SIZE before the flags, got {' '.join(names)}")
    dataset, size = [*names, *("all", "mini")[len(names) :]]
    settings = parse_flags(ReproductionSettings, flags, __doc__ or "")
    use_device(settings.device)
    plans = [Plan(each, size, settings, ROOT) for each in (DATASETS if dataset == "all" else (dataset,))]
    if settings.dry_run:
        for plan in plans:
            print_plan(plan)
        return
    if settings.update_docs:
        find_pages(Path(settings.update_docs), "update_docs")
    runner = Runner(lambda line: print(line, flush=True))
    for plan in plans:
        plan.claim()
    for plan in plans:
        runner.run(plan.steps())
        write_outputs(plan)
    if runner.failed:
        lines = [f"{name}: {reason}" for name, reason in runner.failed.items()]
        sys.stderr.write("\n".join([f"{len(lines)} steps failed; run the same command again:", *lines]) + "\n")
        sys.exit(1)


if __name__ == "__main__":
    run_cli(main)
