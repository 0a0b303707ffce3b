"""A CausalVAE-style model (Yang et al., CVPR 2021): CausalDiffAE's encoder, structural model and label prior, with a
convolutional decoder instead of diffusion.

    x0 -> q(u | x0) -> z = scm(u) -> decoder -> mean of x0      loss = mse + gamma label_kl + 2 sigma^2 / P prior_kl

The error is a mean over the P values of an image, so 2 sigma^2 / P is the weight of KL(q(u | x0) || p(u)) in the
evidence lower bound with a Gaussian decoder of standard deviation sigma (`LossConfig.decoder_std`) for any image size.
The label term has the weight gamma that it has in CausalDiffAE; in the bound it would hardly tie z to the labels.
There is no x_T: information that is not in z is lost. Unlabelled images are decoded from their own z.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from causaldiffae.config import ModelConfig, parse_ints
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.encoder import CausalEncoder
from causaldiffae.errors import InputError
from causaldiffae.model import CausalAutoencoder, TrainingDraws, TrainingStep, encoder_and_scm
from causaldiffae.nn import mean_flat
from causaldiffae.scm import LatentSCM


class ConvDecoder(nn.Module):
    """Maps latents (and a class) to an image: a linear map, then nearest-neighbour upsampling and convolutions.

    Args:
        latents: total number of latents.
        image_size, out_channels: size in pixels and number of channels of the images.
        channels: widths, starting at the smallest feature map; each step doubles the resolution.
        num_classes: number of classes, whose embedding is added to the features; None for no classes.
    """

    def __init__(
        self,
        latents: int,
        image_size: int,
        out_channels: int,
        channels: tuple[int, ...],
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.image_size, self.side = image_size, -(-image_size // 2 ** len(channels))
        shape = (channels[0], self.side, self.side)
        self.expand = nn.Sequential(nn.Linear(latents, channels[0] * self.side**2), nn.Unflatten(1, shape))
        self.label_emb = None if num_classes is None else nn.Embedding(num_classes, channels[0] * self.side**2)
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(channels, (*channels[1:], channels[-1]), strict=True):
            layers += [nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(fan_in, fan_out, 3, padding=1)]
        # No tanh: its gradient vanishes on a background of -1.
        self.layers = nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(channels[-1], out_channels, 3, padding=1))

    def forward(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        """Maps latents (B, n d) and classes (B,), if any, to images (B, C, H, W) near [-1, 1]."""
        if (classes is None) != (self.label_emb is None):
            expected, given = ("none", "class labels") if self.label_emb is None else ("class labels", "none")
            raise InputError(f"y: expected {expected} for this decoder, got {given}")
        h = self.expand(z)
        if self.label_emb is not None:
            h = h + self.label_emb(classes).reshape(h.shape)
        return self.layers(h)[:, :, : self.image_size, : self.image_size]


class CausalVAE(CausalAutoencoder):
    """Encoder, structural causal model and convolutional decoder."""

    def __init__(self, encoder: CausalEncoder, scm: LatentSCM, decoder: ConvDecoder) -> None:
        super().__init__(encoder, scm)
        self.decoder = decoder

    @classmethod
    def from_config(cls, config: ModelConfig, spec: DatasetSpec, learn_sigma: bool = False) -> CausalVAE:
        """Builds the encoder and structural model of a CausalDiffAE of this configuration, and a decoder."""
        if learn_sigma:
            raise InputError("learn_sigma: expected False for model_type causalvae, which has no diffusion process")
        encoder, scm = encoder_and_scm(config, spec)
        channels = parse_ints("decoder_channels", config.decoder_channels)
        classes = spec.num_classes if config.class_cond else None
        latents = scm.block_size * len(spec.graph)
        return cls(encoder, scm, ConvDecoder(latents, spec.image_size, spec.channels, channels, classes))

    @property
    def class_cond(self) -> bool:
        """Whether the decoder is conditioned on a class."""
        return self.decoder.label_emb is not None

    def decode(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        """Maps latents (B, n, d) to images (B, C, H, W) in [-1, 1]."""
        return self.decode_unclipped(z, classes).clamp(-1, 1)

    def decode_unclipped(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        """As `decode`, without clipping, for training."""
        return self.decoder(z.flatten(1), classes if self.class_cond else None)


class CausalVAETrainingStep(TrainingStep):
    """CausalDiffAE's loss with the decoder's squared error instead of the diffusion loss."""

    def prior_factor(self, x_start: Tensor) -> float:
        """Returns 2 sigma^2 / (P gamma), for the final gamma."""
        std, gamma = self.config.decoder_std, self.config.kl_weight
        return 2.0 * std**2 / (x_start[0].numel() * gamma) if std > 0 and gamma > 0 else 1.0

    def image_terms(
        self, x_start: Tensor, z: Tensor, classes: Tensor | None, keep: Tensor, draws: TrainingDraws
    ) -> dict[str, Tensor]:
        """Returns the squared error of the decoded image, (B,)."""
        mse = mean_flat((cast(CausalVAE, self.model).decode_unclipped(z, classes) - x_start) ** 2)
        return {"mse": mse, "loss": mse}
