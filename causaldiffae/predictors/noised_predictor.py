"""The anti-causal predictor p(y | x_t): it predicts labels from noised images, at any noise level.

Diff-SCM follows the gradient of log p(y | x_t) (Sanchez and Tsaftaris, 2022, section 3.3; Dhariwal and Nichol, 2021,
section 4). The network is the U-Net's downward half with a pooled head, `EncoderUNetModel`. Its outputs are a logit for
each category of a categorical variable, and mean and spread of a continuous one in normalised units:

    log p(y | x_t) = sum_i log p(y_i | x_t),    p(y_i | x_t) categorical, or N(mean_i, std_i^2)

A predictor is a model folder (config.json and weights) for one noise schedule and one set of labels.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from causaldiffae.checkpoints.checkpoint import build_with_weights
from causaldiffae.config import DiffusionConfig, flag, parse_ints, with_help
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.predictors.common import Head, check_same, make_heads, open_folder, read_network, save_folder
from causaldiffae.unet import EncoderUNetModel

MODEL_TYPE: Final = "noised_predictor"
SCHEDULE: Final = ("diffusion_steps", "noise_schedule", "rescale_timesteps", "zero_terminal_snr")
"""The settings of a diffusion process that a predictor depends on: they determine the noise of step t."""


@with_help
@dataclass(frozen=True)
class NoisedPredictorConfig:
    """Options of the network; the defaults are those published for MNIST."""

    classifier_width: int = flag(32, "base width, a multiple of 32")
    classifier_depth: int = flag(1, "residual blocks per resolution")
    channel_mult: str = flag("1,2,4,4", "width multipliers per resolution")
    attention_resolutions: str = flag("", "resolutions of the feature maps with attention")
    num_head_channels: int = flag(32, "channels per attention head")
    pool: str = flag("attention", "pooling: attention, adaptive or spatial")
    patch_size: int = flag(1, "patch size in pixels")
    dropout: float = flag(0.0, "dropout probability in residual blocks")
    min_std: float = flag(0.05, "minimum standard deviation of a continuous label, in normalised units")


def label_heads(spec: DatasetSpec) -> list[Head]:
    """The heads of a data set's variables in the graph's order; the values of categories are normalised labels."""
    values = spec.normalised_categories()
    return make_heads(((name, values.get(name, ())) for name in spec.graph.names), continuous_size=2)


class NoisedPredictor(nn.Module):
    """p(y | x_t) for every variable of a data set.

    Args:
        spec: images and variables of the data set.
        config: sizes of the network.
        network: a network for these images and outputs that replaces the one of `config`.
    """

    def __init__(
        self, spec: DatasetSpec, config: NoisedPredictorConfig, network: EncoderUNetModel | None = None
    ) -> None:
        super().__init__()
        patch = config.patch_size
        if patch < 1 or spec.image_size % patch:
            raise InputError(f"patch_size: expected a divisor of the image size {spec.image_size}, got {patch}")
        if not 0 < config.min_std < 10:
            raise InputError(f"min_std: expected a number in (0, 10), got {config.min_std}")
        self.spec, self.config, self.heads = spec, config, label_heads(spec)
        side = spec.image_size // patch
        sides = parse_ints("attention_resolutions", config.attention_resolutions)
        self.network = network or EncoderUNetModel(
            image_size=side,
            in_channels=spec.channels * patch**2,
            model_channels=config.classifier_width,
            out_channels=self.heads[-1].start + self.heads[-1].size,
            num_res_blocks=config.classifier_depth,
            attention_resolutions={side // given for given in sides},
            dropout=config.dropout,
            channel_mult=parse_ints("channel_mult", config.channel_mult),
            num_head_channels=config.num_head_channels,
            use_scale_shift_norm=True,
            pool=config.pool,
        )

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Noised images (B, C, S, S) at steps t (B,), in the units of the score network -> outputs (B, outputs)."""
        return self.network(F.pixel_unshuffle(x_t, self.config.patch_size), t)

    def log_prob(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """log p(y_i | x_t), (B, n) in nats, for outputs (B, outputs) and normalised labels (B, n)."""
        terms = []
        for i, head in enumerate(self.heads):
            found = head.outputs(outputs).float()
            if head.values:
                category = head.category(labels[:, i])[:, None]
                terms.append(F.log_softmax(found, dim=1).gather(1, category)[:, 0])
            else:
                std = self.config.min_std + F.softplus(found[:, 1])
                terms.append(-0.5 * ((labels[:, i] - found[:, 0]) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi))
        return torch.stack(terms, dim=1)

    def read(self, outputs: Tensor) -> Tensor:
        """The most likely labels (B, n), normalised."""
        columns = []
        for head in self.heads:
            found = head.outputs(outputs).float()
            values = torch.tensor(head.values, device=found.device)
            columns.append(values[found.argmax(dim=1)] if head.values else found[:, 0])
        return torch.stack(columns, dim=1)

    def gradient(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """grad_x log p(y | x_t), (B, C, S, S); also works in `torch.inference_mode`."""
        with torch.inference_mode(False), torch.enable_grad():
            x = x_t.detach().clone().requires_grad_()
            log_prob = self.log_prob(self(x, t.clone()), labels.clone()).sum()
            return torch.autograd.grad(log_prob, x)[0]


def save_noised_predictor(
    folder: str | Path, predictor: NoisedPredictor, diffusion: DiffusionConfig, figures: dict[str, Any]
) -> Path:
    """Writes a model folder with weights in half precision; `figures` are plain types for config.json."""
    schedule = {name: getattr(diffusion, name) for name in SCHEDULE}
    described = {"network": asdict(predictor.config), "dataset": predictor.spec.to_dict(), "figures": figures}
    return save_folder(folder, predictor, MODEL_TYPE, schedule=schedule, **described)


def load_noised_predictor(
    path: str | Path, spec: DatasetSpec, diffusion: DiffusionConfig, device: torch.device | str = "cpu"
) -> NoisedPredictor:
    """Opens a folder of `save_noised_predictor` for the images and the diffusion process of a score network.

    Raises:
        DataError: if there is none, it is damaged, or it holds another type of model.
        InputError: if it was trained for another schedule, other labels or other images.
    """
    found, theirs = open_folder(path, MODEL_TYPE, "classifiers/noised_classifier.py")
    schedule = found.config.get("schedule")
    for name in SCHEDULE:
        default = False if name == "zero_terminal_snr" else None  # older predictors do not store it
        got = schedule.get(name, default) if isinstance(schedule, dict) else None
        if got != getattr(diffusion, name):
            expected = getattr(diffusion, name)
            raise InputError(f"predictor: {path}: expected {name} {expected!r}, as the model, got {got!r}")
    check_same(theirs, spec, ("image_size", "channels", "kinds", "categories", "shift", "scale"), str(path))
    config = read_network(NoisedPredictorConfig, found.config.get("network"), str(path))
    return build_with_weights(lambda: NoisedPredictor(spec, config), found.model_state, str(path)).to(device)
