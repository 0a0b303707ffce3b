"""Runs the protocol of other models: processes share batches of images, and an interrupted run is resumed.

OUT.json     figures, settings and digests; written after each abduction, from the true labels and from the image
OUT.parts/   errors of finished batches; removed at the end
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from causaldiffae import dist_util
from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.datasets.registry import read_split
from causaldiffae.errors import InputError
from causaldiffae.evaluation.chunks import claim_parts, compute_chunks, parts_folder
from causaldiffae.evaluation.digests import json_digest, state_digest
from causaldiffae.evaluation.headers import describe_model, warn_of_same_predictor
from causaldiffae.evaluation.peers import NAME, VERSION, PeersTask, evaluate_batch, make_task, peers_figures
from causaldiffae.evaluation.run import Job, data_folder, make_engine
from causaldiffae.files.reading import MAX_JSON_BYTES, read_json, replace_file
from causaldiffae.model import CausalAutoencoder
from causaldiffae.predictors.predictor import LoadedPredictor, open_predictor
from causaldiffae.script_util import LoadedModel, load_model
from causaldiffae.training.predictor import data_digest

ABDUCTIONS: Final = {"true labels": True, "the image": False}
"""Name of an abduction -> whether the noise is abducted from the true factual labels."""


@dataclass(frozen=True)
class _Opened:
    """The model and task of a job; every process loads its own."""

    loaded: LoadedModel
    engine: CounterfactualEngine
    predictor: LoadedPredictor
    task: PeersTask
    device: torch.device


@lru_cache(maxsize=1)
def _open(job: Job, use_labels: bool) -> _Opened:
    device, settings = dist_util.dev(), job.settings
    loaded = load_model(job.model_path, device, settings.ema or None, predictor=job.guide)
    folder, limit = data_folder(job.data_dir, loaded.spec), settings.num_images or None
    data = read_split(loaded.spec.name, folder, "test", limit=limit, spec=loaded.spec)
    engine = make_engine(loaded, settings, use_labels=use_labels)
    predictor = open_predictor(loaded.spec, job.predictor, device)
    task = make_task(data, settings.seed, settings.chunk, settings.cycle_images)
    return _Opened(loaded, engine, predictor, task, device)


def run_batch(job: Job, use_labels: bool, number: int) -> dict[str, np.ndarray]:
    """The errors of one batch."""
    opened = _open(job, use_labels)
    return evaluate_batch(opened.engine, opened.task, number, opened.predictor.predictor, opened.device)


def evaluate_as_peers(job: Job) -> dict[str, Any]:
    """Applies the protocol to a model and returns the content of OUT.json.

    Models without an encoder are abducted from the true labels only.

    Raises:
        InputError: if results or parts of another evaluation have the same name, and as `evaluation.run.evaluate`.
    """
    opened, out, parts = _open(job, True), Path(job.out), parts_folder(job.out)
    warn_of_same_predictor(opened.engine.correction, opened.predictor)
    report = _header(job, opened)
    names = [name for name, given in ABDUCTIONS.items() if given or isinstance(opened.loaded.model, CausalAutoencoder)]
    known = _known_figures(out, report["digest"])
    if set(known) != set(names):
        claim_parts(parts, report["digest"])
    found: dict[str, Any] = {}
    for name in names:
        found[name] = known.get(name) or _figures(job, name, parts)
        content = {**report, "abduction": {**known, **found}}
        replace_file(out, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    shutil.rmtree(parts, ignore_errors=True)
    return {**report, "abduction": found}


def _header(job: Job, opened: _Opened) -> dict[str, Any]:
    """Everything that the figures depend on, with its digest."""
    correction, spec = opened.engine.correction, opened.loaded.spec
    settings = asdict(replace(job.settings, keep_unchanged=opened.engine.keep_fraction))
    header: dict[str, Any] = {
        "protocol": {"name": NAME, "version": VERSION, "settings": settings},
        "model": describe_model(opened.loaded),
        "data": data_digest(opened.task.data),
        "predictor": state_digest(opened.predictor.predictor),
        "correction_predictor": "none" if correction is None else state_digest(correction.predictor),
        "class_name": spec.class_name if spec.num_classes else "",
    }
    return {**header, "digest": json_digest(header), "path": opened.loaded.path}


def _known_figures(out: Path, digest: str) -> dict[str, Any]:
    """Abductions -> figures that the file `out` already holds.

    Raises:
        InputError: if they are those of another model, data set or settings.
    """
    if not out.exists():
        return {}
    known = read_json(out, MAX_JSON_BYTES)
    if known.get("digest") != digest:
        raise InputError(f"{out}: expected results of this model, data and settings, got others; delete it")
    return dict(known["abduction"])


def _figures(job: Job, name: str, parts: Path) -> dict[str, Any]:
    """The figures of one abduction."""
    opened = _open(job, ABDUCTIONS[name])
    compute = partial(run_batch, job, ABDUCTIONS[name])
    sizes, folder = [len(rows) for rows in opened.task.batches], parts / name.replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    outputs = compute_chunks(compute, sizes, folder, job.workers, opened.device, f"from {name}")
    return peers_figures(outputs, opened.loaded.spec, job.settings.seed)
