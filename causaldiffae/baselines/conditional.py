"""Label-conditional diffusion: eps_theta(x_t, t, y), without an encoder.

The counterfactual is that of a deep structural causal model with a diffusion mechanism for the image (Sanchez and
Tsaftaris, 2022; Pawlowski et al., 2020): abduct the labels' noise under a structural model of the labels and x_T by
DDIM encoding under the factual labels; propagate do() through the labels; decode under the new ones. The labels of the
images that are asked about must be given, where a model with an encoder reads them off the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from causaldiffae.config import ModelConfig
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.model import (
    TrainingDraws,
    TrainingStep,
    batched_model_outputs,
    label_scm,
    mechanism_nll,
    unet_from_config,
)
from causaldiffae.scm import Do, LatentSCM
from causaldiffae.unet import UNetModel


class LabelConditional(nn.Module):
    """A structural model of the labels, and a U-Net that is conditioned on them.

    Args:
        scm: over blocks of one entry, the normalised labels.
        unet: with `cond_dim` = n.
    """

    needs_labels = True
    unconditional_abduction = False

    def __init__(self, scm: LatentSCM, unet: UNetModel) -> None:
        super().__init__()
        if scm.block_size != 1 or unet.cond_dim != len(scm.graph):
            raise InputError(f"model: {len(scm.graph)} labels and U-Net conditioning {unet.cond_dim} do not fit")
        self.scm, self.unet = scm, unet

    @classmethod
    def from_config(cls, config: ModelConfig, spec: DatasetSpec, learn_sigma: bool = False) -> LabelConditional:
        """Builds the model for a data set; `rep_dim` and the encoder's settings do not concern it."""
        return cls(label_scm(config, spec), unet_from_config(config, spec, learn_sigma, len(spec.graph)))

    @property
    def class_cond(self) -> bool:
        """Whether the U-Net is conditioned on a class."""
        return self.unet.num_classes is not None

    @property
    def latent_shape(self) -> tuple[int, int]:
        """n and 1: the labels."""
        return len(self.scm.graph), 1

    def abduct(self, x_start: Tensor, labels: Tensor | None = None) -> Tensor:
        """Exogenous noise of labels (B, n), normalised: (B, n, 1). Images are not looked at."""
        if labels is None:
            raise InputError("labels: this model has no encoder and needs the images' labels")
        return self.scm.abduct(labels.to(x_start.dtype)[:, :, None])

    def predict(self, u: Tensor, do: Do | None = None) -> Tensor:
        """Labels (B, n, 1) from their noise; `do` is in normalised label units."""
        return self.scm.predict(u, do)

    def read_labels(self, z: Tensor) -> Tensor:
        """(B, n, 1) -> (B, n)."""
        return z[:, :, 0]

    def model_output(
        self, x_t: Tensor, t: Tensor, z: Tensor | None, classes: Tensor | None, keep: Tensor | None
    ) -> Tensor:
        """eps_theta(x_t, t, y), or under the null token where `keep` is False."""
        return self.unet(x_t, t, classes, None if z is None else z.flatten(1), keep)

    def model_outputs(
        self, x_t: Tensor, t: Tensor, conditions: Sequence[Tensor | None], classes: Tensor | None = None
    ) -> list[Tensor]:
        """As `CausalDiffAE.model_outputs`."""
        return batched_model_outputs(self.unet, x_t, t, conditions, classes)


class ConditionalTrainingStep(TrainingStep):
    """The diffusion loss under the labels, and the likelihood of the labels under the structural model."""

    def represent(
        self, x_start: Tensor, labels: Tensor, labelled: Tensor, draws: TrainingDraws, share: float | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The labels themselves as z; nothing is encoded, so no divergence is to be paid."""
        none = torch.zeros_like(labels[:, 0])
        nll = mechanism_nll(cast(LabelConditional, self.model).scm, labels, labelled, share)
        return labels[:, :, None], {"prior_kl": none, "label_kl": none, "mechanism_nll": nll, "label_mse": none}
