"""Runs the steps of a plan (`reproduction.py`) as processes, and estimates their time."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch

from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.evaluation.reproduction import Plan, Step
from causaldiffae.training.estimate import estimate

_FORWARD_SHARE: Final = 1 / 3
"""Time of a network evaluation as a share of that of a training step on the same images."""


class Runner:
    """Runs steps one after the other; a signal ends the current one, which saves its state, and the runner.

    Args:
        say: prints a line.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self.say = say
        self.failed: dict[str, str] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def run(self, steps: Sequence[Step]) -> None:
        """Runs all steps that are not finished; steps that need a failed one are left out.

        Raises:
            KeyboardInterrupt: after a signal.
        """
        before = signal.signal(signal.SIGTERM, lambda *_: self._stop())
        try:
            for number, step in enumerate(steps, 1):
                self._run_step(step, f"[{number}/{len(steps)}] {step.name}")
        finally:
            signal.signal(signal.SIGTERM, before)

    def _stop(self) -> None:
        self._stopped = True
        if self._child is not None:
            self._child.terminate()

    def _run_step(self, step: Step, title: str) -> None:
        if missing := [name for name in step.needs if name in self.failed]:
            self.failed[step.name] = f"needs {missing[0]}"
            self.say(f"{title}: left out, it needs {missing[0]}")
            return
        if step.is_finished():
            self.say(f"{title}: finished before")
            return
        self.say(f"{title}\n    {shown_command(step.command)}")
        code = self._wait([sys.executable, *step.command])
        finished = step.is_finished()
        if self._stopped or code in (-signal.SIGINT, -signal.SIGTERM, 130) or (code == 0 and not finished):
            raise KeyboardInterrupt(f"stopped in {step.name}; run the same command to resume")
        if code:
            self.failed[step.name] = f"exit code {code}"
            self.say(f"{title}: failed with exit code {code}")

    def _wait(self, command: Sequence[str]) -> int:
        if self._stopped:
            return -signal.SIGTERM
        self._child = subprocess.Popen(command)
        try:
            while True:
                try:
                    return self._child.wait()
                except KeyboardInterrupt:  # the terminal has sent it to the child, too, which saves and exits
                    self._stopped = True
        finally:
            self._child = None


def shown_command(command: Sequence[str]) -> str:
    """The command to copy into a shell, with paths below the working directory as relative ones."""
    here = f"{Path.cwd()}/"
    return shlex.join(["python", *(part.removeprefix(here) for part in command)])


def estimated_hours(plan: Plan, device: torch.device | str = "cpu") -> dict[str, float]:
    """Hours of the trainings and evaluations of a plan that are not finished, measured on a few images of each model.

    Evaluations count the network evaluations of their images; what reads labels is not included.
    """
    found: dict[str, float] = {}
    speeds: dict[str, float] = {}
    steps, spec = plan.steps(), plan.spec()
    for step in steps:
        if step.kind == "train":
            config, key = step.config(), _network(step)
            if key not in speeds:
                speeds[key] = estimate(config, spec, device).images_per_second
            hours = config.train.total_steps * config.train.batch_size / speeds[key] / 3600
            found[step.name] = config.train.minutes / 60 if config.train.minutes else hours
    trained = {step.name: step for step in steps if step.kind == "train"}
    for step in steps:
        if step.kind == "evaluate":
            calls = _evaluations(plan, spec, int(step.command[step.command.index("--steps") + 1]))
            found[step.name] = calls * _FORWARD_SHARE / speeds[_network(trained[step.needs[0]])] / 3600
    return {step.name: 0.0 if step.is_finished() else found[step.name] for step in steps if step.name in found}


def _network(step: Step) -> str:
    """Models of one network have one speed."""
    config = step.config()
    return repr((config.model, config.loss.label_forcing, config.train.batch_size))


def _evaluations(plan: Plan, spec: DatasetSpec, steps: int) -> int:
    """Network evaluations on single images: counterfactuals, reversibility, and ten cycles of both."""
    images, variables, cycled = plan.settings.num_images or 1000, len(spec.graph), plan.settings.cycle_images
    return steps * (images * (2 + variables) + min(images, 400) * 2 * variables + min(images, cycled) * 2 * 10 * 2)
