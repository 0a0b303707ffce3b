"""Diff-SCM by its scale s: accuracy at the target class, CLD, IM1, IM2 and L1, as a table, a CSV and a plot.

    python scripts/sweep_scale.py --model_path RUN --data_dir DATA --out_dir OUT
    python scripts/sweep_scale.py ... --scales 0,0.5,1,1.5,2,3 --num_images 500 --predictor_path none

Every test image is asked for one random other class at each scale. Judges are trained on clean images by
classifiers/{mnist,fashion_mnist}_classifier.py and class_autoencoders.py; those in weights/ are found. Writes
scale.csv and scale.png (curves; the recommended scale is marked), counterfactuals.png and scale.json.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from causaldiffae import dist_util
from causaldiffae.datasets.registry import read_split
from causaldiffae.errors import InputError, check_given, check_least
from causaldiffae.evaluation.image_test import parse_numbers
from causaldiffae.evaluation.scale_sweep import (
    WANTED_ACCURACY,
    Judges,
    check_classes,
    draw_sweep,
    other_classes,
    recommend,
    sweep_scale,
    sweep_table,
    write_sweep,
)
from causaldiffae.logger import progress_bar
from causaldiffae.metrics.interpretability import class_numbers, load_autoencoders
from causaldiffae.predictors.predictor import check_fits, find_predictor, find_shipped, load_predictor
from causaldiffae.script_util import SOLVER, STEPS, argument_parser, load_model, parse_flat, run_cli
from causaldiffae.visualization.image_grids import labelled_grid, save_png

SHOWN_IMAGES, SHOWN_SCALES = 10, 10


@dataclass(frozen=True)
class SweepConfig:
    """What to ask.

    Attributes:
        model_path: run directory, step folder or model folder of a Diff-SCM.
        data_dir: folder of the data set.
        out_dir: folder to write to.
        scales: of the guidance, in any order.
        num_images: how many test images; 0 for all.
        num_reference: how many test images CLD compares with; 0 for all.
        batch_size: images at a time.
        predictor_path: the noised predictor; "none" for the implicit one; by default the folder "predictor" in
            model_path.
        judge, autoencoders: folders of the judges; by default those in weights/.
        wanted_accuracy: which the recommended scale must reach.
        solver, steps, grid, timestep_respacing, stop, rescale_quantile, ema: as in image_diffscm_test.py.
        seed: of the classes asked for.
    """

    model_path: str = ""
    data_dir: str = ""
    out_dir: str = ""
    scales: str = "0,0.2,0.4,0.6,0.8,1,1.5,2,2.5,3"
    num_images: int = 500
    num_reference: int = 2000
    batch_size: int = 100
    predictor_path: str = ""
    judge: str = ""
    autoencoders: str = ""
    wanted_accuracy: float = WANTED_ACCURACY
    solver: str = SOLVER
    steps: int = STEPS
    grid: str = ""
    timestep_respacing: str = ""
    stop: float = 1.0
    rescale_quantile: float = 0.0
    ema: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        check_given(self, "model_path", "data_dir", "out_dir")
        check_least(self, num_images=0, num_reference=0, batch_size=1, seed=0)


def main(argv: list[str]) -> None:
    parser = argument_parser(__doc__ or "")
    parser.add_class_arguments(SweepConfig, nested_key=None, instantiate=False)
    values = parse_flat(parser, argv)
    config = SweepConfig(**{field.name: values[field.name] for field in fields(SweepConfig)})
    scales, device = sorted(parse_numbers("scales", config.scales)), dist_util.dev()
    if not scales:
        raise InputError(f"scales: {config.scales!r} given, at least one number is needed")
    loaded = load_model(config.model_path, device, config.ema or None, predictor=config.predictor_path)
    if loaded.config.model.model_type != "diffscm":
        raise InputError(f"{config.model_path}: a model of type {loaded.config.model.model_type}, a Diff-SCM is needed")
    spec = loaded.spec
    test = read_split(spec.name, config.data_dir, "test", spec=spec)
    check_classes(test)
    judge = load_predictor(find_predictor(spec, config.judge), device)
    check_fits(judge.predictor, spec, judge.path)
    judges = Judges(
        judge.predictor,
        load_autoencoders(config.autoencoders or find_shipped(spec, "autoencoders"), device),
        test.subset(range(min(config.num_reference or len(test), len(test)))),
    )
    data = test.subset(range(min(config.num_images or len(test), len(test))))
    engine = loaded.engine(
        config.steps,
        config.solver,
        config.grid,
        config.timestep_respacing,
        stop=config.stop,
        rescale_quantile=config.rescale_quantile,
    )
    with progress_bar(total=len(data), desc="counterfactuals", unit="image") as bar:
        results = sweep_scale(engine, data, scales, judges, config.batch_size, config.seed, device, bar.update)
    best = recommend(results, config.wanted_accuracy)
    out = Path(config.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    write_sweep(out / "scale.csv", results)
    save_png(out / "scale.png", draw_sweep(results, best))
    shown = results if len(results) <= SHOWN_SCALES else [results[i] for i in range(0, len(results), 2)]
    rows = np.arange(min(SHOWN_IMAGES, len(data)))
    wanted = other_classes(class_numbers(spec, data.labels), len(spec.category_values(0)), config.seed)
    captions = [f"do({spec.format_value(spec.graph.names[0], spec.category_values(0)[wanted[i]])})" for i in rows]
    columns = [("factual", data.images[rows]), *((f"s = {result.scale:g}", result.images[rows]) for result in shown)]
    save_png(out / "counterfactuals.png", labelled_grid(columns, row_captions=captions))
    found = {f"{r.scale:g}": {name: asdict(figure) for name, figure in r.figures().items()} for r in results}
    report = {"model": loaded.path, "settings": asdict(config), "recommended": best.scale, "scales": found}
    (out / "scale.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    reached = float(best.values["accuracy"].mean())
    said = f"recommended: s = {best.scale:g}"
    if reached < config.wanted_accuracy:
        said += f" (no scale reaches an accuracy of {config.wanted_accuracy:g})"
    print(f"{sweep_table(results, best)}\n\n{said}\nwritten to {out}")


if __name__ == "__main__":
    run_cli(main)
