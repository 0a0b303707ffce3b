"""Speed benchmark: this package compared with the reference recipe, in one process.

The reference recipe runs the same U-Net eagerly in float32 with explicit attention (einsum, softmax, einsum). It takes
250 DDIM steps per intervention, each with one conditional and one unconditional call, and loops over parameters in
AdamW and the moving average.

Runs of both sides alternate. The ratio is the median of the ratios of pairs, so a slowdown of the machine that lasts
longer than a pair affects both sides. Pairs are added until the interval of the median is narrow; if the time for that
is over, the ratio is withheld.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from causaldiffae import nn as layers
from causaldiffae.config import Config, flag, with_help
from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.datasets.images import to_uint8
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.generators.workers import worker_pool
from causaldiffae.metrics.truth import l1_errors
from causaldiffae.model import CausalDiffAE, TrainingStep
from causaldiffae.nn import update_ema
from causaldiffae.script_util import create_model_and_diffusion, create_solver
from causaldiffae.training.acceleration import activation_dtype, compile_network
from causaldiffae.training.estimate import idle_clock
from causaldiffae.training.random_draws import trial_draws

REFERENCE_STEPS: Final = 250
CONFIDENCE: Final = 0.95


@with_help
@dataclass(frozen=True)
class SpeedSettings:
    """Options of the speed benchmark."""

    batch_size: int = flag(8, "images per batch")
    repeats: int = flag(6, "least number of timed pairs of runs per measurement")
    max_spread: float = flag(
        0.1, "largest width of the 95 % interval of a ratio, relative to it; 0 reports any after `repeats` pairs"
    )
    max_seconds: float = flag(120.0, "longest time of a measurement, after which a ratio of larger spread is withheld")
    steps: int = flag(25, "network evaluations in each direction of this package's counterfactuals")
    reference_steps: int = flag(10, "steps of the reference to time, of 250; the time is scaled to 250")
    compile: bool = flag(False, "compile the score network of this package")
    channels_last: bool = flag(False, "channels-last memory format in this package")
    use_bf16: bool = flag(False, "bfloat16 activations in this package")
    device: str = flag("cpu", "cpu or cuda")


@dataclass(frozen=True)
class Timing:
    """Seconds (repeats,) of the reference, before multiplication by `scale`, and of this package, in pairs."""

    name: str
    reference: list[float]
    ours: list[float]
    scale: float = 1.0

    @property
    def ratios(self) -> list[float]:
        """Time of this package divided by that of the reference, by pair."""
        return [ours / (self.scale * other) for other, ours in zip(self.reference, self.ours, strict=True)]

    @property
    def ratio(self) -> float:
        """Median ratio of the pairs."""
        return statistics.median(self.ratios)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the median ratio; infinite for fewer than six pairs, which cannot have one."""
        return median_interval(self.ratios)

    @property
    def spread(self) -> float:
        """Width of the interval relative to the ratio."""
        low, high = self.interval
        return (high - low) / self.ratio

    def withheld(self, max_spread: float) -> str:
        """Why the ratio is not reported; "" if it is."""
        if not max_spread or self.spread <= max_spread:
            return ""
        low, high = self.interval
        found = f"95 % interval {low:.3g} to {high:.3g} of the time" if math.isfinite(high) else "no interval"
        return f"{found} after {len(self.ours)} pairs, wider than {100 * max_spread:g} % of the ratio"


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Distribution-free interval of a median: the k-th smallest and largest values, k from the binomial distribution.

    Returns:
        (-inf, inf) if there are too few values for the confidence.
    """
    ordered, n = sorted(values), len(values)
    outside, k = 0.0, 0
    while outside + (term := 2 * math.comb(n, k) / 2**n) <= 1 - confidence:
        outside, k = outside + term, k + 1
    return (ordered[k - 1], ordered[-k]) if k else (-math.inf, math.inf)


def explicit_attention(x: Tensor, qkv: nn.Conv1d, proj: nn.Conv1d, num_heads: int, new_order: bool) -> Tensor:
    """`nn.self_attention` as in guided-diffusion, which stores the L x L attention weights."""
    batch, _, length = x.shape
    layout = (batch, 3, num_heads, -1, length) if new_order else (batch, num_heads, 3, -1, length)
    q, k, v = (
        part.reshape(batch * num_heads, -1, length) for part in qkv(x).reshape(layout).unbind(1 if new_order else 2)
    )
    scale = q.shape[1] ** -0.25
    weights = torch.softmax(torch.einsum("bct,bcs->bts", q * scale, k * scale).float(), dim=-1).to(q.dtype)
    return proj(torch.einsum("bts,bcs->bct", weights, v).reshape(batch, -1, length))


@contextlib.contextmanager
def reference_attention(enabled: bool = True) -> Iterator[None]:
    """Patches every U-Net to use explicit attention."""
    original = layers.self_attention
    if enabled:
        layers.self_attention = explicit_attention
    try:
        yield
    finally:
        layers.self_attention = original


@dataclass(frozen=True)
class Bench:
    """The models of the reference and of this package, with the same weights, and a batch."""

    reference: CausalDiffAE
    ours: CausalDiffAE
    config: Config
    spec: DatasetSpec
    settings: SpeedSettings
    x_start: Tensor
    labels: Tensor
    classes: Tensor | None
    autocast: torch.dtype | None

    def latents(self) -> tuple[Tensor, Tensor]:
        """A timestep (B,) and latents z (B, n, d) for one call of the score network."""
        t = torch.full((len(self.x_start),), 500.0, device=self.x_start.device)
        return t, self.reference.scm.label_blocks(self.labels)


def make_bench(config: Config, spec: DatasetSpec, settings: SpeedSettings) -> Bench:
    """Builds both models with random weights, whose values do not affect the timing."""
    device, models = settings.device, []
    for _ in range(2):
        torch.manual_seed(0)
        model, _ = create_model_and_diffusion(config, spec)
        assert isinstance(model, CausalDiffAE)
        models.append(model.to(device).eval())
    reference, ours = models
    if settings.channels_last:
        ours.unet.to(memory_format=torch.channels_last)
    if settings.compile:
        compile_network(ours.unet, device)
    shape = (settings.batch_size, spec.channels, spec.image_size, spec.image_size)
    x_start = torch.randn(shape, generator=torch.Generator(device).manual_seed(0), device=device).clamp(-1, 1)
    labels = torch.zeros(settings.batch_size, len(spec.graph), device=device)
    classes = torch.zeros(settings.batch_size, dtype=torch.long, device=device) if reference.class_cond else None
    autocast = activation_dtype(settings.use_bf16, device)
    return Bench(reference, ours, config, spec, settings, x_start, labels, classes, autocast)


def time_alternately(
    name: str,
    reference: Callable[[], object],
    ours: Callable[[], object],
    bench: Bench,
    scale: float = 1.0,
    clock: Callable[[], float] = idle_clock,
) -> Timing:
    """Times pairs of runs after one warm-up run of each side, until the interval of their ratio is narrow.

    Sides change places from pair to pair. See `max_spread` and `max_seconds` of `SpeedSettings`.

    Args:
        clock: returns seconds; by default without the time that this process waits for a processor.
    """
    settings, timing = bench.settings, Timing(name, [], [], scale)
    wait = torch.cuda.synchronize if torch.device(settings.device).type == "cuda" else lambda: None

    def seconds(run: Callable[[], object]) -> float:
        wait()
        begin = clock()
        run()
        wait()
        return clock() - begin

    sides = [(timing.reference, reference), (timing.ours, ours)]
    for _, run in sides:
        run()
    spent = 0.0
    while True:
        for times, run in sides:
            times.append(seconds(run))
            spent += times[-1]
        sides.reverse()
        enough = len(timing.ours) >= settings.repeats and not timing.withheld(settings.max_spread)
        if enough or (spent >= settings.max_seconds and len(timing.ours) >= settings.repeats):
            return timing


def time_forward(bench: Bench) -> Timing:
    """One call of the score network on the batch."""
    t, z = bench.latents()

    def call(model: CausalDiffAE, reference: bool) -> None:
        with torch.inference_mode(), reference_attention(reference), _autocast(bench, reference):
            model.model_output(bench.x_start, t, z, bench.classes)

    return time_alternately("forward", lambda: call(bench.reference, True), lambda: call(bench.ours, False), bench)


def time_training(bench: Bench) -> Timing:
    """One training step on the batch: forward, backward, optimizer, moving average."""
    return time_alternately("training step", training_step(bench, True), training_step(bench, False), bench)


def training_step(bench: Bench, reference: bool) -> Callable[[], None]:
    """A function that takes one training step of one side."""
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
        with reference_attention(reference):
            with _autocast(bench, reference):
                loss, _ = step(bench.x_start, bench.labels, bench.classes, draws.keep, draws, 1.0)
            optimizer.zero_grad(set_to_none=True)
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
    """Times counterfactuals of the batch under several interventions.

    The reference decodes a sampled x_T for each intervention, in 250 steps of two calls, without encoding; only
    `reference_steps` of them are timed. This package encodes once and decodes once per intervention.
    """
    settings, names = bench.settings, bench.spec.graph.names
    taken = min(settings.reference_steps, REFERENCE_STEPS)
    t, z = bench.latents()
    solver = create_solver(bench.config.diffusion, steps=settings.steps)
    engine = CounterfactualEngine(bench.ours, solver, bench.spec, autocast=bench.autocast)
    dos = [{names[0]: value} for value in torch.linspace(bench.spec.low[0], bench.spec.high[0], interventions).tolist()]

    def reference() -> None:
        with torch.inference_mode(), reference_attention():
            x = bench.x_start
            for _ in range(taken):
                conditional = bench.reference.model_output(x, t, z, bench.classes)
                null = bench.reference.model_output(x, t, None, bench.classes)
                x = 0.99 * x + 0.001 * (conditional + null)

    def ours() -> None:
        engine.predict(engine.abduct(bench.x_start, bench.classes), dos)

    name = f"counterfactuals, {interventions} intervention{'s' if interventions > 1 else ''}"
    return time_alternately(name, reference, ours, bench, scale=interventions * REFERENCE_STEPS / taken)


def evaluations(interventions: int, steps: int) -> tuple[int, int]:
    """Network calls per image of the reference and of this package."""
    return 2 * REFERENCE_STEPS * interventions, steps * (1 + interventions)


def peak_memory(config: Config, spec: DatasetSpec, settings: SpeedSettings, reference: bool) -> float:
    """Peak memory of training in MiB, relative to the memory before; on the CPU in a separate process."""
    if torch.device(settings.device).type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        train_one_side(config, spec, settings, reference)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    plain = SpeedSettings(**{field.name: getattr(settings, field.name) for field in fields(SpeedSettings)})
    with worker_pool(1) as pool:
        return pool.submit(_resident_growth, config, spec, replace(plain, compile=False), reference).result()


def _resident_growth(config: Config, spec: DatasetSpec, settings: SpeedSettings, reference: bool) -> float:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM on Linux
    before = _status("VmRSS")
    train_one_side(config, spec, settings, reference)
    return _status("VmHWM") - before


def _status(field: str) -> float:
    """A field of /proc/self/status in MiB; NaN without /proc."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    return float("nan")


def train_one_side(config: Config, spec: DatasetSpec, settings: SpeedSettings, reference: bool) -> None:
    """Takes two training steps with only one model in memory."""
    both = make_bench(config, spec, settings)
    model = both.reference if reference else both.ours
    run = training_step(replace(both, reference=model, ours=model), reference)
    del both
    run()
    run()


def _autocast(bench: Bench, reference: bool) -> torch.autocast:
    dtype = None if reference else bench.autocast
    kind = torch.device(bench.settings.device).type
    return torch.autocast(kind, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def composition_l1(
    model: nn.Module, config: Config, spec: DatasetSpec, images: Tensor, classes: Tensor | None, steps: int
) -> tuple[float, float]:
    """Error of the null intervention with trained weights, on images (N, C, S, S) in [-1, 1].

    Returns:
        Mean |x - x'| in grey levels, 0..255, before and after rounding to 8 bits.
    """
    engine = CounterfactualEngine(model, create_solver(config.diffusion, steps=steps), spec)  # type: ignore[arg-type]
    found = engine.predict(engine.abduct(images, classes), [{}])[0].images
    rounded = [to_uint8(x.cpu().numpy()) for x in (found, images)]
    return float((found - images).abs().mean()) * 127.5, float(l1_errors(*rounded).mean())
