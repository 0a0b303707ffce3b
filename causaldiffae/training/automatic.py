"""Options of training that depend on the machine: bfloat16, compilation, and the number of steps for some minutes.

A resumed run keeps what was chosen at its start. Of several processes the slowest
decides, because all take each step together.
"""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import replace
from typing import Final

import torch

from causaldiffae import dist_util
from causaldiffae.config import Config
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.model import TrainingStep
from causaldiffae.training.acceleration import (
    activation_dtype,
    compile_network,
    has_compiler,
    score_network,
    undo_compile,
)
from causaldiffae.training.estimate import Trial

REPEATS: Final = 3
MIN_MINUTES: Final = 10.0
"""Shorter runs are not compiled: compiling takes one to two minutes on a CPU."""
USABLE: Final = 0.9
"""Share of the minutes for training steps; the rest is for checkpoints and previews."""


def with_recorded(config: Config, recorded: Config) -> Config:
    """Replaces automatic options by those of the checkpoint from which the run resumes.

    Other `minutes` than those of the start have no effect, with a warning.
    """
    train, loss, begun = config.train, config.loss, recorded.train
    if train.minutes and train.minutes != begun.minutes:
        began = f"with --minutes {begun.minutes:g}" if begun.minutes else "without"
        warnings.warn(
            f"minutes: no effect on a run that began {began}; it keeps its {begun.total_steps} steps, set "
            "--total_steps and --lr_anneal_steps without --minutes to change them",
            stacklevel=2,
        )
    if train.use_bf16 == "auto":
        train = replace(train, use_bf16=begun.use_bf16)
    if train.compile == "auto":
        train = replace(train, compile=begun.compile)
    if train.minutes:
        chosen = {name: getattr(begun, name) for name in ("total_steps", "lr_anneal_steps", "warmup_steps")}
        train, loss = replace(train, **chosen), replace(loss, kl_anneal_steps=recorded.loss.kl_anneal_steps)
    return replace(config, train=train, loss=loss)


def _with_short_ramps(config: Config) -> Config:
    """Ends the warm-up of the learning rate and of the KL weight within a tenth and a quarter of the steps."""
    train, loss = config.train, config.loss
    train = replace(train, warmup_steps=min(train.warmup_steps, train.total_steps // 10))
    loss = replace(loss, kl_anneal_steps=min(loss.kl_anneal_steps, train.total_steps // 4))
    return replace(config, train=train, loss=loss)


class _Machine:
    """Trial steps of a run on this machine, eager and compiled."""

    def __init__(self, config: Config, training_step: TrainingStep, spec: DatasetSpec, device: torch.device) -> None:
        train = config.train
        count = min(train.microbatch or train.batch_size, train.batch_size)
        self.network, self.device = score_network(training_step.model), device
        self.dtype = activation_dtype(train.use_bf16, device)
        self._trial, self._pieces = Trial(training_step, config, spec, device, count), -(-train.batch_size // count)

    def seconds(self) -> float:
        """Seconds of a training step in the slowest process."""
        return max(dist_util.from_all(lambda: self._trial.run(self.dtype, REPEATS))) * self._pieces

    def can_compile(self) -> bool:
        """Whether every process can: machines may differ, and a choice of some would leave the others waiting."""
        return self.network is not None and not dist_util.any_of(not has_compiler(self.device))

    def compile(self) -> float:
        """Compiles the score network and returns the seconds of a step, infinity if that fails in any process."""
        assert self.network is not None
        compile_network(self.network, self.device)
        problem = ""
        try:
            self._trial.run(self.dtype)
        except Exception as error:  # whatever the back end of the compiler raises, training works without it
            problem = str(error).strip().partition("\n")[0][:200]
            warnings.warn(f"compile: failed, so the network is not compiled: {problem}", stacklevel=2)
        return math.inf if dist_util.any_of(bool(problem)) else self.seconds()


def choose(
    config: Config, training_step: TrainingStep, spec: DatasetSpec, device: torch.device, steps_done: int = 0
) -> tuple[Config, str]:
    """Replaces automatic options by choices for this machine; all processes must call this function.

    If the choice is to compile, the score network is compiled in place.

    Args:
        config: options of the run; `total_steps` is kept if the run resumes, that is, if `steps_done` is positive.
        training_step: the loss of the model, before it is wrapped for several processes.
        steps_done: steps of the checkpoint from which the run resumes.

    Returns:
        The configuration, and a line for the log, "" if nothing was automatic.
    """
    train, start = config.train, time.perf_counter()
    timed = train.minutes > 0 and not steps_done
    if not timed and "auto" not in (train.use_bf16, train.compile):
        return config, ""
    precision = ""
    if train.use_bf16 == "auto":
        train = replace(train, use_bf16=not dist_util.any_of(activation_dtype("auto", device) is None))
        precision = "" if train.use_bf16 else " (this device does not support bfloat16)"
    machine, seconds, note = _Machine(replace(config, train=train), training_step, spec, device), 0.0, ""
    can_compile = train.compile == "auto" and machine.can_compile()
    if timed or can_compile:
        seconds = machine.seconds()
    if train.compile == "auto":
        left = train.minutes * 60 if timed else (train.total_steps - steps_done) * seconds
        eager, pays = seconds, can_compile and left >= 60 * MIN_MINUTES
        compiled = machine.compile() if pays else 0.0
        train = replace(train, compile=pays and compiled < eager)
        if train.compile:
            seconds, note = compiled, f" ({compiled:.3g} s a step, {eager:.3g} s without)"
        elif pays and machine.network is not None:
            undo_compile(machine.network)
            note = f" (not faster: {compiled:.3g} s a step, {eager:.3g} s without)" if compiled < math.inf else ""
        elif can_compile:
            note = f" (a run of less than {MIN_MINUTES:g} minutes)"
        elif machine.network is not None:
            note = " (no C++ compiler)"
    line = f"{'bfloat16' if train.use_bf16 else 'float32'}{precision}, "
    line += f"{'compiled' if train.compile else 'not compiled'}{note}"
    if timed:
        usable = USABLE * (train.minutes * 60 - (time.perf_counter() - start))
        steps = dist_util.from_main(lambda: max(1, int(usable / seconds)))
        train = replace(train, total_steps=steps, lr_anneal_steps=steps // 3)
        line += f", {steps} steps in {train.minutes:g} minutes"
        return _with_short_ramps(replace(config, train=train)), line
    return replace(config, train=train), line
