"""Checkpoints: everything a run needs to go on, and a model needs to be used, in one folder per step.

    run_dir/step_0001000/
        model.safetensors          the trained weights
        ema_0.9999.safetensors     their moving average, one file per rate
        training.safetensors       tensors of the training state (optimizer, random states, ...)
        training.json              the rest of it: plain types, with references to the tensors
        config.json                resolved configuration, graph, data set, label statistics
        manifest.json              sizes and SHA-256 of all files; written last

A folder is written under another name, flushed to disk and renamed, so that a step folder is whole or not there; the
manifest shows what was damaged later. Files may come from strangers: nothing is unpickled, headers are checked
against file sizes before anything is read, and whatever is wrong is a `DataError` that names the file.

A *model folder* (`export_weights`) is the form in which weights are passed on: config.json and model.safetensors only.
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
from typing import Any, NamedTuple, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from causaldiffae.checkpoints.state_tree import flatten_state, unflatten_state
from causaldiffae.errors import DataError, InputError
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
from causaldiffae.files.reading import (
    load_torch_state_dict as load_torch_state_dict,  # one place for every kind of file
)
from causaldiffae.nn import ModuleT

StepT = TypeVar("StepT")
CONFIG, MODEL, MANIFEST = "config.json", "model.safetensors", "manifest.json"
TRAINING_TENSORS, TRAINING_PLAIN = "training.safetensors", "training.json"
FORMAT = "causaldiffae checkpoint"
VERSION = 1

STEP_NAME = re.compile(r"step_([0-9]{7,12})")
_FILE_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]{0,99}")
_RATE = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,30}")


@dataclass(frozen=True)
class Checkpoint:
    """What `load_checkpoint` read.

    Attributes:
        config: as it was given to `save_checkpoint`.
        model_state: weights, on the CPU and in the stored dtype; the moving average if one was asked for.
        training_state: as it was given to `save_checkpoint`; `None` if it was not asked for or is not there.
        step: training steps done; `None` for a model folder.
        path: the folder that was read.
    """

    config: dict[str, Any]
    model_state: StateDict
    training_state: Any
    step: int | None
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
    """Writes `run_dir/step_{step:07d}`, whole or not at all; only one process may do so.

    Args:
        run_dir: made if it is missing.
        step: training steps done, 0 or more; an older folder of the same step is replaced.
        model_state, ema_states: weights, and moving averages by their rate as a string, e.g. `{"0.9999": {...}}`.
        training_state: anything `flatten_state` takes, or `None` for none.
        config: plain types; everything a script must know to rebuild the model and to read labels.
        keep_last: how many of the newest folders up to this step stay; `None` keeps all.
        keep_every: folders whose step is a multiple of it always stay.

    Returns:
        The folder.

    Raises:
        InputError: for a state or configuration that cannot be written; nothing is left behind.
        OSError: if the disk refuses; nothing is left behind, older checkpoints stay.
    """
    if type(step) is not int or not 0 <= step < 10**12:
        raise InputError(f"step: {step!r} is given, an integer of 0 or more is needed")
    if keep_last is not None and keep_last < 1:
        raise InputError(f"keep_last: {keep_last} is given, 1 or more is allowed (None keeps all)")
    for rate in ema_states:
        if not _RATE.fullmatch(rate):
            raise InputError(f"ema rate: {rate!r} is given, digits, letters, '.', '+' and '-' are allowed")
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
        _put_in_place(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    _remove_old(run_dir, step, keep_last, keep_every)
    return target


def _put_in_place(folder: Path, target: Path) -> None:
    if target.exists():  # a non-empty folder cannot be renamed over; for an instant the one before is the newest
        target.rename(target.with_name(f".{target.name}.tmp-replaced-{os.getpid()}"))
    folder.rename(target)
    sync_to_disk(target.parent)
    shutil.rmtree(target.with_name(f".{target.name}.tmp-replaced-{os.getpid()}"), ignore_errors=True)


def _steps(run_dir: Path) -> dict[int, Path]:
    """Step folders by their step, newest first."""
    found = {}
    with contextlib.suppress(OSError):
        for path in run_dir.iterdir():
            match = STEP_NAME.fullmatch(path.name)
            if match and path.is_dir():
                found[int(match[1])] = path
    return dict(sorted(found.items(), reverse=True))


def steps_to_remove(steps: Iterable[int], step: int, keep_last: int | None, keep_every: int | None) -> list[int]:
    """Which of the steps that are there need not stay once `step` is written, see `save_checkpoint`."""
    # Those beyond this step are not counted: after going back they are either broken or of no concern to this run.
    old = sorted((number for number in steps if number <= step), reverse=True)[keep_last:] if keep_last else []
    return [number for number in old if not keep_every or number % keep_every]


def _remove_old(run_dir: Path, step: int, keep_last: int | None, keep_every: int | None) -> None:
    found = _steps(run_dir)
    for number in steps_to_remove(found, step, keep_last, keep_every):
        doomed = found[number].with_name(f".{found[number].name}.tmp-old-{os.getpid()}")
        with contextlib.suppress(OSError):
            found[number].rename(doomed)  # so that no half-deleted folder bears a step's name
            shutil.rmtree(doomed, ignore_errors=True)


def export_weights(
    path: str | os.PathLike[str],
    state: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> Path:
    """Writes a model folder; `dtype` (e.g. `torch.float16`) converts floating-point tensors, others stay."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / MANIFEST).exists() or _steps(folder):
        raise InputError(f"{folder}: it holds checkpoints; weights need a folder of their own")
    cast = {k: v.to(dtype) if dtype is not None and v.is_floating_point() else v for k, v in state.items()}
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder) as temporary:
        write_tensors(Path(temporary) / MODEL, cast)
        write_json(Path(temporary) / CONFIG, dict(config))
        for name in (MODEL, CONFIG):
            (Path(temporary) / name).replace(folder / name)
    sync_to_disk(folder)
    return folder


class Manifest(NamedTuple):
    """A step, and the size and SHA-256 of each of its files, by its name."""

    step: int
    files: dict[str, Any]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a step folder.

    Raises:
        DataError: if it is no manifest, or speaks of anything but files beside it.
    """
    path = folder / MANIFEST
    manifest = read_json(path)
    step, files = manifest.get("step"), manifest.get("files")
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise DataError(f"{path}: it is no manifest of version {VERSION} of a causaldiffae checkpoint")
    if type(step) is not int or not 0 <= step < 10**12 or not isinstance(files, dict):
        raise DataError(f"{path}: step and files are missing or wrong")
    named = STEP_NAME.fullmatch(folder.name)
    if named and int(named[1]) != step:
        raise DataError(f"{path}: it is the manifest of step {step}, the folder's name says {int(named[1])}")
    for name in (CONFIG, MODEL):
        if name not in files:
            raise DataError(f"{path}: it does not list {name}")
    for name, entry in files.items():
        if not _FILE_NAME.fullmatch(name) or not isinstance(entry, dict):
            raise DataError(f"{path}: {name[:80]!r} is no entry of a checkpoint")
    return Manifest(step, files)


def verify(folder: Path) -> int:
    """Checks every file of a step folder against its manifest, and returns the step.

    Raises:
        DataError: naming the first file that is missing, of another size or of other content.
    """
    step, files = read_manifest(folder)
    for name, entry in files.items():
        size = file_size(folder / name)
        if entry.get("size") != size:
            raise DataError(f"{folder / name}: it has {size} bytes, the manifest says {str(entry.get('size'))[:40]}")
        if file_sha256(folder / name) != entry.get("sha256"):
            raise DataError(f"{folder / name}: its content is not what was written (SHA-256 differs)")
    return step


def latest_checkpoint(run_dir: str | os.PathLike[str]) -> Path | None:
    """Newest step folder that verifies; warns about every newer one that does not. `None` where there are no steps.

    Raises:
        DataError: if there are step folders and none verifies: going on from nothing must not happen silently.
    """

    def whole(folder: Path) -> Path:
        try:
            verify(folder)
        except OSError as error:
            raise DataError(str(error)) from error
        return folder

    return newest_whole(run_dir, _steps(Path(run_dir)).values(), whole)


def newest_whole(run: object, steps: Iterable[StepT], whole: Callable[[StepT], Path]) -> Path | None:
    """The first step's folder that `whole` gives; warns about every one before. `None` where there are no steps.

    Args:
        run: what messages call the run.
        steps: the newest first.
        whole: a step's folder, or a `DataError` if it is damaged.

    Raises:
        DataError: if there are steps and none is whole.
    """
    reasons = []
    for step in steps:
        try:
            folder = whole(step)
        except DataError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            warnings.warn(f"a damaged checkpoint is passed over: {reason}", stacklevel=3)
        return folder
    if reasons:
        raise DataError(f"{run}: none of its {len(reasons)} checkpoints is whole; the newest: {reasons[0]}")
    return None


def load_checkpoint(path: str | os.PathLike[str], *, ema: str | None = None, with_training: bool = False) -> Checkpoint:
    """Reads a checkpoint.

    Args:
        path: a run directory (its newest whole step is read), a step folder, or a model folder.
        ema: rate of the moving average to read in place of the trained weights, e.g. "0.9999". A model folder holds one
            set of weights, which is read whatever `ema` says.
        with_training: also read the training state.

    Raises:
        DataError: if there is no checkpoint, it is damaged, or has no such moving average (lists those there are).
    """
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; a run directory, a step or a model folder is needed")
    if not (folder / MANIFEST).is_file() and not STEP_NAME.fullmatch(folder.name):
        newest = latest_checkpoint(folder)
        if newest is None:
            return _load_model_folder(folder, with_training)
        folder = newest
    step = verify(folder)
    name = MODEL if ema is None else f"ema_{ema}.safetensors"
    listed = read_json(folder / MANIFEST)["files"]
    if name not in listed:
        rates = [file[4:-12] for file in listed if file.startswith("ema_")]
        raise DataError(f"{folder}: no moving average of rate {ema!r}, there are: {', '.join(rates) or 'none'}")
    training_state = None
    if with_training and TRAINING_PLAIN in listed:
        tensors = read_tensors(folder / TRAINING_TENSORS) if TRAINING_TENSORS in listed else {}
        plain = read_json(folder / TRAINING_PLAIN)
        training_state = unflatten_state(tensors, plain.get("state"), str(folder / TRAINING_PLAIN))
    elif with_training:
        raise DataError(f"{folder}: it has no training state, so training cannot go on from it")
    return Checkpoint(read_json(folder / CONFIG), read_tensors(folder / name), training_state, step, folder)


def _load_model_folder(folder: Path, with_training: bool) -> Checkpoint:
    if not (folder / CONFIG).is_file() or not (folder / MODEL).is_file():
        raise DataError(f"{folder}: it holds no checkpoint; step_* folders, or {CONFIG} and {MODEL} are needed")
    if with_training:
        raise DataError(f"{folder}: it is a model folder without training state, so training cannot go on from it")
    return Checkpoint(read_json(folder / CONFIG), read_tensors(folder / MODEL), None, None, folder)


class _Unfilled(TorchFunctionMode):
    """Leaves out what fills a tensor in place: on the meta device that does nothing, after seconds of imports."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and name != "requires_grad_":
            return args[0] if args else next(iter(kwargs.values()))
        return func(*args, **(kwargs or {}))


def build_with_weights(
    build: Callable[[], ModuleT], state: Mapping[str, torch.Tensor], where: str, hold_once: bool = False
) -> ModuleT:
    """The network that `build` makes, with a state dict's weights in float32, on the CPU and in evaluation mode.

    The sizes may be a stranger's: it is first built without memory (torch's meta device), and in earnest only if names
    and shapes are those of the weights at hand, which their file's size bounds.

    Args:
        build: makes the network.
        state: the weights.
        where: what messages begin with.
        hold_once: take the weights as they are in place of building in earnest: for networks of gigabytes that keep
            nothing beside their state dict.

    Raises:
        DataError: starting with `where`, if the network cannot be built or the weights are another's.
    """
    try:
        with torch.device("meta"), _Unfilled(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again in earnest
            network = build()
        check_state_fits(network, state)
    except InputError as error:
        raise DataError(f"{where}: {error}") from error
    except Exception as error:  # layers refuse sizes in their own ways
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{where}: its sizes make no network ({reason})") from None
    full = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    network = network if hold_once else build()
    network.load_state_dict(full, assign=hold_once)
    return network.eval()


def check_state_fits(model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Compares names and shapes with `model.state_dict()`.

    Raises:
        InputError: listing the first five of what is missing, of another shape or not known to the model.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = []
    for name, shape in expected.items():
        if name not in state:
            wrong.append(f"{name} is missing (expected shape {shape})")
        elif tuple(state[name].shape) != shape:
            wrong.append(f"{name} has shape {tuple(state[name].shape)} (expected {shape})")
    wrong += [
        f"{name} of shape {tuple(t.shape)} is not part of the model"
        for name, t in state.items()
        if name not in expected
    ]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(f"checkpoint of another model, {len(wrong)} differences: {'; '.join(wrong[:5])}{more}")
