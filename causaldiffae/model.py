"""CausalDiffAE: a causal encoder, a structural causal model over its latents, and a diffusion decoder.

    x0 (B,C,H,W) -> encoder -> q(u | x0), u (B,n,d) -> structural model -> z (B,n,d) -> U-Net: output(x_t, t, z)

(Komanduri et al., ECAI 2024, arXiv 2404.17735.) Training minimises the diffusion loss plus gamma times two KL
divergences: of q(z | x0, y) from the label prior, and of q(u | x0) from the exogenous prior; see `losses.py`.
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
from causaldiffae.losses import Observed, gaussian_nll, label_kl, label_kl_by_variable, prior_kl, squared_error
from causaldiffae.nn import batched_model_outputs, sum_flat
from causaldiffae.scm import Do, LatentSCM
from causaldiffae.unet import UNetModel

MAX_NAMED = 16
"""Maximum number of variables whose label term is logged by name."""

Represented = tuple[Tensor, dict[str, Tensor]]
"""Causal variables z (B, n, d), and the terms of the loss that depend on the latents alone."""


def unet_from_config(config: ModelConfig, spec: DatasetSpec, learn_sigma: bool, cond_dim: int | None) -> UNetModel:
    """Builds the score network; attention resolutions are feature map sizes, as in guided-diffusion."""
    multipliers = parse_ints("channel_mult", config.channel_mult)
    sides = parse_ints("attention_resolutions", config.attention_resolutions)
    map_sizes = [spec.image_size // config.patch_size // 2**level for level in range(len(multipliers))]
    for side in set(sides) - set(map_sizes):
        same = [size for level, size in enumerate(map_sizes) if map_sizes[0] // side == 2**level]
        effect = f"attention is applied at {same[0]}, as in the published code" if same else "it has no effect"
        warnings.warn(f"attention_resolutions: expected sides among {map_sizes}, got {side}; {effect}", stacklevel=2)
    alike = config.model_type != "diffscm" or cond_dim == len(spec.graph)  # categories have indicators
    return UNetModel(
        image_size=spec.image_size,
        in_channels=spec.channels,
        model_channels=config.num_channels,
        out_channels=spec.channels * (2 if learn_sigma else 1),
        num_classes=spec.num_classes if config.class_cond else None,
        cond_dim=cond_dim,
        cond_hidden=config.cond_hidden,
        cond_blocks=len(spec.graph) if config.separate_embeddings and alike else 1,
        learned_null=config.learned_null,
        patch_size=config.patch_size,
        num_res_blocks=config.num_res_blocks,
        attention_resolutions={map_sizes[0] // side for side in sides},
        dropout=config.dropout,
        channel_mult=multipliers,
        conv_resample=config.conv_resample,
        num_heads=config.num_heads,
        num_head_channels=config.num_head_channels,
        use_scale_shift_norm=config.use_scale_shift_norm,
        resblock_updown=config.resblock_updown,
        use_new_attention_order=config.use_new_attention_order,
        use_checkpoint=config.use_checkpoint,
    )


def encoder_and_scm(config: ModelConfig, spec: DatasetSpec) -> tuple[CausalEncoder, LatentSCM]:
    """Builds the encoder and the structural model, over the same latents."""
    n, block_size = len(spec.graph), config.block_size_for(len(spec.graph))
    widths = parse_ints("encoder_channels", config.encoder_channels)
    encoder = CausalEncoder(spec.image_size, spec.channels, n, block_size, widths, config.encoder_norm)
    return encoder, _scm(config, spec, block_size)


def label_scm(config: ModelConfig, spec: DatasetSpec) -> LatentSCM:
    """Builds the structural model over the labels, with blocks of one entry per category, at least one."""
    categories = spec.normalised_categories() if config.discrete else {}
    return _scm(config, spec, max(map(len, categories.values()), default=1))


def _scm(config: ModelConfig, spec: DatasetSpec, block_size: int) -> LatentSCM:
    width = config.mechanism_width or len(spec.graph) * config.block_size_for(len(spec.graph))
    categories = spec.normalised_categories() if config.discrete else {}
    options = (config.mechanism, width, config.mechanism_depth, config.min_scale, categories)
    return LatentSCM(spec.graph, block_size, *options)


class StructuralModel(nn.Module):
    """Base of all models: latents z (B, n, d) with a structural causal model `scm`."""

    scm: LatentSCM

    @property
    def latent_shape(self) -> tuple[int, int]:
        """n and d of the latents (B, n, d)."""
        return len(self.scm.graph), self.scm.block_size

    @property
    def discrete(self) -> bool:
        """Whether some variable is discrete, so that its labels are always those of a category."""
        return bool(self.scm.discrete)

    def predict(self, u: Tensor, do: Do | None = None, most_probable: bool = False) -> Tensor:
        """Maps noise to causal variables, (B, n, d) each; `do` is in normalised units, see `LatentSCM.predict`."""
        return self.scm.predict(u, do, most_probable)

    def read_labels(self, z: Tensor) -> Tensor:
        """Returns the normalised labels (B, n) of z (B, n, d): block means, and the categories of the nearest codes."""
        return self.scm.read_labels(z)


class CausalAutoencoder(StructuralModel):
    """Encoder and structural causal model, without a decoder: maps images to causal variables.

    Args:
        encoder, scm: modules over the same latents (B, n, d).
    """

    needs_labels = False
    unconditional_abduction = False

    def __init__(self, encoder: CausalEncoder, scm: LatentSCM) -> None:
        super().__init__()
        of_encoder, of_scm = (encoder.num_variables, encoder.block_size), (len(scm.graph), scm.block_size)
        if of_encoder != of_scm:
            raise InputError(f"model: expected an encoder of {of_scm[0]} x {of_scm[1]} latents, got {of_encoder}")
        self.encoder, self.scm = encoder, scm

    def encode(self, x_start: Tensor) -> Posterior:
        """Returns q(u | x0) for images (B, C, H, W) in [-1, 1]: mean and log-variance, each (B, n, d)."""
        with torch.autocast(x_start.device.type, enabled=False):  # labels are computed from it
            return self.encoder(x_start.float())

    def abduct(self, x_start: Tensor, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Returns the exogenous noise of images, (B, n, d): the mean of the posterior. Labels are not used.

        Args:
            generator: for the noise of discrete variables, drawn from its posterior given the category that the encoder
                reads; on the device of the images, by default seeded with 0.
        """
        return self.scm.infer(self.encode(x_start).mean, generator)

    def abduct_given(self, x_start: Tensor, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """As `abduct`, from observed normalised labels (B, n) where they are not NaN, and else from the encoder."""
        return self.with_labels(self.abduct(x_start, None, generator), labels, generator)

    def with_labels(self, u: Tensor, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Replaces the noise u (B, n, d) of variables whose normalised label (B, n) is not NaN by that of the label."""
        z, known = self.predict(u), ~labels.isnan()
        given = self.scm.label_blocks(labels.nan_to_num().to(z.dtype))
        return self.scm.abduct(torch.where(known[:, :, None], given, z), generator)


class LatentConditional(nn.Module):
    """Mixin of the models that condition a U-Net on z (B, n, d)."""

    unet: UNetModel

    @property
    def class_cond(self) -> bool:
        """Whether the U-Net is conditioned on a class."""
        return self.unet.num_classes is not None

    def model_output(
        self, x_t: Tensor, t: Tensor, z: Tensor | None, classes: Tensor | None = None, keep: Tensor | None = None
    ) -> Tensor:
        """Returns the model output under z (B, n, d), or the null token if z is None or `keep` is False."""
        return self.unet(x_t, t, classes, None if z is None else z.flatten(1), keep)

    def model_outputs(
        self, x_t: Tensor, t: Tensor, conditions: Sequence[Tensor | None], classes: Tensor | None = None
    ) -> list[Tensor]:
        """Returns the output under each of several z (B, n, d), None for the null token, as one batch."""
        return batched_model_outputs(self.model_output, x_t, t, conditions, classes)


class CausalDiffAE(LatentConditional, CausalAutoencoder):
    """Encoder, structural causal model and score network.

    Args:
        encoder, scm, unet: the parts; `unet.cond_dim` must be n * d.
        block_null: give every block a learned null vector, so that single variables can be dropped.
    """

    def __init__(self, encoder: CausalEncoder, scm: LatentSCM, unet: UNetModel, block_null: bool = False) -> None:
        super().__init__(encoder, scm)
        n, d = self.latent_shape
        if unet.cond_dim != n * d:
            raise InputError(f"model: expected a U-Net conditioned on {n} x {d} latents, got width {unet.cond_dim}")
        self.unet = unet
        self.null_blocks = nn.Parameter(torch.randn(n, d)) if block_null else None

    @classmethod
    def from_config(cls, config: ModelConfig, spec: DatasetSpec, learn_sigma: bool = False) -> CausalDiffAE:
        """Builds the model for a data set."""
        encoder, scm = encoder_and_scm(config, spec)
        unet = unet_from_config(config, spec, learn_sigma, scm.block_size * len(spec.graph))
        return cls(encoder, scm, unet, config.block_null)

    def drop_blocks(self, z: Tensor, keep_blocks: Tensor) -> Tensor:
        """Replaces the blocks of z (B, n, d) where `keep_blocks` (B, n) or (n,) is False by their null vectors.

        Raises:
            InputError: if the model was built without null vectors.
        """
        if self.null_blocks is None:
            raise InputError("block_null: expected a model with null vectors of single variables, got one without")
        return torch.where(keep_blocks[..., None], z, self.null_blocks.to(z.dtype))


class LabelModel(StructuralModel):
    """A structural model of the labels, for models without an encoder; label blocks (B, n, d) replace z.

    d is 1, or the largest number of categories of a discrete variable.
    """

    def __init__(self, scm: LatentSCM) -> None:
        super().__init__()
        self.scm = scm

    def abduct(self, x_start: Tensor, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Returns the exogenous noise (B, n, d) of normalised labels (B, n). Images are not used.

        Args:
            generator: for the noise of discrete variables, on the device of the images; by default seeded with 0.
        """
        if labels is None:
            raise InputError("labels: expected the labels of the images for a model without an encoder, got none")
        return self.scm.abduct(self.scm.label_blocks(labels.to(x_start.dtype)), generator)


@dataclass(frozen=True)
class TrainingDraws:
    """The random numbers of one training step.

    Attributes:
        t, weights: (B,) time steps and their loss weights.
        noise: (B, C, H, W) noise on the images.
        latent_noise: (B, n, d) noise on the latents.
        keep: (B,) bool mask of images that keep their latents; the others are trained with the null token.
        keep_blocks: (B, n) bool mask of blocks that are kept.
        forced: (B,) bool mask of images decoded from the label prior (`LossConfig.label_forcing`).
    """

    t: Tensor
    weights: Tensor
    noise: Tensor
    latent_noise: Tensor
    keep: Tensor
    keep_blocks: Tensor
    forced: Tensor


class TrainingStep(nn.Module):
    """The loss of one batch as a module, so that one forward pass (of DDP) uses all trained parts.

    DDP requires a gradient for every parameter that requires one; null vectors of blocks that are never dropped do not.
    Subclasses for other models override `represent` and `image_terms`.
    """

    def __init__(self, model: nn.Module, diffusion: GaussianDiffusion, config: LossConfig) -> None:
        super().__init__()
        null_blocks = getattr(model, "null_blocks", None)
        if config.block_drop_prob and null_blocks is None:
            raise InputError("block_drop_prob: expected a model with null blocks; add --block_null True")
        if null_blocks is not None:
            null_blocks.requires_grad_(config.block_drop_prob > 0)
        self.model, self.diffusion, self.config = model, diffusion, config

    def forward(
        self,
        x_start: Tensor,
        labels: Tensor,
        classes: Tensor | None,
        labelled: Tensor,
        draws: TrainingDraws,
        kl_weight: float,
        labelled_of_batch: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss and its terms.

        Args:
            x_start: (B, C, H, W) in [-1, 1].
            labels: (B, n) normalised; any finite number for a missing label.
            classes: (B,) or None.
            labelled: (B, n) bool, the observed labels, or (B,) bool, the images with all labels. Images without labels
                are decoded under the null token, and missing labels have no term in `label_kl` and `mechanism_nll`.
            kl_weight: gamma of this step.
            labelled_of_batch: `labelled` of the whole batch, for microbatches.

        Returns:
            The scalar loss, and per-image terms (B,): `loss` (of the image), `mse`, `prior_kl`, `label_kl` (and
            `label_kl_NAME` of the first variables), `label_mse`, and the scalar `mechanism_nll`.
        """
        observed = Observed.of(labelled, labelled_of_batch)
        z, terms = self.represent(x_start, labels, observed, draws)
        terms |= self.image_terms(x_start, z, classes, draws.keep & self.conditioned(observed), draws)
        loss = (draws.weights * terms["loss"]).mean()
        prior = self.prior_factor(x_start) * terms["prior_kl"].mean()
        loss = loss + kl_weight * (prior + observed.mean(terms["label_kl"]))
        loss = loss + self.mechanism_weight * terms["mechanism_nll"]
        return loss, terms

    def conditioned(self, observed: Observed) -> Tensor:
        """Returns which images are decoded from z, (B,) bool; the others are decoded under the null token."""
        return observed.images

    @property
    def mechanism_weight(self) -> float:
        """Weight of the likelihood of the labels under the mechanisms."""
        return self.config.mechanism_weight

    def prior_factor(self, x_start: Tensor) -> float:
        """Returns the factor on `prior_kl` relative to `label_kl`."""
        return 1.0

    def represent(self, x_start: Tensor, labels: Tensor, observed: Observed, draws: TrainingDraws) -> Represented:
        """Samples causal variables z (B, n, d) from q(z | x0); returns them and the loss terms of the latents.

        For `forced` images, blocks with a label are sampled from the label prior p(z | y) instead, which trains the
        decoder to follow the labels alone.
        """
        model, config = cast(CausalAutoencoder, self.model), self.config
        posterior = model.encode(x_start)
        std = config.variance_factor**0.5 * torch.exp(0.5 * posterior.logvar)
        u = posterior.mean + std * draws.latent_noise
        z, z_mean, stretch = model.scm.relaxed(posterior.mean, u)
        z_logvar = posterior.logvar + 2.0 * stretch if config.label_kl_variance == "posterior" else 0.0
        anchors = model.scm.label_blocks(labels)
        if config.label_forcing:
            from_labels = anchors + config.label_std * draws.latent_noise
            z = torch.where((draws.forced[:, None] & observed.labels)[:, :, None], from_labels, z)
        weights = observed.weights()
        by_variable = label_kl_by_variable(z_mean, z_logvar, anchors, config.label_std, weights)
        named = zip(model.scm.graph.names[:MAX_NAMED], by_variable.unbind(1), strict=False)
        return z, {
            **({f"label_kl_{name}": kl for name, kl in named} if labels.shape[1] > 1 else {}),
            "prior_kl": prior_kl(posterior, model.scm.log_scale, model.scm.is_discrete if model.discrete else None),
            "label_kl": label_kl(z_mean, z_logvar, anchors, config.label_std, weights),
            "mechanism_nll": mechanism_nll(model.scm, labels, observed),
            "label_mse": squared_error(model.read_labels(z_mean.detach()), labels, observed),
        }

    def image_terms(
        self, x_start: Tensor, z: Tensor, classes: Tensor | None, keep: Tensor, draws: TrainingDraws
    ) -> dict[str, Tensor]:
        """Returns `loss` and `mse` (B,) of the image given z, or given the null token where `keep` is False."""
        model = cast(CausalDiffAE, self.model)
        if self.config.block_drop_prob:
            z = model.drop_blocks(z, draws.keep_blocks)
        return self.diffusion.training_losses(
            lambda x_t, t: model.model_output(x_t, t, z, classes, keep), x_start, draws.t, noise=draws.noise
        )


class LabelTrainingStep(TrainingStep):
    """The diffusion loss given the labels, and the likelihood of the labels under the structural model.

    Without an encoder, the likelihood is all that trains the mechanisms: those of `one_hop` have one as well, with
    residuals of scale 1, and a weight of 0, as in the published settings, counts as 1.
    """

    @property
    def mechanism_weight(self) -> float:
        """As configured; 0 counts as 1."""
        return self.config.mechanism_weight or 1.0

    def conditioned(self, observed: Observed) -> Tensor:
        """Returns which images are decoded from their labels, (B,) bool: those with all of them."""
        return observed.labels.all(dim=1)

    def represent(self, x_start: Tensor, labels: Tensor, observed: Observed, draws: TrainingDraws) -> Represented:
        """Returns the label blocks as z; without an encoder there are no divergences."""
        zero, scm = torch.zeros_like(labels[:, 0]), cast(LabelModel, self.model).scm
        if scm.mechanism == "one_hop":
            u = scm.abduct(scm.label_blocks(labels))
            nll = gaussian_nll(u, torch.zeros_like(u)) * observed.weights(scm.known_terms)[:, :, None]
            nll = observed.mean(sum_flat(nll))
        else:
            nll = mechanism_nll(scm, labels, observed)
        return scm.label_blocks(labels), {"prior_kl": zero, "label_kl": zero, "mechanism_nll": nll, "label_mse": zero}


def mechanism_nll(scm: LatentSCM, labels: Tensor, observed: Observed) -> Tensor:
    """Returns the sum over variables of -log p(y_i | y_pa(i)), each averaged over images with these labels.

    The label blocks are known exactly, so the mechanisms are fitted without encoder noise. The density of a continuous
    child is averaged over the entries of its block; a discrete variable, also a root, has a cross-entropy.
    """
    if scm.mechanism == "one_hop" or not (scm.graph.edges or scm.discrete):
        return labels.new_zeros(())
    density, cross_entropy = scm.label_nll(labels)
    weights = observed.weights(scm.known_terms)
    nll = sum_flat(density * weights[:, :, None]) / scm.block_size
    return observed.mean(nll + (cross_entropy * weights).sum(dim=1) if scm.discrete else nll)
