"""Diffusion autoencoders without a graph (Preechakul et al., CVPR 2022): an encoder, free latents, a diffusion decoder.

*Aligned*: block i of the latents is tied to label i as in CausalDiffAE, and an intervention changes only its own block.
*Unaligned*: the latents are trained without labels. A linear probe, fitted during training without gradients into the
encoder, predicts the labels from them. An intervention takes the shortest step in latent space for which the probe
predicts the requested value: the attribute manipulation of section 5.2 of the paper, solved for a value.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from causaldiffae.config import ModelConfig
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.encoder import CausalEncoder
from causaldiffae.errors import InputError
from causaldiffae.graphs import CausalGraph
from causaldiffae.losses import Observed, squared_error
from causaldiffae.model import CausalDiffAE, Represented, TrainingDraws, TrainingStep
from causaldiffae.scm import Do, LatentSCM
from causaldiffae.unet import UNetModel


class DiffAE(CausalDiffAE):
    """CausalDiffAE over a graph without edges; if unaligned, with a probe instead of labelled blocks.

    Args:
        encoder, scm, unet: as in `CausalDiffAE`; `scm.graph` has the names of the variables and no edges.
        aligned: whether blocks are tied to labels.
    """

    def __init__(self, encoder: CausalEncoder, scm: LatentSCM, unet: UNetModel, aligned: bool = False) -> None:
        super().__init__(encoder, scm, unet)
        n, d = self.latent_shape
        self.probe = None if aligned else nn.Linear(n * d, n)

    @classmethod
    def from_config(cls, config: ModelConfig, spec: DatasetSpec, learn_sigma: bool = False) -> DiffAE:
        """Builds the encoder and U-Net of a CausalDiffAE of this configuration."""
        built = super().from_config(config, spec, learn_sigma)
        categories = spec.normalised_categories() if config.discrete and config.aligned else {}
        scm = LatentSCM(CausalGraph(spec.graph.names, ()), built.scm.block_size, categories=categories)
        return cls(built.encoder, scm, built.unet, config.aligned)

    @property
    def aligned(self) -> bool:
        """Whether blocks are tied to labels."""
        return self.probe is None

    def abduct_given(self, x_start: Tensor, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """As `CausalAutoencoder.abduct_given`, for aligned latents."""
        if not self.aligned:
            raise InputError("use_labels: expected a DiffAE with aligned latents, got one without")
        return super().abduct_given(x_start, labels, generator)

    def predict(self, u: Tensor, do: Do | None = None, most_probable: bool = False) -> Tensor:
        """Returns the latents (B, n, d) under an intervention; without one, u itself."""
        if self.probe is None or not do:
            return self.scm.predict(u, do, most_probable)
        indices = [self.scm.graph.index(name) for name in do]
        given = [torch.as_tensor(do[name], dtype=u.dtype, device=u.device).expand(len(u)) for name in do]
        values = torch.stack(given, dim=-1)
        change = values - self.read_labels(u)[:, indices]
        inverse = torch.linalg.pinv(self.probe.weight[indices])  # (n d, k)
        return u + (change @ inverse.T).reshape(u.shape)

    def read_labels(self, z: Tensor) -> Tensor:
        """Returns normalised labels (B, n): the block means or the output of the probe."""
        return super().read_labels(z) if self.probe is None else self.probe(z.flatten(1))


class DiffAETrainingStep(TrainingStep):
    """The loss of CausalDiffAE; if unaligned, with the error of the probe instead of the label term."""

    def represent(self, x_start: Tensor, labels: Tensor, observed: Observed, draws: TrainingDraws) -> Represented:
        """Returns sampled latents, their divergence, and either the label term or the error of the probe."""
        model = cast(DiffAE, self.model)
        if not model.aligned:  # no label prior
            draws = replace(draws, forced=torch.zeros_like(draws.forced))
        z, terms = super().represent(x_start, labels, observed, draws)
        if not model.aligned:
            terms = {name: value for name, value in terms.items() if not name.startswith("label_kl_")}
            terms["label_kl"] = torch.zeros_like(terms["label_kl"])
            terms["probe_mse"] = observed.mean(squared_error(model.read_labels(z.detach()), labels, observed))
        return z, terms

    def conditioned(self, observed: Observed) -> Tensor:
        """As `TrainingStep.conditioned`; all images if unaligned, whose latents are trained without labels."""
        return super().conditioned(observed) | (not cast(DiffAE, self.model).aligned)

    def forward(self, *args: object, **kwargs: object) -> tuple[Tensor, dict[str, Tensor]]:
        """As `TrainingStep`, plus the error of the probe, whose gradient does not reach the encoder."""
        loss, terms = super().forward(*args, **kwargs)  # type: ignore[arg-type]
        return (loss + terms["probe_mse"] if "probe_mse" in terms else loss), terms
