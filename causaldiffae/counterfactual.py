"""Counterfactual images in Pearl's three steps.

    abduction    what was the noise?          u = E q(u | x0),  x_T = ODE encoding of x0 under the factual z
    action       set variables:               do(thickness = 4.5)
    prediction   what would have been seen?   z' = scm(u, do),  x' = ODE decoding of x_T under z'

(Pearl, Causality, 2009, theorem 7.1.7; CausalDiffAE, algorithm 2.) Everything that the intervention does not touch is
in u and x_T, which are kept. One abduction serves any number of interventions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import GaussianDiffusion
from causaldiffae.image_datasets import DatasetSpec
from causaldiffae.model import ScoreModel
from causaldiffae.scm import Do


class AbductionKind(Enum):
    """Where x_T comes from: the DDIM encoding of x0; the noised image of the printed algorithm; plain noise."""

    DDIM = "ddim"
    NOISE = "noise"
    NONE = "none"


class GenerativeModel(Protocol):
    """What a model must offer to be asked counterfactual questions."""

    @property
    def class_cond(self) -> bool: ...
    def abduct(self, x_start: Tensor) -> Tensor: ...
    def predict(self, u: Tensor, do: Do | None = None) -> Tensor: ...
    def read_labels(self, z: Tensor) -> Tensor: ...
    def score_model(self, z: Tensor, classes: Tensor | None = None, w: float = 1.0) -> ScoreModel: ...


@dataclass(frozen=True)
class Abduction:
    """The noise behind a batch of images.

    Attributes:
        u: (B, n, d) exogenous noise of the causal variables.
        z: (B, n, d) the factual causal variables, which u implies.
        x_T: (B, C, H, W) what the causal variables leave open.
        classes: (B,) or None.
    """

    u: Tensor
    z: Tensor
    x_T: Tensor
    classes: Tensor | None


@dataclass(frozen=True)
class Counterfactual:
    """What would have been seen.

    Attributes:
        images: (B, C, H, W) in [-1, 1].
        labels: (B, n) in label units, as the structural model predicts them.
        z: (B, n, d) the counterfactual causal variables.
    """

    images: Tensor
    labels: Tensor
    z: Tensor


class CounterfactualEngine:
    """Asks a model counterfactual questions.

    Args:
        model: a generative model; used in evaluation mode, without gradients.
        diffusion: the steps to encode and decode with, for instance `SpacedDiffusion` with 50 of 1000.
        spec: the data set's names, units and graph.
        abduction: see `AbductionKind`.
        w: grade of the intervention; 1 is no guidance.
        autocast: dtype of the network's activations, None for float32.
    """

    def __init__(
        self,
        model: GenerativeModel,
        diffusion: GaussianDiffusion,
        spec: DatasetSpec,
        abduction: AbductionKind = AbductionKind.DDIM,
        w: float = 1.0,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.model, self.diffusion, self.spec = model, diffusion, spec
        self.abduction, self.w, self.autocast = abduction, w, autocast

    @torch.inference_mode()
    def abduct(
        self, x_start: Tensor, classes: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Abduction:
        """Step one: infers the noise behind images (B, C, H, W) in [-1, 1].

        `classes` (B,) are needed by a class-conditional model and ignored by others. Where x_T is random (`NOISE`,
        `NONE`) it is drawn from `generator`, which lives on the images' device.
        """
        if self.model.class_cond and classes is None:
            raise InputError("classes: this model needs the images' classes")
        classes = classes if self.model.class_cond else None
        u = self.model.abduct(x_start)
        z = self.model.predict(u)
        if self.abduction is AbductionKind.DDIM:
            x_T = self.diffusion.ddim_encode(self._score(z, classes), x_start)
        else:
            noise = torch.randn(x_start.shape, generator=generator, device=x_start.device, dtype=x_start.dtype)
            last = torch.full((len(x_start),), self.diffusion.num_timesteps - 1, device=x_start.device)
            x_T = self.diffusion.q_sample(x_start, last, noise) if self.abduction is AbductionKind.NOISE else noise
        return Abduction(u, z, x_T, classes)

    def act(self, do: Mapping[str, float]) -> dict[str, float]:
        """Step two: an intervention in label units, checked and normalised."""
        return self.spec.normalise_do(do)

    @torch.inference_mode()
    def predict(self, abducted: Abduction, interventions: Sequence[Mapping[str, float]]) -> list[Counterfactual]:
        """Step three: the images under each intervention (in label units; an empty one asks for the reconstruction)."""
        latents = [self.model.predict(abducted.u, self.act(do)) for do in interventions]
        results = []
        for z in latents:
            images = self.diffusion.ddim_sample_loop(self._score(z, abducted.classes, self.w), abducted.x_T)
            labels = self.spec.denormalise(self.model.read_labels(z))
            results.append(Counterfactual(images.float().clamp(-1, 1), labels, z))
        return results

    def counterfactual(self, x_start: Tensor, do: Mapping[str, float], classes: Tensor | None = None) -> Counterfactual:
        """All three steps for one intervention."""
        return self.predict(self.abduct(x_start, classes), [do])[0]

    def _score(self, z: Tensor, classes: Tensor | None, w: float = 1.0) -> ScoreModel:
        score = self.model.score_model(z, classes, w)
        if self.autocast is None:
            return score

        def low_precision(x_t: Tensor, t: Tensor) -> Tensor:
            with torch.autocast(x_t.device.type, dtype=self.autocast):
                return score(x_t, t).to(x_t.dtype)

        return low_precision
