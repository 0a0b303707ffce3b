"""Runs the evaluation of a model: processes share chunks of images, whose outputs are stored and scored at the end.

    OUT.json          all figures, settings, seeds, versions and digests
    OUT.parts/        outputs of finished chunks, to resume an interrupted evaluation; removed at the end
    OUT.pictures.npz  a few images for the report

Parts and results contain a digest of protocol, model, data and settings, so different evaluations are never mixed.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from causaldiffae import dist_util
from causaldiffae.counterfactual import AbductionKind, CounterfactualEngine
from causaldiffae.datasets.images import ImageData, evenly_spread, to_model_range
from causaldiffae.datasets.label_subsets import labelled_only
from causaldiffae.datasets.registry import find_dataset, read_split
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.evaluation.chunks import claim_parts, compute_chunks, one_thread, parts_folder
from causaldiffae.evaluation.headers import describe, describe_model
from causaldiffae.evaluation.interventions import check_labels
from causaldiffae.evaluation.protocol import PROTOCOL, VERSION, ProtocolSettings, Task, TaskRunner, make_task
from causaldiffae.evaluation.results_file import check_digest, check_results
from causaldiffae.evaluation.scores import Scorer, score, score_latents
from causaldiffae.files.reading import MAX_JSON_BYTES, read_json, replace_file
from causaldiffae.files.storage import is_remote
from causaldiffae.guidance import Guidance, guidance_weight
from causaldiffae.predictors.predictor import open_predictor
from causaldiffae.script_util import LoadedModel, load_model

EXAMPLES: Final = 8
_SMALLEST_FIT: Final = 20  # images; DCI is too noisy on fewer
_MAX_RESULTS: Final = 1 << 24  # validation takes two seconds per MiB


@dataclass(frozen=True)
class Job:
    """The evaluation of one model.

    Attributes:
        model_path: as in `load_model`.
        data_dir: folder of the data set, or its parent if the folder has the name of the data set.
        out: the results file.
        predictor: folder of the predictor; by default the shipped one.
        inception_weights: weights file of the Inception network for the FID; empty disables the FID.
        trust_inception: accept any Inception file; loading it executes the code that it contains.
        workers: number of processes; an accelerator always uses one.
        guide: folder of the noised predictor of a Diff-SCM, or "none"; by default the one beside its weights.
    """

    model_path: str
    data_dir: str
    out: str
    settings: ProtocolSettings
    predictor: str = ""
    inception_weights: str = ""
    trust_inception: bool = False
    workers: int = 1
    guide: str = ""


@dataclass(frozen=True)
class _Opened:
    """The model and task of a job; every process loads its own."""

    loaded: LoadedModel
    engine: CounterfactualEngine
    task: Task
    device: torch.device


def data_folder(data_dir: str, spec: DatasetSpec) -> str:
    """Returns `data_dir`, or its subfolder with the name of the data set.

    Raises:
        InputError: if the folder is missing or its recipe names another data set.
    """
    if is_remote(data_dir):
        return data_dir
    folder = Path(data_dir) / spec.name if (Path(data_dir) / spec.name).is_dir() else Path(data_dir)
    if not folder.is_dir():
        raise InputError(f"data_dir: expected a folder, got {folder}, which does not exist")
    recipe = folder / "recipe.json"
    if recipe.is_file() and find_dataset(spec.name).spec is not None:
        named = read_json(recipe, _MAX_RESULTS).get("dataset", spec.name)
        if named != spec.name:
            raise InputError(f"data_dir: expected data set {spec.name!r} of the model, got {named!r} in {folder}")
    return str(folder)


def make_engine(loaded: LoadedModel, settings: ProtocolSettings, **options: Any) -> CounterfactualEngine:
    """The counterfactual engine of an evaluation; `options` as in `LoadedModel.engine`."""
    options = {"use_labels": settings.use_labels} | options
    return loaded.engine(
        settings.steps,
        settings.solver,
        settings.grid,
        label_corrections=settings.label_corrections,
        correction_predictor=settings.correction_predictor,
        keep_unchanged=settings.keep_unchanged,
        keep_causes=settings.keep_causes,
        abduction=AbductionKind(settings.abduction),
        guidance=Guidance(guidance_weight(loaded.model, settings.w), w_class=settings.w_class),
        stop=settings.stop,
        **options,
    )


def resolved(settings: ProtocolSettings, engine: CounterfactualEngine) -> ProtocolSettings:
    """The settings with the values of the engine in place of those that are None."""
    return replace(settings, keep_unchanged=engine.keep_fraction, w=engine.guidance.w)


@lru_cache(maxsize=1)
def _open(job: Job) -> _Opened:
    device, settings = dist_util.dev(), job.settings
    loaded = load_model(job.model_path, device, settings.ema or None, predictor=job.guide)
    engine = make_engine(loaded, settings)
    test = read_split(loaded.spec.name, data_folder(job.data_dir, loaded.spec), "test", spec=loaded.spec)
    check_labels(loaded.model, test)
    return _Opened(loaded, engine, make_task(test, settings), device)


def images_file(out: str) -> Path:
    """File of the images shown in the report."""
    return Path(out).with_suffix(".pictures.npz")


def run_chunk(job: Job, number: int) -> dict[str, np.ndarray]:
    """Computes the outputs of one chunk."""
    opened = _open(job)
    rows = opened.task.chunks(job.settings.chunk)[number]
    return TaskRunner(opened.engine, opened.task, job.settings, opened.device).run(rows)


def read_results(path: str | Path) -> dict[str, Any]:
    """Reads and validates a results file.

    Raises:
        DataError: for a file of another kind or protocol version.
    """
    path = Path(path)
    results = read_json(path, _MAX_RESULTS)
    protocol = results.get("protocol")
    if not isinstance(protocol, dict) or protocol.get("name") != PROTOCOL:
        raise DataError(f"{path}: expected a results file of scripts/evaluate.py, got another JSON file")
    if protocol.get("version") != VERSION:
        given = str(protocol.get("version"))[:20]
        raise DataError(f"{path}: expected protocol version {VERSION}, got {given}; run the evaluation again")
    check_results(results, str(path))
    return results


def evaluate(job: Job) -> dict[str, Any]:
    """Evaluates a model, resuming an interrupted evaluation, and returns the content of OUT.json.

    Raises:
        InputError: for another data set, an unknown variable, too few images, a predictor that does not fit, or if
            results or parts of another evaluation have the same name.
    """
    opened = _open(job)
    loaded, task, out = opened.loaded, opened.task, Path(job.out)
    predictor = open_predictor(loaded.spec, job.predictor, opened.device)
    inception = (job.inception_weights, job.trust_inception)
    settings = resolved(job.settings, opened.engine)
    header = describe(describe_model(loaded), task, settings, predictor, *inception, opened.engine.correction)
    header["model"] |= {"path": loaded.path, "name": out.stem, "config": loaded.config.to_dict()}
    header["data"]["folder"] = data_folder(job.data_dir, loaded.spec)
    if (known := known_results(out, header)) is not None:
        return known
    parts = parts_folder(job.out)
    claim_parts(parts, header["asked"])
    begin = time.monotonic()
    sizes = [len(rows) for rows in task.chunks(job.settings.chunk)]
    chunks = compute_chunks(partial(run_chunk, job), sizes, parts, job.workers, opened.device, out.stem)
    outputs = task.join(chunks, job.settings.chunk)
    finished = time.monotonic()
    train = read_split(loaded.spec.name, header["data"]["folder"], "train", spec=loaded.spec)
    scorer = Scorer(predictor.predictor, train, *inception, job.settings.seed)
    with one_thread():
        results = score(task, outputs, scorer)
        results["dci"] = latent_scores(opened.engine, task, scorer, job.settings, opened.device)
    timing = {"asking_seconds": finished - begin, "scoring_seconds": time.monotonic() - finished}
    timing = {key: round(value, 1) for key, value in timing.items()} | {"workers": job.workers}
    found = {**header, "results": results, "timing": timing}
    write_results(out, found, task, outputs)
    shutil.rmtree(parts, ignore_errors=True)
    return found


def known_results(out: Path, header: Mapping[str, Any]) -> dict[str, Any] | None:
    """The results that the file `out` already holds, None without a file.

    Raises:
        InputError: if they are those of another model, data set or settings.
    """
    if not out.exists():
        return None
    known = read_results(out)
    check_digest(known, header["digest"], str(out))
    return known


def write_results(out: Path, found: dict[str, Any], task: Task, outputs: dict[str, np.ndarray]) -> None:
    """Writes the results file and the images for the report."""
    np.savez_compressed(images_file(str(out)), **example_images(task, outputs))  # type: ignore[arg-type]
    replace_file(out, (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())


def latent_scores(
    engine: CounterfactualEngine, task: Task, scorer: Scorer, settings: ProtocolSettings, device: torch.device
) -> dict[str, Any] | None:
    """DCI of z, fitted on training images and tested on the task's images, those with the label that is predicted.

    None if z holds the given labels, or for too few images with the label of some variable.
    """
    given = engine.model.needs_labels or engine.model.unconditional_abduction
    references, data = scorer.references(), task.data
    fewest = min(int(each.observed.sum(axis=0).min()) for each in (references, data))
    if given or not settings.dci_resamples or fewest < _SMALLEST_FIT:
        return None
    data = labelled_only(data)

    def latents(part: ImageData) -> np.ndarray:
        batches = [to_model_range(part.images[start : start + 100]).to(device) for start in range(0, len(part), 100)]
        return np.concatenate([engine.latents(batch).cpu().double().numpy() for batch in batches])

    labels = [each.labels.astype(np.float64) for each in (references, data)]
    categories = data.spec.all_category_values()
    z = [latents(each) for each in (references, data)]
    return score_latents(z[0], labels[0], z[1], labels[1], settings.dci_resamples, settings.seed, categories)


def example_images(task: Task, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A few images spread over the task, with their interventions and outputs."""
    rows = evenly_spread(min(EXAMPLES, len(task)), len(task))
    found = {"factual": task.data.images[rows], "labels": task.labels[rows]}
    if np.isfinite(outputs["composition"]).any():  # the answers of another system may have no reconstructions
        found["reconstruction"] = outputs["images"][rows]
    for name in task.variables:
        found[f"values/{name}"] = task.values[name][rows]
        for key in (f"images/{name}", f"true_images/{name}", f"measured/{name}", f"true_labels/{name}"):
            if key in outputs:
                found[key] = outputs[key][rows]
    return found


def find_models(folder: str) -> list[str]:
    """All run directories and model folders directly inside a folder, except predictors.

    Raises:
        InputError: if the folder does not exist or has no models.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"all: expected a folder of checkpoints, got {root}, which does not exist")
    found = [str(path) for path in sorted(root.iterdir()) if path.is_dir() and _is_model(path)]
    if not found:
        raise InputError(f"all: expected checkpoints in {root}, got none")
    return found


def _is_model(path: Path) -> bool:
    if any(path.glob("step_*")):
        return True
    described = path / "config.json"
    if not described.is_file() or not (path / "model.safetensors").is_file():
        return False
    return read_json(described, MAX_JSON_BYTES).get("model_type") != "predictor"


def settings_from(values: dict[str, Any]) -> ProtocolSettings:
    """Selects the protocol settings among the flags of a script."""
    return ProtocolSettings(**{field.name: values[field.name] for field in fields(ProtocolSettings)})
