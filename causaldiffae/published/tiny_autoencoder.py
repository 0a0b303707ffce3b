"""A small convolutional autoencoder: the layers, configuration and state-dict keys of diffusers' `AutoencoderTiny`.

Its published weights (TAESD) open here and those of `training/autoencoder.py` open in diffusers, which training and
tests do not need. Pixels are in [-1, 1] outside and in [0, 1] inside; codes are bounded softly to [-3, 3].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from causaldiffae.errors import DataError

CLASS: Final = "AutoencoderTiny"
_FIXED: Final = {"act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2}
_MAX_WIDTH, _MAX_LEVELS, _MAX_BLOCKS = 1024, 8, 16
_BOUND: Final = 3.0


@dataclass(frozen=True)
class TinyConfig:
    """Sizes of the autoencoder.

    Attributes:
        channels: of the images.
        latent_channels: of the codes.
        encoder_width, decoder_width: channels of all layers in between.
        encoder_blocks, decoder_blocks: residual blocks at each resolution, from the first layer to the last; each
            resolution has half or twice the side of the one before.
        scaling_factor, shift_factor: (codes - shift) * scale has about unit variance.
    """

    channels: int = 3
    latent_channels: int = 4
    encoder_width: int = 64
    decoder_width: int = 64
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    scaling_factor: float = 1.0
    shift_factor: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json, as diffusers reads it."""
        levels = len(self.encoder_blocks)
        return {
            "_class_name": CLASS,
            **_FIXED,
            "in_channels": self.channels,
            "out_channels": self.channels,
            "latent_channels": self.latent_channels,
            "encoder_block_out_channels": [self.encoder_width] * levels,
            "decoder_block_out_channels": [self.decoder_width] * levels,
            "num_encoder_blocks": list(self.encoder_blocks),
            "num_decoder_blocks": list(self.decoder_blocks),
            "scaling_factor": self.scaling_factor,
            "shift_factor": self.shift_factor,
        }

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], where: str) -> TinyConfig:
        """Reads an untrusted config.json; missing keys take diffusers' defaults.

        Raises:
            DataError: prefixed by `where`, for a value of invalid type or range.
        """

        def refuse(name: str, expected: str) -> DataError:
            return DataError(f"{where}: {name}: expected {expected}, got {str(config.get(name))[:60]!r}")

        def integer(name: str, default: int) -> int:
            value = config.get(name, default)
            if type(value) is not int or not 1 <= value <= _MAX_WIDTH:
                raise refuse(name, f"an integer in 1..{_MAX_WIDTH}")
            return value

        def integers(name: str, default: tuple[int, ...], largest: int) -> tuple[int, ...]:
            value = config.get(name, default)
            levels = isinstance(value, list | tuple) and 1 <= len(value) <= _MAX_LEVELS
            if not levels or not all(type(each) is int and 0 <= each <= largest for each in value):
                raise refuse(name, f"a list of up to {_MAX_LEVELS} integers up to {largest}")
            return tuple(value)

        def number(name: str, default: float) -> float:
            value = config.get(name, default)
            value = default if value is None else value
            if type(value) not in (int, float) or not math.isfinite(value) or (name == "scaling_factor" and value <= 0):
                raise refuse(name, "a finite number, positive for scaling_factor")
            return float(value)

        for name, expected in _FIXED.items():
            if config.get(name, expected) != expected:
                raise refuse(name, repr(expected))
        blocks = {part: integers(f"num_{part}_blocks", getattr(cls, f"{part}_blocks"), _MAX_BLOCKS) for part in _PARTS}
        widths = {}
        for part in _PARTS:
            name = f"{part}_block_out_channels"
            found = integers(name, (64,) * len(blocks[part]), _MAX_WIDTH)
            if len({*found}) != 1 or 0 in found or len(found) != len(blocks["encoder"]):
                raise refuse(name, f"{len(blocks['encoder'])} equal widths")
            widths[part] = found[0]
        if len(blocks["decoder"]) != len(blocks["encoder"]):
            raise refuse("num_decoder_blocks", f"{len(blocks['encoder'])} numbers, as in num_encoder_blocks")
        channels = integer("in_channels", 3)
        if config.get("out_channels", 3) != channels:
            raise refuse("out_channels", f"{channels}, as in_channels")
        return cls(
            channels=channels,
            latent_channels=integer("latent_channels", 4),
            encoder_width=widths["encoder"],
            decoder_width=widths["decoder"],
            encoder_blocks=blocks["encoder"],
            decoder_blocks=blocks["decoder"],
            scaling_factor=number("scaling_factor", 1.0),
            shift_factor=number("shift_factor", 0.0),
        )


_PARTS: Final = ("encoder", "decoder")


class TinyAutoencoder(nn.Module):
    """Encoder and decoder.

    Args:
        config: the sizes.
    """

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _Stack(_encoder_layers(config))
        self.decoder = _Stack(_decoder_layers(config))

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> codes (B, c, H / f, W / f), neither shifted nor scaled."""
        return self.encoder((images + 1.0) / 2.0)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes -> images, not clipped."""
        return 2.0 * self.decoder(_BOUND * torch.tanh(codes / _BOUND)) - 1.0

    def forward(self, images: Tensor) -> Tensor:
        """Images -> reconstructions, (B, C, H, W)."""
        return self.decode(self.encode(images))


class _Stack(nn.Module):
    """A sequence under the key `layers`."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class _Block(nn.Module):
    """ReLU of the input plus three convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _convolution(width, width), nn.ReLU(), _convolution(width, width), nn.ReLU(), _convolution(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.conv(x))


def _convolution(fan_in: int, fan_out: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=bias)


def _encoder_layers(config: TinyConfig) -> list[nn.Module]:
    width = config.encoder_width
    layers: list[nn.Module] = []
    for level, blocks in enumerate(config.encoder_blocks):
        first = level == 0
        layers.append(_convolution(config.channels if first else width, width, 1 if first else 2, bias=first))
        layers += [_Block(width) for _ in range(blocks)]
    return [*layers, _convolution(width, config.latent_channels)]


def _decoder_layers(config: TinyConfig) -> list[nn.Module]:
    width, levels = config.decoder_width, len(config.decoder_blocks)
    layers: list[nn.Module] = [_convolution(config.latent_channels, width), nn.ReLU()]
    for level, blocks in enumerate(config.decoder_blocks):
        last = level == levels - 1
        layers += [_Block(width) for _ in range(blocks)]
        if not last:
            layers.append(nn.Upsample(scale_factor=2.0))
        layers.append(_convolution(width, config.channels if last else width, bias=last))
    return layers
