"""The score network: a U-Net with residual blocks and self-attention (ADM; Dhariwal and Nichol, 2021).

`UNetModel` maps (x_t, t, y, z) to the model output: the time step, an optional class y and an optional conditioning
vector z are embedded, added, and modulate every residual block (scale-shift normalisation). `EncoderUNetModel` is its
downward half with a pooled head: an anti-causal predictor p(y | x_t). State-dict keys are those of guided-diffusion, so
that its public checkpoints load.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from causaldiffae.errors import InputError
from causaldiffae.nn import AttentionBlock, AttentionPool2d, mlp, normalization, timestep_embedding, zero_module


class Resample(Enum):
    """Change of resolution in a residual block."""

    NONE = "none"
    UP = "up"
    DOWN = "down"


class TimestepBlock(nn.Module):
    """A module whose forward takes the embedding as second argument."""


class TimestepEmbedSequential(nn.Sequential):
    """A sequential module that passes the embedding to its `TimestepBlock` children."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, emb) if isinstance(layer, TimestepBlock) else layer(x)
        return x


class Upsample(nn.Module):
    """Doubles the resolution by nearest neighbours, followed by a 3x3 convolution if `use_conv`."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        if use_conv:
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.use_conv = use_conv

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.conv(x) if self.use_conv else x


class Downsample(nn.Module):
    """Halves the resolution by a strided 3x3 convolution or, without `use_conv`, by average pooling."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if use_conv else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class ResBlock(TimestepBlock):
    """A residual block of two (normalise, activate, convolve) groups, modulated by the embedding in between.

    Args:
        channels, out_channels: input and output widths.
        emb_channels: width of the embedding.
        use_scale_shift_norm: scale and shift the second normalisation by the embedding, instead of adding it before.
        resample: change of resolution inside the block, on both branches.
        use_checkpoint: recompute activations in the backward pass.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int,
        use_scale_shift_norm: bool,
        resample: Resample = Resample.NONE,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.use_scale_shift_norm = use_scale_shift_norm
        self.use_checkpoint = use_checkpoint
        self.in_layers = nn.Sequential(
            normalization(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.resample: nn.Module = nn.Identity()
        if resample is Resample.UP:
            self.resample = Upsample(channels, use_conv=False)
        elif resample is Resample.DOWN:
            self.resample = Downsample(channels, use_conv=False)
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels if use_scale_shift_norm else out_channels)
        )
        self.out_layers = nn.Sequential(
            normalization(out_channels),
            nn.SiLU(),
            nn.Dropout(p=dropout),
            zero_module(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection: nn.Module = nn.Identity()
        if out_channels != channels:
            self.skip_connection = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(self._forward, x, emb, use_reentrant=False)
        return self._forward(x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm_in, act_in, conv_in = self.in_layers
        h = conv_in(self.resample(act_in(norm_in(x))))
        x = self.resample(x)
        modulation = self.emb_layers(emb).to(h.dtype)[:, :, None, None]
        norm_out, act_out, dropout, conv_out = self.out_layers
        if self.use_scale_shift_norm:
            scale, shift = modulation.chunk(2, dim=1)
            h = norm_out(h) * (1 + scale) + shift
        else:
            h = norm_out(h + modulation)
        return self.skip_connection(x) + conv_out(dropout(act_out(h)))


class _DownwardPath(nn.Module):
    """The shared part of the U-Net and its encoder half: time embedding, downward blocks and middle block.

    Args:
        in_channels: number of input channels.
        model_channels: base width, a multiple of 32.
        num_res_blocks: residual blocks per resolution.
        attention_resolutions: downsampling factors at which attention is applied, for instance {4, 8}.
        dropout: probability in residual blocks.
        channel_mult: width multiplier per resolution.
        conv_resample: resample with convolutions, instead of only average pooling and nearest neighbours.
        num_heads: number of attention heads.
        use_scale_shift_norm: see `ResBlock`.
        resblock_updown: resample inside residual blocks.
        use_new_attention_order: see `AttentionBlock`.
        use_checkpoint: recompute activations in the backward pass.
    """

    def __init__(
        self,
        in_channels: int,
        model_channels: int,
        num_res_blocks: int,
        attention_resolutions: Collection[int],
        dropout: float = 0.0,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        conv_resample: bool = True,
        num_heads: int = 1,
        num_head_channels: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if model_channels % 32:
            raise InputError(f"num_channels: expected a multiple of 32, got {model_channels}")
        self.model_channels, self.num_res_blocks = model_channels, num_res_blocks
        self.channel_mult = tuple(channel_mult)
        self.conv_resample, self.resblock_updown = conv_resample, resblock_updown
        self.emb_channels = 4 * model_channels
        self.time_embed = mlp([model_channels, self.emb_channels, self.emb_channels])
        self.attention_resolutions = frozenset(attention_resolutions)
        self._attention_kwargs: dict[str, Any] = {"num_heads": num_heads, "num_head_channels": num_head_channels}
        self._attention_kwargs["new_order"] = use_new_attention_order
        self._block_kwargs: dict[str, Any] = {"emb_channels": self.emb_channels, "dropout": dropout}
        self._block_kwargs |= {"use_scale_shift_norm": use_scale_shift_norm, "use_checkpoint": use_checkpoint}
        ch = channel_mult[0] * model_channels
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(nn.Conv2d(in_channels, ch, 3, padding=1))])
        self.skip_channels = [ch]
        downsampling = 1
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                out = mult * model_channels
                self.input_blocks.append(self._block(ch, out, downsampling))
                ch = out
                self.skip_channels.append(ch)
            if level != len(channel_mult) - 1:
                down = self._res_block(ch, ch, Resample.DOWN) if resblock_updown else Downsample(ch, conv_resample)
                self.input_blocks.append(TimestepEmbedSequential(down))
                self.skip_channels.append(ch)
                downsampling *= 2
        self.middle_block = TimestepEmbedSequential(
            self._res_block(ch, ch), AttentionBlock(ch, **self._attention_kwargs), self._res_block(ch, ch)
        )
        self.middle_channels, self.middle_downsampling = ch, downsampling

    def _res_block(self, channels: int, out_channels: int, resample: Resample = Resample.NONE) -> ResBlock:
        return ResBlock(channels, out_channels=out_channels, resample=resample, **self._block_kwargs)

    def _block(self, channels: int, out_channels: int, downsampling: int) -> TimestepEmbedSequential:
        layers: list[nn.Module] = [self._res_block(channels, out_channels)]
        if downsampling in self.attention_resolutions:
            layers.append(AttentionBlock(out_channels, **self._attention_kwargs))
        return TimestepEmbedSequential(*layers)

    def embed_time(self, timesteps: Tensor) -> Tensor:
        return self.time_embed(timestep_embedding(timesteps, self.model_channels))


class UNetModel(_DownwardPath):
    """The score network: model output for (x_t, t, y, z).

    Args:
        image_size: height and width of the images in pixels.
        in_channels, out_channels: channels of the images and of the output (twice as many with a learned variance).
        model_channels: base width, a multiple of 32.
        num_res_blocks, attention_resolutions, dropout, channel_mult, conv_resample: as in `_DownwardPath`.
        num_classes: number of classes; None for a network without a class `y`.
        cond_dim: width of the conditioning vector z; None for a network without one.
        cond_hidden: width of a hidden layer in the embedding of z; 0 for a single linear layer, as published.
        cond_blocks: number of blocks of z that have a hidden layer of their own, as in `mlp`.
        learned_null: learn the embedding of the null token, instead of embedding z = 0.
        patch_size: side of the input patches that are stacked into channels; 1 in the published network.
        backbone: the other arguments of `_DownwardPath`.

    The order of the first ten arguments is that of guided-diffusion.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Collection[int],
        dropout: float = 0.0,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        conv_resample: bool = True,
        num_classes: int | None = None,
        *,
        cond_dim: int | None = None,
        cond_hidden: int = 0,
        cond_blocks: int = 1,
        learned_null: bool = False,
        patch_size: int = 1,
        **backbone: Any,
    ) -> None:
        sizes = (in_channels * patch_size**2, model_channels, num_res_blocks, attention_resolutions)
        super().__init__(*sizes, dropout, channel_mult, conv_resample, **backbone)
        factor = patch_size * 2 ** (len(self.channel_mult) - 1)
        if image_size % factor:
            levels = f"{len(self.channel_mult)} levels"
            raise InputError(f"image_size: expected a multiple of {factor} for {levels}, got {image_size}")
        self.image_size, self.in_channels, self.out_channels = image_size, in_channels, out_channels
        self.num_classes, self.cond_dim, self.patch_size = num_classes, cond_dim, patch_size
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, self.emb_channels)
        if cond_dim is not None:
            widths = [cond_dim, cond_hidden, self.emb_channels]
            self.up_emb: nn.Module = mlp(widths, cond_blocks) if cond_hidden else nn.Linear(cond_dim, self.emb_channels)
        self.null_emb = nn.Parameter(torch.zeros(self.emb_channels)) if cond_dim and learned_null else None

        skips = list(self.skip_channels)
        ch, downsampling = self.middle_channels, self.middle_downsampling
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(self.channel_mult))):
            out = mult * model_channels
            for i in range(self.num_res_blocks + 1):
                block = self._block(ch + skips.pop(), out, downsampling)
                ch = out
                if level and i == self.num_res_blocks:
                    updown = self.resblock_updown
                    block.append(self._res_block(ch, ch, Resample.UP) if updown else Upsample(ch, self.conv_resample))
                    downsampling //= 2
                self.output_blocks.append(block)
        self.out = nn.Sequential(
            normalization(ch), nn.SiLU(), zero_module(nn.Conv2d(ch, out_channels * patch_size**2, 3, padding=1))
        )

    def embed_condition(self, z: Tensor | None, keep: Tensor | None, batch: int) -> Tensor:
        """Embeds z, or the null token where z is None or `keep` is False: (B, emb_channels)."""
        if z is not None and keep is None:
            return self.up_emb(z)
        if self.null_emb is None:
            assert self.cond_dim is not None
            null = self.up_emb(torch.zeros(batch, self.cond_dim, device=next(self.parameters()).device))
        else:
            null = self.null_emb.expand(batch, -1)
        if z is None:
            return null
        embedded = self.up_emb(z)
        return torch.where(keep[:, None], embedded, null.to(embedded.dtype))  # type: ignore[index]

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        y: Tensor | None = None,
        z: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Returns the model output (B, out_channels, H, W).

        Args:
            x: (B, in_channels, H, W).
            timesteps: (B,), integer or fractional.
            y: (B,) class indices; required if and only if the network has classes.
            z: (B, cond_dim); None is the null token.
            keep: (B,) bool; where False, z is replaced by the null token.
        """
        if (y is not None) != (self.num_classes is not None):
            expected, given = ("none", "class labels") if self.num_classes is None else ("class labels", "none")
            raise InputError(f"y: expected {expected} for this network, got {given}")
        if z is not None and self.cond_dim is None:
            raise InputError(f"z: expected none for an unconditional network, got shape {tuple(z.shape)}")
        with torch.autocast(x.device.type, enabled=False):  # full precision for the labels
            emb = self.embed_time(timesteps)
            if y is not None:
                emb = emb + self.label_emb(y)
            if self.cond_dim is not None:
                emb = emb + self.embed_condition(z, keep, x.shape[0])
        skips = []
        h = F.pixel_unshuffle(x, self.patch_size)
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        return F.pixel_shuffle(self.out(h), self.patch_size)


class EncoderUNetModel(_DownwardPath):
    """The downward half of the U-Net with a pooled head: an anti-causal predictor on noised images.

    Args:
        image_size, in_channels, model_channels: as in `UNetModel`.
        out_channels: number of classes or of regression outputs.
        pool: "adaptive" (mean over positions), "attention", "spatial" or "spatial_v2" (means of every block's output).
        backbone: the other arguments of `_DownwardPath`.
    """

    POOLS = ("adaptive", "attention", "spatial", "spatial_v2")

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        *,
        pool: str = "adaptive",
        **backbone: Any,
    ) -> None:
        super().__init__(in_channels, model_channels, **backbone)
        if pool not in self.POOLS:
            raise InputError(f"pool: expected one of {', '.join(self.POOLS)}, got {pool!r}")
        self.pool, self.out_channels = pool, out_channels
        ch, features = self.middle_channels, sum(self.skip_channels) + self.middle_channels
        if pool == "adaptive":
            self.out = nn.Sequential(
                normalization(ch),
                nn.SiLU(),
                nn.AdaptiveAvgPool2d((1, 1)),
                zero_module(nn.Conv2d(ch, out_channels, 1)),
                nn.Flatten(),
            )
        elif pool == "attention":
            head_channels = self._attention_kwargs["num_head_channels"]
            if head_channels == -1:
                raise InputError("num_head_channels: expected a positive number for attention pooling, got -1")
            side = image_size
            for _ in self.channel_mult[1:]:  # a strided convolution rounds up, pooling rounds down
                side = (side + 1) // 2 if self.conv_resample and not self.resblock_updown else side // 2
            attend = AttentionPool2d(side, ch, head_channels, out_channels)
            self.out = nn.Sequential(normalization(ch), nn.SiLU(), attend)
        elif pool == "spatial":
            self.out = nn.Sequential(nn.Linear(features, 2048), nn.ReLU(), nn.Linear(2048, out_channels))
        else:
            self.out = nn.Sequential(
                nn.Linear(features, 2048), normalization(2048), nn.SiLU(), nn.Linear(2048, out_channels)
            )

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Maps images (B, C, H, W) at steps (B,) to logits or regression outputs (B, out_channels)."""
        emb = self.embed_time(timesteps)
        pooled = []
        h = x
        for block in self.input_blocks:
            h = block(h, emb)
            pooled.append(h.mean(dim=(2, 3)))
        h = self.middle_block(h, emb)
        if self.pool.startswith("spatial"):
            return self.out(torch.cat([*pooled, h.mean(dim=(2, 3))], dim=-1))
        return self.out(h)
