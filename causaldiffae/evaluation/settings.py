"""Command line of the scripts image_*_test.py: settings and recipes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from causaldiffae.config import (
    CLASS_WEIGHT_HELP,
    CORRECTION_PREDICTOR_HELP,
    DEVICE_HELP,
    KEEP_CAUSES_HELP,
    KEEP_UNCHANGED_HELP,
    LABEL_CORRECTIONS_HELP,
    SOLVER_HELP,
    USE_LABELS_HELP,
    WEIGHT_HELP,
    DiffusionConfig,
    flag,
    with_help,
)
from causaldiffae.counterfactual import AbductionKind
from causaldiffae.datasets.do_text import parse_do as parse_do  # also the scripts' name for it
from causaldiffae.datasets.do_text import take_name
from causaldiffae.datasets.spec import CheckedDo, DatasetSpec
from causaldiffae.datasets.variables import round_in_range
from causaldiffae.errors import InputError, check_given, check_least, check_local
from causaldiffae.evaluation.sampling import check_samples
from causaldiffae.guidance import CLASS_WEIGHT, Guidance, guidance_weight
from causaldiffae.predictors.correction import LABEL_CORRECTIONS
from causaldiffae.respace import space_timesteps
from causaldiffae.script_util import SOLVER, STEPS
from causaldiffae.solvers import parse_enum

RECIPES: dict[str, dict[str, Any]] = {
    "reference": {
        "abduction": "noise",
        "timestep_respacing": "250",
        "w": 1.0,
        "w_class": 1.0,
        "label_corrections": 0,
        "keep_unchanged": 0.0,
    }
}
"""Named sets of flags; `--recipe NAME` inserts them at its position on the command line."""
NUM_IMAGES: Final = 256


@with_help
@dataclass(frozen=True)
class TestConfig:
    """Options of a test script."""

    model_path: str = flag("", "run directory, step folder, model folder, or state dict (.pt) of the published code")
    data_dir: str = flag("", "folder of the data set")
    dataset: str = flag("", "data set of a published state dict, if its tensor shapes are ambiguous")
    predictor_path: str = flag("", "noised predictor of a Diff-SCM, or 'none'; default: predictor/ in model_path")
    label_predictor: str = flag("", "predictor that reads labels; default: from weights/, if needed")
    judge: str = flag("", "deprecated alias of label_predictor")
    out_dir: str = flag("", "output folder")
    do: list[str] = flag(
        [], 'intervention name=value[,name=value]; quotes for "a, b"=1; repeatable; default: those in the script'
    )
    num_images: int | Literal["all"] = flag(NUM_IMAGES, "number of test images, or 'all'")
    batch_size: int = flag(100, "images per batch")
    solver: str = flag(SOLVER, SOLVER_HELP)
    steps: int = flag(STEPS, "network evaluations in each direction")
    grid: str = flag("", "spacing of noise levels: centred, logsnr, rho or uniform; default: that of the solver")
    timestep_respacing: str = flag("", "steps of the published DDIM loops, see space_timesteps; overrides solver")
    residual: bool = flag(False, "add the reconstruction error of the factual image to every counterfactual")
    rescale_quantile: float = flag(0.0, "quantile of dynamic thresholding of x_0, such as 0.99; 0 disables it")
    abduction: str = flag("ddim", "x_T: ddim encodes the image, noise samples around it (published), none samples")
    stop: float = flag(1.0, "encode and decode only up to this fraction of T")
    w: float | None = flag(None, WEIGHT_HELP)
    w_affected: float | None = flag(None, "guidance weight of intervened variables and descendants; default: w")
    w_invariant: float | None = flag(None, "guidance weight of all other variables; default: w")
    w_class: float = flag(CLASS_WEIGHT, CLASS_WEIGHT_HELP)
    guidance_interval: str = flag("0,1", "range of t/T with guidance, such as 0.2,0.8")
    label_corrections: int = flag(LABEL_CORRECTIONS, LABEL_CORRECTIONS_HELP)
    correction_predictor: str = flag("", CORRECTION_PREDICTOR_HELP)
    keep_unchanged: float | None = flag(None, KEEP_UNCHANGED_HELP)
    use_labels: bool = flag(False, USE_LABELS_HELP)
    keep_causes: bool | None = flag(None, KEEP_CAUSES_HELP)
    most_probable: bool = flag(False, "discrete effects: the most probable category instead of a seeded draw")
    samples: int = flag(1, "also draw this many abductions and show the spread of the counterfactuals; 1 for none")
    x_T_noise: float = flag(0.0, "share of noise in the x_T of every draw, 0 to 1; 0 encodes the image exactly")
    sweep_w: str = flag("", "also apply the first intervention with these guidance weights, such as 0,0.5,1")
    traverse: str = flag("", "also traverse the ranges of these variables, such as thickness,intensity")
    ema: str = flag("", "rate of the moving average, or 'none' for the trained weights; default: the first one")
    use_bf16: bool = flag(False, "use bfloat16 activations if the hardware supports them")
    compile: bool = flag(False, "compile the score network")
    channels_last: bool = flag(False, "store convolution weights in the channels-last memory format")
    grid_images: int = flag(8, "rows of the image grids")
    device: str = flag("auto", DEVICE_HELP)
    seed: int = flag(0, "random seed")

    def __post_init__(self) -> None:
        check_given(self, "model_path", "data_dir", "out_dir")
        check_local(out_dir=self.out_dir)
        check_least(
            self,
            batch_size=1,
            grid_images=1,
            label_corrections=0,
            **({} if self.num_images == "all" else {"num_images": 0}),
        )
        parse_enum(AbductionKind, self.abduction, "abduction")
        check_samples(self.samples, self.x_T_noise)
        resolve_alias(self, "judge", "label_predictor")

    @property
    def limit(self) -> int | None:
        """Number of test images; None for all, which `--num_images 0` also means."""
        return None if self.num_images in ("all", 0) else int(self.num_images)

    def evaluations(self, diffusion: DiffusionConfig) -> int:
        """Number of network evaluations in each direction."""
        respacing = self.timestep_respacing
        return len(space_timesteps(diffusion.diffusion_steps, respacing)) if respacing else self.steps

    def guidance(self, model: object) -> Guidance:
        """Guidance of the interventions of a model."""
        interval = parse_numbers("guidance_interval", self.guidance_interval)
        if len(interval) != 2:
            raise InputError(f"guidance_interval: expected two numbers, got {self.guidance_interval!r}")
        low, high = interval
        return Guidance(guidance_weight(model, self.w), self.w_affected, self.w_invariant, low, high, self.w_class)


def resolve_alias(settings: object, alias: str, name: str) -> None:
    """Moves the value of a deprecated field of frozen settings to its replacement, with a warning."""
    value = getattr(settings, alias)
    if value:
        warnings.warn(f"{alias}: deprecated, use {name}", UserWarning, stacklevel=4)
        object.__setattr__(settings, name, value)


def default_interventions(spec: DatasetSpec) -> list[CheckedDo]:
    """One intervention per variable, at three quarters of its range or at its last category."""
    dos = []
    for i, name in enumerate(spec.graph.names):
        low, high = spec.low[i], spec.high[i]
        is_number = spec.kind(i) == "continuous"
        dos.append(spec.do_labels({name: round_in_range(low + 0.75 * (high - low), low, high) if is_number else high}))
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
    """Parses variable names separated by commas; names that contain commas may be quoted."""
    names, left = [], text.strip(" ,")
    while left:
        each, left = take_name(left, spec.graph.names, ",")
        if not spec.class_name or each != spec.class_name:
            spec.graph.index(each, name)
        names.append(each)
        left = left.strip(" ,")
    return names
