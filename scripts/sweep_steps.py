"""Compares solvers and numbers of steps with the published 250 DDIM steps.

    python scripts/sweep_steps.py --model_path RUN --data_dir DATA --out_dir OUT
    python scripts/sweep_steps.py ... --settings ddim:250,dpmpp2m:25,dpmpp2m:10 --do thickness=4 --num_images 500

The first setting is the reference. Another one is as good if the upper end of the 95 % interval of its difference to
the reference is below --margin in every figure; the one with the fewest evaluations is recommended. Writes steps.csv
(means with intervals), steps.png (curves) and steps.json. `--settings exact_ddim:25,exact_ddim:4+1,few_step:4 --student
DIR` includes label corrections and a distilled model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from causaldiffae import dist_util
from causaldiffae.config import DEVICE_HELP, flag, with_help
from causaldiffae.datasets.do_text import parse_do
from causaldiffae.datasets.registry import read_split, truth_is_known
from causaldiffae.errors import InputError, check_given, check_least, check_local
from causaldiffae.evaluation.image_test import find_measurement
from causaldiffae.evaluation.settings import default_interventions, resolve_alias
from causaldiffae.evaluation.step_sweep import (
    MARGIN,
    NULL_MARGIN,
    Setting,
    create_engine,
    describe_exceeded,
    draw,
    headings,
    parse_settings,
    recommend,
    sweep_steps,
    table,
    write_rows,
)
from causaldiffae.files.reading import without_nan, write_json
from causaldiffae.logger import progress_bar
from causaldiffae.script_util import FEW_STEP, LoadedModel, load_model, parse_flags, run_cli
from causaldiffae.training.devices import use_device
from causaldiffae.visualization.image_grids import save_png

SETTINGS = (
    "ddim:250,ddim:50,ddim:25,ddim:10,dpmpp2m:50,dpmpp2m:25,dpmpp2m:15,dpmpp2m:10,dpmpp2m:6,"
    "obelm:50,obelm:25,obelm:15,obelm:10"
)


SETTINGS_HELP = (
    "SOLVER:STEPS, the reference first, or SOLVER:STEPS+N with N label corrections; solvers: exact_ddim, dpmpp2m, "
    "obelm, ddim (published loops), and few_step, the student"
)


@with_help
@dataclass(frozen=True)
class StepSweepConfig:
    """Options of the sweep."""

    model_path: str = flag("", "run directory, step folder or model folder")
    data_dir: str = flag("", "folder of a data set with known true counterfactuals")
    out_dir: str = flag("", "output folder")
    settings: str = flag(SETTINGS, SETTINGS_HELP)
    student: str = flag("", "distilled model for the settings few_step:STEPS")
    do: list[str] = flag([], "intervention name=value[,name=value]; repeatable; default: one per variable")
    num_images: int = flag(100, "test images; 0 for all")
    batch_size: int = flag(100, "images per batch")
    margin: float = flag(MARGIN, "accepted increase of an error, as a fraction of the reference's mean")
    label_predictor: str = flag("", "predictor that reads labels; default: from weights/, if needed")
    judge: str = flag("", "deprecated alias of label_predictor")
    ema: str = flag("", "rate of the moving average, or 'none' for the trained weights; default: the first one")
    device: str = flag("auto", DEVICE_HELP)

    def __post_init__(self) -> None:
        check_given(self, "model_path", "data_dir", "out_dir")
        check_local(out_dir=self.out_dir)
        check_least(self, num_images=0, batch_size=1, margin=0)
        resolve_alias(self, "judge", "label_predictor")


def open_student(
    config: StepSweepConfig, settings: Sequence[Setting], loaded: LoadedModel, device: torch.device
) -> LoadedModel | None:
    """Opens the distilled model of the settings few_step:STEPS; `InputError` if it does not fit them."""
    steps = {each.steps for each in settings if each.solver == FEW_STEP}
    if not config.student and (not steps or loaded.config.diffusion.few_steps):
        return None
    if not config.student or not steps:
        raise InputError(f"student: expected a distilled model and settings {FEW_STEP}:STEPS, got only one of them")
    student = load_model(config.student, device)
    if student.spec != loaded.spec or student.config.model != loaded.config.model:
        raise InputError(f"student: expected a student of {loaded.path}, got another model in {student.path}")
    return student


def main(argv: list[str]) -> None:
    config = parse_flags(StepSweepConfig, argv, __doc__ or "")
    settings = parse_settings(config.settings)
    use_device(config.device)
    device = dist_util.dev()
    loaded = load_model(config.model_path, device, config.ema or None)
    spec = loaded.spec
    dos = [parse_do(text, spec) for text in config.do] or default_interventions(spec)
    data = read_split(spec.name, config.data_dir, "test", limit=config.num_images or None, spec=spec)
    if not truth_is_known(data):
        raise InputError(f"{config.data_dir}: expected a data set with known true counterfactuals")
    student = open_student(config, settings, loaded, device)
    engines = {
        each: create_engine(student if each.solver == FEW_STEP and student else loaded, each) for each in settings
    }
    measurement = find_measurement(spec, config.label_predictor, device)
    with progress_bar(total=len(data) * len(settings), desc="solvers", unit="image") as bar:
        rows = sweep_steps(engines, data, dos, config.batch_size, device, bar.update, measurement)
    heads, best = headings(dos, spec), recommend(rows, config.margin)
    out = Path(config.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "steps.csv", rows)
    save_png(out / "steps.png", draw(rows, heads))
    figures = {str(row.setting): {name: asdict(figure) for name, figure in row.figures().items()} for row in rows}
    recommended = str(best.setting) if best else None
    report = {"model": loaded.path, "settings": asdict(config), "recommended": recommended, "rows": figures}
    write_json(out / "steps.json", without_nan(report))
    print(f"{table(rows, heads)}\n")
    if lines := describe_exceeded(rows, heads, config.margin):
        limits = f"{config.margin:.0%} of the mean ({NULL_MARGIN} grey levels for the null intervention)"
        print(f"Differences from {settings[0]} that may exceed {limits}:", *lines, sep="\n  ", end="\n\n")
    print(f"fewest evaluations that are as good as {settings[0]}: {recommended or 'none of these'}\nwritten to {out}")


if __name__ == "__main__":
    run_cli(main)
