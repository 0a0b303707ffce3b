"""What scripts share: the command line, building models from configurations, and opening checkpoints."""

from __future__ import annotations

import dataclasses
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from causaldiffae.checkpoint import check_state_fits, load_checkpoint
from causaldiffae.config import COMPONENTS, Config, DiffusionConfig, ModelConfig
from causaldiffae.errors import DataError, InputError
from causaldiffae.gaussian_diffusion import (
    GaussianDiffusion,
    LossType,
    ModelMeanType,
    ModelVarType,
    get_named_beta_schedule,
)
from causaldiffae.image_datasets import DatasetSpec
from causaldiffae.model import CausalDiffAE
from causaldiffae.respace import SpacedDiffusion, space_timesteps


def run_cli(main: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> None:
    """Runs a script's main: what a user can mend becomes one line and exit code 2, warnings become one line each."""

    def one_line(message: Any, category: type[Warning], *_: Any) -> None:
        if issubclass(category, UserWarning):
            sys.stderr.write(f"warning: {message}\n")

    warnings.showwarning = one_line  # type: ignore[assignment]
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
    try:
        return parser.parse_args(list(argv))
    except (ArgumentError, TypeError, KeyError, ValueError, OSError) as error:
        raise InputError(" ".join(str(error).split())) from error


def argument_parser(description: str) -> ArgumentParser:
    """A parser that raises instead of exiting, and takes `--config FILE.yaml`."""
    parser = ArgumentParser(description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file of the same names as the flags")
    return parser


def parse_config(argv: Sequence[str], description: str = "") -> Config:
    """The configuration from `--config FILE` and flags; later ones override earlier ones."""
    parser = argument_parser(description)
    for component in COMPONENTS.values():
        parser.add_class_arguments(component, nested_key=None)
    values = parse_flat(parser, argv)
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
    )


def create_model_and_diffusion(config: Config, spec: DatasetSpec) -> tuple[CausalDiffAE, GaussianDiffusion]:
    """A freshly initialised model and its training process."""
    if config.model.class_cond and spec.num_classes is None:
        raise InputError(f"class_cond: data set {spec.name} has no classes")
    model = CausalDiffAE.from_config(config.model, spec, config.diffusion.learn_sigma)
    return model, create_gaussian_diffusion(config.diffusion)


@dataclass(frozen=True)
class LoadedModel:
    """A trained model with all that its checkpoint knows."""

    model: CausalDiffAE
    config: Config
    spec: DatasetSpec
    step: int | None
    path: str

    def diffusion(self, timestep_respacing: str = "") -> SpacedDiffusion:
        """Its diffusion process, respaced."""
        return create_gaussian_diffusion(self.config.diffusion, timestep_respacing)


def describe_checkpoint(config: Config, spec: DatasetSpec) -> dict[str, Any]:
    """What a checkpoint says about itself; `load_model` reads it."""
    return {
        "model_type": "causaldiffae",
        "config": config.to_dict(),
        "dataset": spec.to_dict(),
        "digest": config.digest(),
    }


def load_model(path: str, device: torch.device | str = "cpu", ema: str | None = None) -> LoadedModel:
    """Opens a run directory, a step folder or a model folder; the first moving average unless `ema` says otherwise.

    Args:
        ema: rate of the moving average, or "none" for the trained weights.

    Raises:
        InputError: if there is no such checkpoint, it is damaged, or is of another model.
    """
    probe = load_checkpoint(path)
    described = probe.config
    if described.get("model_type") != "causaldiffae":
        raise DataError(f"{path}: a checkpoint of a {described.get('model_type')!r} model, 'causaldiffae' is needed")
    config, spec = Config.from_dict(described.get("config")), DatasetSpec.from_dict(described.get("dataset"))
    rate = config.ema_rates()[0] if ema is None else ema
    wanted = probe if rate == "none" or probe.step is None else load_checkpoint(probe.path, ema=rate)
    model, _ = create_model_and_diffusion(config, spec)
    state = {key: value.float() if value.is_floating_point() else value for key, value in wanted.model_state.items()}
    check_state_fits(model, state)
    model.load_state_dict(state)
    return LoadedModel(model.to(device).eval(), config, spec, wanted.step, str(wanted.path))
