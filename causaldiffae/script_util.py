"""Command-line parsing, creation of models and diffusion processes from a configuration, loading of checkpoints."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar, cast

import torch
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace

from causaldiffae import dist_util
from causaldiffae.baselines.causalvae import CausalVAE, CausalVAETrainingStep
from causaldiffae.baselines.conditional import ConditionalTrainingStep, LabelConditional
from causaldiffae.baselines.diffae import DiffAE, DiffAETrainingStep
from causaldiffae.checkpoints.checkpoint import CONFIG, MODEL, build_with_weights, load_checkpoint
from causaldiffae.checkpoints.model_folders import NOISED_PREDICTOR_FOLDER, shipped_path
from causaldiffae.checkpoints.remote import local_checkpoint
from causaldiffae.config import COMPONENTS, RECIPES, Config, DiffusionConfig, ModelConfig
from causaldiffae.counterfactual import AbductionKind, CounterfactualEngine
from causaldiffae.datasets.images import KEEP_UNCHANGED
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.diff_scm import DiffScm, DiffScmTrainingStep
from causaldiffae.errors import DataError, InputError, one_line
from causaldiffae.files.storage import follow_links, is_remote
from causaldiffae.files.yaml import check_config_file, config_files, expand_recipes
from causaldiffae.gaussian_diffusion import (
    GaussianDiffusion,
    LossType,
    ModelMeanType,
    ModelVarType,
    enforce_zero_terminal_snr,
    get_named_beta_schedule,
)
from causaldiffae.guidance import Guidance, default_guidance
from causaldiffae.model import CausalDiffAE, TrainingStep
from causaldiffae.predictors.correction import LABEL_CORRECTIONS, LabelCorrection, find_correction_predictor
from causaldiffae.predictors.noised_predictor import load_noised_predictor
from causaldiffae.published import causaldiffae as reference
from causaldiffae.published.autoencoder import DESCRIPTION, LatentSpace, autoencoder_of_model, network_spec
from causaldiffae.respace import SpacedDiffusion, space_timesteps
from causaldiffae.scm import determined_effects
from causaldiffae.solvers import DdimLoops, ExactDdim, OdeSolver, Solver, cleanest_level

SettingsT = TypeVar("SettingsT")


def run_cli(main: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> None:
    """Runs the main function of a script.

    An `InputError` is printed as one line on standard error with exit code 2, a warning as one line.
    """

    def show_warning(message: Any, category: type[Warning], *_: Any) -> None:
        if issubclass(category, UserWarning):
            sys.stderr.write(f"warning: {' '.join(one_line(message).split())}\n")

    warnings.showwarning = show_warning  # type: ignore[assignment]
    try:
        main(list(sys.argv[1:] if argv is None else argv))
    except InputError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        sys.stderr.write(f"{str(interrupt) or 'interrupted'}\n")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def parse_flat(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """Parses a command line; raises `InputError` for errors in it or in its configuration files."""
    for path in config_files(argv):
        check_config_file(path)
    try:
        values = parser.parse_args(list(argv))
    except (ArgumentError, TypeError, KeyError, ValueError, OSError) as error:
        raise InputError(" ".join(str(error).split())) from error
    if values.get("recipe"):  # that of a flag has been expanded
        raise InputError(f"recipe: expected it on the command line, as --recipe {values['recipe']}")
    if values.get("follow_links", False):
        follow_links()
    return values


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of descriptions."""


def argument_parser(description: str, recipes: Mapping[str, Any] | None = None) -> ArgumentParser:
    """Creates a parser that raises instead of exiting, with the flags `--config FILE.yaml` and `--recipe NAME`."""
    parser = ArgumentParser(description=description, exit_on_error=False, formatter_class=_HelpFormatter)
    parser.add_argument("--config", action="config", help="YAML file with flag names as keys")
    text = "follow links and paths out of the folder of the data set; for your own folders only"
    parser.add_argument("--follow_links", type=bool, default=False, nargs="?", const=True, help=text)
    if recipes:
        parser.add_argument("--recipe", help=f"named set of values: {', '.join(recipes)}")
    return parser


def parse_flags(
    settings: type[SettingsT],
    argv: Sequence[str],
    description: str = "",
    defaults: Mapping[str, Any] | None = None,
    recipes: Mapping[str, Mapping[str, Any]] | None = None,
) -> SettingsT:
    """Fills a settings dataclass from `--config FILE`, `--recipe NAME` and flags; later values override earlier ones.

    Args:
        settings: dataclass decorated by `with_help`. Flags of list fields may be repeated.
        defaults: values that replace the defaults of the dataclass.
        recipes: named sets of values for `--recipe`.

    Raises:
        InputError: for an unknown flag or a value of the wrong type.
    """
    parser, fields = argument_parser(description, recipes), dataclasses.fields(settings)  # type: ignore[arg-type]
    lists = {field.name: field.metadata["help"] for field in fields if field.default_factory is not dataclasses.MISSING}
    parser.add_class_arguments(settings, nested_key=None, skip={*lists}, instantiate=False)
    for name, text in lists.items():
        parser.add_argument(f"--{name}", action="append", default=[], help=text)
    parser.set_defaults(dict(defaults or {}))
    values = parse_flat(parser, expand_recipes(argv, recipes) if recipes else argv)
    return settings(**{field.name: values[field.name] for field in fields})


def parse_config(argv: Sequence[str], description: str = "") -> Config:
    """Parses `--config FILE`, `--recipe NAME` and flags; later values override earlier ones."""
    parser = argument_parser(description, RECIPES)
    for component in COMPONENTS.values():
        parser.add_class_arguments(component, nested_key=None)
    values = parse_flat(parser, expand_recipes(argv, RECIPES))
    parts = {}
    for name, component in COMPONENTS.items():
        fields = dataclasses.fields(component)
        for field in fields:
            if values[field.name] is None:  # `lr: null` passes the parser
                raise InputError(f"{field.name}: expected a value such as {field.default!r}, got null")
        parts[name] = component(**{field.name: values[field.name] for field in fields})
    return Config(**parts)


def create_gaussian_diffusion(config: DiffusionConfig, timestep_respacing: str = "") -> SpacedDiffusion:
    """Creates the diffusion process of a configuration.

    Args:
        timestep_respacing: timesteps to keep: "" for all, "250" for evenly spaced ones, "10,10,25" for a number per
            section, "ddim50" for a fixed stride.
    """
    betas = get_named_beta_schedule(config.noise_schedule, config.diffusion_steps)
    mse = LossType.RESCALED_MSE if config.rescale_learned_sigmas else LossType.MSE
    if config.predict_xstart and config.predict_v:
        raise InputError("predict_xstart, predict_v: expected at most one of them, got both")
    mean_type = ModelMeanType.START_X if config.predict_xstart else ModelMeanType.EPSILON
    fixed = ModelVarType.FIXED_SMALL if config.sigma_small else ModelVarType.FIXED_LARGE
    return SpacedDiffusion(
        use_timesteps=space_timesteps(config.diffusion_steps, timestep_respacing or [config.diffusion_steps]),
        betas=enforce_zero_terminal_snr(betas) if config.zero_terminal_snr else betas,
        model_mean_type=ModelMeanType.VELOCITY if config.predict_v else mean_type,
        model_var_type=ModelVarType.LEARNED_RANGE if config.learn_sigma else fixed,
        loss_type=LossType.RESCALED_KL if config.use_kl else mse,
        rescale_timesteps=config.rescale_timesteps,
        min_snr_gamma=config.min_snr_gamma,
    )


Model = CausalDiffAE | LabelConditional | CausalVAE | DiffScm


class ModelEntry(NamedTuple):
    """Constructor and training step of a model type."""

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
    """Returns the entry of a model type; raises `InputError` for an unknown one."""
    if model_type not in MODELS:
        raise InputError(f"model_type: expected {', '.join(MODELS)}, got {model_type!r}")
    return MODELS[model_type]


def create_model_and_diffusion(config: Config, spec: DatasetSpec) -> tuple[Model, GaussianDiffusion]:
    """Creates an initialised model and its diffusion process."""
    if config.model.class_cond and spec.num_classes is None:
        raise InputError(f"class_cond: expected a data set with classes, got {spec.name}")
    model = model_entry(config.model.model_type).build(config.model, spec, config.diffusion.learn_sigma)
    return model, create_gaussian_diffusion(config.diffusion)


EXACT, FEW_STEP = "exact_ddim", "few_step"
STEPS, SOLVER = 8, EXACT
GRIDS: Final = {EXACT: "logsnr", "dpmpp2m": "centred", "obelm": "rho", "ddim": ""}


def create_solver(
    config: DiffusionConfig, solver: str = SOLVER, steps: int = STEPS, grid: str = "", timestep_respacing: str = ""
) -> OdeSolver | DdimLoops:
    """Creates a solver by name; "ddim" without a grid, or a `timestep_respacing`, selects the published DDIM loops.

    A distilled model has a solver and a number of steps of its own; `steps` and `grid` have no effect on it.
    """
    if config.few_steps and not timestep_respacing and solver in (EXACT, FEW_STEP):
        process = create_gaussian_diffusion(config)
        return ExactDdim(process, config.few_steps, kind=Solver.DDIM, cleanest=config.few_step_start)
    if config.few_steps:
        raise InputError(f"solver: expected {FEW_STEP} for a distilled model, got {timestep_respacing or solver!r}")
    if solver == FEW_STEP:
        raise InputError(f"solver: expected a distilled model for {FEW_STEP}, got another one; see scripts/distill.py")
    if solver not in GRIDS and not timestep_respacing:
        raise InputError(f"solver: expected {', '.join(GRIDS)} or {FEW_STEP}, got {solver!r}")
    chosen = grid or GRIDS.get(solver, "")
    if timestep_respacing or not chosen:
        return DdimLoops(create_gaussian_diffusion(config, timestep_respacing or str(steps)))
    if solver == EXACT:
        return ExactDdim(create_gaussian_diffusion(config), steps, chosen)
    return OdeSolver(create_gaussian_diffusion(config), solver, chosen, steps)


@dataclass(frozen=True)
class LoadedModel:
    """A trained model with the configuration and data set of its checkpoint.

    `pixel_range` is the range of the input images: (-1, 1), or (0, 1) for the published CausalDiffAE. `codec` is the
    autoencoder of a model in latent space; `spec` is always that of the images.
    """

    model: Model
    config: Config
    spec: DatasetSpec
    step: int | None
    path: str
    pixel_range: tuple[float, float] = (-1.0, 1.0)
    codec: LatentSpace | None = None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the network's input, an image or its code."""
        spec = network_spec(self.spec, self.codec)
        return spec.channels, spec.image_size, spec.image_size

    def diffusion(self, timestep_respacing: str = "") -> SpacedDiffusion:
        """Creates the diffusion process of the model, respaced as in `create_gaussian_diffusion`."""
        return create_gaussian_diffusion(self.config.diffusion, timestep_respacing)

    def engine(
        self,
        steps: int = STEPS,
        solver: str = SOLVER,
        grid: str = "",
        timestep_respacing: str = "",
        label_corrections: int = LABEL_CORRECTIONS,
        correction_predictor: str = "",
        keep_unchanged: float | None = None,
        keep_causes: bool | None = None,
        **options: Any,
    ) -> CounterfactualEngine:
        """Creates a counterfactual engine.

        Args:
            steps: number of network evaluations per direction (encoding and decoding).
            solver: see `config.SOLVER_HELP`.
            grid: spacing of the noise levels; default: that of the solver.
            timestep_respacing: timesteps of the published DDIM loops; overrides `solver`.
            label_corrections: largest number of label corrections (`predictors/correction.py`); 0 for none.
            correction_predictor: folder of the predictor that reads labels for them, or "none"; default: that in the
                folder of the model, or a shipped one. Without one, nothing is corrected.
            keep_unchanged: see `CounterfactualEngine`; by default `KEEP_UNCHANGED`, and 0 for a Diff-SCM.
            keep_causes: see `CounterfactualEngine`, for all variables or none; by default for `determined_effects`.
            options: keyword arguments of `CounterfactualEngine`; default `guidance`: see `default_guidance`.

        Raises:
            InputError: for a setting that does not fit the model, such as a correction predictor for other images, or
                for a model whose latents are not aligned with the labels (an unaligned DiffAE).
        """
        chosen = create_solver(self.config.diffusion, solver, steps, grid, timestep_respacing)
        distilled, guidance = self.config.diffusion.few_steps > 0, options.get("guidance")
        self.check_guidance(guidance or Guidance(), bool(keep_causes))
        if isinstance(chosen, ExactDdim) and not distilled:
            chosen.cleanest = cleanest_level(self.spec.name, latent=self.codec is not None)
        if distilled or guidance is None:
            options["guidance"] = default_guidance(self.model, distilled)
        if label_corrections < 0:
            raise InputError(f"label_corrections: expected 0 or more, got {label_corrections}")
        aligned, correction = getattr(self.model, "probe", None) is None, None
        if correction_predictor not in ("", "none") and not aligned:
            raise InputError("correction_predictor: expected a model whose latents are those of the labels")
        if label_corrections and aligned:
            device = next(self.model.parameters()).device
            if found := find_correction_predictor(self.spec, self.path, correction_predictor, device):
                correction = LabelCorrection(found.predictor, label_corrections)
        if keep_unchanged is None:
            keep_unchanged = 0.0 if self.model.unconditional_abduction else KEEP_UNCHANGED
        suited = self.config.loss.block_drop_prob > 0 and not distilled
        if keep_causes is None and suited and options.get("abduction", AbductionKind.DDIM) is AbductionKind.DDIM:
            scm = cast(CausalDiffAE, self.model).scm
            options["keep_causes"] = determined_effects(scm, *self.spec.normalised_range())
        defaults = {"pixel_range": self.pixel_range, "codec": self.codec, "codec_residual": True}
        known = {"keep_unchanged": keep_unchanged, "keep_causes": self.spec.graph.names if keep_causes else ()}
        options = {**defaults, **known, "correction": correction, **options}
        return CounterfactualEngine(self.model, chosen, self.spec, **options)

    def check_guidance(self, guidance: Guidance, keep_causes: bool = False) -> None:
        """Raises `InputError` for guidance of a distilled model, or under a null token or blocks without training."""
        weights = f"{guidance.affected:g} and {guidance.invariant:g}"
        if self.config.diffusion.few_steps and dataclasses.replace(guidance, w_class=Guidance().w_class) != Guidance():
            raise InputError("w: expected 1 for a distilled model, whose guidance is that of its teacher")
        null = getattr(getattr(self.model, "unet", None), "null_emb", None)  # zero until it is trained
        if null is not None and not guidance.is_off and not null.any():
            raise InputError(f"w: expected 1 for a model whose null token was not trained (drop_prob 0), got {weights}")
        needs_blocks = keep_causes or guidance.affected != guidance.invariant
        if needs_blocks and self.config.model.block_null and not self.config.loss.block_drop_prob:
            expected = "expected equal weights and False for a model trained with block_drop_prob 0"
            raise InputError(f"w_affected, w_invariant, keep_causes: {expected}, got {weights}, {keep_causes}")


def describe_checkpoint(config: Config, spec: DatasetSpec, codec: LatentSpace | None = None) -> dict[str, Any]:
    """Returns the description that a checkpoint stores for `load_model`."""
    return {
        "model_type": config.model.model_type,
        "config": config.to_dict(),
        "dataset": spec.to_dict(),
        "digest": config.digest(),
        **({} if codec is None else {DESCRIPTION: codec.describe()}),
    }


def load_model(
    path: str, device: torch.device | str = "cpu", ema: str | None = None, dataset: str = "", predictor: str = ""
) -> LoadedModel:
    """Loads a model from a run directory, step folder, model folder, or the published CausalDiffAE's weights.

    The latter are a state dict or training checkpoint, as `.pt` or safetensors, under any prefix (files/weights.py).
    Run directories and step folders may be remote, such as gs://BUCKET/RUN.

    Args:
        ema: rate of the moving average, or "none" for the trained weights; default: the first moving average.
        dataset: data set of a published state dict; default: the one that matches its variables and channels.
        predictor: folder of the noised predictor that guides a Diff-SCM, or "none" for its implicit predictor; default:
            the folder `predictor` next to the weights or checkpoints, if it exists.

    Raises:
        InputError: If there is no checkpoint, or it is damaged or does not match its description.
    """
    device = dist_util.find_device(device)
    path = str(local_checkpoint(path)) if is_remote(path) else shipped_path(path)
    if Path(path).name == MODEL and Path(path).with_name(CONFIG).is_file():
        path = str(Path(path).parent)
    if Path(path).is_file():
        published = reference.open_weights(path, dataset)
        return LoadedModel(published[0].to(device).eval(), *published[1:], None, path, pixel_range=(0.0, 1.0))
    checkpoint = load_checkpoint(path)
    model_type = checkpoint.config.get("model_type")
    if model_type not in (*MODELS, "causaldiffae"):  # the name of causaldae in early checkpoints
        raise DataError(f"{path}: expected a model of type {', '.join(MODELS)}, got {model_type!r}")
    config = Config.from_dict(checkpoint.config.get("config"))
    spec = DatasetSpec.from_dict(checkpoint.config.get("dataset"))
    if dataset and dataset != spec.name:
        raise InputError(f"dataset: expected {spec.name!r}, the training data of {path}, got {dataset!r}")
    rate = config.ema_rates()[0] if ema is None else ema
    if rate != "none" and checkpoint.step is not None:
        checkpoint = load_checkpoint(checkpoint.path, ema=rate)
    places = (Path(path), checkpoint.path, checkpoint.path.parent)
    codec = autoencoder_of_model(checkpoint.config, places, config.train.vae_path, path, device)
    sizes = network_spec(spec, codec)
    model = build_with_weights(lambda: create_model_and_diffusion(config, sizes)[0], checkpoint.model_state, path)
    model.to(device)
    if isinstance(model, DiffScm):
        folders = [folder / NOISED_PREDICTOR_FOLDER for folder in (Path(path), checkpoint.path.parent)]
        predictor = predictor or ("none" if codec else next((str(each) for each in folders if each.is_dir()), "none"))
        if predictor != "none":
            if codec is not None:
                raise InputError(f"predictor_path: expected none for a model in latent space, got {predictor}")
            loaded = load_noised_predictor(predictor, spec, config.diffusion, device)
            model.set_predictor(loaded, create_gaussian_diffusion(config.diffusion).noise_schedule)
    elif predictor:
        raise InputError(
            f"predictor_path: expected none for a model of type {config.model.model_type}, got {predictor}"
        )
    return LoadedModel(model, config, spec, checkpoint.step, str(checkpoint.path), codec=codec)
