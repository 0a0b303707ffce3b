"""Counterfactual images in Pearl's three steps.

    abduction    what was the noise?          u = E q(u | x0),  x_T = ODE encoding of x0 under the factual z
    action       set variables:               do(thickness = 4.5)
    prediction   what would have been seen?   z' = scm(u, do),  x' = ODE decoding of x_T under z'

(Pearl, Causality, 2009, theorem 7.1.7; CausalDiffAE, algorithm 2.) Everything that the intervention does not touch is
in u and x_T, which are kept. One abduction serves any number of interventions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import GaussianDiffusion
from causaldiffae.guidance import Guidance, guided_model_output, thresholded
from causaldiffae.nn import ModelFn
from causaldiffae.scm import Do
from causaldiffae.solvers import DdimLoops, OdeSolver, SolverState


class AbductionKind(Enum):
    """Where x_T comes from: the DDIM encoding of x0; the noised image of the printed algorithm; plain noise."""

    DDIM = "ddim"
    NOISE = "noise"
    NONE = "none"


class CausalModel(Protocol):
    """What a model must offer to be asked counterfactual questions, beside a way to draw images.

    `needs_labels`: whether `abduct` must be given the images' labels (B, n), normalised.
    `unconditional_abduction`: whether x_T is encoded without the latents, which act in decoding alone (Diff-SCM).
    """

    needs_labels: bool
    unconditional_abduction: bool

    @property
    def class_cond(self) -> bool: ...
    def abduct(self, x_start: Tensor, labels: Tensor | None = None) -> Tensor: ...
    def predict(self, u: Tensor, do: Do | None = None) -> Tensor: ...
    def read_labels(self, z: Tensor) -> Tensor: ...


class ImageCodec(Protocol):
    """Another space in which a network works (`latent_space.LatentSpace`), and the way to it and back."""

    def encode(self, images: Tensor) -> Tensor: ...
    def decode(self, codes: Tensor) -> Tensor: ...


class DiffusionModel(CausalModel, Protocol):
    """Draws images by diffusion: what the latents leave open is in x_T."""

    def model_outputs(
        self, x_t: Tensor, t: Tensor, conditions: Sequence[Tensor | None], classes: Tensor | None = None
    ) -> list[Tensor]: ...


@runtime_checkable
class DirectModel(CausalModel, Protocol):
    """Draws images from the latents alone, in one step."""

    def decode(self, z: Tensor, classes: Tensor | None = None) -> Tensor: ...


GenerativeModel = DiffusionModel | DirectModel


@dataclass(frozen=True)
class Abduction:
    """The noise behind a batch of images.

    Attributes:
        u: (B, n, d) exogenous noise of the causal variables.
        z: (B, n, d) the factual causal variables, which u implies.
        state: x_T (B, C, H, W), what the causal variables leave open, as the solver left it; None for a model that
            draws from them alone.
        classes: (B,) or None.
        residual: (B, C, H, W) what the reconstruction misses of the image, where it is kept.
    """

    u: Tensor
    z: Tensor
    state: SolverState | None
    classes: Tensor | None
    residual: Tensor | None = None

    @property
    def x_T(self) -> Tensor | None:
        """The encoded noise."""
        return None if self.state is None else self.state.x_T

    def repeated(self, count: int) -> Abduction:
        """The same noise for `count` interventions as one batch, all images of the first, then all of the second."""
        if count == 1:
            return self
        state = self.state
        if state is not None:
            before = None if state.x_before is None else state.x_before.repeat(count, 1, 1, 1)
            state = replace(state, x_T=state.x_T.repeat(count, 1, 1, 1), x_before=before)
        classes = None if self.classes is None else self.classes.repeat(count)
        return Abduction(self.u.repeat(count, 1, 1), self.z.repeat(count, 1, 1), state, classes)


@dataclass(frozen=True)
class Counterfactual:
    """What would have been seen.

    Attributes:
        images: (B, C, H, W) in [-1, 1], NaN where the model drew no finite pixel.
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
        solver: how to encode and decode, an `OdeSolver`; a diffusion process, for instance `SpacedDiffusion` with 50
            of 1000 steps, stands for its own DDIM loops.
        spec: the data set's names, units and graph.
        abduction: see `AbductionKind`.
        guidance: grade of the intervention; by default none.
        stop: encode and decode only up to this share of T (Diff-SCM's partial encoding): what is undone keeps more of
            the factual image.
        residual: what the reconstruction misses is added to every answer, so that the null intervention returns the
            image itself (a decoding more per image).
        rescale_quantile: dynamic thresholding while decoding an intervention, see `guidance.thresholded`; 0 for
            none. The reconstruction is never thresholded.
        autocast: dtype of the network's activations, None for float32.
        pixel_range: what black and white are for the network; images here are in [-1, 1] in any case.
        codec: the space in which the network works, None for pixels; a residual is kept in that space.
        pixels: interventions on the same images are decoded as one batch as long as it has no more pixels, of the
            network's space, than these; a batch of images is never divided.
    """

    def __init__(
        self,
        model: GenerativeModel,
        solver: OdeSolver | DdimLoops | GaussianDiffusion,
        spec: DatasetSpec,
        abduction: AbductionKind = AbductionKind.DDIM,
        guidance: Guidance | None = None,
        stop: float = 1.0,
        residual: bool = False,
        rescale_quantile: float = 0.0,
        autocast: torch.dtype | None = None,
        pixel_range: tuple[float, float] = (-1.0, 1.0),
        codec: ImageCodec | None = None,
        pixels: int = 2**16,
    ) -> None:
        if not 0.0 < stop <= 1.0:
            raise InputError(f"stop: {stop} given, a share of T above 0 and at most 1 is needed")
        if abduction is AbductionKind.NONE and stop < 1.0:
            raise InputError(f"stop: {stop} given, but abduction 'none' draws plain noise, which only T has")
        if not 0.0 <= rescale_quantile <= 1.0:
            raise InputError(f"rescale_quantile: {rescale_quantile} given, a share between 0 and 1 is needed")
        self.solver = DdimLoops(solver) if isinstance(solver, GaussianDiffusion) else solver
        self.model, self.spec, self.stop, self.residual = model, spec, stop, residual
        self.abduction, self.guidance, self.autocast = abduction, guidance or Guidance(), autocast
        self.pixel_range, self.rescale_quantile, self.codec = pixel_range, rescale_quantile, codec
        self.pixels = pixels

    @torch.inference_mode()
    def abduct(
        self,
        x_start: Tensor,
        classes: Tensor | None = None,
        generator: torch.Generator | None = None,
        labels: Tensor | None = None,
    ) -> Abduction:
        """Step one: infers the noise behind images (B, C, H, W) in [-1, 1].

        Args:
            classes: (B,), needed by a class-conditional model and ignored by others.
            generator: draws x_T where it is random (`NOISE`, `NONE`); it lives on the images' device.
            labels: (B, n) in label units, needed by a model without an encoder and ignored by others.
        """
        if self.model.class_cond and classes is None:
            raise InputError("classes: this model needs the images' classes")
        if self.model.needs_labels and labels is None:
            raise InputError("labels: this model has no encoder and needs the images' labels")
        classes = classes if self.model.class_cond else None
        x_start = self._to_network(x_start)
        u = self.model.abduct(x_start, None if labels is None else self.spec.normalise(labels))
        z = self.model.predict(u)
        abducted = Abduction(u, z, self._encode(x_start, z, classes, generator), classes)
        if not self.residual:
            return abducted
        return replace(abducted, residual=x_start - self._draw(z, abducted, self._undoing(Guidance()), False))

    @torch.inference_mode()
    def latents(self, x_start: Tensor, labels: Tensor | None = None) -> Tensor:
        """The factual causal variables z (B, n, d) behind images (B, C, H, W) in [-1, 1], without encoding x_T."""
        normalised = None if labels is None else self.spec.normalise(labels)
        return self.model.predict(self.model.abduct(self._to_network(x_start), normalised))

    def _encode(
        self, x_start: Tensor, z: Tensor, classes: Tensor | None, generator: torch.Generator | None
    ) -> SolverState | None:
        """x_T under the factual latents, without guidance; None for a model that has none."""
        if isinstance(self.model, DirectModel):
            return None
        if self.abduction is AbductionKind.DDIM:
            score = self._low_precision(
                guided_model_output(self.model, None if self.model.unconditional_abduction else z, classes)
            )
            return self.solver.encode(score, x_start, self.stop)
        noise = torch.randn(x_start.shape, generator=generator, device=x_start.device, dtype=x_start.dtype)
        if self.abduction is AbductionKind.NOISE:
            return self.solver.noised(x_start, noise, self.stop)
        return SolverState(noise)

    def act(self, do: Mapping[str, Any], count: int = 1) -> dict[str, Any]:
        """Step two: an intervention in label units, checked and normalised.

        Args:
            do: variable -> a number, or (count,) numbers, one for each image of the batch.
        """
        return self.spec.normalise_do(self.spec.check_do(do, count))

    @torch.inference_mode()
    def predict(
        self,
        abducted: Abduction,
        interventions: Sequence[Mapping[str, Any]],
        guidances: Sequence[Guidance] | None = None,
    ) -> list[Counterfactual]:
        """Step three: the images under each intervention.

        Args:
            interventions: in label units, a number or (B,) numbers for each variable; an empty one asks for the
                reconstruction.
            guidances: one for each intervention; by default the engine's own.
        """
        count = len(abducted.u)
        latents = [self.model.predict(abducted.u, self.act(do, count)) if do else abducted.z for do in interventions]
        grades = guidances or [self.guidance] * len(latents)
        results = []
        for z, drawn in zip(latents, self._draw_all(latents, abducted, interventions, grades), strict=True):
            labels = self.spec.denormalise(self.model.read_labels(z))
            if abducted.residual is not None:
                drawn = drawn + abducted.residual
            images = self._from_network(drawn.float())
            # NaN stays NaN under clamp; infinity must not become white
            images = torch.where(images.isfinite(), images.clamp(-1, 1), torch.nan)
            results.append(Counterfactual(images, labels, z))
        return results

    def _draw_all(
        self,
        latents: Sequence[Tensor],
        abducted: Abduction,
        interventions: Sequence[Mapping[str, Any]],
        grades: Sequence[Guidance],
    ) -> list[Tensor]:
        """The decoded images of every intervention; neighbours of the same grade are decoded as one batch."""
        kinds = [(bool(do), grade) for do, grade in zip(interventions, grades, strict=True)]
        drawn: list[Tensor] = []
        size = self.spec.image_size**2 if abducted.x_T is None else abducted.x_T[0, 0].numel()
        together = max(self.pixels // max(len(abducted.u) * size, 1), 1)
        for (intervenes, grade), alike in groupby(zip(latents, kinds, strict=True), key=lambda pair: pair[1]):
            wanted = [z for z, _ in alike]
            for piece in (wanted[i : i + together] for i in range(0, len(wanted), together)):
                of_all = abducted.repeated(len(piece))
                found = self._draw(torch.cat(piece), of_all, grade if intervenes else self._undoing(grade), intervenes)
                drawn += found.chunk(len(piece))
        return drawn

    def counterfactual(
        self,
        x_start: Tensor,
        do: Mapping[str, float],
        classes: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Counterfactual:
        """All three steps for one intervention; the arguments are those of `abduct` and `predict`."""
        return self.predict(self.abduct(x_start, classes, labels=labels), [do])[0]

    def _undoing(self, guidance: Guidance) -> Guidance:
        """The grade at which decoding undoes the encoding, where nothing is intervened on."""
        return Guidance(w=0.0) if self.model.unconditional_abduction else guidance

    def _draw(self, z: Tensor, abducted: Abduction, guidance: Guidance, intervenes: bool) -> Tensor:
        if isinstance(self.model, DirectModel):
            return self.model.decode(z, abducted.classes)
        assert abducted.state is not None
        score = self._low_precision(
            guided_model_output(self.model, z, abducted.classes, guidance, abducted.z, self.solver.diffusion.max_timestep)
        )
        if self.rescale_quantile and intervenes:
            score = thresholded(score, self.solver.diffusion.noise_schedule, self.rescale_quantile)
        return self.solver.decode(score, abducted.state)

    def _to_network(self, images: Tensor) -> Tensor:
        low, high = self.pixel_range
        images = images if (low, high) == (-1.0, 1.0) else low + (high - low) * (images + 1.0) / 2.0
        return images if self.codec is None else self.codec.encode(images)

    def _from_network(self, images: Tensor) -> Tensor:
        low, high = self.pixel_range
        images = images if self.codec is None else self.codec.decode(images)
        return images if (low, high) == (-1.0, 1.0) else 2.0 * (images - low) / (high - low) - 1.0

    def _low_precision(self, score: ModelFn) -> ModelFn:
        if self.autocast is None:
            return score

        def low_precision(x_t: Tensor, t: Tensor) -> Tensor:
            with torch.autocast(x_t.device.type, dtype=self.autocast):
                return score(x_t, t).to(x_t.dtype)

        return low_precision
