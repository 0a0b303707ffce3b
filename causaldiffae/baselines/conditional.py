"""Label-conditional diffusion without an encoder.

Its counterfactual is that of a deep structural causal model with a diffusion mechanism for the image (Sanchez and
Tsaftaris, 2022, arXiv 2202.10166; Pawlowski et al., 2020, arXiv 2006.06485): abduction of the noise of the labels under
a structural model and of x_T by ODE encoding under the factual labels; propagation of do() through the labels; decoding
under the new labels. The labels of the factual images are required.
"""

from __future__ import annotations

from causaldiffae.config import ModelConfig
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.model import LabelModel, LabelTrainingStep, LatentConditional, label_scm, unet_from_config
from causaldiffae.scm import LatentSCM
from causaldiffae.unet import UNetModel

ConditionalTrainingStep = LabelTrainingStep


class LabelConditional(LatentConditional, LabelModel):
    """A structural model of the labels and a U-Net that is conditioned on them.

    Args:
        scm: over blocks of one entry, the normalised labels, or of one entry per category.
        unet: with `cond_dim` = n d.
    """

    needs_labels = True
    unconditional_abduction = False

    def __init__(self, scm: LatentSCM, unet: UNetModel) -> None:
        super().__init__(scm)
        n, d = self.latent_shape
        if unet.cond_dim != n * d:
            raise InputError(
                f"model: expected a U-Net conditioned on {n} x {d} label entries, got width {unet.cond_dim}"
            )
        self.unet = unet

    @classmethod
    def from_config(cls, config: ModelConfig, spec: DatasetSpec, learn_sigma: bool = False) -> LabelConditional:
        """Builds the model for a data set; settings of the encoder are not used."""
        scm = label_scm(config, spec)
        return cls(scm, unet_from_config(config, spec, learn_sigma, len(spec.graph) * scm.block_size))
