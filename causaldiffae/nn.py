"""Layers and functions shared by the networks, and the interfaces of generative models.

Names and shapes follow guided-diffusion (Dhariwal and Nichol, 2021, arXiv 2105.05233), so that its public checkpoints
load: group normalisation in 32 groups computed in float32, sinusoidal time embeddings with the cosines first, and
zero-initialised layers, so that residual blocks start as the identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from causaldiffae.errors import InputError

NUM_GROUPS = 32

ModuleT = TypeVar("ModuleT", bound=nn.Module)
FieldsT = TypeVar("FieldsT", bound="TensorFields")

ModelFn = Callable[..., Tensor]
"""A network with bound conditions: model(x_t, t) returns the model output (B, C, H, W), which is eps, x_0 or v."""


def float_for_tables(device: torch.device) -> torch.dtype:
    """float64 for tables of coefficients and sums; float32 on devices that have no float64 (Apple's MPS)."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32


def table_on(device: torch.device, table: np.ndarray | Tensor) -> Tensor:
    """Copies a table to a device; float64 only where it exists, see `float_for_tables`."""
    values = torch.as_tensor(table)
    return values.to(float_for_tables(device) if values.is_floating_point() else values.dtype).to(device)


class CausalModel(Protocol):
    """The causal part of a generative model.

    Attributes:
        needs_labels: whether `abduct` requires the normalised labels (B, n) of the images.
        discrete: whether some variables are discrete; `abduct` then draws their noise from its posterior, and
            `read_labels` returns labels of categories.
        unconditional_abduction: whether x_T is encoded without the latents, which then only guide decoding (Diff-SCM).
    """

    needs_labels: bool
    unconditional_abduction: bool

    @property
    def class_cond(self) -> bool: ...
    @property
    def discrete(self) -> bool: ...
    def abduct(
        self, x_start: Tensor, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor: ...
    def predict(
        self, u: Tensor, do: Mapping[str, Tensor | float] | None = None, most_probable: bool = False
    ) -> Tensor: ...
    def read_labels(self, z: Tensor) -> Tensor: ...


class DiffusionModel(CausalModel, Protocol):
    """Generates images by diffusion; x_T encodes what the latents do not determine."""

    def model_outputs(
        self, x_t: Tensor, t: Tensor, conditions: Sequence[Tensor | None], classes: Tensor | None = None
    ) -> list[Tensor]: ...


@runtime_checkable
class DirectModel(CausalModel, Protocol):
    """Generates images from the latents alone, in one forward pass."""

    def decode(self, z: Tensor, classes: Tensor | None = None) -> Tensor: ...


class ImageCodec(Protocol):
    """Encodes images into the latent space of the network and decodes them (`published/autoencoder.py`)."""

    def encode(self, images: Tensor) -> Tensor: ...
    def decode(self, codes: Tensor) -> Tensor: ...


class TensorFields:
    """Mixin of dataclasses of tensors of a batch; `repr` has their shapes instead of values."""

    def select(self: FieldsT, rows: Tensor) -> FieldsT:
        """Returns the given images of the batch; `rows` are indices, which may repeat, or a mask (B,)."""
        chosen = {
            name: value.select(rows) if isinstance(value, TensorFields) else value[rows]
            for name, value in vars(self).items()
            if isinstance(value, Tensor | TensorFields)
        }
        return replace(self, **chosen)  # type: ignore[type-var]

    def __repr__(self) -> str:
        fields = vars(self).items()
        shapes = {n: f"{[*v.shape]} {v.dtype}".replace("torch.", "") if isinstance(v, Tensor) else v for n, v in fields}
        return f"{type(self).__name__}({', '.join(f'{n}={v}' for n, v in shapes.items() if v is not None)})"


class GroupNorm32(nn.GroupNorm):
    """Group normalisation with statistics in at least float32, for any dtype of the activations."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in (torch.bfloat16, torch.float16):
            # The kernel accumulates in float32. Under autocast the weights are float32 and need a cast.
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        return super().forward(x)


def normalization(channels: int) -> GroupNorm32:
    """Group normalisation in 32 groups; `channels` must be a multiple of 32."""
    return GroupNorm32(NUM_GROUPS, channels)


def zero_module(module: ModuleT) -> ModuleT:
    """Sets every parameter of `module` to zero and returns it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def repeat_times(t: Tensor, count: int) -> Tensor:
    """Repeats the times of a batch for `count` copies of it: (B,) -> (count * B,); a single time (1,) is unchanged."""
    return t if len(t) == 1 else t.repeat(count)


def batched_model_outputs(
    model_output: Callable[..., Tensor],
    x_t: Tensor,
    t: Tensor,
    conditions: Sequence[Tensor | None],
    classes: Tensor | None,
) -> list[Tensor]:
    """Evaluates `model_output(x_t, t, z, classes, keep)` under several latents as one batch; None is the null token."""
    given = next((condition for condition in conditions if condition is not None), None)
    if given is None or len(conditions) == 1:
        return [model_output(x_t, t, given, classes)] * len(conditions)
    count = len(conditions)
    z = torch.cat([given if condition is None else condition for condition in conditions])
    keep = torch.tensor([condition is not None for condition in conditions], device=x_t.device)
    repeated = None if classes is None else classes.repeat(count)
    x_t, t, keep = x_t.repeat(count, 1, 1, 1), repeat_times(t, count), keep.repeat_interleave(len(x_t))
    return list(model_output(x_t, t, z, repeated, keep).chunk(count))


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding of (possibly fractional) time steps.

    Args:
        timesteps: (B,) of any real dtype.
        dim: width of the embedding; an odd width gets one zero column.
        max_period: longest wavelength.

    Returns:
        (B, dim) float32: cosines, then sines, of frequencies decreasing geometrically from 1 to 1 / max_period.
    """
    half = dim // 2
    frequencies = torch.exp(
        -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    )
    angles = timesteps[:, None].float() * frequencies[None]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, dim % 2))


def mlp(widths: Sequence[int], blocks: int = 1) -> nn.Sequential:
    """A multilayer perceptron with SiLU between layers of the given widths, (B, widths[0]) -> (B, widths[-1]).

    Args:
        blocks: the input consists of this many blocks of equal width, and each has a first hidden layer of its own, of
            width `widths[1]`. With one hidden layer, the output is a sum of one term per block.
    """
    if blocks > 1:
        layer = nn.Conv1d(widths[0], blocks * widths[1], 1, groups=blocks)
        rest = mlp([blocks * widths[1], *widths[2:]])
        return nn.Sequential(nn.Unflatten(1, (-1, 1)), layer, nn.Flatten(), nn.SiLU(), *rest)
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
        if i:
            layers.append(nn.SiLU())
        layers.append(nn.Linear(fan_in, fan_out))
    return nn.Sequential(*layers)


def mean_flat(x: Tensor) -> Tensor:
    """Mean over every axis but the first: (B, ...) -> (B,)."""
    return x.flatten(1).mean(dim=1)


def sum_flat(x: Tensor) -> Tensor:
    """Sum over every axis but the first: (B, ...) -> (B,)."""
    return x.flatten(1).sum(dim=1)


def neighbour_reach(images: Tensor) -> int:
    """How many pixels in each direction are the neighbours of a pixel of images (..., H, W): 1 for 32 pixels."""
    return max(1, round(min(images.shape[-2:]) / 32))


@torch.no_grad()
def update_ema(target: Iterable[Tensor], source: Iterable[Tensor], rate: float) -> None:
    """Moves `target` towards `source`: target = rate * target + (1 - rate) * source, in place, in target's dtype."""
    torch._foreach_lerp_(list(target), list(source), 1.0 - rate)


def in_low_precision(model: ModelFn, dtype: torch.dtype | None) -> ModelFn:
    """Evaluates a network under autocast to `dtype`, with outputs in the dtype of x_t; unchanged for None."""
    if dtype is None:
        return model

    def evaluate(x_t: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(x_t.device.type, dtype=dtype):
            return model(x_t, t).to(x_t.dtype)

    return evaluate


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


class AttentionBlock(nn.Module):
    """Residual self-attention over all positions.

    `new_order` is the layout of the 3C channels of `qkv`: (q, k, v) x heads, or heads x (q, k, v) as in older
    checkpoints.
    """

    def __init__(self, channels: int, num_heads: int, num_head_channels: int = -1, new_order: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads if num_head_channels == -1 else channels // num_head_channels
        if self.num_heads < 1 or channels % self.num_heads:
            raise InputError(f"num_heads: expected a divisor of {channels} channels, got {self.num_heads}")
        self.new_order = new_order
        self.norm = normalization(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_module(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        flat = self.norm(x).flatten(2)
        h = self_attention(flat, self.qkv, self.proj_out, self.num_heads, self.new_order)
        return x + h.reshape(batch, channels, height, width)


def self_attention(x: Tensor, qkv: nn.Conv1d, proj: nn.Conv1d, num_heads: int, new_order: bool) -> Tensor:
    """Computes proj(softmax(q k^T / sqrt(channels per head)) v) over L positions: (B, C, L) -> (B, out, L).

    `qkv` and `proj` are convolutions of width 1, as in existing checkpoints, applied as linear layers on (B, L, C).
    PyTorch requires contiguous channels per head for fused attention, which does not store L x L weights.
    """
    tokens = F.linear(x.transpose(1, 2), qkv.weight[:, :, 0], qkv.bias)
    heads = tokens.unflatten(2, (3, num_heads, -1) if new_order else (num_heads, 3, -1))
    q, k, v = (part.transpose(1, 2) for part in heads.unbind(2 if new_order else 3))
    h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return F.linear(h, proj.weight[:, :, 0], proj.bias).transpose(1, 2)


class AttentionPool2d(nn.Module):
    """Attention pooling of a map (B, C, S, S) to (B, out) (CLIP; Radford et al., 2021, arXiv 2103.00020)."""

    def __init__(self, spatial_dim: int, channels: int, num_head_channels: int, out_channels: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(channels, spatial_dim**2 + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)
        self.num_heads = channels // num_head_channels

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        x = torch.cat([x.mean(dim=-1, keepdim=True), x], dim=-1) + self.positional_embedding.to(x.dtype)
        return self_attention(x, self.qkv_proj, self.c_proj, self.num_heads, new_order=True)[:, :, 0]
