"""Diff-SCM against its guidance scale s: accuracy at the target class, CLD, IM1, IM2 and L1.

    python scripts/sweep_scale.py --model_path RUN --data_dir DATA --out_dir OUT
    python scripts/sweep_scale.py ... --scales 0,0.5,1,1.5,2,3 --num_images 500 --predictor_path none

Every image is set to one other class, drawn at random, at each scale. The scale is chosen on validation images and the
figures are those of test images; CLD compares with further training images. The networks that score the counterfactuals
are trained on clean images by classifiers/{mnist,fashion_mnist}_classifier.py and class_autoencoders.py; by default
those in weights/ are used. Writes scale.csv, scale.png (curves, with the recommended scale marked),
counterfactuals.png and scale.json.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from causaldiffae import dist_util
from causaldiffae.config import DEVICE_HELP, SOLVER_HELP, flag, with_help
from causaldiffae.datasets.images import ImageData, spread_or_all
from causaldiffae.datasets.registry import read_split
from causaldiffae.errors import InputError, check_given, check_least, check_local
from causaldiffae.evaluation.scale_sweep import (
    TARGET_ACCURACY,
    ScaleResult,
    Scorers,
    check_classes,
    choose_images,
    draw_sweep,
    other_classes,
    recommend,
    sweep_scale,
    sweep_table,
    write_sweep,
)
from causaldiffae.evaluation.settings import parse_numbers, resolve_alias
from causaldiffae.files.reading import without_nan, write_json
from causaldiffae.logger import progress_bar
from causaldiffae.metrics.interpretability import class_numbers, load_autoencoders
from causaldiffae.predictors.predictor import find_shipped, open_predictor
from causaldiffae.script_util import SOLVER, STEPS, load_model, parse_flags, run_cli
from causaldiffae.training.devices import use_device
from causaldiffae.visualization.image_grids import labelled_grid, save_png

SHOWN_IMAGES, SHOWN_SCALES = 10, 10


@with_help
@dataclass(frozen=True)
class SweepConfig:
    """Options of the sweep."""

    model_path: str = flag("", "run directory, step folder or model folder of a Diff-SCM")
    data_dir: str = flag("", "folder of the data set")
    out_dir: str = flag("", "output folder")
    scales: str = flag("0,0.2,0.4,0.6,0.8,1,1.5,2,2.5,3", "guidance scales")
    num_images: int = flag(500, "test images; 0 for all")
    num_validation: int = flag(500, "validation images for the choice of the scale; 0 for all")
    num_reference: int = flag(2000, "training images that CLD compares with; 0 for all")
    batch_size: int = flag(100, "images per batch")
    predictor_path: str = flag("", "noised predictor, or 'none'; default: predictor/ in model_path")
    label_predictor: str = flag("", "predictor of the counterfactuals' classes; default: from weights/")
    judge: str = flag("", "deprecated alias of label_predictor")
    autoencoders: str = flag("", "class autoencoders of IM1 and IM2; default: from weights/")
    target_accuracy: float = flag(TARGET_ACCURACY, "minimum accuracy at the recommended scale")
    wanted_accuracy: float = flag(0.0, "deprecated alias of target_accuracy")
    solver: str = flag(SOLVER, SOLVER_HELP)
    steps: int = flag(STEPS, "network evaluations in each direction")
    grid: str = flag("", "spacing of noise levels: centred, logsnr, rho or uniform; default: that of the solver")
    timestep_respacing: str = flag("", "steps of the published DDIM loops; overrides solver")
    stop: float = flag(1.0, "encode and decode only up to this fraction of T")
    rescale_quantile: float = flag(0.0, "quantile of dynamic thresholding of x_0, such as 0.99; 0 disables it")
    ema: str = flag("", "rate of the moving average, or 'none' for the trained weights; default: the first one")
    device: str = flag("auto", DEVICE_HELP)
    seed: int = flag(0, "seed of the target classes")

    def __post_init__(self) -> None:
        check_given(self, "model_path", "data_dir", "out_dir")
        check_local(out_dir=self.out_dir)
        check_least(self, num_images=0, num_validation=0, num_reference=0, batch_size=1, seed=0)
        resolve_alias(self, "judge", "label_predictor")
        resolve_alias(self, "wanted_accuracy", "target_accuracy")


def main(argv: list[str]) -> None:
    config = parse_flags(SweepConfig, argv, __doc__ or "")
    scales = sorted(parse_numbers("scales", config.scales))
    if not scales:
        raise InputError(f"scales: expected at least one number, got {config.scales!r}")
    use_device(config.device)
    device = dist_util.dev()
    loaded = load_model(config.model_path, device, config.ema or None, predictor=config.predictor_path)
    if loaded.config.model.model_type != "diffscm":
        raise InputError(f"{config.model_path}: expected a Diff-SCM, got a {loaded.config.model.model_type} model")
    spec = loaded.spec
    test = read_split(spec.name, config.data_dir, "test", spec=spec)
    check_classes(test)
    predictor = open_predictor(spec, config.label_predictor, device)
    autoencoders = load_autoencoders(config.autoencoders or find_shipped(spec, "autoencoders"), device)
    train = read_split(spec.name, config.data_dir, "train", spec=spec)
    data = test.subset(spread_or_all(config.num_images, len(test)))
    validation, reference = choose_images(train, config.num_validation, config.num_reference)
    scorers = Scorers(predictor.predictor, autoencoders, reference)
    engine = loaded.engine(
        config.steps,
        config.solver,
        config.grid,
        config.timestep_respacing,
        label_corrections=0,
        stop=config.stop,
        rescale_quantile=config.rescale_quantile,
    )
    with progress_bar(total=len(validation) + len(data), desc="counterfactuals", unit="image") as bar:
        tried, results = (
            sweep_scale(engine, part, scales, scorers, config.batch_size, config.seed, device, bar.update)
            for part in (validation, data)
        )
    chosen = recommend(tried, config.target_accuracy)
    best = results[scales.index(chosen.scale)]
    out = Path(config.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    write_sweep(out / "scale.csv", results)
    save_png(out / "scale.png", draw_sweep(results, best))
    save_png(out / "counterfactuals.png", draw_examples(data, results, config.seed))
    figures, on_validation = (
        {f"{r.scale:g}": {name: asdict(figure) for name, figure in r.figures().items()} for r in rows}
        for rows in (results, tried)
    )
    report = {"model": loaded.path, "settings": asdict(config), "recommended": best.scale}
    report |= {"scales": figures, "scales_on_validation": on_validation}
    write_json(out / "scale.json", without_nan(report))
    accuracy, divergence = (float(np.nanmean(chosen.values[name])) for name in ("accuracy", "cld"))
    print(
        f"{sweep_table(results, best)}\n\nrecommended: s = {best.scale:g}, chosen on {len(validation)} validation "
        f"images (accuracy {accuracy:.3f}, CLD {divergence:.3f})"
    )
    if accuracy < config.target_accuracy:
        print(f"no scale reaches an accuracy of {config.target_accuracy:g} on the validation images")
    print(f"written to {out}")


def draw_examples(data: ImageData, results: list[ScaleResult], seed: int) -> np.ndarray:
    """The first images: factual, then the counterfactual at each scale (at every second one of many scales)."""
    spec, rows = data.spec, np.arange(min(SHOWN_IMAGES, len(data)))
    values = spec.category_values(0)
    targets = other_classes(class_numbers(spec, data.labels), len(values), seed)
    captions = [f"do({spec.format_value(spec.graph.names[0], values[targets[i]])})" for i in rows]
    shown = results if len(results) <= SHOWN_SCALES else results[::2]
    columns = [("factual", data.images[rows]), *((f"s = {result.scale:g}", result.images[rows]) for result in shown)]
    return labelled_grid(columns, row_captions=captions)


if __name__ == "__main__":
    run_cli(main)
