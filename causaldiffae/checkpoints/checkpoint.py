"""Checkpoints: one folder per step, with everything needed to resume the run and to use the model.

    run_dir/step_0001000/
        model.safetensors          trained weights
        ema_0.9999.safetensors     moving average of the weights, one file per rate
        training.safetensors       tensors of the training state (optimizer, random states, ...)
        training.json              training state: plain types and references to the tensors
        config.json                configuration, graph, data set, label statistics
        manifest.json              sizes and SHA-256 of all files; written last

A folder is written under a temporary name, flushed to disk and renamed, so a step folder is either complete or absent.
The manifest detects later damage. Files are untrusted: nothing is unpickled, sizes declared in headers are checked
before tensors are read, and an invalid file raises a `DataError` that names it.

A *model folder* (`export_weights`) contains only config.json and model.safetensors.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from causaldiffae.checkpoints.folder_layout import CONFIG, MODEL, files_of_other_model
from causaldiffae.checkpoints.state_tree import flatten_state, unflatten_state
from causaldiffae.errors import DataError, InputError, check_local
from causaldiffae.files.reading import (
    StateDict,
    file_sha256,
    file_size,
    read_json,
    read_tensors,
    sync_to_disk,
    write_json,
    write_tensors,
)
from causaldiffae.nn import ModuleT

StepT = TypeVar("StepT")
MANIFEST = "manifest.json"
TRAINING_TENSORS, TRAINING_PLAIN = "training.safetensors", "training.json"
FORMAT = "causaldiffae checkpoint"
VERSION = 1

STEP_NAME = re.compile(r"step_([0-9]{7,12})")
_FILE_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]{0,99}")
_RATE = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,30}")


@dataclass(frozen=True)
class Checkpoint:
    """Result of `load_checkpoint`: configuration and states as passed to `save_checkpoint`."""

    config: dict[str, Any]
    model_state: StateDict  # weights or moving average, on the CPU, in the stored dtype
    training_state: Any  # None unless requested
    step: int | None  # None for a model folder
    path: Path


def save_checkpoint(
    run_dir: str | os.PathLike[str],
    step: int,
    *,
    model_state: Mapping[str, torch.Tensor],
    ema_states: Mapping[str, Mapping[str, torch.Tensor]],
    training_state: Any,
    config: Mapping[str, Any],
    keep_last: int | None = None,
    keep_every: int | None = None,
) -> Path:
    """Writes `run_dir/step_{step:07d}` atomically and returns its path. Call it in one process only.

    If writing fails, older checkpoints are kept and no partial folder remains.

    Args:
        run_dir: run directory, created if necessary.
        step: number of training steps; an existing folder of the same step is replaced.
        model_state, ema_states: weights, and moving averages by rate, e.g. `{"0.9999": {...}}`.
        training_state: any state accepted by `flatten_state`, or None.
        config: plain types from which the model and its data set can be rebuilt.
        keep_last: number of newest folders up to this step to keep; None keeps all.
        keep_every: folders whose step is a multiple of this number are always kept.

    Raises:
        InputError: If a state or the configuration cannot be serialised.
        OSError: If writing fails.
    """
    if type(step) is not int or not 0 <= step < 10**12:
        raise InputError(f"step: expected a non-negative integer, got {step!r}")
    if keep_last is not None and keep_last < 1:
        raise InputError(f"keep_last: expected None or 1 or more, got {keep_last}")
    for rate in ema_states:
        if not _RATE.fullmatch(rate):
            raise InputError(f"ema rate: expected digits, letters, '.', '+' and '-', got {rate!r}")
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    target = run_dir / f"step_{step:07d}"
    for leftover in run_dir.glob(".step_*.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=run_dir))
    try:
        folder.chmod(0o755)
        files = {MODEL: write_tensors(folder / MODEL, model_state)}
        for rate, state in ema_states.items():
            name = f"ema_{rate}.safetensors"
            files[name] = write_tensors(folder / name, state)
        if training_state is not None:
            tensors, tree = flatten_state(training_state)
            files[TRAINING_TENSORS] = write_tensors(folder / TRAINING_TENSORS, tensors)
            files[TRAINING_PLAIN] = write_json(folder / TRAINING_PLAIN, {"state": tree})
        files[CONFIG] = write_json(folder / CONFIG, dict(config))
        write_json(folder / MANIFEST, {"format": FORMAT, "version": VERSION, "step": step, "files": files})
        sync_to_disk(folder)
        _rename(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    _remove_old(run_dir, step, keep_last, keep_every)
    return target


def _rename(folder: Path, target: Path) -> None:
    replaced = target.with_name(f".{target.name}.tmp-replaced-{os.getpid()}")
    if target.exists():  # a non-empty folder cannot be renamed over
        target.rename(replaced)
    folder.rename(target)
    sync_to_disk(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _steps(run_dir: Path) -> dict[int, Path]:
    """Returns step folders by step, newest first."""
    found = {}
    with contextlib.suppress(OSError):
        for path in run_dir.iterdir():
            match = STEP_NAME.fullmatch(path.name)
            if match and path.is_dir():
                found[int(match[1])] = path
    return dict(sorted(found.items(), reverse=True))


def steps_to_remove(steps: Iterable[int], step: int, keep_last: int | None, keep_every: int | None) -> list[int]:
    """Returns the steps to remove after `step` was written, see `save_checkpoint`."""
    # Later steps are kept: they belong to an earlier, longer run.
    old = sorted((number for number in steps if number <= step), reverse=True)[keep_last:] if keep_last else []
    return [number for number in old if not keep_every or number % keep_every]


def _remove_old(run_dir: Path, step: int, keep_last: int | None, keep_every: int | None) -> None:
    found = _steps(run_dir)
    for number in steps_to_remove(found, step, keep_last, keep_every):
        removed = found[number].with_name(f".{found[number].name}.tmp-old-{os.getpid()}")
        with contextlib.suppress(OSError):
            found[number].rename(removed)  # a partially deleted folder must not have the name of a step
            shutil.rmtree(removed, ignore_errors=True)


def check_free(folder: Path) -> None:
    """Raises `InputError` for a folder that holds checkpoints."""
    if folder.is_dir() and ((folder / MANIFEST).exists() or _steps(folder)):
        raise InputError(f"{folder}: expected a folder without checkpoints; choose another output folder")


def export_weights(
    path: str | os.PathLike[str],
    state: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> Path:
    """Writes a model folder, with floating-point tensors converted to `dtype` if given.

    If the folder holds another model, its other files (predictors, logs, ...) are removed.

    Raises:
        InputError: For another dtype, a URL or a file in place of the folder, or a folder with checkpoints or a model
            of another program.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputError(f"dtype: expected a floating-point dtype such as torch.float16, got {dtype!r:.80}")
    check_local(folder=path)
    folder = Path(path)
    check_free(folder)
    stale = files_of_other_model(folder, config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder}: expected a folder, got a file; choose another output folder") from None
    cast = {k: v.to(dtype) if dtype is not None and v.is_floating_point() else v for k, v in state.items()}
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder) as temporary:
        write_tensors(Path(temporary) / MODEL, cast)
        write_json(Path(temporary) / CONFIG, dict(config))
        for file in stale:
            file.unlink()
            if not any(file.parent.iterdir()):
                file.parent.rmdir()
        for name in (MODEL, CONFIG):
            (Path(temporary) / name).replace(folder / name)
    sync_to_disk(folder)
    return folder


def read_manifest(folder: Path) -> tuple[int, dict[str, Any]]:
    """Reads the manifest of a step folder; returns the step, and size and SHA-256 of each file by name.

    Raises:
        DataError: If the manifest is invalid or names files outside its folder.
    """
    path = folder / MANIFEST
    manifest = read_json(path)
    step, files = manifest.get("step"), manifest.get("files")
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise DataError(f"{path}: expected a manifest of version {VERSION} of a {FORMAT}")
    if type(step) is not int or not 0 <= step < 10**12 or not isinstance(files, dict):
        raise DataError(f"{path}: expected a step and files")
    if not {CONFIG, MODEL} <= {*files}:
        raise DataError(f"{path}: expected files with {CONFIG} and {MODEL}")
    named = STEP_NAME.fullmatch(folder.name)
    if named and int(named[1]) != step:
        raise DataError(f"{path}: expected step {int(named[1])} as in the folder's name, got {step}")
    for name, entry in files.items():
        if not _FILE_NAME.fullmatch(name) or not isinstance(entry, dict):
            raise DataError(f"{path}: expected names of files in this folder, got {name[:80]!r}")
    return step, files


def verify(folder: Path) -> int:
    """Compares a step folder with its manifest and returns the step; raises `DataError` for a file that differs."""
    step, files = read_manifest(folder)
    for name, entry in files.items():
        size = file_size(folder / name)
        if entry.get("size") != size:
            raise DataError(f"{folder / name}: expected {str(entry.get('size'))[:40]} bytes, got {size}")
        if file_sha256(folder / name) != entry.get("sha256"):
            raise DataError(f"{folder / name}: damaged file, its SHA-256 differs from the manifest")
    return step


def latest_checkpoint(run_dir: str | os.PathLike[str]) -> Path | None:
    """Returns the newest intact step folder or None; warns and raises as `newest_intact`."""

    def verified(folder: Path) -> Path:
        try:
            verify(folder)
            return folder
        except OSError as error:
            raise DataError(error) from error

    return newest_intact(run_dir, _steps(Path(run_dir)).values(), verified)


def newest_intact(run: object, steps: Iterable[StepT], verified: Callable[[StepT], Path]) -> Path | None:
    """Returns the folder of the newest intact step, or None without steps; warns about damaged newer steps.

    Args:
        run: name of the run in messages.
        steps: steps, newest first.
        verified: returns the folder of a step, or raises `DataError` if it is damaged.

    Raises:
        DataError: If all steps are damaged, so that training does not silently start from scratch.
    """
    reasons = []
    for step in steps:
        try:
            folder = verified(step)
        except DataError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            warnings.warn(f"skipped a damaged checkpoint: {reason}", stacklevel=3)
        return folder
    if reasons:
        raise DataError(
            f"{run}: expected an intact checkpoint, all {len(reasons)} are damaged; the newest: {reasons[0]}"
        )
    return None


def load_checkpoint(path: str | os.PathLike[str], *, ema: str | None = None, with_training: bool = False) -> Checkpoint:
    """Reads a checkpoint.

    Args:
        path: run directory (reads its newest intact step), step folder, or model folder.
        ema: rate of the moving average to read instead of the trained weights, e.g. "0.9999"; ignored for a model
            folder, which contains one set of weights.
        with_training: also read the training state.

    Raises:
        DataError: If there is no checkpoint, it is damaged, or it lacks a requested state.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"{folder}: folder not found; expected a run directory, a step or a model folder")
    if (folder / MANIFEST).is_file() or STEP_NAME.fullmatch(folder.name):
        verify(folder)
    elif newest := latest_checkpoint(folder):
        folder = newest
    elif not (folder / CONFIG).is_file() or not (folder / MODEL).is_file():
        raise DataError(f"{folder}: expected step_* folders, or {CONFIG} and {MODEL}, found no checkpoint")
    elif with_training:
        raise DataError(f"{folder}: expected a training state to resume from, got a model folder without one")
    else:
        return Checkpoint(read_json(folder / CONFIG), read_tensors(folder / MODEL), None, None, folder)
    step, listed = read_manifest(folder)
    name = MODEL if ema is None else f"ema_{ema}.safetensors"
    if name not in listed:
        rates = [file[4:-12] for file in listed if file.startswith("ema_")]
        raise DataError(f"{folder}: expected a moving average of rate {', '.join(rates) or '(none)'}, got {ema!r}")
    training_state = None
    if with_training and TRAINING_PLAIN in listed:
        tensors = read_tensors(folder / TRAINING_TENSORS) if TRAINING_TENSORS in listed else {}
        plain = read_json(folder / TRAINING_PLAIN)
        training_state = unflatten_state(tensors, plain.get("state"), str(folder / TRAINING_PLAIN))
    elif with_training:
        raise DataError(f"{folder}: expected a training state to resume from, got a step without one")
    return Checkpoint(read_json(folder / CONFIG), read_tensors(folder / name), training_state, step, folder)


class _SkipInitialisation(TorchFunctionMode):
    """Skips in-place initialisers: on the meta device they have no effect, but import modules for seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and name != "requires_grad_":
            return args[0] if args else next(iter(kwargs.values()))
        return func(*args, **(kwargs or {}))


def build_with_weights(
    build: Callable[[], ModuleT], state: Mapping[str, torch.Tensor], where: str, assign: bool = False
) -> ModuleT:
    """Builds a network with the weights of a state dict, in float32, on the CPU and in evaluation mode.

    The sizes may be untrusted: the network is first built on the meta device, and memory is allocated only if names and
    shapes match those of the weights, which are bounded by the size of their file.

    Args:
        build: creates the network.
        state: its weights.
        where: prefix of error messages.
        assign: use the tensors of `state` instead of copying them, for networks of gigabytes without other buffers.

    Raises:
        DataError: If the network cannot be built, or the weights do not match or are not finite.
    """
    try:
        with torch.device("meta"), _SkipInitialisation(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the second build warns again
            network = build()
        check_state_fits(network, state)
        check_finite(state)
    except InputError as error:
        raise DataError(f"{where}: {error}") from error
    except Exception as error:  # layers raise various errors for invalid sizes
        raise DataError(f"{where}: expected valid layer sizes ({str(error)[:120] or type(error).__name__})") from None
    full = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    network = network if assign else build()
    network.load_state_dict(full, assign=assign)
    return network.eval()


def check_finite(state: Mapping[str, torch.Tensor]) -> None:
    """Raises an `InputError` that lists the first five tensors with NaN or infinity."""
    wrong = [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(f"weights: expected finite numbers, got NaN or infinity in {', '.join(wrong[:5])}{more}")


def check_state_fits(model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Raises an `InputError` that lists the first five tensors that are missing, unexpected or of another shape."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = [
        f"{name}: expected shape {shape}, got {given.get(name, 'none')}"
        for name, shape in expected.items()
        if given.get(name) != shape
    ]
    wrong += [f"{name}: unexpected, of shape {shape}" for name, shape in given.items() if name not in expected]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(
            f"weights: expected those of this model, got {len(wrong)} differences: {'; '.join(wrong[:5])}{more}"
        )
