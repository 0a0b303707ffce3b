"""Graded interventions: how strongly the latents act on the image.

    eps = eps(null) + w_invariant [eps(z_factual) - eps(null)] + w_affected [eps(z) - eps(z_factual)]

z and z_factual differ in exactly the blocks that an intervention reaches, the intervened variables and their
descendants in the graph. So w_affected grades what the intervention changes, from the factual image (0) to the
counterfactual one (1) and beyond, and w_invariant how firmly everything else is held. With one weight w for both this
is CausalDiffAE's eps = w eps(z) + (1 - w) eps(null) (section 4.4; Ho and Salimans, 2022). Guidance may be limited to an
interval of noise levels (Kynkäänniemi et al., 2024, arXiv 2404.07724); outside it, eps = eps(z).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from causaldiffae.errors import InputError
from causaldiffae.nn import ModelFn


class ConditionalModel(Protocol):
    """A network that can be asked under several conditions at once."""

    def model_outputs(
        self, x_t: Tensor, t: Tensor, conditions: Sequence[Tensor | None], classes: Tensor | None = None
    ) -> list[Tensor]:
        """The network's output (B, C, H, W) under each of several latents (B, n, d), None being the null token."""
        ...


@dataclass(frozen=True)
class Guidance:
    """Weights of graded interventions.

    Attributes:
        w: grade of all variables; 1 is no guidance, 0 leaves the latents out.
        w_affected: of the intervened variables and their descendants; None for `w`.
        w_invariant: of all other variables; None for `w`.
        low, high: guidance acts where t / T is in [low, high].
    """

    w: float = 1.0
    w_affected: float | None = None
    w_invariant: float | None = None
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        for name in ("w", "w_affected", "w_invariant"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise InputError(f"{name}: {value} given, a finite number is needed")
        if not 0.0 <= self.low <= self.high <= 1.0:
            raise InputError(
                f"guidance_interval: {self.low:g},{self.high:g} given, two numbers in rising order between 0 and 1 are "
                "needed"
            )

    def weights(self) -> tuple[float, float, float]:
        """Weights of eps(z), eps(z_factual) and eps(null); they sum to 1."""
        affected = self.w if self.w_affected is None else self.w_affected
        invariant = self.w if self.w_invariant is None else self.w_invariant
        return affected, invariant - affected, 1.0 - invariant


def guided_model_output(
    model: ConditionalModel,
    z: Tensor | None,
    classes: Tensor | None = None,
    guidance: Guidance | None = None,
    z_factual: Tensor | None = None,
    max_timestep: float = 1000.0,
) -> ModelFn:
    """A function (x_t, t) -> eps under fixed latents, graded by `guidance`.

    Conditions of weight 0 are not evaluated, the others go through the network as one batch; without guidance the
    network is asked under z alone and its output returned as it is.

    Args:
        z: (B, n, d) the latents, None for the null token; z_factual: those before the intervention, by default z.
        max_timestep: T in the units in which the network sees t.
    """
    guidance = guidance or Guidance()
    of_z, of_factual, of_null = guidance.weights()
    if z_factual is None:
        of_z, of_factual = of_z + of_factual, 0.0
    everywhere = guidance.low == 0.0 and guidance.high == 1.0
    asked: list[tuple[Tensor | None, float]] = [(z, of_z), (z_factual, of_factual), (None, of_null)]
    if everywhere:
        asked = [(condition, weight) for condition, weight in asked if weight != 0.0]
    else:  # eps(z) itself is needed outside the interval
        asked = asked[:1] + [(condition, weight) for condition, weight in asked[1:] if weight != 0.0]
    conditions = [condition for condition, _ in asked]
    weights = [weight for _, weight in asked]

    def score(x_t: Tensor, t: Tensor) -> Tensor:
        outputs = model.model_outputs(x_t, t, conditions, classes)
        if weights == [1.0]:
            return outputs[0]
        outputs = [output.to(torch.promote_types(output.dtype, torch.float32)) for output in outputs]
        graded = torch.stack([weight * output for weight, output in zip(weights, outputs, strict=True)]).sum(dim=0)
        if everywhere:
            return graded
        level = t.to(graded.dtype) / max_timestep
        inside = (level >= guidance.low) & (level <= guidance.high)
        return torch.where(inside.reshape(-1, *[1] * (x_t.dim() - 1)), graded, outputs[0])

    return score
