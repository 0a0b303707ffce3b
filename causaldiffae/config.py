"""The configuration: one frozen dataclass per component; every field is also a flag and a YAML key of the same name.

Names follow guided-diffusion and the published CausalDiffAE where these have one. Unknown keys are refused. Every
checkpoint contains the complete configuration.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, get_type_hints

from causaldiffae.errors import DataError, InputError

T = TypeVar("T")
Auto = bool | Literal["auto"]
"""An option that training chooses where it is "auto", see training/automatic.py."""


DEVICE_HELP: Final = "auto, cpu, mps, cuda or cuda:N; auto takes CUDA, else Apple's MPS, else the CPU"
WEIGHT_HELP: Final = (
    "guidance weight; default 1, no guidance; for a Diff-SCM the scale s, default 4.5, or 1.5 without a predictor"
)
CLASS_WEIGHT_HELP: Final = "guidance weight of an intervention on the class; 1 for no guidance, as of a distilled model"
CORRECTION_PREDICTOR_HELP: Final = (
    "predictor for label corrections, or 'none'; default: correction_predictor/ in model_path, or from weights/"
)
KEEP_UNCHANGED_HELP: Final = (
    "keep pixels that change by less than half of this fraction of the largest change of an image, up to twice as much "
    "if the whole image drifts, and blend those that change a little more; 0 for none; default: 0.1, for a Diff-SCM 0"
)
KEEP_CAUSES_HELP: Final = (
    "interventions on effects: drop their causes and keep the pixels that these explain; default: for effects that two "
    "or more causes determine, if the model was trained with block_drop_prob"
)
USE_LABELS_HELP: Final = "abduct from the images' own labels, where known, instead of the encoder's"
LABEL_CORRECTIONS_HELP: Final = (
    "decode an image again, up to this many times, if its labels are not the predicted ones; 0 for never"
)
SOLVER_HELP: Final = "exact_ddim, dpmpp2m, obelm, ddim for the published DDIM loops, or few_step for a distilled model"


def flag(default: T, text: str) -> T:
    """Declares a dataclass field with a default and the help text of its flag."""
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata={"help": text})  # type: ignore[return-value]
    return dataclasses.field(default=default, metadata={"help": text})


def with_help(component: type[T]) -> type[T]:
    """Appends the help texts of the fields to the class docstring, from which jsonargparse reads them."""
    fields = dataclasses.fields(component)  # type: ignore[arg-type]
    lines = [f"    {field.name}: {field.metadata['help']}." for field in fields]
    component.__doc__ = "\n".join([component.__doc__ or "", "", "Attributes:", *lines])
    return component


@with_help
@dataclass(frozen=True)
class ModelConfig:
    """Network options."""

    model_type: str = flag("causaldae", "causaldae, diffscm, or a baseline: conditional, diffae, causalvae")
    network: str = flag("unet", "diffscm: score network, unet or dit (a transformer)")
    num_channels: int = flag(128, "base width of the U-Net, a multiple of 32; token width of the transformer")
    num_res_blocks: int = flag(3, "residual blocks per resolution")
    channel_mult: str = flag("1,2,2", "width multipliers per resolution, such as 1,2,2")
    patch_size: int = flag(1, "patch size in pixels of the U-Net (published: 1) or the transformer")
    depth: int = flag(12, "number of transformer blocks")
    attention_resolutions: str = flag("16,8", "resolutions of the feature maps with attention, such as 14,7")
    num_heads: int = flag(4, "attention heads")
    num_head_channels: int = flag(-1, "channels per attention head; -1 uses num_heads instead")
    use_scale_shift_norm: bool = flag(True, "scale and shift normalised activations by the embedding")
    resblock_updown: bool = flag(False, "resample inside residual blocks")
    conv_resample: bool = flag(True, "resample by convolutions instead of average pooling and nearest neighbours")
    use_new_attention_order: bool = flag(False, "memory layout of the attention weights, see AttentionBlock")
    dropout: float = flag(0.0, "dropout probability in residual blocks")
    use_checkpoint: bool = flag(False, "recompute activations in the backward pass to save memory")
    class_cond: bool = flag(False, "condition the U-Net on the data set's class (the digit) as well")
    rep_dim: int = flag(512, "total number of latents, split evenly between the variables")
    block_size: int = flag(0, "latents per variable; 0 derives the number from rep_dim")
    cond_hidden: int = flag(0, "hidden width of the latents' embedding; 0 for a single linear layer, as published")
    separate_embeddings: bool = flag(False, "give every variable a hidden layer of its own in that embedding")
    learned_null: bool = flag(False, "learn an embedding of the null token instead of embedding z = 0, as published")
    block_null: bool = flag(False, "learn a null vector for each variable; trained if block_drop_prob > 0")
    encoder_channels: str = flag("16,32,64,128", "widths of the encoder's convolutions")
    encoder_norm: str = flag("batch", "normalisation in the encoder: batch (published) or none")
    mechanism: str = flag(
        "additive", "mechanisms of continuous variables: additive, affine, spline or one_hop, see scm.py"
    )
    discrete: bool = flag(False, "give binary and categorical variables categories instead of real values in z")
    mechanism_width: int = flag(0, "hidden width of the mechanisms; 0 uses the total number of latents")
    mechanism_depth: int = flag(1, "hidden layers of the mechanisms")
    min_scale: float = flag(0.02, "smallest residual scale of a variable with parents, in normalised label units")
    label_cond: bool = flag(False, "diffscm: condition the score network on labels, as an implicit predictor")
    aligned: bool = flag(False, "diffae: align the latent blocks with the labels")
    decoder_channels: str = flag("128,64,32", "causalvae: widths of the decoder, starting at the smallest feature map")

    def block_size_for(self, num_variables: int) -> int:
        """Latents per variable; raises `InputError` if `rep_dim` cannot be split evenly."""
        if not self.block_size and self.rep_dim % num_variables:
            raise InputError(f"rep_dim: expected a multiple of the {num_variables} variables, got {self.rep_dim}")
        return self.block_size or self.rep_dim // num_variables


@with_help
@dataclass(frozen=True)
class DiffusionConfig:
    """Options of the diffusion process."""

    diffusion_steps: int = flag(1000, "number of diffusion steps T")
    noise_schedule: str = flag("linear", "schedule of beta: linear or cosine")
    learn_sigma: bool = flag(False, "learn the variance of the reverse process")
    sigma_small: bool = flag(False, "use the smaller of the two fixed variances")
    use_kl: bool = flag(False, "train on the variational bound")
    predict_xstart: bool = flag(False, "predict x_0 instead of eps")
    predict_v: bool = flag(False, "predict v instead of eps, which emphasises the image at high noise levels")
    rescale_timesteps: bool = flag(False, "pass t * 1000 / T to the network instead of t")
    rescale_learned_sigmas: bool = flag(False, "add the rescaled variational bound to the squared error")
    min_snr_gamma: float = flag(0.0, "weight the squared error of x_0 by min(SNR, gamma); 0 disables the weighting")
    zero_terminal_snr: bool = flag(
        False, "rescale the schedule to zero terminal SNR; requires predict_v or predict_xstart"
    )
    few_steps: int = flag(0, "steps in each direction of a distilled model (scripts/distill.py); 0: not distilled")
    few_step_start: float = flag(2.5, "log(a / sigma) of the level at which a distilled model starts to encode")


@with_help
@dataclass(frozen=True)
class LossConfig:
    """Options of the training objective, see losses.py."""

    kl_weight: float = flag(1.0, "final value of gamma, the weight of both KL terms")
    kl_anneal_steps: int = flag(50_000, "steps over which gamma rises linearly from 0")
    label_std: float = flag(1.0, "standard deviation of the label prior p(z | y), in normalised units; published: 1")
    label_kl_variance: str = flag("posterior", "variance in the KL term of the labels: posterior, or unit (published)")
    variance_factor: float = flag(1.0, "factor on the variance of sampled latents; published: 0.001")
    mechanism_weight: float = flag(
        1.0, "weight of the likelihood of the labels under the mechanisms; without an encoder, 0 counts as 1"
    )
    drop_prob: float = flag(0.0, "probability of replacing an image's latents by the null token, for guidance")
    block_drop_prob: float = flag(0.0, "probability, per image and variable, of replacing a block by its null vector")
    label_forcing: float = flag(0.0, "fraction of the labelled images decoded from the label prior p(z | y)")
    decoder_std: float = flag(
        0.0,
        "CausalVAE: standard deviation of the decoder per pixel, in -1..1, which weights the KL term of the noise; 0 "
        "weights it by kl_weight",
    )
    masking: bool = flag(False, "weak supervision: only label_fraction of the training images keep their labels")
    label_fraction: float = flag(1.0, "fraction of the training images with labels, see label_subsets.py")
    label_seed: int = flag(0, "seed for choosing the images with labels")
    teacher_steps: int = flag(25, "distillation: steps of the teacher in each direction")
    teacher_start: float = flag(2.5, "distillation: log(a / sigma) of the level at which the teacher starts to encode")
    teacher_scale: float = flag(1.0, "distillation of Diff-SCM: guidance scale s of the teacher")
    mask_by: str = flag("image", "hide all labels of an image (image), or each variable's independently (variable)")


@with_help
@dataclass(frozen=True)
class TrainConfig:
    """Options of a training run."""

    dataset: str = flag("", "name of the data set")
    data_dir: str = flag("", "folder of the data set")
    graph: str = flag("", "causal graph file of a folder data set; default: graph.yaml in data_dir")
    run_dir: str = flag("", "folder for checkpoints and logs, or gs://BUCKET/PATH or az://ACCOUNT/CONTAINER/PATH")
    image_size: int = flag(0, "resize images to this size; 0 keeps the size of the data set")
    channels: int = flag(0, "convert images to this number of channels; 0 keeps the channels of the data set")
    num_images: int = flag(0, "use only the first num_images training images; 0 for all")
    total_steps: int = flag(50_000, "training steps")
    minutes: float = flag(
        0.0, "choose total_steps and lr_anneal_steps such that training takes about this long on this machine"
    )
    batch_size: int = flag(128, "images per step and process")
    microbatch: int = flag(0, "images per forward pass; 0 for the whole batch")
    lr: float = flag(1e-4, "learning rate")
    weight_decay: float = flag(0.0, "weight decay of AdamW")
    warmup_steps: int = flag(0, "steps of linear learning-rate warm-up")
    lr_anneal_steps: int = flag(0, "final steps in which the learning rate decays linearly to 0; 0 keeps it constant")
    grad_clip: float = flag(0.0, "maximum gradient norm; 0 for no clipping")
    ema_rate: str = flag("0.9999", "decay rates of the moving averages of the weights, separated by commas")
    ema_warmup: bool = flag(False, "warm up the decay rates of the moving averages")
    schedule_sampler: str = flag("uniform", "timestep sampler: uniform or loss-second-moment")
    use_bf16: Auto = flag("auto", "compute activations in bfloat16; auto: where the hardware supports it")
    device: str = flag("auto", DEVICE_HELP)
    data_on_device: str = flag(
        "auto", "where the training images are stored: always on the device, never, or auto: there if they fit"
    )
    compile: Auto = flag("auto", "compile the score network with torch.compile; auto: where it saves time")
    channels_last: bool = flag(False, "store convolution weights in the channels-last memory format")
    seed: int = flag(0, "random seed")
    log_interval: int = flag(100, "steps between log rows")
    save_interval: int = flag(1_000, "steps between checkpoints")
    sample_interval: int = flag(1_000, "steps between counterfactual previews")
    label_predictor: str = flag(
        "", "predictor that reads the labels of previews; default: a measurement, or the model's own encoder"
    )
    keep_last: int = flag(2, "number of recent checkpoints to keep")
    keep_every: int = flag(0, "also keep checkpoints whose step is a multiple of this; 0 for none")
    background_save: bool = flag(True, "write checkpoints in a background thread")
    storage_patience: float = flag(60.0, "minutes of failing writes and uploads before the run ends; 0: at once")
    max_skipped_steps: int = flag(10, "consecutive steps with a non-finite loss or gradient to skip before failing")
    train_until: float = flag(
        0.0,
        "stop when the pictures show this share of the requested change of every variable, or no longer improve, and "
        "keep the best weights in RUN/best; 0 for all steps",
    )
    max_hours: float = flag(0.0, "save a checkpoint and stop after this many hours; 0 for no limit")
    resume_checkpoint: str = flag(
        "", "step folder to resume from; one of another run is used only while run_dir has no later step"
    )
    init_weights: str = flag("", "model folder with the initial weights of a new run")
    vae_path: str = flag(
        "", "train in the latent space of this autoencoder: folder of an AutoencoderKL or AutoencoderTiny of diffusers"
    )
    tensorboard: bool = flag(True, "write TensorBoard event files as well")
    dry_run: bool = flag(False, "print the configuration, model size and required resources, then exit")


RECIPES: dict[str, dict[str, Any]] = {
    # The settings of the published CausalDiffAE code.
    "reference": {
        **dict.fromkeys(("learned_null", "block_null", "learn_sigma", "predict_v", "predict_xstart"), False),
        **dict.fromkeys(("zero_terminal_snr", "ema_warmup"), False),
        **dict.fromkeys(("mechanism_width", "cond_hidden", "warmup_steps", "lr_anneal_steps"), 0),
        **dict.fromkeys(("min_snr_gamma", "mechanism_weight", "weight_decay", "grad_clip"), 0.0),
        **dict.fromkeys(("drop_prob", "block_drop_prob", "label_forcing"), 0.0),
        "mechanism": "one_hop",
        "discrete": False,
        "encoder_norm": "batch",
        "kl_weight": 1.0,
        "kl_anneal_steps": 50_000,
        "label_std": 1.0,
        "label_kl_variance": "unit",
        "variance_factor": 0.001,
        "lr": 1e-4,
        "ema_rate": "0.9999",
        "use_bf16": False,
    },
}
"""Named sets of values; `--recipe NAME` expands to the corresponding flags."""

POSITIVE = {
    *("num_channels", "num_res_blocks", "patch_size", "depth", "num_heads", "rep_dim", "mechanism_depth", "min_scale"),
    *("diffusion_steps", "label_std", "total_steps", "batch_size", "lr", "keep_last"),
    *("log_interval", "save_interval", "sample_interval"),
}
FRACTIONS = {"train_until", "drop_prob", "block_drop_prob", "label_forcing", "label_fraction", "dropout"}
CHOICES = {
    "label_kl_variance": ("posterior", "unit"),
    "mask_by": ("image", "variable"),
    "network": ("unet", "dit"),
    "data_on_device": ("auto", "always", "never"),
}
# Limits far above any useful size, which bound the memory that an untrusted configuration can request.
LARGEST = {
    **dict.fromkeys(("num_channels", "num_heads", "num_head_channels", "patch_size"), 1 << 13),
    **dict.fromkeys(("rep_dim", "block_size", "cond_hidden", "mechanism_width"), 1 << 16),
    **dict.fromkeys(("num_res_blocks", "mechanism_depth"), 16),
    "diffusion_steps": 100_000,
}
MAX_INTS = 16
AUTOMATIC = ("use_bf16", "compile")


def _check_value(name: str, value: Any) -> None:
    """Raises `InputError` for a value outside its range."""
    expected = ""
    if name in CHOICES and value not in CHOICES[name]:
        *others, last = CHOICES[name]
        expected = f"{', '.join(others)} or {last}"
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            expected = "a finite number"
        elif name in POSITIVE and value <= 0:
            expected = "a positive number"
        elif name in FRACTIONS and not 0 <= value <= 1:
            expected = "a number between 0 and 1"
        elif name == "num_head_channels" and (value < -1 or value == 0):
            expected = "-1 or a positive number"
        elif value < 0 and name != "num_head_channels":
            expected = "0 or more"
        elif value > LARGEST.get(name, math.inf):
            expected = f"at most {LARGEST[name]}"
    if expected:
        raise InputError(f"{name}: expected {expected}, got {value!r}")


@dataclass(frozen=True)
class Config:
    """Complete, validated configuration of a run.

    Raises:
        InputError: If a value is out of range or options are incompatible.
    """

    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        for values in self.to_dict().values():
            for name, value in values.items():
                _check_value(name, value)
        model_type = self.model.model_type
        if self.model.block_null and model_type != "causaldae":
            raise InputError(f"block_null: expected model_type causaldae, got {model_type}")
        if self.model.network == "dit" and model_type != "diffscm":
            raise InputError(f"network: expected unet for model_type {model_type}, got dit")
        if self.train.vae_path and model_type == "causalvae":
            raise InputError("vae_path: expected a diffusion model, got model_type causalvae")
        if self.loss.label_fraction < 1 and not self.loss.masking:
            raise InputError(
                f"label_fraction: expected 1 without masking, got {self.loss.label_fraction}; add --masking True"
            )
        for name in ("channel_mult", "encoder_channels", "decoder_channels"):
            if not parse_ints(name, getattr(self.model, name)):
                raise InputError(f"{name}: expected at least one number, got {getattr(self.model, name)!r}")
        self.ema_rates()

    def ema_rates(self) -> list[str]:
        """Returns the decay rates of the moving averages as strings, as written in the configuration."""
        parts = [part.strip() for part in self.train.ema_rate.split(",")]
        rates = [f"0{part}" if part.startswith(".") else part for part in parts]
        try:
            valid = all(0.0 <= float(rate) < 1.0 and rate[0].isdigit() for rate in rates)
        except ValueError:
            valid = False
        if not valid:
            raise InputError(f"ema_rate: expected numbers in [0, 1) such as '0.9999', got {self.train.ema_rate!r}")
        return rates

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Returns nested dictionaries of plain types, one per component."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, description: Any) -> Config:
        """Inverse of `to_dict`; missing keys take their defaults.

        Raises:
            DataError: For an unknown key or a value of the wrong type.
        """
        parts: dict[str, Any] = {}
        for name, component in COMPONENTS.items():
            if not isinstance(description, Mapping) or not isinstance(description.get(name, {}), Mapping):
                raise DataError(f"config: {name}: expected a mapping from keys to values")
            parts[name] = _build(component, description.get(name, {}))
        unknown = sorted(set(description) - set(COMPONENTS))
        if unknown:
            raise DataError(f"config: expected the parts {', '.join(COMPONENTS)}, got {unknown[0]!r}")
        return cls(**parts)

    def digest(self) -> str:
        """Returns the first twelve hexadecimal digits of the SHA-256 of the configuration."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]


COMPONENTS: dict[str, type] = get_type_hints(Config)


def _build(component: type, values: Mapping[str, Any]) -> Any:
    defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(component)}
    checked = {}
    for key, value in values.items():
        if key not in defaults:
            raise DataError(f"config: unknown key {key!r} in {component.__name__}")
        if key in AUTOMATIC:
            if not (isinstance(value, bool) or value == "auto"):
                raise DataError(f"config: {key}: expected true, false or auto, got {value!r}")
            checked[key] = value
            continue
        kind = type(defaults[key])
        allowed = (int, float) if kind is float else kind
        if not isinstance(value, allowed) or isinstance(value, bool) != (kind is bool):
            raise DataError(f"config: {key}: expected {kind.__name__}, got {value!r}")
        checked[key] = float(value) if kind is float else value
    return component(**checked)


def parse_ints(name: str, text: str) -> tuple[int, ...]:
    """Parses positive integers separated by commas: "16,8" -> (16, 8), "" -> ()."""
    try:
        values = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        values = (0,)
    if any(value < 1 for value in values):
        raise InputError(f"{name}: expected positive integers separated by commas, got {text[:200]!r}")
    if len(values) > MAX_INTS or any(value > 1 << 16 for value in values):
        raise InputError(f"{name}: expected at most {MAX_INTS} numbers up to {1 << 16}, got {text[:200]!r}")
    return values
