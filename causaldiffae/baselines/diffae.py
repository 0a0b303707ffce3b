"""Diffusion autoencoders without a graph (Preechakul et al., CVPR 2022): an encoder, free latents, a diffusion decoder.

*Aligned*: block i of the latents is tied to label i as in CausalDiffAE, and an intervention sets its block; nothing
else can move. *Unaligned*: the latents know no labels. A linear probe reads the labels off them (it is fitted while
training and sends no gradient into the encoder), and an intervention takes the shortest step in latent space to where
the probe reads the wanted value: the attribute manipulation of that paper's section 5.2, solved for a value.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from causaldiffae.config import ModelConfig
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.encoder import CausalEncoder
from causaldiffae.graphs import CausalGraph
from causaldiffae.losses import masked_mean
from causaldiffae.model import CausalDiffAE, TrainingDraws, TrainingStep, squared_error
from causaldiffae.scm import Do, LatentSCM
from causaldiffae.unet import UNetModel


class DiffAE(CausalDiffAE):
    """CausalDiffAE over a graph without edges; unaligned, with a probe in place of labelled blocks.

    Args:
        encoder, scm, unet: as `CausalDiffAE`; `scm.graph` has the variables' names and no edges.
        aligned: whether blocks stand for labels.
    """

    def __init__(self, encoder: CausalEncoder, scm: LatentSCM, unet: UNetModel, aligned: bool = False) -> None:
        super().__init__(encoder, scm, unet)
        n, d = self.latent_shape
        self.probe = None if aligned else nn.Linear(n * d, n)

    @classmethod
    def from_config(cls, config: ModelConfig, spec: DatasetSpec, learn_sigma: bool = False) -> DiffAE:
        """The encoder and U-Net that a CausalDiffAE of this configuration would have."""
        built = super().from_config(config, spec, learn_sigma)
        scm = LatentSCM(CausalGraph(spec.graph.names, ()), built.scm.block_size)
        return cls(built.encoder, scm, built.unet, config.aligned)

    @property
    def aligned(self) -> bool:
        """Whether blocks stand for labels."""
        return self.probe is None

    def predict(self, u: Tensor, do: Do | None = None) -> Tensor:
        """Latents (B, n, d) under an intervention; without one, u itself."""
        if self.probe is None or not do:
            return self.scm.predict(u, do)
        places = [self.scm.graph.index(name) for name in do]
        wanted = torch.stack([torch.as_tensor(do[name], dtype=u.dtype, device=u.device) for name in do], dim=-1)
        missing = wanted - self.read_labels(u)[:, places]
        shortest = torch.linalg.pinv(self.probe.weight[places])  # (n d, k)
        return u + (missing @ shortest.T).reshape(u.shape)

    def read_labels(self, z: Tensor) -> Tensor:
        """Normalised labels (B, n): the blocks' means or what the probe reads."""
        return super().read_labels(z) if self.probe is None else self.probe(z.flatten(1))


class DiffAETrainingStep(TrainingStep):
    """As CausalDiffAE's; unaligned, without the label term, and with the probe's own error beside the loss."""

    def represent(
        self, x_start: Tensor, labels: Tensor, labelled: Tensor, draws: TrainingDraws, share: float | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sampled latents, their divergence, and either the label term or the probe's error."""
        model = cast(DiffAE, self.model)
        if not model.aligned:  # its latents have no label prior
            draws = replace(draws, forced=torch.zeros_like(draws.forced))
        z, terms = super().represent(x_start, labels, labelled, draws, share)
        if not model.aligned:
            terms = {name: value for name, value in terms.items() if not name.startswith("label_kl_")}
            terms["label_kl"] = torch.zeros_like(terms["label_kl"])
            error = squared_error(model.read_labels(z.detach()), labels, labelled)
            terms["probe_mse"] = masked_mean(error, labelled, share)
        return z, terms

    def forward(self, *args: object, **kwargs: object) -> tuple[Tensor, dict[str, Tensor]]:
        """As `TrainingStep`, with the probe's error added, whose gradient ends at the probe."""
        loss, terms = super().forward(*args, **kwargs)  # type: ignore[arg-type]
        return (loss + terms["probe_mse"] if "probe_mse" in terms else loss), terms
