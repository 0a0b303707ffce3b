"""The configuration: one frozen dataclass per component, every field also a flag of the same name.

Flag names are guided-diffusion's and the published CausalDiffAE's where those had one. YAML files in configs/ hold
the same flat names; an unknown key is refused. The whole of it travels inside every checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from causaldiffae.errors import DataError, InputError

T = TypeVar("T")


@dataclass(frozen=True)
class ModelConfig:
    """The networks.

    Attributes:
        model_type: "causaldae", "diffscm", or a model they are compared with: "conditional", "diffae", "causalvae".
        network: the score network of model_type "diffscm": "unet", or "dit", a transformer.
        num_channels: base width of the U-Net, a multiple of 32; width of the transformer's tokens.
        num_res_blocks: residual blocks per resolution.
        channel_mult: width multipliers per resolution, "1,2,2".
        patch_size: the U-Net works on patches of so many pixels a side; 1 is the published network. Side of the
            transformer's tokens.
        depth: blocks of the transformer.
        attention_resolutions: sides of the feature maps at which attention is applied, "14,7".
        num_heads: attention heads.
        num_head_channels: channels per head; -1 leaves it to num_heads.
        use_scale_shift_norm: the embedding scales and shifts the normalised activations.
        resblock_updown: resample inside residual blocks.
        conv_resample: a convolution at every change of resolution; else pooling and nearest neighbours.
        use_new_attention_order: layout of the attention's weights, see AttentionBlock.
        dropout: probability in residual blocks.
        use_checkpoint: recompute activations to save memory.
        class_cond: the data set's class (the digit) also conditions the U-Net.
        rep_dim: number of latents in all, shared out evenly between the variables.
        block_size: latents per variable, in place of rep_dim; 0 leaves it to rep_dim.
        cond_hidden: hidden width of the latents' embedding; 0 for one linear layer, as published.
        learned_null: the null token has an embedding of its own; else it is z = 0, as published.
        block_null: every variable's block has a learned null vector of its own, which `block_drop_prob` trains.
        encoder_channels: widths of the encoder's convolutions.
        encoder_norm: "batch", as published, or "none".
        mechanism: "additive", "affine" or "one_hop", see scm.py.
        mechanism_width: hidden width of the mechanisms; 0 means the number of latents in all.
        mechanism_depth: hidden layers of the mechanisms.
        min_scale: floor of a child's residual scale, in normalised label units.
        label_cond: of model_type "diffscm": the score network also takes labels, and so is the implicit predictor.
        aligned: of model_type "diffae": its blocks are tied to the labels.
        decoder_channels: of model_type "causalvae": widths of its decoder, from the smallest feature map on.
    """

    model_type: str = "causaldae"
    network: str = "unet"
    num_channels: int = 128
    num_res_blocks: int = 3
    channel_mult: str = "1,2,2"
    patch_size: int = 1
    depth: int = 12
    attention_resolutions: str = "16,8"
    num_heads: int = 4
    num_head_channels: int = -1
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    conv_resample: bool = True
    use_new_attention_order: bool = False
    dropout: float = 0.0
    use_checkpoint: bool = False
    class_cond: bool = False
    rep_dim: int = 512
    block_size: int = 0
    cond_hidden: int = 0
    learned_null: bool = False
    block_null: bool = False
    encoder_channels: str = "16,32,64,128"
    encoder_norm: str = "batch"
    mechanism: str = "additive"
    mechanism_width: int = 0
    mechanism_depth: int = 1
    min_scale: float = 0.02
    label_cond: bool = False
    aligned: bool = False
    decoder_channels: str = "128,64,32"

    def block_size_for(self, num_variables: int) -> int:
        """Latents of each of so many variables; an uneven share is an `InputError`."""
        if not self.block_size and self.rep_dim % num_variables:
            raise InputError(f"rep_dim: {self.rep_dim} given, a multiple of the {num_variables} variables is needed")
        return self.block_size or self.rep_dim // num_variables


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion process.

    Attributes:
        diffusion_steps: T.
        noise_schedule: "linear" or "cosine".
        learn_sigma: learn the variance of the reverse process.
        sigma_small: use the smaller of the two fixed variances.
        use_kl: train on the variational bound.
        predict_xstart: the network predicts x_0 in place of eps.
        predict_v: the network predicts v in place of eps, which weighs the image more where noise is strong.
        rescale_timesteps: the network sees t * 1000 / T.
        rescale_learned_sigmas: rescale the bound beside the squared error.
        min_snr_gamma: weigh the squared error by min(SNR, gamma), seen from x_0; 0 for the plain error.
        zero_terminal_snr: the last step is pure noise; needs predict_v or predict_xstart.
    """

    diffusion_steps: int = 1000
    noise_schedule: str = "linear"
    learn_sigma: bool = False
    sigma_small: bool = False
    use_kl: bool = False
    predict_xstart: bool = False
    predict_v: bool = False
    rescale_timesteps: bool = False
    rescale_learned_sigmas: bool = False
    min_snr_gamma: float = 0.0
    zero_terminal_snr: bool = False


@dataclass(frozen=True)
class LossConfig:
    """What training minimises, see losses.py.

    Attributes:
        kl_weight: gamma, the weight of both divergences, once it has risen.
        kl_anneal_steps: steps over which gamma rises linearly from 0.
        label_std: spread of a block around its label, in normalised units; the published prior has 1.
        label_kl_variance: "posterior": the divergence's own variance; "unit": 1, as in the published code.
        variance_factor: multiplies the variance that latents are sampled with (published: 0.001).
        mechanism_weight: weight of the mechanisms' likelihood on the labels.
        drop_prob: share of the images whose latents are replaced by the null token, as guidance training.
        block_drop_prob: probability that a variable's block is replaced by its null vector, drawn for each image and
            variable by itself, so that the score given any subset of the variables is learned; needs `block_null`.
        label_forcing: share of the labelled images that are drawn from latents of the label prior p(z | y) in place of
            their own, so that the decoder learns to obey the labels.
        masking: weak supervision: only `label_fraction` of the training images have labels.
        label_fraction: share of the training images with labels, see supervision.py.
        label_seed: of the choice of those images.
    """

    kl_weight: float = 1.0
    kl_anneal_steps: int = 50_000
    label_std: float = 1.0
    label_kl_variance: str = "posterior"
    variance_factor: float = 1.0
    mechanism_weight: float = 1.0
    drop_prob: float = 0.0
    block_drop_prob: float = 0.0
    label_forcing: float = 0.0
    masking: bool = False
    label_fraction: float = 1.0
    label_seed: int = 0


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        dataset: name of the data set, or empty to be told by the configuration file.
        data_dir: its folder.
        graph: the causal graph's file, for data set "folder"; by default graph.yaml in its folder.
        run_dir: where checkpoints, logs and pictures go; a folder, or gs://BUCKET/PATH or az://ACCOUNT/CONTAINER/PATH.
        image_size, channels: resize to another size or number of channels than the data set's own; 0 keeps it.
        num_images: use only the first so many training images; 0 for all.
        total_steps: training steps.
        batch_size: images per process and step.
        microbatch: images per forward pass; 0 for the whole batch.
        lr: learning rate.
        weight_decay: of AdamW.
        warmup_steps: steps over which the learning rate rises.
        lr_anneal_steps: the last so many steps, over which it falls linearly to 0; 0 keeps it constant.
        grad_clip: largest norm of the gradient; 0 for no limit.
        ema_rate: rate of the moving average of the weights, or several, "0.999,0.9999".
        ema_warmup: the moving average starts short and grows to its rate.
        schedule_sampler: "uniform" or "loss-second-moment".
        use_bf16: activations in bfloat16, where the hardware has it.
        compile: compile the score network, once at the start.
        channels_last: convolutions' weights with the channels innermost.
        seed: of everything that is drawn.
        log_interval, save_interval, sample_interval: steps between lines, checkpoints, pictures.
        keep_last: checkpoints to keep.
        keep_every: checkpoints of every so many steps stay too; 0 for none.
        background_save: write checkpoints while training goes on.
        max_skipped_steps: steps with a loss or gradient that is not finite that may follow one another; they change
            nothing, and one more ends the run.
        max_hours: save and end after so many hours; 0 for no limit.
        resume_checkpoint: go on from this step folder; by default from the newest one in run_dir.
        init_weights: start from the weights of this model folder, at step 0.
        tensorboard: also write TensorBoard files.
        dry_run: print the resolved configuration and the model's size, and stop.
    """

    dataset: str = ""
    data_dir: str = ""
    graph: str = ""
    run_dir: str = ""
    image_size: int = 0
    channels: int = 0
    num_images: int = 0
    total_steps: int = 50_000
    batch_size: int = 128
    microbatch: int = 0
    lr: float = 1e-4
    weight_decay: float = 0.0
    warmup_steps: int = 0
    lr_anneal_steps: int = 0
    grad_clip: float = 0.0
    ema_rate: str = "0.9999"
    ema_warmup: bool = False
    schedule_sampler: str = "uniform"
    use_bf16: bool = False
    compile: bool = False
    channels_last: bool = False
    seed: int = 0
    log_interval: int = 100
    save_interval: int = 1_000
    sample_interval: int = 1_000
    keep_last: int = 2
    keep_every: int = 0
    background_save: bool = True
    max_skipped_steps: int = 10
    max_hours: float = 0.0
    resume_checkpoint: str = ""
    init_weights: str = ""
    tensorboard: bool = True
    dry_run: bool = False


RECIPES: dict[str, dict[str, Any]] = {
    # What the published CausalDiffAE code does, whatever else a configuration says.
    "reference": {
        "mechanism": "one_hop",
        "mechanism_width": 0,
        "encoder_norm": "batch",
        "cond_hidden": 0,
        "learned_null": False,
        "block_null": False,
        "learn_sigma": False,
        "predict_v": False,
        "predict_xstart": False,
        "min_snr_gamma": 0.0,
        "zero_terminal_snr": False,
        "kl_weight": 1.0,
        "kl_anneal_steps": 50_000,
        "label_std": 1.0,
        "label_kl_variance": "unit",
        "variance_factor": 0.001,
        "mechanism_weight": 0.0,
        "drop_prob": 0.0,
        "block_drop_prob": 0.0,
        "label_forcing": 0.0,
        "lr": 1e-4,
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "lr_anneal_steps": 0,
        "grad_clip": 0.0,
        "ema_rate": "0.9999",
        "ema_warmup": False,
    },
}
"""Named sets of values that `--recipe NAME` puts in at its place on the command line."""

COMPONENTS: dict[str, type] = {
    "model": ModelConfig,
    "diffusion": DiffusionConfig,
    "loss": LossConfig,
    "train": TrainConfig,
}
POSITIVE = {
    "num_channels",
    "num_res_blocks",
    "patch_size",
    "depth",
    "num_heads",
    "rep_dim",
    "mechanism_depth",
    "min_scale",
    "diffusion_steps",
    "label_std",
    "total_steps",
    "batch_size",
    "lr",
    "log_interval",
    "save_interval",
    "sample_interval",
    "keep_last",
}
# Far above what any model here has; a stranger's configuration must not ask for more.
LARGEST = {
    **dict.fromkeys(("num_channels", "num_heads", "num_head_channels", "patch_size"), 1 << 13),
    **dict.fromkeys(("rep_dim", "block_size", "cond_hidden", "mechanism_width"), 1 << 16),
    **dict.fromkeys(("num_res_blocks", "mechanism_depth"), 16),
    "diffusion_steps": 100_000,
}
MAX_INTS = 16


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's result."""

    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        for component in COMPONENTS:
            for name, value in dataclasses.asdict(getattr(self, component)).items():
                if isinstance(value, bool) or not isinstance(value, int | float):
                    continue
                if not math.isfinite(value):
                    raise InputError(f"{name}: {value} given, a finite number is needed")
                if name in POSITIVE and value <= 0:
                    raise InputError(f"{name}: {value} given, a positive number is needed")
                if value > LARGEST.get(name, math.inf):
                    raise InputError(f"{name}: {value} given, at most {LARGEST[name]} is allowed")
                if value < 0 and name != "num_head_channels":
                    raise InputError(f"{name}: {value} given, 0 or more is needed")
        probabilities: tuple[tuple[str, Any], ...] = (
            ("drop_prob", self.loss),
            ("block_drop_prob", self.loss),
            ("label_fraction", self.loss),
            ("label_forcing", self.loss),
            ("dropout", self.model),
        )
        for name, part in probabilities:
            value = getattr(part, name)
            if not 0 <= value <= 1:
                kind = "share" if name.startswith("label_") else "probability"
                raise InputError(f"{name}: {value} given, a {kind} between 0 and 1 is needed")
        if self.model.block_null and self.model.model_type != "causaldae":
            raise InputError(f"block_null: expected model_type causaldae, got {self.model.model_type}")
        if self.loss.label_fraction < 1 and not self.loss.masking:
            raise InputError(
                f"label_fraction: {self.loss.label_fraction} given without weak supervision; add --masking True"
            )
        if self.loss.label_kl_variance not in ("posterior", "unit"):
            raise InputError(f"label_kl_variance: {self.loss.label_kl_variance!r} given, allowed are posterior, unit")
        if self.model.num_head_channels < -1 or self.model.num_head_channels == 0:
            raise InputError(
                f"num_head_channels: {self.model.num_head_channels} given, -1 or a positive number is needed"
            )
        if self.model.network not in ("unet", "dit"):
            raise InputError(f"network: {self.model.network!r} given, allowed are unet, dit")
        if self.model.network == "dit" and self.model.model_type != "diffscm":
            raise InputError(
                f"network: dit given, a {self.model.model_type} has a U-Net; model_type diffscm takes either"
            )
        for name in ("channel_mult", "encoder_channels", "decoder_channels"):
            if not parse_ints(name, getattr(self.model, name)):
                raise InputError(f"{name}: {getattr(self.model, name)!r} given, at least one number is needed")
        self.ema_rates()

    def ema_rates(self) -> list[str]:
        """The moving averages' rates, as they were written."""
        rates = [part.strip() for part in self.train.ema_rate.split(",")]
        for rate in rates:
            try:
                inside = 0.0 <= float(rate) < 1.0
            except ValueError:
                inside = False
            if not inside:
                raise InputError(
                    f"ema_rate: {self.train.ema_rate!r} given, numbers in [0, 1) are needed, like '0.9999'"
                )
        return rates

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain types, by component."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, description: Any) -> Config:
        """The inverse of `to_dict`; what is missing takes its default, what is unknown is refused."""
        parts: dict[str, Any] = {}
        for name, component in COMPONENTS.items():
            if not isinstance(description, Mapping) or not isinstance(description.get(name, {}), Mapping):
                raise DataError(f"config: {name} must be a mapping")
            parts[name] = _build(component, description.get(name, {}))
        unknown = sorted(set(description) - set(COMPONENTS))
        if unknown:
            raise DataError(f"config: unknown part {unknown[0]!r}, known are {', '.join(COMPONENTS)}")
        return cls(**parts)

    def digest(self) -> str:
        """Twelve hexadecimal digits that change with any field."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]


def _build(component: type[T], values: Mapping[str, Any]) -> T:
    fields = {f.name: f for f in dataclasses.fields(component)}  # type: ignore[arg-type]
    for key, value in values.items():
        if key not in fields:
            raise DataError(f"config: unknown key {key!r} in {component.__name__}")
        default = fields[key].default
        allowed = (int, float) if isinstance(default, float) else (type(default),)
        if not isinstance(value, allowed) or isinstance(value, bool) != isinstance(default, bool):
            raise DataError(f"config: {key} must be of type {type(default).__name__}, got {value!r}")
    return component(**{key: float(v) if isinstance(fields[key].default, float) else v for key, v in values.items()})


def parse_ints(name: str, text: str) -> tuple[int, ...]:
    """ "16,8" -> (16, 8); an empty text gives none."""
    try:
        values = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        values = (0,)
    if any(value < 1 for value in values):
        raise InputError(f"{name}: {text[:200]!r} given, positive whole numbers separated by commas are needed")
    if len(values) > MAX_INTS or any(value > 1 << 16 for value in values):
        raise InputError(f"{name}: {text[:200]!r} given, at most {MAX_INTS} numbers up to {1 << 16} are allowed")
    return values
