"""Command line of the scripts image_*_test.py: settings, recipes and parsing of interventions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from causaldiffae.counterfactual import AbductionKind
from causaldiffae.datasets.spec import CheckedDo, DatasetSpec
from causaldiffae.errors import InputError, check_given, check_least
from causaldiffae.guidance import Guidance
from causaldiffae.script_util import SOLVER, STEPS, argument_parser, expand_recipes, parse_flat

RECIPES: dict[str, dict[str, Any]] = {"reference": {"abduction": "noise", "timestep_respacing": "250", "w": 1.0}}
"""Named sets of flags; `--recipe NAME` inserts them at its position on the command line."""


@dataclass(frozen=True)
class TestConfig:
    """Settings of a test script.

    Attributes:
        model_path: run directory, step folder, model folder, or a state dict (.pt) of the published code.
        data_dir: folder of the data set.
        dataset: data set of a published state dict, if its tensor shapes are ambiguous.
        predictor_path: noised predictor of a Diff-SCM; "none" uses the implicit one; by default the folder "predictor"
            in model_path.
        label_predictor: anti-causal predictor that measures the labels of counterfactuals; by default the one in
            weights/ if the data set cannot measure its labels.
        judge: deprecated alias of label_predictor.
        out_dir: output folder.
        do: interventions as "name=value" or "name=value,name=value"; by default those listed in the script.
        num_images: number of test images; 0 uses all.
        batch_size: images per batch.
        solver: "dpmpp2m", "obelm", or "ddim" for the published DDIM loops.
        steps: network evaluations in each direction.
        grid: spacing of the noise levels: "centred", "logsnr", "rho" or "uniform"; by default that of the solver.
        timestep_respacing: steps of the published DDIM loops, see space_timesteps; overrides solver.
        residual: add the reconstruction error of the factual image to every counterfactual.
        rescale_quantile: quantile of dynamic thresholding of x_0 while decoding, for instance 0.99; 0 disables it.
        abduction: "ddim" encodes the image; "noise" samples x_T around it (the published algorithm); "none" draws x_T.
        stop: encode and decode only up to this fraction of T.
        w: guidance weight; 1 is no guidance, 0 ignores the latents.
        w_affected: guidance weight of the intervened variables and their descendants; by default w.
        w_invariant: guidance weight of all other variables; by default w.
        guidance_interval: range of t/T in which guidance is applied, for instance "0.2,0.8".
        sweep_w: also evaluate the first intervention at these guidance weights, for instance "0,0.5,1".
        traverse: also set each of these variables to values over its range, for instance "thickness,intensity".
        ema: rate of the moving average to use; "" uses the first, "none" the trained weights.
        use_bf16: use bfloat16 activations if the hardware supports them.
        compile: compile the score network for the batch size.
        channels_last: use the channels_last memory format for convolution weights.
        grid_images: number of rows of the image grids.
        seed: seed of random noise.
    """

    model_path: str = ""
    data_dir: str = ""
    dataset: str = ""
    predictor_path: str = ""
    label_predictor: str = ""
    judge: str = ""
    out_dir: str = ""
    do: list[str] = field(default_factory=list)
    num_images: int = 0
    batch_size: int = 100
    solver: str = SOLVER
    steps: int = STEPS
    grid: str = ""
    timestep_respacing: str = ""
    residual: bool = False
    rescale_quantile: float = 0.0
    abduction: str = "ddim"
    stop: float = 1.0
    w: float = 1.0
    w_affected: float | None = None
    w_invariant: float | None = None
    guidance_interval: str = "0,1"
    sweep_w: str = ""
    traverse: str = ""
    ema: str = ""
    use_bf16: bool = False
    compile: bool = False
    channels_last: bool = False
    grid_images: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        check_given(self, "model_path", "data_dir", "out_dir")
        check_least(self, num_images=0, batch_size=1, grid_images=1)
        check_abduction(self.abduction)
        resolve_alias(self, "judge", "label_predictor")

    def guidance(self) -> Guidance:
        """Guidance of the interventions."""
        interval = parse_numbers("guidance_interval", self.guidance_interval)
        if len(interval) != 2:
            raise InputError(f"guidance_interval: expected two numbers, got {self.guidance_interval!r}")
        return Guidance(self.w, self.w_affected, self.w_invariant, *interval)


def resolve_alias(settings: object, alias: str, name: str) -> None:
    """Moves the value of a deprecated field of frozen settings to its replacement, with a warning."""
    value = getattr(settings, alias)
    if value:
        warnings.warn(f"{alias}: deprecated, use {name}", UserWarning, stacklevel=4)
        object.__setattr__(settings, name, value)


def check_abduction(kind: str) -> None:
    """Raises `InputError` for an unknown kind of abduction."""
    kinds = [each.value for each in AbductionKind]
    if kind not in kinds:
        raise InputError(f"abduction: expected one of {', '.join(kinds)}, got {kind!r}")


def parse_do(text: str, spec: DatasetSpec) -> CheckedDo:
    """Parses "thickness=4.5,intensity=90"; a category may be given by name."""
    do: dict[str, float | str] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name or not value:
            raise InputError(f"do: expected name=value, like thickness=4.5, got {part[:200]!r}")
        if name in do:
            raise InputError(f"do: expected each variable once, got {name[:80]} twice in {text[:200]!r}")
        try:
            do[name] = float(value)
        except ValueError:
            do[name] = value[:200]
    return spec.check_do(do)


def default_interventions(spec: DatasetSpec) -> list[CheckedDo]:
    """One intervention per variable, at three quarters of its range or at its last category."""
    dos = []
    for i, name in enumerate(spec.graph.names):
        low, high = spec.low[i], spec.high[i]
        value = low + 0.75 * (high - low) if spec.kind(i) == "continuous" else high
        dos.append(spec.check_do({name: float(f"{value:.3g}")}))
    return dos


def parse_numbers(name: str, text: str) -> list[float]:
    """Parses "0,0.5,1"; an empty string gives an empty list."""
    try:
        values = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = [float("nan")]
    if not all(np.isfinite(values)):
        raise InputError(f"{name}: expected finite numbers separated by commas, got {text!r}")
    return values


def parse_names(name: str, text: str, spec: DatasetSpec) -> list[str]:
    """Parses variable names separated by commas."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    for each in names:
        if each not in spec.graph.names:
            raise InputError(f"{name}: unknown variable {each[:80]!r}, expected one of {', '.join(spec.graph.names)}")
    return names


def parse_test_config(argv: Sequence[str], description: str) -> TestConfig:
    """Settings from `--config FILE`, `--recipe NAME` and flags; later ones override earlier ones."""
    parser = argument_parser(description)
    parser.add_argument("--recipe", help=f"insert a named set of flags here: {', '.join(RECIPES)}")
    parser.add_class_arguments(TestConfig, nested_key=None, skip={"do"}, instantiate=False)
    parser.add_argument("--do", action="append", default=[], help="name=value[,name=value]; may be given several times")
    values = parse_flat(parser, expand_recipes(argv, RECIPES))
    return TestConfig(**{each.name: values[each.name] for each in fields(TestConfig)})
