"""Estimates of the memory and time of a training run, from trial steps on this machine.

Memory of the training state is counted (costs.py). Activations are measured on a GPU and counted elsewhere; both grow
with the microbatch. The training images are stored on the device if they fit (`data_on_device`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, cast

import torch
from torch import nn

from causaldiffae import dist_util
from causaldiffae.config import Config
from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.model import TrainingStep
from causaldiffae.nn import count_parameters, update_ema
from causaldiffae.script_util import create_model_and_diffusion
from causaldiffae.training.acceleration import accelerate, activation_dtype
from causaldiffae.training.costs import state_mib, training_costs
from causaldiffae.training.devices import free_memory
from causaldiffae.training.distillation import create_training_step
from causaldiffae.training.random_draws import trial_draws

MAX_TRIAL_IMAGES: Final = 16
"""More images per step are hardly faster on the CPU. On an accelerator the trial takes a whole microbatch."""
MAX_TRIAL_SECONDS: Final = 5.0
"""Longer trial steps take fewer images on the CPU."""
OVERHEAD: Final = {"cpu": 1.3}
"""Memory of the process divided by what is counted, measured on CPUs; 1.1 is assumed for other devices."""


BUSY: Final = 0.1
"""Share of the time that a trial waits for a processor from which on it is reported."""


def waiting_time() -> float:
    """Seconds that this thread has waited for a processor since it started; 0 where the system does not say."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def idle_clock() -> float:
    """Seconds that stand still while this thread waits for a processor: times as on an otherwise idle machine."""
    return time.perf_counter() - waiting_time()


class Estimate(NamedTuple):
    """Memory, speed and duration of a run in one process.

    Attributes:
        parameters: of all networks.
        state_mib: weights, gradients, optimizer and moving averages.
        activation_mib: activations of one image of a forward pass.
        data_mib: the training images, 0 if their number is unknown.
        memory_mib: all of the above for one microbatch, with the overhead of the process.
        free_mib: free memory of the device; 0 if unknown.
        fitting_images: the largest power of two of images per forward pass that fits, 0 if none does.
        step_seconds: time of a training step, without waiting for other processes on the CPU.
        images_per_second: images that the run sees per second.
        hours: time of all steps.
        trial_images: number of images of the measured step.
        compiled: whether the trial was compiled.
        images: images per forward pass.
        waited: share of the trial's time in which it waited for a processor, not included in the times above.
    """

    parameters: int
    state_mib: float
    activation_mib: float
    data_mib: float
    memory_mib: float
    free_mib: float
    fitting_images: int
    step_seconds: float
    images_per_second: float
    hours: float
    trial_images: int
    compiled: bool
    images: int
    waited: float = 0.0

    @property
    def fits(self) -> bool:
        """Whether the run fits the free memory; true if that is unknown."""
        return not self.free_mib or self.memory_mib <= self.free_mib

    def advice(self) -> str:
        """What to do about a run that does not fit; "" if it fits."""
        if self.fits:
            return ""
        if self.fitting_images:
            return f"does not fit; --microbatch {self.fitting_images} does"
        return "does not fit; use a smaller configuration"

    def lines(self) -> list[str]:
        """Formats the estimate."""
        kept = "in host memory with --data_on_device never"
        data = f", training images {self.data_mib:,.0f} MiB ({kept})" if self.data_mib else ""
        free = f", {self.free_mib:,.0f} MiB are free" if self.free_mib else ""
        advice = f": {self.advice()}" if self.advice() else ""
        return [
            f"memory: {self.memory_mib:,.0f} MiB{free}{advice}; weights, gradients, optimizer, moving averages "
            f"{self.state_mib:,.0f} MiB{data}, activations {self.activation_mib:,.1f} MiB per image of a forward pass",
            f"time: {self.hours:,.1f} hours; 1,000 steps {duration(1000 * self.step_seconds)}, "
            f"{3600 * self.images_per_second:,.0f} images/hour, {self.images_per_second:,.1f} images/s (measured on "
            f"{self.trial_images} images, {'compiled' if self.compiled else 'not compiled'}{self.busy()})",
        ]

    def busy(self) -> str:
        """How busy the machine was, if that matters; begins with a comma."""
        if self.waited < BUSY:
            return ""
        return f", on an idle machine; the trial waited {100 * self.waited:.0f} % of the time for a processor"


def duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours, whichever gives a number of at least 1."""
    for unit, length in (("hours", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} s"


class Trial:
    """Training steps on random images, without an optimizer; buffers are restored, gradients are discarded.

    Args:
        training_step: the loss of the model, on `device`.
        count: images of a step.
        clock: returns seconds.
    """

    def __init__(
        self,
        training_step: TrainingStep,
        config: Config,
        spec: DatasetSpec,
        device: torch.device | str,
        count: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.training_step, self.device, self._clock = training_step, torch.device(device), clock
        images = torch.randn(count, spec.channels, spec.image_size, spec.image_size, device=device).clamp(-1, 1)
        labels = torch.zeros(count, len(spec.graph), device=device)
        zeros = torch.zeros(count, dtype=torch.long, device=device)
        draws = trial_draws(images, zeros, cast("tuple[int, int]", training_step.model.latent_shape))
        self._batch = (images, labels, zeros if config.model.class_cond else None, draws.keep, draws, 1.0)

    def run(self, dtype: torch.dtype | None, repeats: int = 1) -> float:
        """Returns the seconds of a step, the least of `repeats` after one that is not counted."""
        model, durations = self.training_step.model, []
        buffers = [buffer.clone() for buffer in model.buffers()]
        self.training_step.train()
        try:
            for _ in range(repeats + 1):
                start = self._clock()
                with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
                    loss, _ = self.training_step(*self._batch)
                loss.backward()
                float(loss.detach())  # synchronises with the device
                durations.append(self._clock() - start)
        finally:  # a compiler may fail halfway, and training goes on without it
            model.zero_grad(set_to_none=True)
            with torch.no_grad():
                for buffer, before in zip(model.buffers(), buffers, strict=True):
                    buffer.copy_(before)
        return min(durations[1:])


class _Update:
    """The optimizer's step and the moving averages of a model; its weights become useless."""

    def __init__(self, model: nn.Module, averages: int) -> None:
        self._parameters = [parameter.detach() for parameter in model.parameters()]
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        self._averages = [[parameter.clone() for parameter in self._parameters] for _ in range(averages)]

    def seconds(self) -> float:
        """Time of the second of two updates."""
        found = 0.0
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        for _ in range(2):
            start = idle_clock()
            self._optimizer.step()
            for average in self._averages:
                update_ema(average, self._parameters, 0.999)
            float(self._parameters[0].sum())  # synchronises with the device
            found = idle_clock() - start
        return found


def estimate(config: Config, spec: DatasetSpec, device: torch.device | str = "cpu") -> Estimate:
    """Creates the model and measures training steps on a few random images.

    Raises:
        InputError: if the training state of the model or one image exceeds the memory of the device.
    """
    device, train = torch.device(device), config.train
    free, dtype = free_memory(device), activation_dtype(train.use_bf16, device)
    images = min(train.microbatch or train.batch_size, train.batch_size)
    start, waited = time.perf_counter(), waiting_time()
    try:
        model, diffusion = create_model_and_diffusion(config, spec)
        model.to(device)
        step = create_training_step(config, model, diffusion)
        update = _Update(model, len(config.ema_rates()))
        update_seconds = update.seconds()
        accelerate(model, device, compiled=train.compile is True, channels_last=train.channels_last)
        count, seconds, activations = _measure(
            lambda count: Trial(step, config, spec, device, count, idle_clock).run(dtype, 2), images, device
        )
    except torch.OutOfMemoryError as error:
        reason = f"memory: expected room for the training state on {device}, got {free / 2**20:,.0f} MiB"
        raise InputError(reason) from error
    waited = (waiting_time() - waited) / (time.perf_counter() - start)
    parameters = count_parameters(model)
    state = state_mib(parameters, len(config.ema_rates()))
    if config.diffusion.few_steps:
        weights = sum(each.numel() for each in model.parameters())
        state += 4 * (2 * weights - parameters) / 2**20  # the teacher, and frozen parts
    data = train.num_images * spec.channels * spec.image_size**2 / 2**20
    each = activations or training_costs(config, spec, device, dtype).activation_mib
    overhead = OVERHEAD.get(device.type, 1.1)
    room = (free / 2**20 - data) / overhead - state
    step_seconds = train.batch_size * seconds / count + update_seconds
    return Estimate(
        parameters=parameters,
        state_mib=state,
        activation_mib=each,
        data_mib=data,
        memory_mib=overhead * (state + images * each) + data,
        free_mib=free / 2**20,
        fitting_images=1 << (int(room / each).bit_length() - 1) if room >= each else 0,
        step_seconds=step_seconds,
        images_per_second=train.batch_size / step_seconds,
        hours=train.minutes / 60 if train.minutes else train.total_steps * step_seconds / 3600,
        trial_images=count,
        compiled=train.compile is True,
        images=images,
        waited=waited,
    )


def _measure(run: Callable[[int], float], images: int, device: torch.device) -> tuple[int, float, float]:
    """Images and seconds of a trial step, and MiB of activations per image on a GPU, else 0."""
    if device.type != "cuda":
        few = min(2, images)  # batch normalisation needs two, as training does
        seconds = run(few)
        count = max(few, min(images, MAX_TRIAL_IMAGES, int(few * MAX_TRIAL_SECONDS / seconds)))
        return (count, run(count), 0.0) if count > few else (few, seconds, 0.0)
    before = torch.cuda.memory_allocated(device)
    count = images
    while True:
        torch.cuda.reset_peak_memory_stats(device)
        try:
            seconds = run(count)
            return count, seconds, (torch.cuda.max_memory_allocated(device) - before) / count / 2**20
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            if count == 1:
                raise
        count //= 2


def estimated_hours(config: Config, device: torch.device | str | None = None) -> float:
    """Hours of a training run on this machine, from trial steps; the data set need not exist unless it is a folder."""
    train = config.train
    size, channels = train.image_size or None, train.channels or None
    spec = dataset_spec(train.dataset, size, channels, data_dir=train.data_dir or None, graph=train.graph or None)
    return estimate(config, spec, device or dist_util.dev()).hours
