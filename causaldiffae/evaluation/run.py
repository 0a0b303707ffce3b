"""Runs the benchmark: chunks of images shared between processes, kept on disk as they are done, and one results file.

    OUT.json          all figures, settings, seeds, versions and digests
    OUT.parts/        answers of finished chunks; an interrupted evaluation goes on from here; removed at the end
    OUT.pictures.npz  a few images for the report

The parts and the results name what they are of (protocol, model, data, settings): they are never mixed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from causaldiffae import dist_util
from causaldiffae.counterfactual import AbductionKind, CounterfactualEngine
from causaldiffae.datasets.images import ImageData, evenly_spread, to_model_range
from causaldiffae.datasets.registry import exact_labels, read_split
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.evaluation.protocol import PROTOCOL, VERSION, ProtocolSettings, Task, TaskRunner, make_task
from causaldiffae.evaluation.results_file import check_results
from causaldiffae.evaluation.scores import Judge, score, score_latents
from causaldiffae.files.npz import NpzFile
from causaldiffae.files.reading import MAX_JSON_BYTES, file_sha256, parse_json, read_file
from causaldiffae.generators.workers import worker_pool
from causaldiffae.guidance import Guidance
from causaldiffae.logger import progress_bar
from causaldiffae.nn import count_parameters
from causaldiffae.predictors.predictor import LoadedPredictor, check_fits, find_predictor, load_predictor
from causaldiffae.script_util import LoadedModel, load_model
from causaldiffae.training.predictor import data_digest

PICTURES: Final = 8
_SMALLEST_FIT: Final = 20  # images; DCI on fewer would be noise
_MAX_RESULTS: Final = 1 << 26
_MAX_PART: Final = 1 << 32


@dataclass(frozen=True)
class Job:
    """One model's evaluation.

    Attributes:
        model_path: as `load_model` takes it.
        data_dir: the data set's folder, or one that holds it under its name.
        out: the results file.
        settings: of the protocol.
        predictor: its folder; by default found in weights/.
        inception_weights: file for the true FID; none leaves it out.
        workers: processes; one where there is an accelerator.
    """

    model_path: str
    data_dir: str
    out: str
    settings: ProtocolSettings
    predictor: str = ""
    inception_weights: str = ""
    workers: int = 1


@dataclass(frozen=True)
class _Opened:
    """A job's model and questions, as every process opens them for itself."""

    loaded: LoadedModel
    engine: CounterfactualEngine
    task: Task
    device: torch.device


def data_folder(data_dir: str, spec: DatasetSpec) -> str:
    """`data_dir`, or the folder in it that bears the data set's name.

    Raises:
        InputError: if the folder says that it holds another data set.
    """
    if "://" in data_dir:
        return data_dir
    folder = Path(data_dir) / spec.name if (Path(data_dir) / spec.name).is_dir() else Path(data_dir)
    if not folder.is_dir():
        raise InputError(f"data_dir: {folder} is missing")
    recipe = folder / "recipe.json"
    if recipe.is_file() and spec.name != "folder":
        named = parse_json(read_file(recipe, _MAX_RESULTS), str(recipe)).get("dataset", spec.name)
        if named != spec.name:
            raise InputError(f"data_dir: {folder} holds {named!r}, the model was trained on {spec.name!r}")
    return str(folder)


@lru_cache(maxsize=1)
def _open(job: Job) -> _Opened:
    device, settings = dist_util.dev(), job.settings
    loaded = load_model(job.model_path, device, settings.ema or None)
    engine = loaded.engine(
        settings.steps,
        settings.solver,
        settings.grid,
        abduction=AbductionKind(settings.abduction),
        guidance=Guidance(w=settings.w),
        stop=settings.stop,
    )
    test = read_split(loaded.spec.name, data_folder(job.data_dir, loaded.spec), "test", spec=loaded.spec)
    return _Opened(loaded, engine, make_task(test, settings), device)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums come out the same however many processes share the work; the processes share the cores already."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _part(folder: Path, number: int) -> Path:
    return folder / f"chunk_{number:05d}.npz"


def answer_chunk(job: Job, number: int) -> int:
    """Answers one chunk and keeps it on disk; returns its number of images."""
    opened = _open(job)
    rows = opened.task.chunks(job.settings.chunk)[number]
    with _one_thread():
        answers = TaskRunner(opened.engine, opened.task, job.settings, opened.device).answer(rows)
    path = _part(parts_folder(job.out), number)
    partial = path.with_name(f".{path.name}.{os.getpid()}.npz")
    np.savez(partial, **answers)  # type: ignore[arg-type]
    partial.replace(path)
    return len(rows)


def parts_folder(out: str) -> Path:
    """Where finished chunks of a results file lie."""
    return Path(out).with_suffix(".parts")


def pictures_file(out: str) -> Path:
    """Where the images for the report lie."""
    return Path(out).with_suffix(".pictures.npz")


def _read_part(path: Path) -> dict[str, np.ndarray] | None:
    """A finished chunk; None if it is missing or damaged, and then it is done again."""
    try:
        with NpzFile(path) as kept:
            return kept.arrays("biuf", _MAX_PART)
    except DataError:
        return None


def read_results(path: str | Path) -> dict[str, Any]:
    """A results file of this protocol's version.

    Raises:
        InputError: if it is none, or of another version.
    """
    path = Path(path)
    found = parse_json(read_file(path, _MAX_RESULTS), str(path))
    protocol = found.get("protocol")
    if not isinstance(protocol, dict) or protocol.get("name") != PROTOCOL:
        raise DataError(f"{path}: it is no results file of this benchmark")
    if protocol.get("version") != VERSION:
        given = str(protocol.get("version"))[:20]
        raise DataError(f"{path}: results of protocol version {given}, this is version {VERSION}; evaluate anew")
    check_results(found, str(path))
    return found


def evaluate(job: Job) -> dict[str, Any]:
    """Evaluates a model, or goes on where an earlier call was interrupted, and returns what OUT.json then holds.

    Raises:
        InputError: for what cannot be served: another data set, an unknown variable, too few images, a predictor of
            other images, results or parts of something else under the same name.
    """
    opened = _open(job)
    loaded, task = opened.loaded, opened.task
    judge = load_predictor(find_predictor(loaded.spec, job.predictor), opened.device)
    check_fits(judge.predictor, loaded.spec, judge.path)
    header = describe(job, opened, judge)
    out, parts = Path(job.out), parts_folder(job.out)
    if out.exists():
        known = read_results(out)
        if known.get("digest") != header["digest"]:
            raise InputError(f"{out}: results of another model, data or settings; delete it or give another --out")
        return known
    parts.mkdir(parents=True, exist_ok=True)
    _claim(parts, header["asked"])
    begin = time.monotonic()
    chunks = _answer_all(job, task, opened.device)
    asked = time.monotonic()
    answers = task.join(chunks, job.settings.chunk)
    train = read_split(loaded.spec.name, data_folder(job.data_dir, loaded.spec), "train", spec=loaded.spec)
    scorer = Judge(judge.predictor, train, job.inception_weights, job.settings.seed)
    with _one_thread():
        results = score(task, answers, scorer)
        results["dci"] = latent_scores(opened.engine, task, scorer, job.settings, opened.device)
    timing = {"asking_seconds": asked - begin, "scoring_seconds": time.monotonic() - asked, "workers": job.workers}
    found = {**header, "results": results, "timing": {key: round(value, 1) for key, value in timing.items()}}
    np.savez_compressed(pictures_file(job.out), **pictures(task, answers))  # type: ignore[arg-type]
    text = json.dumps(found, indent=1, allow_nan=False) + "\n"
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(out)
    shutil.rmtree(parts, ignore_errors=True)
    return found


def _claim(parts: Path, digest: str) -> None:
    """Says in the folder of parts what they are of; refuses one that is of something else."""
    mark = parts / "digest"
    if mark.is_file() and read_file(mark, 1 << 10) != digest.encode():
        raise InputError(f"{parts}: parts of another model, data or settings; delete the folder or give another --out")
    mark.write_text(digest, encoding="utf-8")


def _answer_all(job: Job, task: Task, device: torch.device) -> list[dict[str, np.ndarray]]:
    """Every chunk's answers in order; those that are on disk are not asked for again."""
    folder = parts_folder(job.out)
    chunks = task.chunks(job.settings.chunk)
    missing = [number for number in range(len(chunks)) if _read_part(_part(folder, number)) is None]
    done = len(task) - sum(len(chunks[number]) for number in missing)
    with progress_bar(total=len(task), initial=done, desc=Path(job.out).stem, unit="image") as bar:
        if job.workers < 2 or len(missing) < 2 or device.type != "cpu":
            for number in missing:
                bar.update(answer_chunk(job, number))
        else:
            _share(job, missing, bar.update)
    found = [_read_part(_part(folder, number)) for number in range(len(chunks))]
    return [part for part in found if part is not None]


def _share(job: Job, missing: list[int], on_done: Callable[[int], object]) -> None:
    with worker_pool(min(job.workers, len(missing))) as pool:
        running = [pool.submit(answer_chunk, job, number) for number in missing]
        try:
            for future in as_completed(running):
                on_done(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def latent_scores(
    engine: CounterfactualEngine, task: Task, judge: Judge, settings: ProtocolSettings, device: torch.device
) -> dict[str, Any] | None:
    """DCI of z, fitted on training images and tested on the task's; None for a model without an encoder."""
    given = engine.model.needs_labels or engine.model.unconditional_abduction  # its latents are the labels it is told
    if given or not settings.dci_resamples or len(task) < _SMALLEST_FIT:
        return None
    references = judge.references()
    if len(references) < _SMALLEST_FIT:
        return None

    def latents(data: ImageData) -> np.ndarray:
        pieces = [to_model_range(data.images[start : start + 100]).to(device) for start in range(0, len(data), 100)]
        return np.concatenate([engine.latents(piece).double().cpu().numpy() for piece in pieces])

    labels = exact_labels(references).astype(np.float64)
    asked = task.labels.astype(np.float64)
    return score_latents(latents(references), labels, latents(task.data), asked, settings.dci_resamples, settings.seed)


# ---------------------------------------------------------------------- what the results are of


def describe(job: Job, opened: _Opened, judge: LoadedPredictor) -> dict[str, Any]:
    """Everything that the figures depend on, and its digest."""
    loaded, task = opened.loaded, opened.task
    config = loaded.config.to_dict()
    trained = {
        key: value for key, value in config.get("train", {}).items() if key not in ("data_dir", "run_dir", "seed")
    }
    header: dict[str, Any] = {
        "protocol": {"name": PROTOCOL, "version": VERSION},
        "model": {
            "type": loaded.config.model.model_type,
            "step": loaded.step,
            "digest": state_digest(loaded.model),
            "parameters": count_parameters(loaded.model),
            "seed": loaded.config.train.seed,
            "recipe": _digest({**config, "train": trained, "dataset": loaded.spec.to_dict()}),
        },
        "data": {
            "dataset": loaded.spec.name,
            "digest": data_digest(task.data),
            "split": "test",
            "images": len(task),
            "image_size": loaded.spec.image_size,
            "channels": loaded.spec.channels,
            "variables": list(loaded.spec.graph.names),
            "units": list(loaded.spec.units),
            "truth": "drawn by the generator" if task.truth_is_known else "not known",
        },
        "settings": {**asdict(job.settings), "variables": list(task.variables)},
    }
    header["asked"] = _digest(header)  # what the answers depend on; the judges may change
    header["predictor"] = {"digest": state_digest(judge.predictor), "figures": judge.figures}
    if job.inception_weights:
        weights = Path(job.inception_weights)
        if not weights.is_file():
            raise InputError(f"inception_weights: {weights} is missing; a TorchScript file is needed")
        header["settings"]["inception"] = file_sha256(weights)[:16]
    header["digest"] = _digest(header)
    header["model"] |= {"path": loaded.path, "name": Path(job.out).stem, "config": config}
    header["data"]["folder"] = data_folder(job.data_dir, loaded.spec)
    header["predictor"]["path"] = judge.path
    header["versions"] = versions(opened.device)
    return header


def versions(device: torch.device) -> dict[str, str]:
    """Of Python and of the packages that the figures rest on."""
    found = {"python": platform.python_version(), "device": str(device), "platform": sys.platform}
    for name in ("torch", "numpy", "scipy", "scikit-learn", "scikit-image", "causaldiffae"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def state_digest(module: torch.nn.Module) -> str:
    """Sixteen hexadecimal digits of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def pictures(task: Task, answers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A few images, spread over the task, and what was asked about them."""
    rows = evenly_spread(min(PICTURES, len(task)), len(task))
    found = {"factual": task.data.images[rows], "labels": task.labels[rows], "reconstruction": answers["images"][rows]}
    for name in task.variables:
        found[f"values/{name}"] = task.values[name][rows]
        for key in (f"images/{name}", f"true_images/{name}", f"measured/{name}", f"true_labels/{name}"):
            if key in answers:
                found[key] = answers[key][rows]
    return found


def find_models(folder: str) -> list[str]:
    """Every checkpoint directly inside a folder: run directories and model folders, predictors excepted.

    Raises:
        InputError: if there is none.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"all: {root} is missing, a folder of checkpoints is needed")
    found = [str(path) for path in sorted(root.iterdir()) if path.is_dir() and _is_model(path)]
    if not found:
        raise InputError(f"all: {root} holds no checkpoints")
    return found


def _is_model(path: Path) -> bool:
    if any(path.glob("step_*")):
        return True
    described = path / "config.json"
    if not described.is_file() or not (path / "model.safetensors").is_file():
        return False
    return parse_json(read_file(described, MAX_JSON_BYTES), str(described)).get("model_type") != "predictor"


def settings_from(values: dict[str, Any]) -> ProtocolSettings:
    """The settings among a script's values."""
    return ProtocolSettings(**{field.name: values[field.name] for field in fields(ProtocolSettings)})
