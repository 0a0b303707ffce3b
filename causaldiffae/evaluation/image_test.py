"""What the scripts image_*_test.py share: asking a trained model the questions of a table, and writing the answers.

Beside the interventions themselves there are two sweeps, both of the first intervention: of its grade w
(`--sweep_w`), and of the value that its variable is set to (`--traverse`). One abduction serves them all.
"""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from causaldiffae import dist_util
from causaldiffae.counterfactual import AbductionKind
from causaldiffae.datasets.registry import can_measure, read_split
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError, check_given
from causaldiffae.evaluation.interventions import (
    InterventionResult,
    Measurement,
    arrays,
    describe_do,
    draw_grid,
    draw_traversal,
    evaluate_interventions,
    summary,
    traversal,
    write_csv,
)
from causaldiffae.files.reading import file_stem
from causaldiffae.guidance import Guidance
from causaldiffae.logger import progress_bar
from causaldiffae.predictors.predictor import check_fits, find_predictor, load_predictor, predictor_is_shipped
from causaldiffae.script_util import (
    SOLVER,
    STEPS,
    argument_parser,
    expand_recipes,
    load_model,
    parse_flat,
)
from causaldiffae.training.acceleration import accelerate, activation_dtype
from causaldiffae.training.preflight import intervention_warnings
from causaldiffae.visualization.image_grids import save_png

Interventions = Mapping[str, Sequence[Mapping[str, float]]]
RECIPES: dict[str, dict[str, Any]] = {"reference": {"abduction": "noise", "timestep_respacing": "250", "w": 1.0}}
"""Named sets of values that `--recipe NAME` puts in at its place on the command line."""
TRAVERSED = 6


@dataclass(frozen=True)
class TestConfig:
    """How to ask.

    Attributes:
        model_path: run directory, step folder, model folder, or a state dict (.pt) of the published code.
        data_dir: folder of the data set.
        dataset: of a published state dict, where its sizes do not tell.
        predictor_path: of a Diff-SCM: its noised predictor; "none" for the implicit one; by default the folder
            "predictor" in model_path.
        judge: an anti-causal predictor that reads the labels off counterfactuals where nothing can measure them; by
            default the one in weights/, if there is one.
        out_dir: folder to write to.
        do: interventions as "name=value" or "name=value,name=value"; without any, the table in the script.
        num_images: how many test images; 0 for all.
        batch_size: images at a time.
        solver: "dpmpp2m", "obelm", or "ddim" for the published loops.
        steps: evaluations of the network each way.
        grid: of the noise levels: "centred", "logsnr", "rho" or "uniform"; by default the solver's own.
        timestep_respacing: steps of the published DDIM loops, see space_timesteps; where given it takes solver's place.
        residual: what the reconstruction misses is added to every answer.
        rescale_quantile: dynamic thresholding of x_0 at this quantile while decoding, 0.99 say; 0 for none.
        abduction: "ddim" encodes the image; "noise" samples x_T around it (the printed algorithm); "none" draws it.
        stop: encode and decode only up to this share of T.
        w: grade of the intervention; 1 is no guidance, 0 leaves the latents out.
        w_affected: grade of what the intervention changes, the variable and its descendants; by default w.
        w_invariant: grade of all other variables; by default w.
        guidance_interval: noise levels t/T between which guidance acts, "0.2,0.8".
        sweep_w: also draw and measure the first intervention at these grades, "0,0.25,0.5,0.75,1".
        traverse: also set these variables to values all over their range, "thickness,intensity".
        ema: rate of the moving average to use; "" takes the first, "none" the trained weights.
        use_bf16: activations in bfloat16, where the hardware has it.
        compile: compile the score network for the batch's size.
        channels_last: convolutions' weights with the channels innermost.
        grid_images: rows of the picture.
        seed: of what is drawn.
    """

    model_path: str = ""
    data_dir: str = ""
    dataset: str = ""
    predictor_path: str = ""
    judge: str = ""
    out_dir: str = ""
    do: list[str] = field(default_factory=list)
    num_images: int = 0
    batch_size: int = 100
    solver: str = SOLVER
    steps: int = STEPS
    grid: str = ""
    timestep_respacing: str = ""
    residual: bool = False
    rescale_quantile: float = 0.0
    abduction: str = "ddim"
    stop: float = 1.0
    w: float = 1.0
    w_affected: float | None = None
    w_invariant: float | None = None
    guidance_interval: str = "0,1"
    sweep_w: str = ""
    traverse: str = ""
    ema: str = ""
    use_bf16: bool = False
    compile: bool = False
    channels_last: bool = False
    grid_images: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        check_given(self, "model_path", "data_dir", "out_dir")
        if self.num_images < 0 or self.batch_size < 1 or self.grid_images < 1:
            raise InputError("num_images must be 0 or more, batch_size and grid_images 1 or more")
        if self.abduction not in [kind.value for kind in AbductionKind]:
            raise InputError(f"abduction: {self.abduction!r} given, allowed are ddim, noise, none")

    def guidance(self) -> Guidance:
        """The grade of the interventions."""
        interval = parse_numbers("guidance_interval", self.guidance_interval)
        if len(interval) != 2:
            raise InputError(f"guidance_interval: {self.guidance_interval!r} given, two numbers are needed")
        return Guidance(self.w, self.w_affected, self.w_invariant, *interval)


def parse_do(text: str, spec: DatasetSpec) -> dict[str, float]:
    """ "thickness=4.5,intensity=90" -> {"thickness": 4.5, "intensity": 90.0}; categories may be named."""
    do: dict[str, float | str] = {}
    shown = repr(text if len(text) < 200 else f"{text[:200]}...")
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name or not value:
            raise InputError(f"--do {shown}: name=value is needed, like thickness=4.5")
        if name in do:
            raise InputError(f"--do {shown}: {name[:80]} is set twice")
        try:
            do[name] = float(value)
        except ValueError:
            do[name] = value
    try:
        return spec.check_do(do)
    except InputError as error:
        raise InputError(f"--do {shown}: {' '.join(str(error).split())[:1000]}") from None


def default_interventions(spec: DatasetSpec) -> list[dict[str, float]]:
    """For a data set without a table: every variable by itself to three quarters of its range, or to its last value."""
    questions = []
    for i, name in enumerate(spec.graph.names):
        discrete = bool(spec.kinds) and spec.kinds[i] != "continuous"
        value = spec.high[i] if discrete else spec.low[i] + 0.75 * (spec.high[i] - spec.low[i])
        questions.append({name: float(f"{value:.3g}")})
    return questions


def parse_numbers(name: str, text: str) -> list[float]:
    """ "0,0.5,1" -> [0.0, 0.5, 1.0]; an empty text gives none."""
    try:
        values = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = [float("nan")]
    if not all(np.isfinite(values)):
        raise InputError(f"{name}: {text!r} given, finite numbers separated by commas are needed")
    return values


def parse_test_config(argv: Sequence[str], description: str) -> TestConfig:
    """The settings from `--config FILE`, `--recipe NAME` and flags; later ones override earlier ones."""
    parser = argument_parser(description)
    parser.add_argument("--recipe", help=f"a named set of values, put in at its place: {', '.join(RECIPES)}")
    parser.add_class_arguments(TestConfig, nested_key=None, skip={"do"}, instantiate=False)
    parser.add_argument("--do", action="append", default=[], help="name=value[,name=value]; may be given several times")
    values = parse_flat(parser, expand_recipes(argv, RECIPES))
    return TestConfig(**{f.name: values[f.name] for f in fields(TestConfig)})


def run_test(argv: Sequence[str], description: str, interventions: Interventions, model_type: str) -> str:
    """A test script's main.

    Args:
        interventions: by data set, asked where `--do` names none.
        model_type: what the script is for; another model is refused.

    Returns:
        Tables to print.
    """
    config = parse_test_config(argv, description)
    guidance, grades = config.guidance(), parse_numbers("sweep_w", config.sweep_w)
    device = dist_util.dev()
    loaded = load_model(config.model_path, device, config.ema or None, config.dataset, config.predictor_path)
    spec, found = loaded.spec, loaded.config.model.model_type
    if found != model_type:
        raise InputError(f"{config.model_path}: a model of type {found}; scripts/image_{found}_test.py is for it")
    questions = [parse_do(text, spec) for text in config.do]
    for sentence in intervention_warnings(spec.graph, questions):
        warnings.warn(sentence, stacklevel=2)
    questions = questions or [spec.check_do(do) for do in interventions.get(spec.name, default_interventions(spec))]
    traversed = [name.strip() for name in config.traverse.split(",") if name.strip()]
    for name in traversed:
        if name not in spec.graph.names:
            raise InputError(f"traverse: unknown variable {name!r}, known are {', '.join(spec.graph.names)}")
    accelerate(loaded.model, device, compiled=config.compile, channels_innermost=config.channels_last)
    engine = loaded.engine(
        config.steps,
        config.solver,
        config.grid,
        config.timestep_respacing,
        residual=config.residual,
        rescale_quantile=config.rescale_quantile,
        abduction=AbductionKind(config.abduction),
        guidance=guidance,
        stop=config.stop,
        autocast=activation_dtype(config.use_bf16, device),
    )
    data = read_split(spec.name, config.data_dir, "test", limit=config.num_images or None, spec=spec)
    graded = [replace(guidance, w=w, w_affected=None, w_invariant=None) for w in grades]
    groups = [(questions, [guidance] * len(questions)), (questions[:1] * len(grades), graded)]
    for name in traversed:
        values = values_of(spec, name)
        groups.append((values, [guidance] * len(values)))
    with progress_bar(total=len(data), desc="counterfactuals", unit="image") as bar:
        every = evaluate_interventions(
            engine,
            data,
            [do for dos, _ in groups for do in dos],
            config.batch_size,
            device,
            bar.update,
            config.seed,
            [grade for _, some in groups for grade in some],
            find_measurement(spec, config.judge, device),
        )
    answers = iter(every)
    results, swept, *walks = [list(islice(answers, len(dos))) for dos, _ in groups]
    out = Path(config.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"model": loaded.path, "step": loaded.step, "settings": asdict(config)}
    report["results"] = figures = {describe_do(result.do): summary(result, spec) for result in results}
    save_png(out / "counterfactuals.png", draw_grid(results, spec, config.grid_images))
    write_csv(out / "counterfactuals.csv", results, data)
    np.savez_compressed(out / "counterfactuals.npz", **arrays(results))  # type: ignore[arg-type]
    tables = [table(figures, spec)]
    if grades:
        report["sweep_w"] = rows = report_guidance_sweep(swept, grades, spec, out, config.grid_images)
        tables.append(sweep_table(rows, describe_do(questions[0], spec), spec))
    for name, walk in zip(traversed, walks, strict=True):
        report[f"traversal_{name}"] = moved = report_traversal(walk, name, spec, out, config.grid_images)
        tables.append(traversal_table(moved, name))
    (out / "summary.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return "\n\n".join([*tables, f"written to {out}"])


def report_guidance_sweep(
    results: Sequence[InterventionResult], grades: Sequence[float], spec: DatasetSpec, out: Path, count: int
) -> list[dict[str, float]]:
    """One intervention at several grades w: sweep_w.png and sweep_w.csv; returns what is measured, a row a grade."""
    rows = [{"w": w, **summary(result, spec)} for w, result in zip(grades, results, strict=True)]
    save_png(out / "sweep_w.png", draw_traversal(results, spec, [f"w = {w:g}" for w in grades], count))
    write_rows(out / "sweep_w.csv", rows)
    return rows


def sweep_table(rows: Sequence[Mapping[str, float]], do: str, spec: DatasetSpec) -> str:
    """What is measured at each grade, means over images."""
    heads, keys = ["change"], ["change_l1"]
    if any("counterfactual_l1" in row for row in rows):
        heads, keys = ["L1 to truth"], ["counterfactual_l1"]
    for i, name in enumerate(spec.graph.names):
        reached = f"reached_{name}"
        heads.append(f"{name} reached" if reached in rows[0] else name)
        keys.append(reached if spec.category_values(i) and reached in rows[0] else f"measured_{name}")
    lines = [f"{do} by its grade w, means of what is measured"]
    lines.append(f"{'w':>8s}" + "".join(f"{head:>18s}" for head in heads))
    lines += [f"{row['w']:8.3g}" + "".join(f"{row[key]:18.3f}" for key in keys) for row in rows]
    return "\n".join(lines)


def find_measurement(spec: DatasetSpec, judge: str, device: torch.device) -> Measurement | None:
    """What reads labels off pictures where the data set itself cannot: the judge given, or the one in weights/."""
    if not judge and (can_measure(spec) or not predictor_is_shipped(spec)):
        return None
    predictor = load_predictor(find_predictor(spec, judge), device).predictor
    check_fits(predictor, spec, judge or "the predictor in weights/")
    return lambda images: predictor.read(images).labels


def values_of(spec: DatasetSpec, name: str) -> list[dict[str, float]]:
    """Interventions on one variable, at values all over its range."""
    i = spec.graph.index(name)
    if spec.category_values(i):
        return [{name: value} for value in spec.category_values(i)]
    margin = 0.05 * (spec.high[i] - spec.low[i])  # the very ends are seen once in training
    values = np.linspace(spec.low[i] + margin, spec.high[i] - margin, TRAVERSED)
    return [{name: float(f"{value:.4g}")} for value in values]


def report_traversal(
    results: Sequence[InterventionResult], name: str, spec: DatasetSpec, out: Path, count: int
) -> dict[str, dict[str, float]]:
    """One variable set to several values: traversal_NAME.png and .csv; returns what every variable did."""
    heads = [describe_do(result.do, spec) for result in results]
    stem = f"traversal_{file_stem(name)}"
    save_png(out / f"{stem}.png", draw_traversal(results, spec, heads, count))
    rows = [{name: result.do[name], **summary(result, spec)} for result in results]
    write_rows(out / f"{stem}.csv", rows)
    return traversal(results, spec)


def traversal_table(figures: Mapping[str, Mapping[str, float]], name: str) -> str:
    """Which variables followed, and which stayed."""
    lines = [f"do({name}) all over its range"]
    for other, row in figures.items():
        follows = np.isfinite(row["slope"])
        said = "slope of measured on true labels" if follows else "mean change of what is measured"
        lines.append(f"  {other:20s}{said:36s}{row['slope'] if follows else row['change']:8.3f}")
    return "\n".join(lines)


def write_rows(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Rows of figures as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows([{key: f"{value:.6g}" for key, value in row.items()} for row in rows])


def table(figures: Mapping[str, Mapping[str, float]], spec: DatasetSpec) -> str:
    """Mean pixel errors, and mean errors of the measured labels, per intervention."""
    known = any("counterfactual_l1" in row for row in figures.values())
    heads, keys = ["L1 to truth", "do nothing"] * known, ["counterfactual_l1", "do_nothing_l1"] * known
    heads, keys = [*heads, "reconstruction", "change"], [*keys, "reconstruction_l1", "change_l1"]
    for i, name in enumerate(spec.graph.names):
        heads.append(f"{name} reached" if spec.category_values(i) else f"|{name}|")
        keys.append(f"reached_{name}" if spec.category_values(i) else f"measured_error_{name}")
    lines = [f"{'':44s}" + "".join(f"{head:>18s}" for head in heads)]
    for do, row in figures.items():
        values = [row.get(key, float("nan")) for key in keys]
        lines.append(f"{do:44s}" + "".join(f"{v:18.3f}" if np.isfinite(v) else f"{'-':>18s}" for v in values))
    return "\n".join(lines)
