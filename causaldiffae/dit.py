"""The score network as a transformer: DiT (Peebles and Xie, 2023, arXiv 2212.09748).

The image, or its latent code, is divided into patches, which become tokens with fixed sine-cosine positions. Time step
and class are embedded, added, and modulate every block: adaLN-Zero shifts and scales both normalisations and gates both
residual branches; all gates start at 0, so that every block starts as the identity. The class table has an additional
row for the null token, for classifier-free guidance (Ho and Salimans, 2022, arXiv 2207.12598).

State-dict keys are those of facebookresearch/DiT, so that its checkpoints load (`published/dit.py`). `DiT.forward` has
the signature of `UNetModel.forward`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from causaldiffae.errors import InputError
from causaldiffae.nn import mlp, timestep_embedding, zero_module

TIME_FREQUENCIES = 256
EMBEDDING_STD = 0.02


def _linear(fan_in: int, fan_out: int) -> nn.Linear:
    """A linear layer with Xavier weights and zero bias, as published."""
    layer = nn.Linear(fan_in, fan_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class PatchEmbed(nn.Module):
    """Embeds patches as tokens: (B, C, S, S) -> (B, (S / patch)^2, hidden), row by row."""

    def __init__(self, patch_size: int, in_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, patch_size, stride=patch_size)
        nn.init.xavier_uniform_(self.proj.weight.data.flatten(1))  # a view: the convolution is a linear layer here
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    """Embeds integer or fractional time steps: (B,) -> (B, hidden)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = mlp([TIME_FREQUENCIES, hidden_size, hidden_size])
        for layer in (self.mlp[0], self.mlp[2]):
            nn.init.normal_(layer.weight, std=EMBEDDING_STD)  # type: ignore[arg-type]

    def forward(self, timesteps: Tensor) -> Tensor:
        return self.mlp(timestep_embedding(timesteps, TIME_FREQUENCIES))


class LabelEmbedder(nn.Module):
    """Embeds classes: (B,) -> (B, hidden); index `num_classes` is the null token."""

    def __init__(self, num_classes: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, hidden_size)
        nn.init.normal_(self.embedding_table.weight, std=EMBEDDING_STD)

    def forward(self, classes: Tensor) -> Tensor:
        return self.embedding_table(classes)


class Attention(nn.Module):
    """Self-attention over all tokens, (B, L, D) -> (B, L, D); the layout of `qkv` is (q, k, v) x heads."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = _linear(hidden_size, 3 * hidden_size)
        self.proj = _linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    """Two linear layers with a tanh-approximated GELU, applied to every token."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.fc1 = _linear(hidden_size, width)
        self.fc2 = _linear(width, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Returns x (1 + scale) + shift, with shift and scale (B, D) for all tokens of x (B, L, D)."""
    return x * (1 + scale[:, None]) + shift[:, None]


def _modulation(hidden_size: int, count: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), zero_module(nn.Linear(hidden_size, count * hidden_size)))


class DiTBlock(nn.Module):
    """Attention and an MLP, both residual, normalised, and modulated and gated by the embedding (adaLN-Zero)."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(hidden_size, num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(hidden_size, mlp_width)
        self.adaLN_modulation = _modulation(hidden_size, 6)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(emb).chunk(6, dim=1)
        x = x + gate_attn[:, None] * self.attn(modulate(self.norm1(x), shift_attn, scale_attn))
        return x + gate_mlp[:, None] * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


class FinalLayer(nn.Module):
    """Maps tokens to the pixels of their patches: (B, L, D) -> (B, L, patch^2 C)."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.linear = zero_module(nn.Linear(hidden_size, width))
        self.adaLN_modulation = _modulation(hidden_size, 2)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(emb).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(nn.Module):
    """The score network: model output for (x_t, t, y). The defaults are DiT-XL/2 for latents of 256-pixel images.

    Args:
        image_size: height and width of the input, an image or a latent code (32 for a 256-pixel image).
        patch_size: side of a patch, a divisor of `image_size`.
        in_channels: number of input channels.
        hidden_size: width of the tokens, a multiple of 4 and of `num_heads`.
        depth: number of blocks.
        mlp_ratio: width of the MLPs divided by `hidden_size`.
        num_classes: number of classes without the null token; 0 for an unconditional network.
        learn_sigma: double the output channels, with the second half for the variance.
    """

    pos_embed: Tensor

    def __init__(
        self,
        image_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        learn_sigma: bool = True,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise InputError(f"patch_size: expected a divisor of the image size {image_size}, got {patch_size}")
        if hidden_size % num_heads or hidden_size % 4:
            raise InputError(f"hidden_size: expected a multiple of 4 and of {num_heads} heads, got {hidden_size}")
        self.image_size, self.patch_size, self.in_channels = image_size, patch_size, in_channels
        self.out_channels = 2 * in_channels if learn_sigma else in_channels
        self.num_classes, self.num_heads = num_classes, num_heads
        self.x_embedder = PatchEmbed(patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size)
        self.register_buffer("pos_embed", position_embedding(image_size // patch_size, hidden_size)[None])
        mlp_width = int(mlp_ratio * hidden_size)
        self.blocks = nn.ModuleList([DiTBlock(hidden_size, num_heads, mlp_width) for _ in range(depth)])
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * self.out_channels)

    @property
    def cond_dim(self) -> int | None:
        """Width of `z`; None for a network without classes."""
        return self.num_classes or None

    def embed_classes(self, y: Tensor | None, z: Tensor | None, keep: Tensor | None, batch: int) -> Tensor:
        """Embeds classes, or the null token if neither y nor z is given or `keep` is False: (B, hidden)."""
        table = self.y_embedder.embedding_table.weight
        null = table[self.num_classes].expand(batch, -1)
        if y is None and z is None:
            return null
        given = self.y_embedder(y) if z is None else z.to(table.dtype) @ table[: self.num_classes]
        return given if keep is None else torch.where(keep[:, None], given, null)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        y: Tensor | None = None,
        z: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Returns the model output (B, out_channels, image_size, image_size).

        Args:
            x: (B, in_channels, image_size, image_size).
            timesteps: (B,), integer or fractional.
            y: (B,) class indices, `num_classes` for the null token.
            z: (B, num_classes) weights of the class embeddings, instead of y; one-hot for a single class.
            keep: (B,) bool; where False, the null token is used, as without y and z.
        """
        if z is not None and (y is not None or z.shape[1] != self.num_classes):
            raise InputError(f"z: expected {self.num_classes} weights per image and no y, got shape {tuple(z.shape)}")
        if x.shape[1:] != (self.in_channels, self.image_size, self.image_size):
            expected = (self.in_channels, self.image_size, self.image_size)
            raise InputError(f"x: expected images of shape {expected}, got {tuple(x.shape[1:])}")
        with torch.autocast(x.device.type, enabled=False):  # full precision for the labels
            emb = self.t_embedder(timesteps) + self.embed_classes(y, z, keep, len(x))
        h = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            h = block(h, emb)
        h = self.final_layer(h, emb)
        side = self.image_size // self.patch_size
        h = h.reshape(len(x), side, side, self.patch_size, self.patch_size, self.out_channels)
        return h.permute(0, 5, 1, 3, 2, 4).reshape(len(x), self.out_channels, self.image_size, self.image_size)


def position_embedding(side: int, width: int) -> Tensor:
    """Returns the fixed positional embedding (side^2, width) float32 of a grid of tokens, row by row.

    The first half of the channels encodes columns, the second rows, each as sines and then cosines of frequencies
    decreasing geometrically from 1 to nearly 1 / 10,000.
    """
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    along = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = along.expand(side, -1, -1), along[:, None].expand(-1, side, -1)
    return torch.cat([columns, rows], dim=2).reshape(side**2, width).float()
