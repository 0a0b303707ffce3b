"""Runs the protocol of other models: processes share batches of images, and an interrupted run is resumed.

OUT.json     figures, settings and digests; written after each abduction, from the true labels and from the image
             (each `peers_figures`); with the floors of the predictor (`floor_figures`)
OUT.parts/   errors of finished batches; removed at the end
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from causaldiffae import dist_util
from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.datasets.registry import read_split
from causaldiffae.evaluation.chunks import Compute, claim_parts, compute_chunks, parts_folder
from causaldiffae.evaluation.digests import json_digest, state_digest
from causaldiffae.evaluation.headers import describe_model, warn_of_same_predictor
from causaldiffae.evaluation.peers import (
    NAME,
    VERSION,
    PeersTask,
    evaluate_batch,
    floor_figures,
    floors_of_batch,
    make_task,
    peers_figures,
)
from causaldiffae.evaluation.results_file import check_digest
from causaldiffae.evaluation.run import Job, data_folder, make_engine, resolved
from causaldiffae.files.reading import MAX_JSON_BYTES, read_json, replace_file
from causaldiffae.model import CausalAutoencoder
from causaldiffae.predictors.predictor import LoadedPredictor, open_predictor
from causaldiffae.script_util import LoadedModel, load_model
from causaldiffae.training.predictor import data_digest


@dataclass(frozen=True)
class _Opened:
    """The model and task of a job, with an engine for each abduction; every process loads its own."""

    loaded: LoadedModel
    engines: dict[str, CounterfactualEngine]
    predictor: LoadedPredictor
    task: PeersTask
    device: torch.device


@lru_cache(maxsize=1)
def _open(job: Job) -> _Opened:
    device, settings = dist_util.dev(), job.settings
    loaded = load_model(job.model_path, device, settings.ema or None, predictor=job.guide)
    spec, model, engines = loaded.spec, loaded.model, {}
    if getattr(model, "aligned", True):
        engines["true labels"] = make_engine(loaded, settings, use_labels=hasattr(model, "abduct_given"))
    if isinstance(model, CausalAutoencoder):  # without an encoder, the labels are always given
        engines["the image"] = make_engine(loaded, settings, use_labels=False)
    test = read_split(spec.name, data_folder(job.data_dir, spec), "test", spec=spec)
    predictor = open_predictor(spec, job.predictor, device)
    sizes = settings.chunk, settings.cycle_images, settings.num_images
    task = make_task(test, settings.seed, *sizes, sets_class=model.class_cond)
    return _Opened(loaded, engines, predictor, task, device)


def run_batch(job: Job, abduction: str, number: int) -> dict[str, np.ndarray]:
    """The errors of one batch."""
    opened = _open(job)
    return evaluate_batch(opened.engines[abduction], opened.task, number, opened.predictor.predictor, opened.device)


def run_floors(job: Job, number: int) -> dict[str, np.ndarray]:
    """The errors of the predictor on the true images of one batch."""
    opened = _open(job)
    return floors_of_batch(opened.task, number, opened.predictor.predictor)


def evaluate_as_peers(job: Job) -> dict[str, Any]:
    """Applies the protocol to a model and returns the content of OUT.json.

    Models without an encoder are abducted from the true labels only, a DiffAE without aligned latents from the image
    only. The class is set if the model is conditioned on it.

    Raises:
        InputError: if results or parts of another evaluation have the same name, and as `evaluation.run.evaluate`.
    """
    opened, out, parts = _open(job), Path(job.out), parts_folder(job.out)
    header = _header(job, opened)
    found: dict[str, Any] = {}
    floors: dict[str, Any] = {}
    if out.exists():
        known = read_json(out, MAX_JSON_BYTES)
        check_digest(known, header["digest"], str(out))
        found, floors = dict(known["abduction"]), dict(known["floors"])
    if not floors:
        claim_parts(parts, header["digest"])
        outputs = _outputs(job, partial(run_floors, job), parts / "floors", "true images")
        floors = floor_figures(outputs, opened.loaded.spec, job.settings.seed)
    report = {**header, "floors": floors, "abduction": found}
    for name in opened.engines:
        if name not in found:
            claim_parts(parts, header["digest"])
            compute = partial(run_batch, job, name)
            outputs = _outputs(job, compute, parts / name.replace(" ", "_"), f"from {name}")
            found[name] = peers_figures(outputs, opened.loaded.spec, job.settings.seed)
            replace_file(out, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
    shutil.rmtree(parts, ignore_errors=True)
    return report


def _header(job: Job, opened: _Opened) -> dict[str, Any]:
    """Everything that the figures depend on, with its digest."""
    engine, spec = next(iter(opened.engines.values())), opened.loaded.spec
    correction = engine.correction
    warn_of_same_predictor(correction, opened.predictor)
    settings = resolved(job.settings, engine).to_dict()
    header: dict[str, Any] = {
        "protocol": {"name": NAME, "version": VERSION, "settings": settings},
        "model": describe_model(opened.loaded),
        "data": data_digest(opened.task.data),
        "predictor": state_digest(opened.predictor.predictor),
        "correction_predictor": "none" if correction is None else state_digest(correction.predictor),
        "class_name": spec.class_name if spec.num_classes else "",
    }
    return {**header, "digest": json_digest(header), "path": opened.loaded.path}


def _outputs(job: Job, compute: Compute, folder: Path, description: str) -> list[dict[str, np.ndarray]]:
    """The outputs of all batches, of which finished ones are in a folder."""
    opened = _open(job)
    folder.mkdir(exist_ok=True)
    sizes = [len(rows) for rows in opened.task.batches]
    return compute_chunks(compute, sizes, folder, job.workers, opened.device, description)
