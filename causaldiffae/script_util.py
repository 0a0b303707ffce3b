"""What scripts share: the command line, building models from configurations, and opening checkpoints."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from causaldiffae.baselines.causalvae import CausalVAE, CausalVAETrainingStep
from causaldiffae.baselines.conditional import ConditionalTrainingStep, LabelConditional
from causaldiffae.baselines.diffae import DiffAE, DiffAETrainingStep
from causaldiffae.checkpoints.checkpoint import build_with_weights, load_checkpoint, load_torch_state_dict
from causaldiffae.checkpoints.model_folders import NOISED_PREDICTOR_FOLDER
from causaldiffae.checkpoints.remote import local_checkpoint
from causaldiffae.config import COMPONENTS, RECIPES, Config, DiffusionConfig, ModelConfig
from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.datasets.registry import DATASETS, dataset_spec, find_dataset
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.diff_scm import DiffScm, DiffScmTrainingStep
from causaldiffae.errors import DataError, InputError, one_line
from causaldiffae.files.storage import is_remote
from causaldiffae.files.yaml import check_config_file
from causaldiffae.gaussian_diffusion import (
    GaussianDiffusion,
    LossType,
    ModelMeanType,
    ModelVarType,
    enforce_zero_terminal_snr,
    get_named_beta_schedule,
)
from causaldiffae.model import CausalDiffAE, TrainingStep
from causaldiffae.noise_schedule import NoiseLevels
from causaldiffae.predictors.noised_predictor import load_noised_predictor
from causaldiffae.published import causaldiffae as reference
from causaldiffae.respace import SpacedDiffusion, space_timesteps
from causaldiffae.solvers import DdimLoops, OdeSolver

SettingsT = TypeVar("SettingsT")


def run_cli(main: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> None:
    """Runs a script's main: what a user can mend becomes one line and exit code 2, warnings become one line each."""

    def on_one_line(message: Any, category: type[Warning], *_: Any) -> None:
        if issubclass(category, UserWarning):
            sys.stderr.write(f"warning: {' '.join(one_line(message).split())}\n")

    warnings.showwarning = on_one_line  # type: ignore[assignment]
    try:
        main(list(sys.argv[1:] if argv is None else argv))
    except InputError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def parse_flat(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """Parses a command line; whatever is wrong with it, or with a configuration file it names, is an `InputError`."""
    for path in _config_files(argv):
        check_config_file(path)
    try:
        return parser.parse_args(list(argv))
    except (ArgumentError, TypeError, KeyError, ValueError, OSError) as error:
        raise InputError(" ".join(str(error).split())) from error


def _config_files(argv: Sequence[str]) -> list[str]:
    """What stands behind `--config`, or behind what the parser takes for it: "--c" to "--conf", with = or without."""
    found: list[str] = []
    for argument, following in zip(argv, [*argv[1:], ""], strict=False):
        flag, equals, value = argument.partition("=")
        if len(flag) > 2 and "--config".startswith(flag):
            found.append(value if equals else following)
    return found


def argument_parser(description: str) -> ArgumentParser:
    """A parser that raises instead of exiting, and takes `--config FILE.yaml`."""
    parser = ArgumentParser(description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file of the same names as the flags")
    return parser


def parse_flags(settings: type[SettingsT], argv: Sequence[str], description: str = "", **repeated: str) -> SettingsT:
    """Fills a settings dataclass from `--config FILE` and one flag per field.

    Args:
        settings: the dataclass; its docstring is the flags' help.
        repeated: list fields whose flag may be given several times, with their help texts.

    Raises:
        InputError: for an unknown flag or a value of the wrong type.
    """
    parser = argument_parser(description)
    parser.add_class_arguments(settings, nested_key=None, skip=set(repeated), instantiate=False)
    for name, text in repeated.items():
        parser.add_argument(f"--{name}", action="append", default=[], help=text)
    values = parse_flat(parser, argv)
    return settings(**{name: values[name] for name in settings.__dataclass_fields__})  # type: ignore[attr-defined]


def expand_recipes(argv: Sequence[str], recipes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Puts the flags that `--recipe NAME` stands for in its place."""
    expanded: list[str] = []
    given = iter(argv)
    for argument in given:
        if argument != "--recipe" and not argument.startswith("--recipe="):
            expanded.append(argument)
            continue
        name = next(given, "") if argument == "--recipe" else argument.partition("=")[2]
        if name not in recipes:
            raise InputError(f"recipe: {name!r} given, known are {', '.join(recipes)}")
        expanded += [f"--{key}={value}" for key, value in recipes[name].items()]
    return expanded


def parse_config(argv: Sequence[str], description: str = "") -> Config:
    """The configuration from `--config FILE`, `--recipe NAME` and flags; later ones override earlier ones."""
    argv = expand_recipes(argv, RECIPES)
    parser = argument_parser(description)
    parser.add_argument("--recipe", help=f"a named set of values, put in at its place: {', '.join(RECIPES)}")
    for component in COMPONENTS.values():
        parser.add_class_arguments(component, nested_key=None)
    values = parse_flat(parser, argv)
    for component in COMPONENTS.values():
        for field in dataclasses.fields(component):
            if values[field.name] is None:  # `lr: null`; the parser lets it pass
                raise InputError(f"{field.name}: null given, a value like {field.default!r} is needed")
    parts = {
        name: component(**{f.name: values[f.name] for f in dataclasses.fields(component)})
        for name, component in COMPONENTS.items()
    }
    return Config(**parts)


def model_and_diffusion_defaults() -> dict[str, Any]:
    """Default values of every field of the model and the diffusion process, by name."""
    return {**dataclasses.asdict(ModelConfig()), **dataclasses.asdict(DiffusionConfig())}


def create_gaussian_diffusion(config: DiffusionConfig, timestep_respacing: str = "") -> SpacedDiffusion:
    """The diffusion process of a configuration, over all its steps or those that `timestep_respacing` keeps.

    Args:
        timestep_respacing: "" for all, "250" for evenly spaced ones, "10,10,25" by section, "ddim50" for a fixed
            stride.
    """
    betas = get_named_beta_schedule(config.noise_schedule, config.diffusion_steps)
    if config.zero_terminal_snr:
        betas = enforce_zero_terminal_snr(betas)
    if config.use_kl:
        loss_type = LossType.RESCALED_KL
    else:
        loss_type = LossType.RESCALED_MSE if config.rescale_learned_sigmas else LossType.MSE
    if config.predict_xstart and config.predict_v:
        raise InputError("predict_xstart, predict_v: the network can predict one of them only")
    mean_type = ModelMeanType.START_X if config.predict_xstart else ModelMeanType.EPSILON
    fixed = ModelVarType.FIXED_SMALL if config.sigma_small else ModelVarType.FIXED_LARGE
    return SpacedDiffusion(
        use_timesteps=space_timesteps(config.diffusion_steps, timestep_respacing or [config.diffusion_steps]),
        betas=betas,
        model_mean_type=ModelMeanType.VELOCITY if config.predict_v else mean_type,
        model_var_type=ModelVarType.LEARNED_RANGE if config.learn_sigma else fixed,
        loss_type=loss_type,
        rescale_timesteps=config.rescale_timesteps,
        min_snr_gamma=config.min_snr_gamma,
    )


Model = CausalDiffAE | LabelConditional | CausalVAE | DiffScm


class ModelEntry(NamedTuple):
    """How one type of model is built and trained."""

    build: Callable[[ModelConfig, DatasetSpec, bool], Model]
    training_step: type[TrainingStep]


MODELS: Final[dict[str, ModelEntry]] = {
    "causaldae": ModelEntry(CausalDiffAE.from_config, TrainingStep),
    "diffscm": ModelEntry(DiffScm.from_config, DiffScmTrainingStep),
    "conditional": ModelEntry(LabelConditional.from_config, ConditionalTrainingStep),
    "diffae": ModelEntry(DiffAE.from_config, DiffAETrainingStep),
    "causalvae": ModelEntry(CausalVAE.from_config, CausalVAETrainingStep),
}


def model_entry(model_type: str) -> ModelEntry:
    """The entry of a model type; an unknown one is an `InputError`."""
    if model_type not in MODELS:
        raise InputError(f"model_type: {model_type!r} given, allowed are {', '.join(MODELS)}")
    return MODELS[model_type]


def create_model_and_diffusion(config: Config, spec: DatasetSpec) -> tuple[Model, GaussianDiffusion]:
    """A freshly initialised model and its training process."""
    if config.model.class_cond and spec.num_classes is None:
        raise InputError(f"class_cond: data set {spec.name} has no classes")
    model = model_entry(config.model.model_type).build(config.model, spec, config.diffusion.learn_sigma)
    return model, create_gaussian_diffusion(config.diffusion)


STEPS, SOLVER = 25, "dpmpp2m"
GRIDS: Final = {"ddim": "", "dpmpp2m": "centred", "obelm": "rho"}


def create_solver(
    config: DiffusionConfig, solver: str = SOLVER, steps: int = STEPS, grid: str = "", timestep_respacing: str = ""
) -> OdeSolver | DdimLoops:
    """A solver by name, over a configuration's process.

    "ddim" without a grid stands for the published loops, and so does `timestep_respacing`, whatever else is named.
    """
    if timestep_respacing:
        return DdimLoops(create_gaussian_diffusion(config, timestep_respacing))
    if solver not in GRIDS:
        raise InputError(f"solver: {solver!r} given, allowed are {', '.join(GRIDS)}")
    chosen = grid or GRIDS[solver]
    if not chosen:
        return DdimLoops(create_gaussian_diffusion(config, str(steps)))
    return OdeSolver(create_gaussian_diffusion(config), solver, chosen, steps)


@dataclass(frozen=True)
class LoadedModel:
    """A trained model with all that its checkpoint knows.

    `pixel_range` is what the network's images span; ours span -1..1, the published CausalDiffAE's 0..1.
    """

    model: Model
    config: Config
    spec: DatasetSpec
    step: int | None
    path: str
    pixel_range: tuple[float, float] = (-1.0, 1.0)

    def diffusion(self, timestep_respacing: str = "") -> SpacedDiffusion:
        """Its diffusion process, respaced."""
        return create_gaussian_diffusion(self.config.diffusion, timestep_respacing)

    def engine(
        self,
        steps: int = STEPS,
        solver: str = SOLVER,
        grid: str = "",
        timestep_respacing: str = "",
        **options: Any,
    ) -> CounterfactualEngine:
        """Asks it counterfactual questions.

        Args:
            steps: evaluations of the network each way.
            solver: "dpmpp2m", "obelm", or "ddim" for the published loops.
            grid: of the noise levels; by default the solver's own.
            timestep_respacing: steps of the published loops, which then take the solver's place.
            options: those of `CounterfactualEngine`.
        """
        chosen = create_solver(self.config.diffusion, solver, steps, grid, timestep_respacing)
        return CounterfactualEngine(self.model, chosen, self.spec, pixel_range=self.pixel_range, **options)


def describe_checkpoint(config: Config, spec: DatasetSpec) -> dict[str, Any]:
    """What a checkpoint says about itself; `load_model` reads it."""
    return {
        "model_type": config.model.model_type,
        "config": config.to_dict(),
        "dataset": spec.to_dict(),
        "digest": config.digest(),
    }


def load_model(
    path: str, device: torch.device | str = "cpu", ema: str | None = None, dataset: str = "", predictor: str = ""
) -> LoadedModel:
    """Opens a run directory, a step folder, a model folder, or a state dict (.pt) of the published CausalDiffAE code.

    A run directory and a step folder may also be at an address, like gs://BUCKET/RUN.

    Args:
        ema: rate of the moving average, or "none" for the trained weights; by default the first moving average.
        dataset: of a published state dict, which does not name it; by default the one with so many variables.
        predictor: folder of the noised predictor that guides a Diff-SCM, "none" for its implicit one; by default the
            folder `predictor` beside its weights or checkpoints, if there is one.

    Raises:
        InputError: if there is no such checkpoint, it is damaged, or is of another model.
    """
    if is_remote(path):
        path = str(local_checkpoint(path))
    if Path(path).is_file():
        return _load_published(path, device, dataset)
    probe = load_checkpoint(path)
    described = probe.config
    model_type = described.get("model_type")
    if model_type not in (*MODELS, "causaldiffae"):  # the latter before there were several
        raise DataError(f"{path}: a checkpoint of a {model_type!r} model, one of {', '.join(MODELS)} is needed")
    config, spec = Config.from_dict(described.get("config")), DatasetSpec.from_dict(described.get("dataset"))
    if dataset and dataset != spec.name:
        raise InputError(f"dataset: {dataset!r} given, {path} was trained on {spec.name!r}")
    rate = config.ema_rates()[0] if ema is None else ema
    wanted = probe if rate == "none" or probe.step is None else load_checkpoint(probe.path, ema=rate)
    model = build_with_weights(lambda: create_model_and_diffusion(config, spec)[0], wanted.model_state, path).to(device)
    if isinstance(model, DiffScm):
        beside = [
            folder / NOISED_PREDICTOR_FOLDER
            for folder in (Path(path), probe.path.parent)
            if (folder / NOISED_PREDICTOR_FOLDER).is_dir()
        ]
        chosen = predictor or (str(beside[0]) if beside else "none")
        if chosen != "none":
            guide = load_noised_predictor(chosen, spec, config.diffusion, device)
            model.set_predictor(guide, NoiseLevels(create_gaussian_diffusion(config.diffusion)))
    elif predictor:
        raise InputError(f"predictor_path: {predictor} given, but {path} is no Diff-SCM, which alone takes one")
    return LoadedModel(model, config, spec, wanted.step, str(wanted.path))


def _published_dataset(variables: int, channels: int | None) -> str:
    """The data set whose published networks have so many variables and channels, "" if there is none."""
    for name, entry in DATASETS.items():
        published = channels is not None and entry.published_channels == channels
        if published and len(entry.spec(None, None).graph) == variables:
            return name
    return ""


def _load_published(path: str, device: torch.device | str, dataset: str) -> LoadedModel:
    """A published CausalDiffAE state dict: images in 0..1, raw labels, eps-prediction over a linear schedule."""
    state = load_torch_state_dict(path)
    variables, weight = reference.count_variables(state), state.get("input_blocks.0.0.weight")
    channels = weight.shape[1] if weight is not None and weight.dim() == 4 else None
    known = dataset or _published_dataset(variables, channels)
    if not known:
        raise InputError(
            f"{path}: it has {variables} mechanisms and images of {channels} channels, so it is of none of the "
            "published data sets; --dataset must name one"
        )
    try:
        spec = dataset_spec(known)
        model = reference.load_model(state, spec.graph)
    except InputError as error:
        raise type(error)(f"{path}: {error}") from error
    model_config = ModelConfig(class_cond=model.class_cond, mechanism="one_hop", rep_dim=math.prod(model.latent_shape))
    diffusion_config = DiffusionConfig(
        diffusion_steps=find_dataset(known).published_steps,
        learn_sigma=model.unet.out_channels == 2 * model.unet.in_channels,
    )
    n = len(spec.graph)
    raw = replace(
        spec,
        image_size=model.unet.image_size,
        channels=model.unet.in_channels,
        shift=(0.0,) * n,
        scale=(1.0,) * n,
    )
    config = Config(model=model_config, diffusion=diffusion_config)
    return LoadedModel(model.to(device).eval(), config, raw, None, path, pixel_range=(0.0, 1.0))
