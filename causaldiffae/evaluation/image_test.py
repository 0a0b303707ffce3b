"""Main function of the scripts image_*_test.py: scores counterfactuals of a test split; writes images, CSV and JSON.

An interrupted test is resumed by the same command (`batched_test.py`).

Two optional sweeps share the abduction of the interventions: the first intervention over guidance weights w
(`--sweep_w`), and single variables over their ranges (`--traverse`).
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from causaldiffae import dist_util
from causaldiffae.counterfactual import AbductionKind, CounterfactualEngine
from causaldiffae.datasets.do_text import parse_do
from causaldiffae.datasets.folder.true_pairs import PAIRS
from causaldiffae.datasets.images import ImageData, evenly_spread
from causaldiffae.datasets.reference import TrainingReference, reference_of_model
from causaldiffae.datasets.registry import can_measure, read_split
from causaldiffae.datasets.spec import CheckedDo, DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.evaluation.batched_test import (
    FEW_STEPS,
    TABLE,
    FinishedBatches,
    expected_seconds,
    format_duration,
    run_batches,
)
from causaldiffae.evaluation.checks import checks_of_test, with_distances
from causaldiffae.evaluation.digests import json_digest, state_digest
from causaldiffae.evaluation.grids import draw_grid, draw_traversal
from causaldiffae.evaluation.interventions import (
    InterventionResult,
    Measurement,
    arrays,
    check_labels,
    describe_do,
    evaluate_interventions,
    summary,
    traversal,
    traversal_values,
    write_csv,
)
from causaldiffae.evaluation.sampling import spread_of_split
from causaldiffae.evaluation.settings import (
    RECIPES,
    TestConfig,
    default_interventions,
    parse_names,
    parse_numbers,
)
from causaldiffae.evaluation.tables import MISSING, UNKNOWN, number, text_table
from causaldiffae.evaluation.verdict import verdict_of_test
from causaldiffae.files.reading import file_stem, without_nan, write_json
from causaldiffae.guidance import Guidance
from causaldiffae.predictors.predictor import open_predictor, predictor_is_shipped
from causaldiffae.script_util import LoadedModel, load_model, parse_flags
from causaldiffae.training.acceleration import accelerate, activation_dtype
from causaldiffae.training.devices import use_device
from causaldiffae.training.predictor import data_digest
from causaldiffae.training.preflight import intervention_warnings
from causaldiffae.training.responses import ENCODED, MEASURED, ClassReader, Reader, find_reader, images_seen
from causaldiffae.visualization.image_grids import save_png

Interventions = Mapping[str, Sequence[Mapping[str, float]]]
TRIAL_IMAGES: Final = 8
"""Images whose time is measured on the CPU; an accelerator is measured on a batch."""
_NOT_IN_DIGEST: Final = ("model_path", "data_dir", "out_dir", "grid_images", "judge", "device")


def run_test(argv: Sequence[str], description: str, interventions: Interventions, model_type: str) -> str:
    """Main function of a test script.

    Args:
        interventions: default interventions by data set, used without `--do`.
        model_type: the model type that the script accepts.

    Returns:
        The tables to print.
    """
    config = parse_flags(TestConfig, argv, description, recipes=RECIPES)
    weights = parse_numbers("sweep_w", config.sweep_w)
    use_device(config.device)
    device = dist_util.dev()
    loaded = load_model(config.model_path, device, config.ema or None, config.dataset, config.predictor_path)
    spec, found = loaded.spec, loaded.config.model.model_type
    if found != model_type:
        raise InputError(
            f"model_path: expected a model of type {model_type}, got {config.model_path} of type {found}; use "
            f"scripts/image_{found}_test.py"
        )
    dos = [parse_do(text, spec) for text in config.do]
    for message in intervention_warnings(spec.graph, dos):
        warnings.warn(message, stacklevel=2)
    dos = dos or [spec.check_do(do) for do in interventions.get(spec.name, default_interventions(spec))]
    guidance = make_engine(loaded, config).guidance  # also validates the flags
    groups: dict[str, list[tuple[Mapping[str, float], Guidance]]] = {"results": [(do, guidance) for do in dos]}
    groups["sweep_w"] = [(dos[0], replace(guidance, w=w, w_affected=None, w_invariant=None)) for w in weights]
    for _, each in groups["sweep_w"]:
        loaded.check_guidance(each)
    for name in parse_names("traverse", config.traverse, spec):
        groups[f"traversal_{name}"] = [(spec.do_labels({name: v}), guidance) for v in traversal_values(spec, name)]
    data = read_test_images(config.data_dir, spec, dos, config.limit)
    check_labels(loaded.model, data)
    every, guidances = zip(*(pair for group in groups.values() for pair in group), strict=True)
    reader = find_reader(spec, make_engine(loaded, config), config.label_predictor)
    sets_class = any(spec.class_name in do for do in every)
    read_classes = reader.read_classes if reader is not None and sets_class else None
    accelerate(loaded.model, device, compiled=config.compile, channels_last=config.channels_last)
    reference = reference_of_model(loaded.path, spec)
    test = PlannedTest(loaded, config, data, every, guidances, device, reader, read_classes, len(dos), reference)
    finished = FinishedBatches(Path(config.out_dir), test.digest())
    engine = make_engine(loaded, config)
    results = run_batches(
        finished,
        lambda part, seed: with_distances(test.evaluate(engine, part, seed), reference),
        data,
        every,
        config.batch_size,
        seed=config.seed,
        in_table=len(dos),
        announce=test.estimate if len(data) > TRIAL_IMAGES else None,
    )
    rest = iter(results)
    grouped = {name: list(islice(rest, len(group))) for name, group in groups.items()}
    text = write_outputs(grouped, weights, data, config, loaded, "" if reader is None else reader.name, reference)
    finished.remove()
    return text


@dataclass(frozen=True)
class PlannedTest:
    """What a test evaluates, and with which settings; an intervention and its guidance have the same index.

    The spread over several abductions is that of the first `sampled` interventions.
    """

    loaded: LoadedModel
    config: TestConfig
    data: ImageData
    dos: Sequence[Mapping[str, float]]
    guidances: Sequence[Guidance]
    device: torch.device
    reader: Reader | None
    read_classes: ClassReader | None
    sampled: int = 0
    reference: TrainingReference | None = None

    def evaluate(self, engine: CounterfactualEngine, part: ImageData, seed: int) -> list[InterventionResult]:
        """Applies all interventions to a part of the images."""
        arguments = (self.dos, self.config.batch_size, self.device, None, seed, self.guidances)
        read, by_encoder = (None, False) if self.reader is None else (self.reader.read, self.reader.name == ENCODED)
        readers = (None if by_encoder else read, self.read_classes, read if by_encoder else None)
        results = evaluate_interventions(engine, part, *arguments, *readers)
        if self.config.samples == 1 or not self.sampled:
            return results
        dos, guidances = [CheckedDo(do) for do in self.dos[: self.sampled]], self.guidances[: self.sampled]
        draws = (self.config.samples, self.config.batch_size, self.device, seed, guidances, self.config.x_T_noise)
        spreads = spread_of_split(engine, part, dos, *draws, self.loaded.config.loss.variance_factor)
        drawn = [replace(result, **found._asdict()) for result, found in zip(results, spreads, strict=False)]
        return drawn + results[self.sampled :]

    def digest(self) -> str:
        """Identifies everything that the results depend on."""
        settings = {name: value for name, value in asdict(self.config).items() if name not in _NOT_IN_DIGEST}
        correction = make_engine(self.loaded, self.config).correction
        models = [state_digest(each) for each in (self.loaded.model, correction and correction.predictor) if each]
        interventions, known = [sorted(do.items()) for do in self.dos], self.reference is not None
        return json_digest([models, data_digest(self.data), interventions, settings, known])

    def estimate(self, left: int) -> str:
        """Describes the test and the time that `left` images take, measured on a few images with few steps."""
        config, count = self.config, min(left, TRIAL_IMAGES if self.device.type == "cpu" else self.config.batch_size)
        trial = self.data.subset(range(count))
        engines = {few: make_engine(self.loaded, config, few) for few in FEW_STEPS}
        seconds = expected_seconds(
            lambda few: self.evaluate(engines[few], trial, config.seed),
            config.evaluations(self.loaded.config.diffusion),
        )
        images = f"{len(self.data):,} test images"
        if len(self.data) == config.limit:
            images += " (--num_images all for all)"
        done = f"{len(self.data) - left:,} are finished, " if left < len(self.data) else ""
        duration = format_duration(left / count * seconds)
        interventions = f"{len(self.dos)} intervention{'s' if len(self.dos) > 1 else ''}"
        return f"{images}, {interventions}: {done}{duration} on {self.device}"


def read_test_images(data_dir: str, spec: DatasetSpec, dos: Sequence[CheckedDo], limit: int | None) -> ImageData:
    """At most `limit` images of the test split; of a folder that lists true images, those for all `dos`."""
    lists_pairs = limit is not None and (Path(data_dir) / PAIRS).is_file()
    data = read_split(spec.name, data_dir, "test", limit=None if lists_pairs else limit, spec=spec)
    if limit is None or not lists_pairs:
        return data
    found = [data.pairs.find(do, len(data)) >= 0 for do in dos] if data.pairs else [np.zeros(len(data), bool)]
    known = np.flatnonzero(np.all(found, axis=0))
    if 0 < len(known) < min(limit, len(data)):
        message = f"test images: the {len(known)} of {len(data)} whose true counterfactuals are known"
        warnings.warn(f"{message}; --num_images all for all", stacklevel=2)
    rows = known if len(known) else np.arange(len(data))
    return data.subset(rows[evenly_spread(min(limit, len(rows)), len(rows))])


def make_engine(loaded: LoadedModel, config: TestConfig, steps: int | None = None) -> CounterfactualEngine:
    """Builds the counterfactual engine of a test, with `steps` evaluations in each direction in place of its own."""
    return loaded.engine(
        steps or config.steps,
        config.solver,
        config.grid,
        str(steps) if steps and config.timestep_respacing else config.timestep_respacing,
        label_corrections=config.label_corrections,
        correction_predictor=config.correction_predictor,
        keep_unchanged=config.keep_unchanged,
        residual=config.residual,
        rescale_quantile=config.rescale_quantile,
        abduction=AbductionKind(config.abduction),
        guidance=config.guidance(loaded.model),
        most_probable=config.most_probable,
        use_labels=config.use_labels,
        keep_causes=config.keep_causes,
        stop=config.stop,
        autocast=activation_dtype(config.use_bf16, next(loaded.model.parameters()).device),
    )


def find_measurement(spec: DatasetSpec, label_predictor: str, device: torch.device) -> Measurement | None:
    """Measures labels with the given predictor, or with the shipped one if the data set has no measurement."""
    if not label_predictor and (can_measure(spec) or not predictor_is_shipped(spec)):
        return None
    predictor = open_predictor(spec, label_predictor, device).predictor
    return lambda images: predictor.read(images).labels


def write_outputs(
    results: Mapping[str, Sequence[InterventionResult]],
    weights: Sequence[float],
    data: ImageData,
    config: TestConfig,
    loaded: LoadedModel,
    reader: str = MEASURED,
    reference: TrainingReference | None = None,
) -> str:
    """Writes all files and returns the tables and the verdict.

    Args:
        results: keys "results" (the interventions), "sweep_w", and "traversal_NAME" for each traversed variable.
        reader: what reads labels of counterfactuals, "" if nothing does.
    """
    spec, out, main = loaded.spec, Path(config.out_dir), results["results"]
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"model": loaded.path, "step": loaded.step, "settings": asdict(config)}
    report["results"] = figures = {describe_do(result.do, spec): summary(result, spec) for result in main}
    save_png(out / "counterfactuals.png", draw_grid(main, spec, config.grid_images, reader=reader))
    write_csv(out / TABLE, main, data)
    np.savez_compressed(out / "counterfactuals.npz", **arrays(main, spec))  # type: ignore[arg-type]
    tables = [intervention_table(figures, spec)]
    if config.samples > 1:
        tables.append(spread_table(figures, spec, config.samples))
    if weights:
        headings = [f"w = {w:g}" for w in weights]
        save_png(out / "sweep_w.png", draw_traversal(results["sweep_w"], spec, headings, config.grid_images, reader))
        rows = [{"w": w, **summary(result, spec)} for w, result in zip(weights, results["sweep_w"], strict=True)]
        write_rows(out / "sweep_w.csv", rows)
        report["sweep_w"] = rows
        tables.append(sweep_table(rows, describe_do(main[0].do, spec), spec))
    for key in [key for key in results if key not in ("results", "sweep_w")]:
        name = key.removeprefix("traversal_")
        report[key] = write_traversal(results[key], name, spec, out, config.grid_images, reader)
        tables.append(traversal_table(report[key], name))
    verdict, report["responses"] = verdict_of_test(main, spec, reader, images_seen(Path(loaded.path)))
    doubts, report["compared_with_training"] = checks_of_test(main, spec, reference)
    report["verdict"] = verdict
    write_json(out / "summary.json", without_nan(report))
    return "\n\n".join([*tables, "\n".join([*verdict, *doubts]), f"written to {out}"])


def write_traversal(
    results: Sequence[InterventionResult], name: str, spec: DatasetSpec, out: Path, count: int, reader: str = MEASURED
) -> dict[str, dict[str, float]]:
    """Writes traversal_NAME.png with `count` rows and traversal_NAME.csv; returns the effects on all variables."""
    headings = [describe_do(result.do, spec) for result in results]
    stem = f"traversal_{file_stem(name)}"
    save_png(out / f"{stem}.png", draw_traversal(results, spec, headings, count, reader))
    write_rows(out / f"{stem}.csv", [{name: result.do[name], **summary(result, spec)} for result in results])
    return traversal(results, spec)


def write_rows(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Writes rows of figures as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows([{key: f"{value:.6g}" for key, value in row.items()} for row in rows])


def intervention_table(figures: Mapping[str, Mapping[str, float]], spec: DatasetSpec) -> str:
    """Table of mean pixel errors and mean errors of the measured labels, one row per intervention."""
    columns = {"reconstruction L1": "reconstruction_l1", "change L1": "change_l1"}
    if any("counterfactual_l1" in row for row in figures.values()):
        columns = {"L1 to true image": "counterfactual_l1", "do nothing L1": "do_nothing_l1", **columns}
    for i, name in enumerate(spec.graph.names):
        is_known = any(f"measured_error_{name}" in row for row in figures.values())
        if spec.category_values(i) and not is_known:
            columns[f"{name} reached"] = f"reached_{name}"
        else:
            columns[f"{name} {'error rate' if spec.category_values(i) else 'error'}"] = f"measured_error_{name}"
    if any(f"reached_{spec.class_name}" in row for row in figures.values()):
        columns[f"{spec.class_name} reached"] = f"reached_{spec.class_name}"
    rows = [[do, *(number(row.get(key, np.nan)) for key in columns.values())] for do, row in figures.items()]
    return text_table(["intervention", *columns], rows, why=_why_missing(figures.values(), spec))


def spread_table(figures: Mapping[str, Mapping[str, float]], spec: DatasetSpec, samples: int) -> str:
    """Table of the spread over several abductions, means over images."""
    columns = {"pixels": "pixel_std"} | {name: f"label_std_{name}" for name in spec.graph.names}
    rows = [[do, *(number(row[key]) for key in columns.values())] for do, row in figures.items()]
    table = text_table(["intervention", *columns], rows)
    return (
        f"spread over {samples} abductions: standard deviations of pixels (grey levels) and predicted labels\n{table}"
    )


def _why_missing(rows: Iterable[Mapping[str, float]], spec: DatasetSpec) -> str:
    """Reasons for missing figures: what these rows lack."""
    rows, reasons = list(rows), []
    if any(f"reached_{spec.class_name}" in row for row in rows):
        reasons.append(f"the true image of another {spec.class_name} is unknown")
        reasons.append(f"`{spec.class_name} reached` belongs to interventions on it")
    if any(not np.isfinite(row.get(f"measured_{name}", 0.0)) for row in rows for name in spec.graph.names):
        reasons.append("labels could not be measured in the images (--label_predictor DIR names a predictor)")
    if not any("counterfactual_l1" in row for row in rows):
        reasons.append("true counterfactuals are unknown")
    return "; ".join(reasons) or UNKNOWN


def sweep_table(rows: Sequence[Mapping[str, float]], do: str, spec: DatasetSpec) -> str:
    """Table of means over images, one row per guidance weight."""
    known = any("counterfactual_l1" in row for row in rows)
    columns = {"L1 to true image": "counterfactual_l1"} if known else {"change L1": "change_l1"}
    for i, name in enumerate(spec.graph.names):
        if f"reached_{name}" in rows[0] and spec.category_values(i):
            columns[f"{name} reached"] = f"reached_{name}"
        else:
            columns[f"{name} measured"] = f"measured_{name}"
    cells = [[f"{row['w']:.3g}", *(number(row[key]) for key in columns.values())] for row in rows]
    table = text_table(["w", *columns], cells, why=_why_missing(rows, spec))
    return f"{do} at guidance weights w, means over images\n{table}"


def traversal_table(effects: Mapping[str, Mapping[str, float]], name: str) -> str:
    """Table of effects on every variable: a slope or an error rate for descendants, a change for the others."""
    texts = {
        "slope": "slope of measured on true label, ideally 1",
        "error_rate": "error rate of measured category, ideally 0",
        "change": "mean change of measured label, ideally 0",
    }
    rows = []
    for other, row in effects.items():
        key = next((key for key in texts if np.isfinite(row[key])), "change")
        rows.append([other, texts[key], number(row[key])])
    if all(row[-1] == MISSING for row in rows):
        return f"do({name}) over its range: no label could be measured in the images; see --label_predictor"
    return f"do({name}) over its range\n{text_table(['variable', 'effect', 'value'], rows, texts=2)}"
