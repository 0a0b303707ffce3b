"""CausalDiffAE: a causal encoder, a structural causal model over its latents, and a diffusion decoder.

    x0 (B,C,H,W) -> encoder -> q(u | x0), u (B,n,d) -> structural model -> z (B,n,d) -> U-Net: eps(x_t, t, z)

(Komanduri et al., ECAI 2024, arXiv 2404.17735.) Training minimises the diffusion loss plus gamma times two divergences:
q(z | x0, y) from a prior tied to the labels, and q(u | x0) from the exogenous prior; see `losses.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from causaldiffae.config import LossConfig, ModelConfig, parse_ints
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.encoder import CausalEncoder, Posterior
from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import GaussianDiffusion
from causaldiffae.losses import gaussian_nll, label_kl, label_kl_by_variable, masked_mean, prior_kl
from causaldiffae.nn import repeat_times, sum_flat
from causaldiffae.scm import Do, LatentSCM
from causaldiffae.unet import UNetModel

MAX_NAMED = 16
"""Variables whose share of the label term is logged by name."""


def unet_from_config(config: ModelConfig, spec: DatasetSpec, learn_sigma: bool, cond_dim: int | None) -> UNetModel:
    """The score network of a configuration; attention resolutions are sides of feature maps, as in guided-diffusion."""
    multipliers = parse_ints("channel_mult", config.channel_mult)
    sides = parse_ints("attention_resolutions", config.attention_resolutions)
    map_sizes = [spec.image_size // config.patch_size // 2**level for level in range(len(multipliers))]
    for side in set(sides) - set(map_sizes):
        meant = [size for level, size in enumerate(map_sizes) if map_sizes[0] // side == 2**level]
        effect = f"as published, it stands for {meant[0]}" if meant else "it has no effect"
        warnings.warn(f"attention_resolutions: {side} is none of the sides {map_sizes}; {effect}", stacklevel=2)
    factors = {map_sizes[0] // side for side in sides}
    return UNetModel(
        image_size=spec.image_size,
        in_channels=spec.channels,
        model_channels=config.num_channels,
        out_channels=spec.channels * (2 if learn_sigma else 1),
        num_res_blocks=config.num_res_blocks,
        attention_resolutions=factors,
        dropout=config.dropout,
        channel_mult=multipliers,
        conv_resample=config.conv_resample,
        num_classes=spec.num_classes if config.class_cond else None,
        use_checkpoint=config.use_checkpoint,
        num_heads=config.num_heads,
        num_head_channels=config.num_head_channels,
        use_scale_shift_norm=config.use_scale_shift_norm,
        resblock_updown=config.resblock_updown,
        use_new_attention_order=config.use_new_attention_order,
        cond_dim=cond_dim,
        cond_hidden=config.cond_hidden,
        learned_null=config.learned_null,
        patch_size=config.patch_size,
    )


def encoder_and_scm(config: ModelConfig, spec: DatasetSpec) -> tuple[CausalEncoder, LatentSCM]:
    """The encoder and structural model of a configuration, over the same latents."""
    n = len(spec.graph)
    block_size = config.block_size_for(n)
    encoder = CausalEncoder(
        spec.image_size,
        spec.channels,
        n,
        block_size,
        parse_ints("encoder_channels", config.encoder_channels),
        config.encoder_norm,
    )
    scm = LatentSCM(
        spec.graph,
        block_size,
        config.mechanism,
        config.mechanism_width or n * block_size,
        config.mechanism_depth,
        config.min_scale,
    )
    return encoder, scm


def label_scm(config: ModelConfig, spec: DatasetSpec) -> LatentSCM:
    """The structural model of a configuration over the labels themselves, blocks of one entry."""
    n = len(spec.graph)
    width = config.mechanism_width or n * config.block_size_for(n)
    return LatentSCM(spec.graph, 1, config.mechanism, width, config.mechanism_depth, config.min_scale)


class CausalAutoencoder(nn.Module):
    """Encoder and structural causal model: from images to causal variables, whatever draws the images again.

    Args:
        encoder, scm: over the same (B, n, d) latents.
    """

    needs_labels = False
    unconditional_abduction = False

    def __init__(self, encoder: CausalEncoder, scm: LatentSCM) -> None:
        super().__init__()
        if (len(scm.graph), scm.block_size) != (encoder.num_variables, encoder.block_size):
            raise InputError(
                f"model: encoder {encoder.num_variables} x {encoder.block_size} and structural model "
                f"{len(scm.graph)} x {scm.block_size} do not fit"
            )
        self.encoder, self.scm = encoder, scm

    @property
    def latent_shape(self) -> tuple[int, int]:
        """n and d of the latents (B, n, d)."""
        return len(self.scm.graph), self.scm.block_size

    def encode(self, x_start: Tensor) -> Posterior:
        """q(u | x0) for images (B, C, H, W) in [-1, 1]: mean and log-variance, each (B, n, d)."""
        with torch.autocast(x_start.device.type, enabled=False):  # labels are read here: full precision
            return self.encoder(x_start.float())

    def abduct(self, x_start: Tensor, labels: Tensor | None = None) -> Tensor:
        """Exogenous noise of images: the posterior's mean, (B, n, d). Labels are not looked at."""
        return self.encode(x_start).mean

    def predict(self, u: Tensor, do: Do | None = None) -> Tensor:
        """Causal variables z from exogenous noise, (B, n, d) each; `do` is in normalised label units."""
        return self.scm.predict(u, do)

    def read_labels(self, z: Tensor) -> Tensor:
        """Normalised labels (B, n) that blocks z (B, n, d) stand for: the mean over the block, whose prior is y_i 1."""
        return z.mean(dim=-1)


class CausalDiffAE(CausalAutoencoder):
    """Encoder, structural causal model and score network.

    Args:
        encoder, scm, unet: the parts; `unet.cond_dim` must be n * d.
        block_null: whether every block has a learned null vector, so that variables can be dropped one by one.
    """

    def __init__(self, encoder: CausalEncoder, scm: LatentSCM, unet: UNetModel, block_null: bool = False) -> None:
        super().__init__(encoder, scm)
        n, d = self.latent_shape
        if unet.cond_dim != n * d:
            raise InputError(f"model: {n} x {d} latents and U-Net conditioning {unet.cond_dim} do not fit")
        self.unet = unet
        self.null_blocks = nn.Parameter(torch.randn(n, d)) if block_null else None

    @classmethod
    def from_config(cls, config: ModelConfig, spec: DatasetSpec, learn_sigma: bool = False) -> CausalDiffAE:
        """Builds the model for a data set."""
        encoder, scm = encoder_and_scm(config, spec)
        unet = unet_from_config(config, spec, learn_sigma, scm.block_size * len(spec.graph))
        return cls(encoder, scm, unet, config.block_null)

    @property
    def class_cond(self) -> bool:
        """Whether the U-Net is conditioned on a class."""
        return self.unet.num_classes is not None

    def drop_blocks(self, z: Tensor, keep_blocks: Tensor) -> Tensor:
        """Latents (B, n, d) with the blocks where `keep_blocks` (B, n) or (n,) is False replaced by their null vectors.

        Raises:
            InputError: if the model was built without null vectors.
        """
        if self.null_blocks is None:
            raise InputError("block_null: this model was trained without null vectors for single variables")
        return torch.where(keep_blocks[..., None], z, self.null_blocks.to(z.dtype))

    def model_output(
        self, x_t: Tensor, t: Tensor, z: Tensor | None, classes: Tensor | None = None, keep: Tensor | None = None
    ) -> Tensor:
        """eps_theta(x_t, t, y, z) for latents (B, n, d), or under the null token where z is None or `keep` is False."""
        return self.unet(x_t, t, classes, None if z is None else z.flatten(1), keep)

    def model_outputs(
        self, x_t: Tensor, t: Tensor, conditions: Sequence[Tensor | None], classes: Tensor | None = None
    ) -> list[Tensor]:
        """eps under each of several latents (B, n, d), None being the null token, evaluated as one batch."""
        return batched_model_outputs(self.unet, x_t, t, conditions, classes)


def batched_model_outputs(
    unet: UNetModel, x_t: Tensor, t: Tensor, conditions: Sequence[Tensor | None], classes: Tensor | None
) -> list[Tensor]:
    """The U-Net's output under each condition (B, n, d) or None, in one call on all of them."""
    if len(conditions) == 1:
        return [unet(x_t, t, classes, None if conditions[0] is None else conditions[0].flatten(1))]
    count, batch = len(conditions), x_t.shape[0]
    null = x_t.new_zeros((batch, unet.cond_dim or 0))
    z = torch.cat([null if condition is None else condition.flatten(1) for condition in conditions])
    keep = torch.tensor([condition is not None for condition in conditions], device=x_t.device)
    several = None if classes is None else classes.repeat(count)
    output = unet(x_t.repeat(count, 1, 1, 1), repeat_times(t, count), several, z, keep.repeat_interleave(batch))
    return list(output.chunk(count))


@dataclass(frozen=True)
class TrainingDraws:
    """The random numbers of one training step.

    All of batch length B: steps and their weights, noise on images (B, C, H, W) and on latents (B, n, d), which images
    keep their latents, which of the blocks (B, n) are kept, and which images are drawn from latents of the label prior
    (`LossConfig.label_forcing`).
    """

    t: Tensor
    weights: Tensor
    noise: Tensor
    latent_noise: Tensor
    keep: Tensor
    keep_blocks: Tensor
    forced: Tensor


def trial_draws(x_start: Tensor, t: Tensor, latent_shape: tuple[int, int]) -> TrainingDraws:
    """Draws for images (B, C, H, W) that nothing is learned from, at steps t (B,): every image keeps its latents."""
    everything = torch.ones(len(x_start), dtype=torch.bool, device=x_start.device)
    return TrainingDraws(
        t=t,
        weights=torch.ones(len(x_start), device=x_start.device),
        noise=torch.randn_like(x_start),
        latent_noise=torch.randn(len(x_start), *latent_shape, device=x_start.device),
        keep=everything,
        keep_blocks=everything[:, None].expand(-1, latent_shape[0]),
        forced=~everything,
    )


class TrainingStep(nn.Module):
    """The loss of one batch as a module, so that everything that is trained goes through one forward.

    Its two halves, `represent` and `image_terms`, are what the models it is compared with replace.
    """

    def __init__(self, model: nn.Module, diffusion: GaussianDiffusion, config: LossConfig) -> None:
        super().__init__()
        if config.block_drop_prob and getattr(model, "null_blocks", None) is None:
            raise InputError("block_drop_prob: the model's blocks have no null vectors; add --block_null True")
        self.model, self.diffusion, self.config = model, diffusion, config

    def forward(
        self,
        x_start: Tensor,
        labels: Tensor,
        classes: Tensor | None,
        labelled: Tensor,
        draws: TrainingDraws,
        kl_weight: float,
        labelled_share: float | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, and its named parts.

        Args:
            x_start: (B, C, H, W) in [-1, 1]; labels: (B, n) normalised; classes: (B,) or None.
            labelled: (B,) bool; images without labels train encoder and decoder under the null token and enter neither
                `label_kl` nor `mechanism_nll`.
            kl_weight: gamma of this step.
            labelled_share: the labelled images' share of the whole batch that this is a piece of; by default this piece
                is the whole.

        Returns:
            The scalar loss, and per-image parts (B,): `loss` (of the image), `mse`, `prior_kl`, `label_kl` (and its
            share of each of the first variables, `label_kl_NAME`), `label_mse`, and the scalar `mechanism_nll`.
        """
        z, terms = self.represent(x_start, labels, labelled, draws, labelled_share)
        terms |= self.image_terms(x_start, z, classes, draws.keep & labelled, draws)
        loss = (draws.weights * terms["loss"]).mean()
        loss = loss + kl_weight * (terms["prior_kl"].mean() + masked_mean(terms["label_kl"], labelled, labelled_share))
        loss = loss + self.config.mechanism_weight * terms["mechanism_nll"]
        return loss, terms

    def represent(
        self, x_start: Tensor, labels: Tensor, labelled: Tensor, draws: TrainingDraws, share: float | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Causal variables z (B, n, d) sampled from q(z | x0), and the terms that shape them.

        Where an image is `forced`, z is drawn from the label prior p(z | y) in place of q(z | x0), which training pulls
        towards it: the image is then drawn from its labels alone, whatever else the encoder hides in the blocks.
        """
        model, config = cast(CausalAutoencoder, self.model), self.config
        posterior = model.encode(x_start)
        spread = config.variance_factor**0.5 * torch.exp(0.5 * posterior.logvar)
        u = posterior.mean + spread * draws.latent_noise
        z, stretch = model.scm.predict_with_stretch(u)
        # Given its parents, block i is Gaussian with this mean and log-variance.
        z_mean = z - torch.exp(stretch) * (u - posterior.mean)
        z_logvar = posterior.logvar + 2.0 * stretch if config.label_kl_variance == "posterior" else 0.0
        if config.label_forcing:
            from_labels = labels[:, :, None] + config.label_std * draws.latent_noise
            z = torch.where((draws.forced & labelled)[:, None, None], from_labels, z)
        summands = label_kl_by_variable(z_mean, z_logvar, labels, config.label_std, labelled)
        named = zip(model.scm.graph.names[:MAX_NAMED], summands.unbind(1), strict=False)
        return z, {
            **({f"label_kl_{name}": kl for name, kl in named} if labels.shape[1] > 1 else {}),
            "prior_kl": prior_kl(posterior, model.scm.log_scale),
            "label_kl": label_kl(z_mean, z_logvar, labels, config.label_std, labelled),
            "mechanism_nll": mechanism_nll(model.scm, labels, labelled, share),
            "label_mse": squared_error(model.read_labels(z_mean.detach()), labels, labelled),
        }

    def image_terms(
        self, x_start: Tensor, z: Tensor, classes: Tensor | None, keep: Tensor, draws: TrainingDraws
    ) -> dict[str, Tensor]:
        """How well the image is drawn from z, or from the null token where `keep` is False: `loss` and `mse` (B,)."""
        model = cast(CausalDiffAE, self.model)
        if self.config.block_drop_prob:
            z = model.drop_blocks(z, draws.keep_blocks)
        return self.diffusion.training_losses(
            lambda x_t, t: model.model_output(x_t, t, z, classes, keep), x_start, draws.t, noise=draws.noise
        )


def squared_error(read: Tensor, labels: Tensor, labelled: Tensor) -> Tensor:
    """Mean squared error of labels (B, n) per image, 0 for images without labels."""
    error = ((read - labels) ** 2).mean(dim=1)
    return torch.where(labelled, error, torch.zeros_like(error))


def mechanism_nll(scm: LatentSCM, labels: Tensor, labelled: Tensor, share: float | None = None) -> Tensor:
    """-log p(y_i | y_pa(i)) per block entry under the mechanisms, summed over children and averaged over labelled
    images.

    The labels' blocks y_i 1 are known exactly, so the mechanisms can be fitted on them without the encoder's noise.
    """
    if scm.mechanism == "one_hop" or not scm.graph.edges:
        return labels.new_zeros(())
    anchors = labels[:, :, None].expand(-1, -1, scm.block_size)
    u = scm.abduct(anchors)
    stretch = scm.predict_with_stretch(u).log_stretch if scm.mechanism == "affine" else torch.zeros_like(u)
    nll = gaussian_nll(u, scm.log_scale[:, None]) + stretch
    has_parents = torch.tensor([bool(p) for p in scm.parent_index], device=labels.device)
    return masked_mean(sum_flat(torch.where(has_parents[:, None], nll, 0.0)) / scm.block_size, labelled, share)
