"""How fast this package is beside the reference recipe, measured in one process.

The reference recipe is the same U-Net with its attention written out (einsum, softmax, einsum), eager, in float32; one
intervention at a time, 250 DDIM steps, each with one call under the latents and one under the null token; AdamW as a
loop over parameters and the moving average too. Both sides are timed in turn and medians are compared, so that a
machine that is slow for a while is slow for both.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from causaldiffae import nn as layers
from causaldiffae.config import Config
from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.datasets.images import to_uint8
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.generators.workers import worker_pool
from causaldiffae.metrics.truth import l1_errors
from causaldiffae.model import CausalDiffAE, TrainingStep, trial_draws
from causaldiffae.nn import update_ema
from causaldiffae.script_util import create_model_and_diffusion, create_solver
from causaldiffae.training.acceleration import activation_dtype, channels_last, compile_network

REFERENCE_STEPS: Final = 250
WIDE_SPREAD: Final = 0.2


@dataclass(frozen=True)
class SpeedSettings:
    """What is measured.

    Attributes:
        batch_size: images at a time.
        repeats: of every measurement, both sides in turn.
        steps: evaluations each way of our counterfactuals.
        reference_steps: how many of the reference's 250 steps are really taken; its time is scaled up from them.
        compile, channels_last, use_bf16: what our side uses.
        device: "cpu" or "cuda".
    """

    batch_size: int = 8
    repeats: int = 5
    steps: int = 25
    reference_steps: int = 10
    compile: bool = False
    channels_last: bool = False
    use_bf16: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Timing:
    """Seconds of the reference and of ours, (repeats,) each, for the same work.

    `scale`: what the reference's are to be multiplied by, where it did only a share of its work.
    """

    name: str
    reference: list[float]
    ours: list[float]
    scale: float = 1.0

    @property
    def ratio(self) -> float:
        """Our time over the reference's; medians."""
        return statistics.median(self.ours) / (self.scale * statistics.median(self.reference))

    @property
    def spread(self) -> float:
        """The larger of both sides' (largest - smallest) / median."""
        return max((max(times) - min(times)) / statistics.median(times) for times in (self.reference, self.ours))


def written_out_attention(x: Tensor, qkv: nn.Conv1d, proj: nn.Conv1d, num_heads: int, new_order: bool) -> Tensor:
    """`layers.self_attention` as guided-diffusion writes it: the weights of all pairs are held in memory."""
    batch, _, length = x.shape
    layout = (batch, 3, num_heads, -1, length) if new_order else (batch, num_heads, 3, -1, length)
    q, k, v = (
        part.reshape(batch * num_heads, -1, length) for part in qkv(x).reshape(layout).unbind(1 if new_order else 2)
    )
    scale = q.shape[1] ** -0.25
    weights = torch.softmax(torch.einsum("bct,bcs->bts", q * scale, k * scale).float(), dim=-1).to(q.dtype)
    return proj(torch.einsum("bts,bcs->bct", weights, v).reshape(batch, -1, length))


@contextlib.contextmanager
def reference_attention() -> Iterator[None]:
    """Within it every U-Net writes its attention out."""
    kept = layers.self_attention
    layers.self_attention = written_out_attention
    try:
        yield
    finally:
        layers.self_attention = kept


@dataclass(frozen=True)
class Bench:
    """One model twice, with the same weights: as the reference runs it, and as we do; and a batch for both."""

    reference: CausalDiffAE
    ours: CausalDiffAE
    config: Config
    spec: DatasetSpec
    settings: SpeedSettings
    x_start: Tensor
    labels: Tensor
    classes: Tensor | None
    autocast: torch.dtype | None


def make_bench(config: Config, spec: DatasetSpec, settings: SpeedSettings, seed: int = 0) -> Bench:
    """Builds both models from random weights; nothing that is timed depends on their values."""
    models = []
    for _ in range(2):
        torch.manual_seed(seed)
        model, _ = create_model_and_diffusion(config, spec)
        assert isinstance(model, CausalDiffAE)
        models.append(model.to(settings.device).eval())
    reference, ours = models
    if settings.channels_last:
        channels_last(ours.unet)
    if settings.compile:
        compile_network(ours.unet, settings.device)
    generator = torch.Generator(settings.device).manual_seed(seed)
    shape = (settings.batch_size, spec.channels, spec.image_size, spec.image_size)
    classes = torch.zeros(settings.batch_size, dtype=torch.long, device=settings.device)
    return Bench(
        reference,
        ours,
        config,
        spec,
        settings,
        torch.randn(shape, generator=generator, device=settings.device).clamp(-1, 1),
        torch.zeros(settings.batch_size, len(spec.graph), device=settings.device),
        classes if reference.class_cond else None,
        activation_dtype(settings.use_bf16, settings.device),
    )


def in_turn(
    name: str, reference: Callable[[], object], ours: Callable[[], object], bench: Bench, scale: float = 1.0
) -> Timing:
    """Times both sides in turn, after one run of each that is not counted (compilation, caches)."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(bench.settings.repeats + 1):
        for side, run in enumerate((reference, ours)):
            _wait(bench.settings.device)
            begin = time.perf_counter()
            run()
            _wait(bench.settings.device)
            if repeat:
                times[side].append(time.perf_counter() - begin)
    return Timing(name, *times, scale)


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


# ---------------------------------------------------------------------- what is timed


def time_forward(bench: Bench) -> Timing:
    """One call of the score network on the batch."""
    t = torch.full((len(bench.x_start),), 500.0, device=bench.x_start.device)

    def call(model: CausalDiffAE, autocast: torch.dtype | None) -> None:
        z = bench.labels[:, :, None].expand(-1, -1, model.scm.block_size)
        with torch.inference_mode(), _autocast(bench.settings.device, autocast):
            model.model_output(bench.x_start, t, z, bench.classes)

    def reference() -> None:
        with reference_attention():
            call(bench.reference, None)

    return in_turn("forward", reference, lambda: call(bench.ours, bench.autocast), bench)


def time_training(bench: Bench) -> Timing:
    """One training step on the batch: forward, backward, optimizer, moving average."""
    steps = [training_step(bench, reference) for reference in (True, False)]
    return in_turn("training step", steps[0], steps[1], bench)


def training_step(bench: Bench, reference: bool) -> Callable[[], None]:
    """A function that takes one training step, the reference's way or ours."""
    model = bench.reference if reference else bench.ours
    _, diffusion = create_model_and_diffusion(bench.config, bench.spec)
    step = TrainingStep(model, diffusion, bench.config.loss)
    fast: dict[str, Any] = {"foreach": False} if reference else {"fused": True}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, **fast)
    averages = [parameter.detach().clone() for parameter in model.parameters()]
    device, batch = bench.x_start.device, len(bench.x_start)
    t = torch.arange(batch, device=device) * (diffusion.num_timesteps // batch)
    draws = trial_draws(bench.x_start, t, model.latent_shape)

    def run() -> None:
        model.train()
        autocast = None if reference else bench.autocast
        with _attention(reference), _autocast(bench.settings.device, autocast):
            loss, _ = step(bench.x_start, bench.labels, bench.classes, draws.keep, draws, 1.0)
        optimizer.zero_grad(set_to_none=True)
        with _attention(reference):
            loss.backward()
        optimizer.step()
        if reference:
            for average, parameter in zip(averages, model.parameters(), strict=True):
                average.mul_(0.9999).add_(parameter.detach(), alpha=1e-4)
        else:
            update_ema(averages, [parameter.detach() for parameter in model.parameters()], 0.9999)
        model.eval()

    return run


def time_counterfactuals(bench: Bench, interventions: int) -> Timing:
    """Counterfactuals of the batch under so many interventions.

    The reference decodes x_T anew for each, in 250 steps of two calls; it does not encode. Ours encodes once and
    decodes for each. The reference takes `reference_steps` of its steps, all of one cost, and its time is scaled.
    """
    settings, names = bench.settings, bench.spec.graph.names
    taken = min(settings.reference_steps, REFERENCE_STEPS)
    t = torch.full((len(bench.x_start),), 500.0, device=bench.x_start.device)
    z = bench.labels[:, :, None].expand(-1, -1, bench.reference.scm.block_size)
    solver = create_solver(bench.config.diffusion, steps=settings.steps)
    engine = CounterfactualEngine(bench.ours, solver, bench.spec, autocast=bench.autocast)
    dos = [{names[0]: value} for value in torch.linspace(bench.spec.low[0], bench.spec.high[0], interventions).tolist()]

    def reference() -> None:
        with torch.inference_mode(), reference_attention():
            x = bench.x_start
            for _ in range(taken):
                one = bench.reference.model_output(x, t, z, bench.classes)
                two = bench.reference.model_output(x, t, None, bench.classes)
                x = 0.99 * x + 0.001 * (one + two)

    def ours() -> None:
        engine.predict(engine.abduct(bench.x_start, bench.classes), dos)

    name = f"counterfactuals, {interventions} intervention{'s' if interventions > 1 else ''}"
    return in_turn(name, reference, ours, bench, scale=interventions * REFERENCE_STEPS / taken)


def evaluations(interventions: int, steps: int) -> tuple[int, int]:
    """Network calls per image: the reference's and ours."""
    return 2 * REFERENCE_STEPS * interventions, steps * (1 + interventions)


def peak_memory(config: Config, spec: DatasetSpec, settings: SpeedSettings, reference: bool) -> float:
    """Largest memory of training, in MiB above what was there before: on the CPU in a process of its own."""
    if torch.device(settings.device).type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        _train_twice(config, spec, settings, reference)
        return torch.cuda.max_memory_allocated() / 2**20
    plain = SpeedSettings(**{field.name: getattr(settings, field.name) for field in fields(SpeedSettings)})
    with worker_pool(1) as pool:
        return pool.submit(_resident_growth, config, spec, replace(plain, compile=False), reference).result()


def _resident_growth(config: Config, spec: DatasetSpec, settings: SpeedSettings, reference: bool) -> float:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak so far is forgotten
    before = _status("VmRSS")
    _train_twice(config, spec, settings, reference)
    return _status("VmHWM") - before


def _status(field: str) -> float:
    """MiB of this process; NaN where there is no /proc."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    return float("nan")


def _train_twice(config: Config, spec: DatasetSpec, settings: SpeedSettings, reference: bool) -> None:
    both = make_bench(config, spec, settings)
    kept = both.reference if reference else both.ours
    run = training_step(replace(both, reference=kept, ours=kept), reference)
    del both
    run()
    run()


def _autocast(device: str, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(torch.device(device).type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


@contextlib.contextmanager
def _attention(reference: bool) -> Iterator[None]:
    if not reference:
        yield
        return
    with reference_attention():
        yield


def composition_l1(
    model: nn.Module, config: Config, spec: DatasetSpec, images: Tensor, classes: Tensor | None, steps: int
) -> tuple[float, float]:
    """Null intervention of trained weights: mean |x - x'| on 0..255 for images (N, C, S, S) in [-1, 1].

    Returns:
        unrounded, and between 8-bit pictures.
    """
    engine = CounterfactualEngine(model, create_solver(config.diffusion, steps=steps), spec)  # type: ignore[arg-type]
    found = engine.predict(engine.abduct(images, classes), [{}])[0].images
    pictures = [to_uint8(x.cpu().numpy()) for x in (found, images)]
    return float((found - images).abs().mean()) * 127.5, float(l1_errors(*pictures).mean())
