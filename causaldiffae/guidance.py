"""Classifier-free guidance of the model output, with separate weights for affected and invariant latents.

With one weight w this is CausalDiffAE's w out(z) + (1 - w) out(null) (section 4.4; Ho and Salimans, 2022, arXiv
2207.12598). With separate weights for the *affected* blocks of an intervention (the intervened variables and their
descendants) and the *invariant* ones, there are two forms:

decoupled   out(z) + (w_affected - 1) [out(z affected) - out(null)] + (w_invariant - 1) [out(z invariant) - out(null)]
change      out(null) + w_invariant [out(z_factual) - out(null)] + w_affected [out(z) - out(z_factual)]

"z affected" keeps the affected blocks and drops the others. The decoupled form (after arXiv 2506.14399; weights of 1
give exactly out(z)) is used for models trained with dropped blocks (`block_null`). The change form is used for all
others: w_affected scales the change from the factual (0) to the counterfactual image (1) and beyond, and w_invariant
also weights the *factual* values of affected blocks. If all blocks are affected, w_invariant is ignored.

An intervention on the class is guided away from the factual class c, under which x_T was encoded:
out(c') + (w_class - 1) [out(c') - out(c)], where out is the output with the other weights.

An intervention on effects whose causes determine them (`scm.determined_effects`) is decoded without the blocks of the
causes, and keeps the pixels that these explain (`effect_model_output`, `explained_pixels`).

Guidance may be limited to an interval of noise levels (Kynkäänniemi et al., 2024, arXiv 2404.07724); outside it the
output is the unguided one, out(z). Diff-SCM decodes without labels where it is not guided: there it is out(null).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, cast

import torch
from torch import Tensor

from causaldiffae.errors import InputError
from causaldiffae.graphs import CausalGraph
from causaldiffae.nn import ModelFn, neighbour_reach
from causaldiffae.noise_schedule import NoiseSchedule

Causes = tuple[bool, ...]
"""For every variable, whether its block is dropped; empty for none."""


class ConditionalModel(Protocol):
    """A network that can be evaluated under several conditions at once.

    If it has an attribute `unconditional_abduction` that is true, its unguided output is that under the null token.
    """

    def model_outputs(
        self, x_t: Tensor, t: Tensor, conditions: Sequence[Tensor | None], classes: Tensor | None = None
    ) -> list[Tensor]:
        """Returns the output (B, C, H, W) under each of several latents (B, n, d); None is the null token."""
        ...


CLASS_WEIGHT: Final = 1.5
"""Weight of an intervention on the class. With 1, x_T keeps parts of the factual class's shape."""


@dataclass(frozen=True)
class Guidance:
    """Guidance weights.

    Attributes:
        w: weight of all variables; 1 is no guidance, 0 ignores the latents. For Diff-SCM the scale s: 0 is no guidance.
        w_affected: weight of the intervened variables and their descendants; None for `w`.
        w_invariant: weight of all other variables; None for `w`.
        w_class: weight of the change from the factual class to the one that is set; 1 is no guidance.
        low, high: guidance is applied where t / T is in [low, high].
    """

    w: float = 1.0
    w_affected: float | None = None
    w_invariant: float | None = None
    low: float = 0.0
    high: float = 1.0
    w_class: float = CLASS_WEIGHT

    def __post_init__(self) -> None:
        for name in ("w", "w_affected", "w_invariant", "w_class"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise InputError(f"{name}: expected a finite number, got {value}")
        if not 0.0 <= self.low <= self.high <= 1.0:
            raise InputError(
                f"guidance_interval: expected two numbers between 0 and 1 in ascending order, "
                f"got {self.low:g},{self.high:g}"
            )

    @property
    def is_off(self) -> bool:
        """Whether all variables have weight 1."""
        return self.affected == self.invariant == 1.0

    @property
    def affected(self) -> float:
        """The weight of the affected blocks."""
        return self.w if self.w_affected is None else self.w_affected

    @property
    def invariant(self) -> float:
        """The weight of the invariant blocks."""
        return self.w if self.w_invariant is None else self.w_invariant


def dropped_causes(graph: CausalGraph, effects: Collection[str], do: Collection[str]) -> Causes:
    """The causes without which an intervention on effects is decoded: those that it does not set.

    Warns:
        UserWarning: if it sets all causes of an effect, which determine it in the training images.
    """
    dropped = graph.ancestors(*effects).difference(do)
    for name in effects:
        if (parents := graph.parents[name]) and set(parents) <= set(do):
            warnings.warn(
                f"do: {name}: its causes {', '.join(parents)} are set, too, and determine it; the image follows them; "
                f"set the causes first, and {name} in the result",
                stacklevel=2,
            )
    return tuple(name in dropped for name in graph.names) if dropped else ()


def guidance_weight(model: object, w: float | None = None) -> float:
    """The guidance weight w, by default that of the model: the scale s of a Diff-SCM, and 1, no guidance, of others."""
    return float(getattr(model, "default_scale", 1.0)) if w is None else w


def default_guidance(model: object, distilled: bool = False) -> Guidance:
    """Guidance where none is given, see `guidance_weight`; a distilled model has learned that of its teacher."""
    return Guidance(w_class=1.0) if distilled else Guidance(guidance_weight(model))


def guided_model_output(
    model: ConditionalModel,
    z: Tensor | None,
    classes: Tensor | None = None,
    guidance: Guidance | None = None,
    z_factual: Tensor | None = None,
    max_timestep: float = 1000.0,
    classes_factual: Tensor | None = None,
    causes: Causes = (),
) -> ModelFn:
    """Binds latents to a network and applies guidance; returns a function (x_t, t) -> model output.

    Conditions with weight 0 are skipped, and the others are evaluated as one batch; if the class changes, as one batch
    per class. With w = 1 and the factual class, the output under z is returned unchanged.

    Args:
        z: (B, n, d) latents, None for the null token.
        z_factual: (B, n, d) latents before the intervention, by default z. Blocks that differ are affected.
        max_timestep: T in the time units of the network.
        classes_factual: (B,) classes before the intervention, by default `classes`.
        causes: variables to drop, see `effect_model_output`; replaces all other guidance.
    """
    if causes:
        return effect_model_output(cast(BlockModel, model), cast(Tensor, z), causes, classes)
    guidance = guidance or Guidance()
    if guidance.w_class != 1.0 and _differ(classes, classes_factual):
        shared = (guidance, z_factual, max_timestep)
        before = guided_model_output(model, z, classes_factual, *shared)
        return _extrapolated(guided_model_output(model, z, classes, *shared), before, guidance, max_timestep)
    everywhere = guidance.low == 0.0 and guidance.high == 1.0
    terms = _terms(model, z, guidance, z_factual)
    # The unguided output, of the first or the last condition, is required outside the interval.
    unguided = len(terms) - 1 if getattr(model, "unconditional_abduction", False) else 0
    required = None if everywhere else unguided
    terms = [term for i, term in enumerate(terms) if torch.any(torch.as_tensor(term[1])) or i == required]
    conditions, weights = [condition for condition, _ in terms], [weight for _, weight in terms]

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        outputs = model.model_outputs(x_t, t, conditions, classes)
        if len(weights) == 1 and isinstance(weights[0], float) and weights[0] == 1.0:
            return outputs[0]
        outputs = [output.to(torch.promote_types(output.dtype, torch.float32)) for output in outputs]
        mixed = torch.stack([weight * output for weight, output in zip(weights, outputs, strict=True)]).sum(dim=0)
        if everywhere:
            return mixed
        level = t.to(mixed.dtype) / max_timestep
        inside = (level >= guidance.low) & (level <= guidance.high)
        return torch.where(inside.reshape(-1, *[1] * (x_t.dim() - 1)), mixed, outputs[-1 if unguided else 0])

    return guided


def _differ(classes: Tensor | None, classes_factual: Tensor | None) -> bool:
    return classes is not None and classes_factual is not None and not torch.equal(classes, classes_factual)


def _extrapolated(counterfactual: ModelFn, factual: ModelFn, guidance: Guidance, max_timestep: float) -> ModelFn:
    """Weights the change of the class by `w_class`, in the interval of the guidance."""

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        output, before = counterfactual(x_t, t), factual(x_t, t)
        dtype = torch.promote_types(output.dtype, torch.float32)
        output, before = output.to(dtype), before.to(dtype)
        level = t.reshape(-1, *[1] * (x_t.dim() - 1)) / max_timestep
        inside = (level >= guidance.low) & (level <= guidance.high)
        return output + torch.where(inside, (guidance.w_class - 1.0) * (output - before), 0.0)

    return guided


def _terms(
    model: ConditionalModel, z: Tensor | None, guidance: Guidance, z_factual: Tensor | None
) -> list[tuple[Tensor | None, float | Tensor]]:
    """The conditions, z first and null last, and their weights, which are numbers or (B, 1, 1, 1) and sum to 1."""
    of_affected, of_invariant = guidance.affected, guidance.invariant
    if z is None or z_factual is None or of_affected == of_invariant:
        return [(z, of_invariant), (None, 1.0 - of_invariant)]
    affected = (z != z_factual).any(dim=2)  # (B, n)
    if getattr(model, "null_blocks", None) is not None:
        drop: Callable[[Tensor, Tensor], Tensor] = model.drop_blocks  # type: ignore[attr-defined]
        excess = [  # 0 for images without such a block
            (weight - 1.0) * rows.any(dim=1).to(z.dtype).reshape(-1, 1, 1, 1)
            for weight, rows in ((of_affected, affected), (of_invariant, ~affected))
        ]
        return [(z, 1.0), (drop(z, affected), excess[0]), (drop(z, ~affected), excess[1]), (None, -sum(excess))]
    both = z.new_tensor([of_affected, of_invariant])[:, None]
    affected_weight = torch.where(affected.any(dim=1), both[0], both[1]).reshape(-1, 1, 1, 1)
    invariant_weight = torch.where(affected.all(dim=1), both[0], both[1]).reshape(-1, 1, 1, 1)
    return [(z, affected_weight), (z_factual, invariant_weight - affected_weight), (None, 1.0 - invariant_weight)]


def thresholded(model: ModelFn, schedule: NoiseSchedule, quantile: float) -> ModelFn:
    """Applies dynamic thresholding to the predicted x_0 (Saharia et al., 2022, arXiv 2205.11487, section 2.3).

    x_0 of every image is clipped to [-q, q] and divided by q, where q is the quantile of |x_0|, at least 1. Clipping
    cannot be inverted, so it is for decoding only. Channels beyond those of x_t (a learned variance) are unchanged.

    Args:
        model: (x_t, t) -> model output (B, C, H, W) or (B, 2C, H, W).
        quantile: in [0, 1], for instance 0.99.
    """

    def model_within_range(x_t: Tensor, t: Tensor) -> Tensor:
        whole = model(x_t, t)
        output, variance = whole[:, : x_t.shape[1]], whole[:, x_t.shape[1] :]
        level = schedule.level(t, x_t)
        x_start = schedule.xstart(output, x_t, level)
        bound = torch.quantile(x_start.flatten(1).abs().float(), quantile, dim=1).clamp(min=1.0).to(x_start.dtype)
        bound = bound.reshape(-1, *[1] * (x_t.dim() - 1))
        clipped = schedule.output_of_xstart(x_start.clamp(-bound, bound) / bound, x_t, level)
        return torch.cat([clipped, variance.to(clipped.dtype)], dim=1) if variance.shape[1] else clipped

    return model_within_range


# ---------------------------------------------------------------------- interventions on effects

EFFECT_WEIGHT = 2.0
"""Guidance weight of an intervention on effects of which the causes are dropped, in both directions."""
EXPLAINED = 0.2
"""Largest unexplained fraction of a pixel that its causes explain."""
_MARGIN = 0.02
"""Difference of pixels, which range from -1 to 1, that counts as none."""
_LEVELS, _DRAWS = (0.5, 0.7, 0.85), 3


class BlockModel(ConditionalModel, Protocol):
    """A conditional model that was trained with single blocks of the latents dropped."""

    def drop_blocks(self, z: Tensor, keep_blocks: Tensor) -> Tensor:
        """Replaces the blocks of z (B, n, d) where `keep_blocks` (n,) is False by their null vectors."""
        ...


def effect_model_output(
    model: BlockModel, z: Tensor, causes: Causes, classes: Tensor | None = None, weight: float = EFFECT_WEIGHT
) -> ModelFn:
    """The guided output for an intervention on effects of `causes`, whose blocks are dropped; (x_t, t) -> model output.

    An intervention cuts the effect from its causes. Where they determine it, training never showed it with another
    value, and a decoder that is given both follows the causes.

    Args:
        z: (B, n, d) latents after the intervention.
        causes: n values, whether a variable is an ancestor of the intervened ones.
    """
    kept = ~torch.tensor(causes, device=z.device)
    conditions = [model.drop_blocks(z, kept), model.drop_blocks(z, torch.zeros_like(kept))]

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        output, null = (each.float() for each in model.model_outputs(x_t, t, conditions, classes))
        return null + weight * (output - null)

    return guided


def explained_pixels(
    model: BlockModel,
    schedule: NoiseSchedule,
    x_start: Tensor,
    z: Tensor,
    causes: Causes,
    classes: Tensor | None = None,
) -> Tensor:
    """Pixels of factual images that one of the causes explains alone, (B, 1, H, W) bool.

    A pixel is explained by a variable if the x_0 that is predicted from a noised image given this variable alone is
    that given all variables: the difference, averaged over noise levels and 3 x 3 pixels, is at most `EXPLAINED` of
    that without any variable. An intervention on an effect must not change such pixels. Small areas are left out by an
    opening of 5 x 5 pixels, after which the others get one pixel of their border back: they belong to the effect, and
    would remain in the image as traces of its factual value. Sizes are those for 32 pixels, and grow with the image.

    Args:
        x_start: (B, C, H, W) factual images.
        z: (B, n, d) factual latents.
        causes: n values, as in `effect_model_output`.
    """
    device, channels = x_start.device, x_start.shape[1]
    alone = [torch.arange(len(causes), device=device) == i for i, is_cause in enumerate(causes) if is_cause]
    none = torch.zeros(len(causes), dtype=torch.bool, device=device)
    conditions = [z, *(model.drop_blocks(z, keep) for keep in (none, *alone))]
    generator, differences = torch.Generator().manual_seed(0), []
    for fraction in _LEVELS * _DRAWS:
        t = torch.full((len(x_start),), fraction * schedule.max_timestep, device=device)
        level = schedule.level(t, x_start)
        noise = torch.randn(x_start.shape, generator=generator).to(x_start)
        x_t = level.signal * x_start + level.noise * noise
        outputs = model.model_outputs(x_t, t, conditions, classes)
        full, *others = (schedule.xstart(output[:, :channels].to(x_t), x_t, level) for output in outputs)
        differences.append(torch.stack([(other - full).abs().amax(dim=1) for other in others]))
    mean = torch.stack(differences).mean(dim=0)
    best = torch.stack([mean[0], mean[1:].amin(dim=0)])
    reach = neighbour_reach(x_start)
    unexplained, explained = torch.nn.functional.avg_pool2d(best, 2 * reach + 1, stride=1, padding=reach)
    kept = (explained <= EXPLAINED * (unexplained + _MARGIN))[:, None]
    interior = -_widened(-kept.float(), 2 * reach)
    return kept & (_widened(interior, 3 * reach) > 0)


def _widened(x: Tensor, reach: int) -> Tensor:
    """The maximum over the neighbours in each direction."""
    return torch.nn.functional.max_pool2d(x, 2 * reach + 1, stride=1, padding=reach)
