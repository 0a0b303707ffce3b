"""The anti-causal predictor p(y | x_t): it reads the labels off noised images, at any noise level.

Diff-SCM moves an image along the gradient of log p(y | x_t) (Sanchez and Tsaftaris, 2022, section 3.3; Dhariwal and
Nichol, 2021, section 4). The network is the U-Net's downward half with a pooled head, `EncoderUNetModel`. A categorical
variable has a score for each category, a continuous one a mean and a spread in normalised units:

    log p(y | x_t) = sum_i log p(y_i | x_t),    p(y_i | x_t) categorical, or N(mean_i, std_i^2)

A predictor is a model folder of its own, config.json and weights; it belongs to one noise schedule and one set
of labels.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from causaldiffae.checkpoints.checkpoint import build_with_weights, export_weights, load_checkpoint
from causaldiffae.config import DiffusionConfig, parse_ints
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.unet import EncoderUNetModel

MODEL_TYPE: Final = "noised_predictor"
SCHEDULE: Final = ("diffusion_steps", "noise_schedule", "rescale_timesteps", "zero_terminal_snr")
"""What of a diffusion process a predictor depends on: which noise step t stands for."""
_CODES: Final = ("channel_mult", "attention_resolutions")


@dataclass(frozen=True)
class NoisedPredictorConfig:
    """The network; the defaults are the published size for MNIST.

    Attributes:
        classifier_width: base width, a multiple of 32.
        classifier_depth: residual blocks per resolution.
        channel_mult: width multipliers per resolution.
        attention_resolutions: sides of the feature maps at which attention is applied; "" for none.
        num_head_channels: channels per attention head.
        pool: "attention", "adaptive" or "spatial".
        patch_size: the network works on patches of so many pixels a side.
        dropout: probability in residual blocks.
        min_std: floor of a continuous label's spread, in normalised units.
    """

    classifier_width: int = 32
    classifier_depth: int = 1
    channel_mult: str = "1,2,4,4"
    attention_resolutions: str = ""
    num_head_channels: int = 32
    pool: str = "attention"
    patch_size: int = 1
    dropout: float = 0.0
    min_std: float = 0.05


class LabelHead(NamedTuple):
    """One variable's outputs: `size` of them from `start`.

    A continuous variable has two, its mean and its spread; a categorical one a score for each of its `values`, which
    are normalised labels.
    """

    start: int
    size: int
    values: tuple[float, ...]

    def category(self, labels: Tensor) -> Tensor:
        """The number (B,) long of the value that is nearest to each normalised label (B,)."""
        values = torch.tensor(self.values, dtype=labels.dtype, device=labels.device)
        return (labels[:, None] - values).abs().argmin(dim=1)


def label_heads(spec: DatasetSpec) -> list[LabelHead]:
    """The outputs that a data set's variables need, in the graph's order."""
    heads: list[LabelHead] = []
    for i in range(len(spec.graph)):
        start = heads[-1].start + heads[-1].size if heads else 0
        values = tuple((value - spec.shift[i]) / spec.scale[i] for value in spec.category_values(i))
        heads.append(LabelHead(start, len(values) or 2, values))
    return heads


class NoisedPredictor(nn.Module):
    """p(y | x_t) for every variable of a data set.

    Args:
        spec: its images and variables.
        config: the network's sizes.
        network: one that was built and trained elsewhere, for these images and these outputs, in its place.
    """

    def __init__(
        self, spec: DatasetSpec, config: NoisedPredictorConfig, network: EncoderUNetModel | None = None
    ) -> None:
        super().__init__()
        patch = config.patch_size
        if patch < 1 or spec.image_size % patch:
            raise InputError(f"patch_size: {patch} given, a divisor of the image size {spec.image_size} is needed")
        self.spec, self.config, self.heads = spec, config, label_heads(spec)
        side = spec.image_size // patch
        self.network = network or EncoderUNetModel(
            image_size=side,
            in_channels=spec.channels * patch**2,
            model_channels=config.classifier_width,
            out_channels=self.heads[-1].start + self.heads[-1].size,
            num_res_blocks=config.classifier_depth,
            attention_resolutions={side // given for given in parse_ints(_CODES[1], config.attention_resolutions)},
            dropout=config.dropout,
            channel_mult=parse_ints(_CODES[0], config.channel_mult),
            num_head_channels=config.num_head_channels,
            use_scale_shift_norm=True,
            pool=config.pool,
        )

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Noised images (B, C, S, S) at steps t (B,), as a score network sees them -> all outputs (B, outputs)."""
        return self.network(F.pixel_unshuffle(x_t, self.config.patch_size), t)

    def log_prob(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """log p(y_i | x_t), (B, n) in nats.

        Args:
            outputs: (B, outputs), what `forward` returned.
            labels: (B, n) normalised.
        """
        terms = []
        for i, head in enumerate(self.heads):
            found = outputs[:, head.start : head.start + head.size].float()
            if head.values:
                scores = F.log_softmax(found, dim=1)
                terms.append(scores.gather(1, head.category(labels[:, i])[:, None])[:, 0])
            else:
                std = self.config.min_std + F.softplus(found[:, 1])
                terms.append(-0.5 * ((labels[:, i] - found[:, 0]) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi))
        return torch.stack(terms, dim=1)

    def read(self, outputs: Tensor) -> Tensor:
        """The likeliest labels (B, n), normalised."""
        columns = []
        for head in self.heads:
            found = outputs[:, head.start : head.start + head.size].float()
            if head.values:
                columns.append(torch.tensor(head.values, device=found.device)[found.argmax(dim=1)])
            else:
                columns.append(found[:, 0])
        return torch.stack(columns, dim=1)

    def gradient(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """grad_x log p(y | x_t), (B, C, S, S), also inside `torch.inference_mode`."""
        with torch.inference_mode(False), torch.enable_grad():
            x = x_t.detach().clone().requires_grad_()
            log_prob = self.log_prob(self(x, t.clone()), labels.clone()).sum()
            return torch.autograd.grad(log_prob, x)[0]


def save_noised_predictor(
    folder: str | Path, predictor: NoisedPredictor, diffusion: DiffusionConfig, figures: dict[str, Any]
) -> Path:
    """Writes a model folder with weights in half precision; `figures` are plain types that go into its config.json."""
    described = {
        "model_type": MODEL_TYPE,
        "network": asdict(predictor.config),
        "schedule": {name: getattr(diffusion, name) for name in SCHEDULE},
        "dataset": predictor.spec.to_dict(),
        "figures": figures,
    }
    return export_weights(folder, predictor.state_dict(), described, torch.float16)


def load_noised_predictor(
    path: str | Path, spec: DatasetSpec, diffusion: DiffusionConfig, device: torch.device | str = "cpu"
) -> NoisedPredictor:
    """Opens a model folder that `save_noised_predictor` wrote, for the images and the process of a score network.

    Raises:
        DataError: if there is none, it is damaged, or holds another kind of model.
        InputError: if it was trained for another schedule, other labels or other images.
    """
    found = load_checkpoint(path)
    if found.config.get("model_type") != MODEL_TYPE:
        kind = found.config.get("model_type")
        raise DataError(f"{path}: a {kind!r} model, a noised predictor is needed (classifiers/noised_classifier.py)")
    theirs = DatasetSpec.from_dict(found.config.get("dataset"))
    schedule = found.config.get("schedule")
    for name in SCHEDULE:
        default = False if name == "zero_terminal_snr" else None  # which predictors before it do not name
        given = schedule.get(name, default) if isinstance(schedule, dict) else None
        if given != getattr(diffusion, name):
            needed = getattr(diffusion, name)
            raise InputError(f"predictor: {path} was trained for {name} {given!r}, the model has {needed!r}")
    for what in ("image_size", "channels", "kinds", "categories", "shift", "scale"):
        given, needed = getattr(theirs, what), getattr(spec, what)
        if given != needed:
            raise InputError(f"predictor: {path} is for {what} {given!r}, the model has {needed!r}")
    if theirs.graph.names != spec.graph.names:
        raise InputError(f"predictor: {path} reads {', '.join(theirs.graph.names)}, not {', '.join(spec.graph.names)}")
    network = _read_network(found.config.get("network"), str(path))
    return build_with_weights(lambda: NoisedPredictor(spec, network), found.model_state, str(path)).to(device)


def _read_network(network: Any, where: str) -> NoisedPredictorConfig:
    """The network's sizes from a config.json; anything else is a `DataError`."""
    fields = NoisedPredictorConfig.__dataclass_fields__
    if not isinstance(network, dict) or set(network) != set(fields):
        raise DataError(f"{where}: network is {str(network)[:80]}, {', '.join(fields)} are needed")
    for name, field in fields.items():
        if type(network[name]) is not type(field.default):
            raise DataError(f"{where}: {name} is {network[name]!r}, {type(field.default).__name__} is needed")
    config = NoisedPredictorConfig(**network)
    sizes = (config.classifier_width, config.classifier_depth, config.patch_size, config.num_head_channels)
    try:
        multipliers = parse_ints(_CODES[0], config.channel_mult)
    except InputError as error:
        raise DataError(f"{where}: {error}") from None
    if not all(0 < size <= 1024 for size in (*sizes, *multipliers)) or not 0 < config.min_std < 10:
        raise DataError(f"{where}: network is {str(network)[:80]}, sizes in 1..1024 are needed")
    return config
