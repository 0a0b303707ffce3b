"""How many evaluations a counterfactual needs: solvers and their steps against the published 250 DDIM steps.

    python scripts/sweep_steps.py --model_path RUN --data_dir DATA --out_dir OUT
    python scripts/sweep_steps.py ... --settings ddim:250,dpmpp2m:25,dpmpp2m:10 --do thickness=4 --num_images 500

The first setting is the reference. Writes steps.csv (means with intervals), steps.png (curves) and steps.json.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from causaldiffae import dist_util
from causaldiffae.datasets.registry import read_split, truth_is_known
from causaldiffae.errors import InputError, check_given, check_least
from causaldiffae.evaluation.image_test import default_interventions, find_measurement, parse_do
from causaldiffae.evaluation.step_sweep import draw, headings, parse_settings, recommend, sweep_steps, table, write_rows
from causaldiffae.logger import progress_bar
from causaldiffae.script_util import argument_parser, load_model, parse_flat, run_cli
from causaldiffae.visualization.image_grids import save_png

SETTINGS = (
    "ddim:250,ddim:50,ddim:25,ddim:10,dpmpp2m:50,dpmpp2m:25,dpmpp2m:15,dpmpp2m:10,dpmpp2m:6,"
    "obelm:50,obelm:25,obelm:15,obelm:10"
)


@dataclass(frozen=True)
class StepSweepConfig:
    """What to ask.

    Attributes:
        model_path: run directory, step folder or model folder.
        data_dir: folder of the data set, whose true counterfactuals must be known.
        out_dir: folder to write to.
        settings: SOLVER:STEPS, the reference first; solvers are dpmpp2m, obelm, and ddim for the published loops.
        do: interventions as "name=value" or "name=value,name=value"; by default one for each variable.
        num_images: how many test images; 0 for all.
        batch_size: images at a time.
        judge: as in image_causaldae_test.py.
        ema: rate of the moving average to use; "" takes the first, "none" the trained weights.
    """

    model_path: str = ""
    data_dir: str = ""
    out_dir: str = ""
    settings: str = SETTINGS
    do: list[str] = field(default_factory=list)
    num_images: int = 100
    batch_size: int = 100
    judge: str = ""
    ema: str = ""

    def __post_init__(self) -> None:
        check_given(self, "model_path", "data_dir", "out_dir")
        check_least(self, num_images=0, batch_size=1)


def main(argv: list[str]) -> None:
    parser = argument_parser(__doc__ or "")
    parser.add_class_arguments(StepSweepConfig, nested_key=None, skip={"do"}, instantiate=False)
    parser.add_argument("--do", action="append", default=[], help="name=value[,name=value]; may be given several times")
    values = parse_flat(parser, argv)
    config = StepSweepConfig(**{item.name: values[item.name] for item in fields(StepSweepConfig)})
    settings, device = parse_settings(config.settings), dist_util.dev()
    loaded = load_model(config.model_path, device, config.ema or None)
    spec = loaded.spec
    dos = [parse_do(text, spec) for text in config.do] or default_interventions(spec)
    data = read_split(spec.name, config.data_dir, "test", limit=config.num_images or None, spec=spec)
    if not truth_is_known(data):
        raise InputError(f"{config.data_dir}: the true counterfactual images of these files are not known")
    engines = {setting: loaded.engine(setting.steps, setting.solver) for setting in settings}
    with progress_bar(total=len(data) * len(settings), desc="solvers", unit="image") as bar:
        eye = find_measurement(spec, config.judge, device)
        rows = sweep_steps(engines, data, dos, config.batch_size, device, bar.update, eye)
    heads, best = headings(dos, spec), recommend(rows)
    out = Path(config.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "steps.csv", rows)
    save_png(out / "steps.png", draw(rows, heads))
    found = {str(row.setting): {name: asdict(figure) for name, figure in row.figures().items()} for row in rows}
    report = {"model": loaded.path, "settings": asdict(config), "recommended": str(best.setting) if best else None}
    (out / "steps.json").write_text(json.dumps(report | {"rows": found}, indent=2) + "\n", encoding="utf-8")
    said = f"fewest evaluations that are nowhere worse than {settings[0]} by more than chance: "
    print(f"{table(rows, heads)}\n\n{said}{best.setting if best else 'none of these'}\nwritten to {out}")


if __name__ == "__main__":
    run_cli(main)
