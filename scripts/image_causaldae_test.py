"""Counterfactuals of the test images under the interventions of the table below.

    python scripts/image_causaldae_test.py --model_path RUN --data_dir DATA --out_dir OUT
    python scripts/image_causaldae_test.py ... --do thickness=4.5 --do thickness=1.5,intensity=220

Edit the table, or name interventions with --do (each one is done by itself; a comma sets several variables at once).
Writes counterfactuals.png (factual, reconstruction, counterfactual and, where it is known, the truth),
counterfactuals.csv (requested, predicted, measured and true labels of every image), summary.json and
counterfactuals.npz.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch

from causaldiffae import dist_util
from causaldiffae.counterfactual import AbductionKind, CounterfactualEngine
from causaldiffae.errors import InputError
from causaldiffae.evaluation import arrays, describe_do, draw_grid, evaluate_interventions, summary, write_csv
from causaldiffae.image_datasets import DatasetSpec, ImageData, read_split
from causaldiffae.logger import progress_bar
from causaldiffae.pictures import save_png
from causaldiffae.script_util import LoadedModel, argument_parser, load_model, parse_flat, run_cli

# ------------------------------------------------------------------------------------------------------------------
# The interventions, in the labels' own units. One line is one question: "what if these variables had had these values?"
INTERVENTIONS: dict[str, list[dict[str, float]]] = {
    "morphomnist": [
        {"thickness": 4.0},  # a root: intensity follows
        {"thickness": 1.5},
        {"intensity": 90.0},  # its effect: thickness stays
        {"thickness": 4.0, "intensity": 120.0},  # both at once
    ],
    "pendulum": [
        {"angle": 30.0},  # a root: both shadows follow, the light stays
        {"light": 80.0},
        {"shadow_length": 6.0},  # an effect: nothing else moves
        {"angle": -20.0, "light": 130.0},
    ],
}
# ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TestConfig:
    """How to ask.

    Attributes:
        model_path: run directory, step folder or model folder.
        data_dir: folder of the data set.
        out_dir: folder to write to.
        do: interventions as "name=value" or "name=value,name=value"; without any, the table in this file.
        num_images: how many test images; 0 for all.
        batch_size: images at a time.
        timestep_respacing: steps to encode and decode with, see space_timesteps.
        abduction: "ddim" encodes the image; "noise" samples x_T around it (the printed algorithm); "none" draws it.
        w: grade of the intervention; 1 is no guidance.
        ema: rate of the moving average to use; "" takes the first, "none" the trained weights.
        use_bf16: activations in bfloat16.
        grid_images: rows of the picture.
        seed: of what is drawn.
    """

    model_path: str = ""
    data_dir: str = ""
    out_dir: str = ""
    do: list[str] = field(default_factory=list)
    num_images: int = 0
    batch_size: int = 100
    timestep_respacing: str = "250"
    abduction: str = "ddim"
    w: float = 1.0
    ema: str = ""
    use_bf16: bool = False
    grid_images: int = 8
    seed: int = 0


def parse_do(text: str) -> dict[str, float]:
    """ "thickness=4.5,intensity=90" -> {"thickness": 4.5, "intensity": 90.0}."""
    do: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        name = name.strip()
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not equals or not name or not np.isfinite(number):
            raise InputError(f"--do {text!r}: name=value with a finite number is needed, like thickness=4.5")
        if name in do:
            raise InputError(f"--do {text!r}: {name} is set twice")
        do[name] = number
    return do


def read_test_images(loaded: LoadedModel, data_dir: str, num_images: int) -> ImageData:
    """The test split as the model was trained on it: same size, same channels."""
    spec = loaded.spec
    return read_split(spec.name, data_dir, "test", spec.image_size, spec.channels, num_images or None)


def main(argv: list[str]) -> None:
    parser = argument_parser(__doc__ or "")
    parser.add_class_arguments(TestConfig, nested_key=None, skip={"do"})
    parser.add_argument("--do", action="append", default=[], help="name=value[,name=value]; may be given several times")
    values = parse_flat(parser, argv)
    config = TestConfig(**{f.name: values[f.name] for f in fields(TestConfig)})
    for name in ("model_path", "data_dir", "out_dir"):
        if not getattr(config, name):
            raise InputError(f"{name}: it is not given; --{name} must name it")
    if config.num_images < 0 or config.batch_size < 1 or config.grid_images < 1:
        raise InputError("num_images must be 0 or more, batch_size and grid_images 1 or more")
    if config.abduction not in [kind.value for kind in AbductionKind]:
        raise InputError(f"abduction: {config.abduction!r} given, allowed are ddim, noise, none")
    if not np.isfinite(config.w):
        raise InputError(f"w: {config.w} given, a finite number is needed")
    device = dist_util.dev()
    loaded = load_model(config.model_path, device, config.ema or None)
    interventions = [parse_do(text) for text in config.do] or INTERVENTIONS.get(loaded.spec.name, [])
    for do in interventions:
        loaded.spec.check_do(do)
    engine = CounterfactualEngine(
        loaded.model,
        loaded.diffusion(config.timestep_respacing),
        loaded.spec,
        AbductionKind(config.abduction),
        config.w,
        torch.bfloat16 if config.use_bf16 else None,
    )
    data = read_test_images(loaded, config.data_dir, config.num_images)
    with progress_bar(total=len(data), desc="counterfactuals", unit="image") as bar:
        results = evaluate_interventions(
            engine, data, interventions, config.batch_size, device, bar.update, config.seed
        )
    out = Path(config.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    save_png(out / "counterfactuals.png", draw_grid(results, loaded.spec, config.grid_images))
    write_csv(out / "counterfactuals.csv", results, data)
    np.savez_compressed(out / "counterfactuals.npz", **arrays(results))
    figures = {describe_do(result.do): summary(result, loaded.spec.graph.names) for result in results}
    report = {"model": loaded.path, "step": loaded.step, "settings": asdict(config), "results": figures}
    (out / "summary.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print_table(figures, loaded.spec)
    print(f"written to {out}")


def print_table(figures: dict[str, dict[str, float]], spec: DatasetSpec) -> None:
    """Mean pixel errors, and mean errors of the measured labels, per intervention."""
    heads = ["L1 to truth", "do nothing", "reconstruction", *[f"|{name}|" for name in spec.graph.names]]
    print(f"{'':44s}" + "".join(f"{head:>18s}" for head in heads))
    for do, row in figures.items():
        keys = ["counterfactual_l1", "do_nothing_l1", "reconstruction_l1"]
        keys += [f"measured_error_{name}" for name in spec.graph.names]
        print(f"{do:44s}" + "".join(f"{row.get(key, float('nan')):18.3f}" for key in keys))


if __name__ == "__main__":
    run_cli(main)
