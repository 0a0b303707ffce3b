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
from typing import Any, get_type_hints

from causaldiffae.errors import DataError, InputError


@dataclass(frozen=True)
class ModelConfig:
    """The networks.

    Attributes:
        model_type: "causaldae", "diffscm", or one of the baselines "conditional", "diffae" and "causalvae".
        network: diffscm: the score network, "unet" or "dit" (a transformer).
        num_channels: base width of the U-Net, a multiple of 32; token width of the transformer.
        num_res_blocks: residual blocks per resolution.
        channel_mult: width multipliers per resolution, such as "1,2,2".
        patch_size: side of the pixel patches that the U-Net works on, 1 as published; side of the transformer's tokens.
        depth: number of transformer blocks.
        attention_resolutions: sizes of the feature maps with attention, such as "14,7".
        num_heads: attention heads.
        num_head_channels: channels per attention head; -1 uses num_heads instead.
        use_scale_shift_norm: the embedding scales and shifts the normalised activations.
        resblock_updown: resample inside residual blocks.
        conv_resample: resample by convolutions instead of pooling and nearest neighbours.
        use_new_attention_order: memory layout of the attention weights, see AttentionBlock.
        dropout: dropout probability in residual blocks.
        use_checkpoint: recompute activations in the backward pass to save memory.
        class_cond: condition the U-Net on the data set's class (the digit) as well.
        rep_dim: total number of latents, split evenly between the variables.
        block_size: latents per variable; 0 derives them from rep_dim.
        cond_hidden: hidden width of the latents' embedding; 0 for a single linear layer, as published.
        learned_null: learn an embedding of the null token; otherwise it is z = 0, as published.
        block_null: learn a null vector for the block of each variable, trained by block_drop_prob.
        encoder_channels: widths of the encoder's convolutions.
        encoder_norm: "batch", as published, or "none".
        mechanism: "additive", "affine" or "one_hop", see scm.py.
        mechanism_width: hidden width of the mechanisms; 0 uses the total number of latents.
        mechanism_depth: hidden layers of the mechanisms.
        min_scale: smallest residual scale of a variable with parents, in normalised label units.
        label_cond: diffscm: the score network also takes labels and thereby acts as an implicit predictor.
        aligned: diffae: align the latent blocks with the labels.
        decoder_channels: causalvae: widths of the decoder, from the smallest feature map on.
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
        """Latents per variable; raises `InputError` if `rep_dim` cannot be split evenly."""
        if not self.block_size and self.rep_dim % num_variables:
            raise InputError(f"rep_dim: expected a multiple of the {num_variables} variables, got {self.rep_dim}")
        return self.block_size or self.rep_dim // num_variables


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion process.

    Attributes:
        diffusion_steps: number of diffusion steps T.
        noise_schedule: "linear" or "cosine".
        learn_sigma: learn the variance of the reverse process.
        sigma_small: use the smaller of the two fixed variances.
        use_kl: train on the variational bound.
        predict_xstart: the network predicts x_0 instead of eps.
        predict_v: the network predicts v instead of eps, which weights the image more at high noise levels.
        rescale_timesteps: the network receives t * 1000 / T.
        rescale_learned_sigmas: add the rescaled variational bound to the squared error.
        min_snr_gamma: weight the squared error of x_0 by min(SNR, gamma); 0 for the plain error.
        zero_terminal_snr: make the last step pure noise; requires predict_v or predict_xstart.
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
    """The training objective, see losses.py.

    Attributes:
        kl_weight: final value of gamma, the weight of both KL divergences.
        kl_anneal_steps: steps over which gamma rises linearly from 0.
        label_std: standard deviation of a block around its label, in normalised units; 1 in the published prior.
        label_kl_variance: variance in the label divergence: "posterior", or "unit" as in the published code.
        variance_factor: factor on the variance that latents are sampled with; 0.001 in the published code.
        mechanism_weight: weight of the mechanisms' likelihood on the labels.
        drop_prob: probability of replacing an image's latents by the null token, for classifier-free guidance.
        block_drop_prob: probability of replacing the block of one variable by its null vector, independently for each
            image and variable, so that the score given any subset of the variables is learned; requires block_null.
        label_forcing: fraction of the labelled images that are decoded from latents of the label prior p(z | y).
        masking: weak supervision: only label_fraction of the training images keep their labels.
        label_fraction: fraction of the training images with labels, see label_subsets.py.
        label_seed: seed for choosing the images with labels.
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
        dataset: name of the data set.
        data_dir: folder of the data set.
        graph: data set "folder": file of the causal graph; by default graph.yaml in data_dir.
        run_dir: folder for checkpoints and logs, or gs://BUCKET/PATH or az://ACCOUNT/CONTAINER/PATH.
        image_size: resize images to this size; 0 keeps the size of the data set.
        channels: convert images to this number of channels; 0 keeps that of the data set.
        num_images: use only the first num_images training images; 0 for all.
        total_steps: training steps.
        batch_size: images per step and process.
        microbatch: images per forward pass; 0 for the whole batch.
        lr: learning rate.
        weight_decay: weight decay of AdamW.
        warmup_steps: steps of linear learning-rate warm-up.
        lr_anneal_steps: last steps, over which the learning rate falls linearly to 0; 0 keeps it constant.
        grad_clip: largest gradient norm; 0 for no limit.
        ema_rate: decay rates of the moving averages of the weights, separated by commas.
        ema_warmup: start with a short moving average that lengthens to its rate.
        schedule_sampler: "uniform" or "loss-second-moment".
        use_bf16: compute activations in bfloat16 where the hardware supports it.
        compile: compile the score network with torch.compile.
        channels_last: store convolution weights in the channels-last memory format.
        seed: random seed.
        log_interval: steps between log rows.
        save_interval: steps between checkpoints.
        sample_interval: steps between counterfactual previews.
        keep_last: number of recent checkpoints to keep.
        keep_every: also keep the checkpoint of every keep_every-th step; 0 for none.
        background_save: write checkpoints in a background thread.
        max_skipped_steps: consecutive steps with a non-finite loss or gradient that are skipped before the run ends.
        max_hours: save a checkpoint and stop after this many hours; 0 for no limit.
        resume_checkpoint: step folder to resume from; by default the newest one in run_dir.
        init_weights: model folder whose weights to start from, at step 0.
        tensorboard: write TensorBoard event files as well.
        dry_run: print the configuration, the model size and the resources needed, then exit.
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
    # The settings of the published CausalDiffAE code.
    "reference": {
        **dict.fromkeys(("learned_null", "block_null", "learn_sigma", "predict_v", "predict_xstart"), False),
        **dict.fromkeys(("zero_terminal_snr", "ema_warmup"), False),
        **dict.fromkeys(("mechanism_width", "cond_hidden", "warmup_steps", "lr_anneal_steps"), 0),
        **dict.fromkeys(("min_snr_gamma", "mechanism_weight", "weight_decay", "grad_clip"), 0.0),
        **dict.fromkeys(("drop_prob", "block_drop_prob", "label_forcing"), 0.0),
        "mechanism": "one_hop",
        "encoder_norm": "batch",
        "kl_weight": 1.0,
        "kl_anneal_steps": 50_000,
        "label_std": 1.0,
        "label_kl_variance": "unit",
        "variance_factor": 0.001,
        "lr": 1e-4,
        "ema_rate": "0.9999",
    },
}
"""Named sets of values; `--recipe NAME` stands for the corresponding flags."""

POSITIVE = {
    *("num_channels", "num_res_blocks", "patch_size", "depth", "num_heads", "rep_dim", "mechanism_depth", "min_scale"),
    *("diffusion_steps", "label_std", "total_steps", "batch_size", "lr", "keep_last"),
    *("log_interval", "save_interval", "sample_interval"),
}
FRACTIONS = {"drop_prob", "block_drop_prob", "label_forcing", "label_fraction", "dropout"}
CHOICES = {"label_kl_variance": ("posterior", "unit"), "network": ("unet", "dit")}
# Far above the size of any useful model; bounds the memory that an untrusted configuration can request.
LARGEST = {
    **dict.fromkeys(("num_channels", "num_heads", "num_head_channels", "patch_size"), 1 << 13),
    **dict.fromkeys(("rep_dim", "block_size", "cond_hidden", "mechanism_width"), 1 << 16),
    **dict.fromkeys(("num_res_blocks", "mechanism_depth"), 16),
    "diffusion_steps": 100_000,
}
MAX_INTS = 16


def _check_value(name: str, value: Any) -> None:
    """Raises `InputError` for a value outside its range."""
    expected = ""
    if name in CHOICES and value not in CHOICES[name]:
        expected = " or ".join(CHOICES[name])
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            expected = "a finite number"
        elif name in POSITIVE and value <= 0:
            expected = "a positive number"
        elif name in FRACTIONS and not 0 <= value <= 1:
            expected = "a number from 0 to 1"
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
    """Complete configuration of a run, validated.

    Raises:
        InputError: if a value is out of range or two values contradict each other.
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
        if self.loss.label_fraction < 1 and not self.loss.masking:
            raise InputError(
                f"label_fraction: expected 1 without masking, got {self.loss.label_fraction}; add --masking True"
            )
        for name in ("channel_mult", "encoder_channels", "decoder_channels"):
            if not parse_ints(name, getattr(self.model, name)):
                raise InputError(f"{name}: expected at least one number, got {getattr(self.model, name)!r}")
        self.ema_rates()

    def ema_rates(self) -> list[str]:
        """Rates of the moving averages, as written in the configuration."""
        rates = [part.strip() for part in self.train.ema_rate.split(",")]
        try:
            valid = all(0.0 <= float(rate) < 1.0 for rate in rates)
        except ValueError:
            valid = False
        if not valid:
            raise InputError(f"ema_rate: expected numbers in [0, 1) such as '0.9999', got {self.train.ema_rate!r}")
        return rates

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain types, by component."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, description: Any) -> Config:
        """Inverse of `to_dict`; missing values take their defaults.

        Raises:
            DataError: for an unknown key or a value of the wrong type.
        """
        parts: dict[str, Any] = {}
        for name, component in COMPONENTS.items():
            if not isinstance(description, Mapping) or not isinstance(description.get(name, {}), Mapping):
                raise DataError(f"config: {name}: expected a mapping")
            parts[name] = _build(component, description.get(name, {}))
        unknown = sorted(set(description) - set(COMPONENTS))
        if unknown:
            raise DataError(f"config: expected the parts {', '.join(COMPONENTS)}, got {unknown[0]!r}")
        return cls(**parts)

    def digest(self) -> str:
        """Twelve hexadecimal digits that change with every field."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]


COMPONENTS: dict[str, type] = get_type_hints(Config)


def _build(component: type, values: Mapping[str, Any]) -> Any:
    defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(component)}
    checked = {}
    for key, value in values.items():
        if key not in defaults:
            raise DataError(f"config: unknown key {key!r} in {component.__name__}")
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
