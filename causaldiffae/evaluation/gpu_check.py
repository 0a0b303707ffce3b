"""What is to be checked on a GPU: agreement with the CPU, compiled gradients, bfloat16, speed and memory.

Agreement is measured on the weights that ship with the repository, in float32 without TF32. FLOP utilisation is the
arithmetic of a step (training/costs.py) divided by that of a large bfloat16 matrix product on the same device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from causaldiffae.config import Config
from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.datasets.images import to_model_range, to_uint8
from causaldiffae.datasets.registry import dataset_spec, measure, read_split
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.evaluation.check_list import Check, Outcome
from causaldiffae.model import TrainingStep
from causaldiffae.script_util import (
    FEW_STEP,
    LoadedModel,
    create_model_and_diffusion,
    create_solver,
    load_model,
    model_entry,
    parse_config,
)
from causaldiffae.training.acceleration import activation_dtype, score_network, undo_compile
from causaldiffae.training.costs import training_costs
from causaldiffae.training.estimate import Trial, estimate
from causaldiffae.training.random_draws import trial_draws

MODEL: Final = "morphomnist_causaldae_mini"
DO: Final = {"thickness": 3.5}
LOSS_BOUND, GRADIENT_BOUND, COMPILED_BOUND = 1e-4, 1e-3, 1e-3
"""Relative differences in float32; sums are taken in another order on another device."""
SAMPLE_BOUND: Final = 0.25
"""Mean difference of images in grey levels, 0..255: half of the rounding to 8 bits."""
LABEL_BOUND: Final = 0.02
"""Relative change of the mean of a measured label."""
COMPILE_MODES: Final = ("default", "reduce-overhead", "max-autotune-no-cudagraphs")
"""reduce-overhead uses CUDA graphs."""


@dataclass(frozen=True)
class Plan:
    """What is checked.

    Attributes:
        device: the device that is compared with the CPU.
        root: the repository, with `weights/`, `assets/` and `configs/`.
        images: images of the comparisons.
        steps: evaluations in each direction of a counterfactual.
        sizes: sizes of MorphoMNIST's configuration whose speed is measured.
        changes: flags over these configurations.
        compiled: whether to compile.
    """

    device: torch.device
    root: Path
    images: int = 64
    steps: int = 25
    sizes: tuple[str, ...] = ("mini", "fast", "paper")
    changes: tuple[str, ...] = ()
    compiled: bool = True


def short_plan(plan: Plan) -> Plan:
    """The plan for a processor: few images and steps, and one small network."""
    changes = ("--num_channels=32", "--num_res_blocks=1", "--channel_mult=1,1", "--batch_size=4")
    return replace(plan, images=4, steps=5, sizes=plan.sizes[:1], changes=changes)


class GpuChecks:
    """The checks of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._peak = 0.0

    def checks(self) -> list[Check]:
        """All checks, those of correctness first."""
        plan = self.plan
        found = [
            Check("loss and gradient, CPU and device", self.loss),
            Check("counterfactuals, CPU and device", self.counterfactuals),
            Check("bfloat16, drift of labels", self.bfloat16),
            Check("peak", self.peak),
        ]
        for name in plan.sizes:
            found.append(Check(f"training, {name}", lambda name=name: self.training(name)))  # type: ignore[misc]
            found.append(Check(f"sampling, {name}", lambda name=name: self.sampling(name)))  # type: ignore[misc]
        found.append(Check("few-step student", self.student))
        if plan.compiled:
            found.append(Check("gradient, compiled and eager", self.compiled_gradient))
            modes = COMPILE_MODES if plan.device.type == "cuda" else COMPILE_MODES[:1]
            found += [
                Check(f"compile mode {mode}, {name}", lambda name=name, mode=mode: self.mode(name, mode))  # type: ignore[misc]
                for mode in modes  # autotuning takes longest, and is the last
                for name in plan.sizes
            ]
        return found

    # ------------------------------------------------------------------ correctness

    def shipped(self, device: torch.device | str) -> LoadedModel:
        """The shipped model on a device."""
        return load_model(str(self.plan.root / "weights" / MODEL), device)

    def digits(self) -> tuple[Tensor, Tensor]:
        """Test images (N, 1, 28, 28) in [-1, 1] and classes (N,), on the CPU."""
        found = read_split("mnist", self.plan.root / "assets" / "mnist_share", "test", limit=self.plan.images)
        return to_model_range(found.images), torch.from_numpy(found.labels[:, 0]).long()

    def loss(self) -> Iterator[Outcome]:
        """Loss and gradient of the shipped model on the same draws."""
        with exact():
            (loss, gradient), (other, others) = (self._gradient(device) for device in ("cpu", self.plan.device))
        yield Outcome("loss, CPU and device", abs(other / loss - 1), "", LOSS_BOUND, f"{loss:.6g} and {other:.6g}")
        yield Outcome("gradient, CPU and device", relative(gradient, others), "", GRADIENT_BOUND, "norm of difference")

    def compiled_gradient(self) -> Iterator[Outcome]:
        """Gradient of the compiled network beside the eager one, both on the device."""
        with exact():
            eager, compiled = (self._gradient(self.plan.device, mode)[1] for mode in ("", "default"))
        yield Outcome("gradient, compiled and eager", relative(eager, compiled), "", COMPILED_BOUND)

    def _gradient(self, device: torch.device | str, mode: str = "") -> tuple[float, Tensor]:
        """Loss and flat gradient on the CPU, in float64."""
        loaded, (images, classes) = self.shipped(device), self.digits()
        _, diffusion = create_model_and_diffusion(loaded.config, loaded.spec)
        step = model_entry(loaded.config.model.model_type).training_step(loaded.model, diffusion, loaded.config.loss)
        if mode:
            compile_with(loaded.model, mode)
        torch.manual_seed(0)
        times = torch.arange(len(images)) * diffusion.num_timesteps // len(images)
        draws = trial_draws(images, times, loaded.model.latent_shape)
        draws = type(draws)(**{name: value.to(device) for name, value in vars(draws).items()})
        labels = torch.zeros(len(images), len(loaded.spec.graph), device=device)
        known = classes.to(device) if loaded.config.model.class_cond else None
        loss, _ = step(images.to(device), labels, known, draws.keep, draws, 1.0)
        loss.backward()
        parameters = [p.grad for p in loaded.model.parameters() if p.grad is not None]
        return float(loss.detach()), torch.cat([grad.detach().cpu().double().flatten() for grad in parameters])

    def counterfactuals(self) -> Iterator[Outcome]:
        """Null intervention and an intervention: images in grey levels, and the measured label."""
        with exact():
            ours, theirs = (self._predict(device) for device in ("cpu", self.plan.device))
        for name, a, b in zip(("reconstruction", f"do({next(iter(DO))})"), ours, theirs, strict=True):
            yield Outcome(f"{name}, CPU and device", float((a - b).abs().mean()) * 127.5, "grey levels", SAMPLE_BOUND)
        yield self._drift("label, CPU and device", ours[1], theirs[1])

    def bfloat16(self) -> Iterator[Outcome]:
        """Measured label of counterfactuals with bfloat16 activations beside float32, on the device."""
        name = "label, bfloat16 and float32"
        if activation_dtype("auto", self.plan.device) is None:
            yield Outcome(name, None, note="no bfloat16 in this hardware")
            return
        with exact():
            plain = self._predict(self.plan.device)
        yield self._drift(name, plain[1], self._predict(self.plan.device, torch.bfloat16)[1])

    def _drift(self, name: str, a: Tensor, b: Tensor) -> Outcome:
        spec, variable = dataset_spec("morphomnist"), next(iter(DO))
        column = spec.graph.index(variable)
        before, after = (torch.from_numpy(measure(spec, to_uint8(x.numpy()))[:, column]).nanmean() for x in (a, b))
        note = f"mean {variable} {float(before):.4g} and {float(after):.4g}"
        return Outcome(name, abs(float(after / before) - 1), "", LABEL_BOUND, note)

    def _predict(self, device: torch.device | str, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Null intervention and `DO`: images (N, 1, 28, 28) on the CPU."""
        loaded, (images, classes) = self.shipped(device), self.digits()
        engine = loaded.engine(self.plan.steps, label_corrections=0, keep_unchanged=0.0, autocast=dtype)
        known = classes.to(device) if loaded.config.model.class_cond else None
        found = engine.predict(engine.abduct(images.to(device), known), [{}, DO])
        return [each.images.float().cpu() for each in found]

    # ------------------------------------------------------------------ speed

    def peak(self) -> Iterator[Outcome]:
        """Arithmetic of a large matrix product, in the precision of training."""
        is_gpu = self.plan.device.type == "cuda"
        dtype = activation_dtype("auto", self.plan.device) or torch.float32
        size = 8192 if is_gpu else 512
        a = torch.randn(size, size, device=self.plan.device).to(dtype)
        seconds = self.fastest(lambda: a @ a, 10)
        self._peak = 2 * size**3 / seconds
        note = f"{str(dtype).removeprefix('torch.')}, {size} x {size}"
        yield Outcome("matrix product", self._peak / 1e12, "TFLOP/s", None, note)

    def settings(self, name: str) -> tuple[Config, DatasetSpec]:
        """Configuration and data set of a size."""
        path = self.plan.root / "configs" / f"morphomnist_causaldae_{name}.yaml"
        config = parse_config([f"--config={path}", *self.plan.changes])
        return config, dataset_spec(
            config.train.dataset, config.train.image_size or None, config.train.channels or None
        )

    def training(self, name: str) -> Iterator[Outcome]:
        """Images per second, FLOP utilisation and memory of eager training steps with the optimizer."""
        config, spec = self.settings(name)
        found = estimate(config, spec, self.plan.device)
        costs = training_costs(config, spec, self.plan.device, activation_dtype("auto", self.plan.device))
        title, batch = f"training, {name}", f"batches of {found.trial_images}, eager"
        yield Outcome(title, found.images_per_second, "images/s", None, batch)
        if self._peak:
            used = costs.gflop * 1e9 * found.images_per_second / self._peak
            yield Outcome(f"{title}, FLOP utilisation", 100 * used, "%", None, "of the matrix product")
        yield Outcome(f"{title}, memory", found.memory_mib, "MiB", found.free_mib or None, f"{found.images} images")

    def sampling(self, name: str, mode: str = "") -> Iterator[Outcome]:
        """Counterfactuals per second: one intervention on abducted images, random weights."""
        config, spec = self.settings(name)
        model, _ = create_model_and_diffusion(config, spec)
        model.to(self.plan.device).eval()
        dtype, title = activation_dtype("auto", self.plan.device), f"sampling, {name}{f', {mode}' if mode else ''}"
        if mode:
            compile_with(model, mode)
        solver = create_solver(config.diffusion, steps=self.plan.steps)
        engine = CounterfactualEngine(model, solver, spec, autocast=dtype)  # type: ignore[arg-type]
        count = self.plan.images
        images = torch.randn(count, spec.channels, spec.image_size, spec.image_size, device=self.plan.device)
        classes = torch.zeros(count, dtype=torch.long, device=self.plan.device) if config.model.class_cond else None
        do = {spec.graph.names[0]: spec.low[0]}
        seconds = self.fastest(lambda: engine.predict(engine.abduct(images.clamp(-1, 1), classes), [do]), 1)
        note = f"batches of {count}, {self.plan.steps} steps each way"
        yield Outcome(title, count / seconds, "counterfactuals/s", None, note)

    def mode(self, name: str, mode: str) -> Iterator[Outcome]:
        """Time of a compiled training step divided by the eager one, and of sampling."""
        config, spec = self.settings(name)
        model, diffusion = create_model_and_diffusion(config, spec)
        model.to(self.plan.device)
        step: TrainingStep = model_entry(config.model.model_type).training_step(model, diffusion, config.loss)
        count = min(config.train.microbatch or config.train.batch_size, config.train.batch_size)
        trial, dtype = Trial(step, config, spec, self.plan.device, count), activation_dtype("auto", self.plan.device)
        eager = trial.run(dtype, 3)
        start = time.perf_counter()
        compile_with(model, mode)
        compiled = trial.run(dtype, 3)
        note = f"{eager:.3g} s eager, {compiled:.3g} s compiled, ready after {time.perf_counter() - start:.0f} s"
        yield Outcome(f"training step, {mode}, {name}", compiled / eager, "of the eager time", None, note)
        network = score_network(model)
        if network is not None:
            undo_compile(network)
        yield from self.sampling(name, mode)

    def student(self) -> Iterator[Outcome]:
        """Counterfactuals of a few-step student on CPU and device, if there is one in `weights/`."""
        name = "few-step student, CPU and device"
        folders = sorted((self.plan.root / "weights").glob("*step*/model.safetensors"))
        if not folders:
            yield Outcome(name, None, note="no student in weights/")
            return
        images, classes = self.digits()
        found = []
        for device in (torch.device("cpu"), self.plan.device):
            loaded = load_model(str(folders[0].parent), device)
            if loaded.spec.name != "morphomnist":
                raise InputError(f"{folders[0].parent.name}: expected a student of morphomnist, got {loaded.spec.name}")
            known = classes.to(device) if loaded.config.model.class_cond else None
            engine = loaded.engine(solver=FEW_STEP, label_corrections=0, keep_unchanged=0.0)
            with exact():
                found.append(engine.predict(engine.abduct(images.to(device), known), [DO])[0].images.float().cpu())
        yield Outcome(name, float((found[0] - found[1]).abs().mean()) * 127.5, "grey levels", SAMPLE_BOUND)

    def fastest(self, run: Callable[[], Any], repeats: int) -> float:
        """Seconds of a run, the least of `repeats` after one that is not counted."""
        wait = torch.cuda.synchronize if self.plan.device.type == "cuda" else lambda: None
        durations = []
        for _ in range(repeats + 1):
            wait()
            start = time.perf_counter()
            run()
            wait()
            durations.append(time.perf_counter() - start)
        return min(durations[1:])


@contextmanager
def exact() -> Iterator[None]:
    """Disables TF32, which rounds the inputs of float32 products to 10 bits."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def relative(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm of `a`."""
    return float((a - b).norm() / a.norm())


def compile_with(model: torch.nn.Module, mode: str) -> None:
    """Compiles the score network in a mode of torch.compile."""
    network = score_network(model)
    if network is None:
        raise InputError(f"compile: expected a model with a score network, got {type(model).__name__}")
    network.compile(dynamic=False, mode=mode)
