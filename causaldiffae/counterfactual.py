"""Counterfactual images in Pearl's three steps.

    abduction    u = E q(u | x0),  x_T = ODE encoding of x0 under the factual z      `CounterfactualEngine.abduct`
    action       do(thickness = 4.5)                                                 `CounterfactualEngine.act`
    prediction   z' = scm(u, do),  x' = ODE decoding of x_T under z'                 `CounterfactualEngine.predict`

(Pearl, Causality, 2009, theorem 7.1.7; CausalDiffAE, algorithm 2.) Everything that the intervention leaves unchanged is
encoded in u, in x_T and in the corrections of the solver. One abduction serves any number of interventions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import groupby
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from causaldiffae.datasets.images import check_complete, check_counts, keep_unchanged
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import GaussianDiffusion
from causaldiffae.guidance import Causes, Guidance, dropped_causes, explained_pixels, guided_model_output, thresholded
from causaldiffae.nn import DiffusionModel, DirectModel, ImageCodec, TensorFields, in_low_precision
from causaldiffae.predictors.correction import LabelCorrection
from causaldiffae.solvers import DdimLoops, OdeSolver, SolverState


class AbductionKind(Enum):
    """The source of x_T: ODE encoding of x0, the noised image (CausalDiffAE, algorithm 2), or random noise."""

    DDIM = "ddim"
    NOISE = "noise"
    NONE = "none"


@dataclass(frozen=True, repr=False)
class Abduction(TensorFields):
    """The noise of a batch of images.

    Attributes:
        u: (B, n, d) exogenous noise of the causal variables.
        z: (B, n, d) factual causal variables, implied by u.
        state: x_T (B, C, H, W) as returned by the solver; None for a model that generates from the latents alone.
        classes: (B,) or None.
        residual: (B, C, H, W) image minus reconstruction, or None.
        x_start: (B, C, H, W) the images as the network sees them, or None.
        codec_residual: (B, C, S, S) image minus its decoded code, of a latent model, or None.
        images: (B, C, S, S) the images in [-1, 1], or None.
    """

    u: Tensor
    z: Tensor
    state: SolverState | None
    classes: Tensor | None
    residual: Tensor | None = None
    x_start: Tensor | None = None
    codec_residual: Tensor | None = None
    images: Tensor | None = None

    @property
    def x_T(self) -> Tensor | None:
        """The encoded noise."""
        return None if self.state is None else self.state.x_T


@dataclass(frozen=True, repr=False)
class Counterfactual(TensorFields):
    """Counterfactual images.

    Attributes:
        images: (B, C, H, W) in [-1, 1]; NaN where the model generated non-finite pixels.
        labels: (B, n) in label units, predicted by the structural model.
        z: (B, n, d) counterfactual causal variables.
    """

    images: Tensor
    labels: Tensor
    z: Tensor


class _Settings(NamedTuple):
    """How an intervention is decoded; `causes` masks the variables to drop, and is empty if there are none."""

    intervenes: bool
    guidance: Guidance
    causes: Causes = ()
    sets_class: bool = False


@dataclass(frozen=True, repr=False)
class _Target(TensorFields):
    """Causal variables (B, n, d) and classes (B,) of one intervention on images, how it is decoded, and what it keeps.

    `kept` is a mask (B, 1, H, W) of pixels, None if the intervention may change every pixel.
    """

    abducted: Abduction
    z: Tensor
    classes: Tensor | None
    settings: _Settings
    kept: Tensor | None = None


class CounterfactualEngine:
    """Computes counterfactuals with a trained model.

    Args:
        model: a generative model in evaluation mode; no gradients are computed.
        solver: encodes and decodes; a `GaussianDiffusion` selects its DDIM loops.
        spec: names, units and graph of the variables.
        abduction: see `AbductionKind`.
        guidance: guidance weights of interventions; by default no guidance.
        stop: encode and decode only up to this fraction of T (partial encoding of Diff-SCM), which preserves more of
            the factual image.
        residual: add the reconstruction error to every result, so that the null intervention returns the image itself;
            requires one more decoding per image.
        rescale_quantile: quantile of dynamic thresholding while decoding an intervention, see `guidance.thresholded`;
            0 disables it. Reconstructions are never thresholded.
        autocast: dtype of the activations; None for float32.
        pixel_range: pixel range of the network; images passed in and returned are always in [-1, 1].
        codec: autoencoder of a latent model, None for pixels; `residual` is computed in its latent space.
        codec_residual: add what the autoencoder loses of an image to every result; only with a codec.
        use_labels: abduct the noise of models with an encoder from the given labels, where they are known.
        most_probable: predict the most probable counterfactual category of discrete descendants, not the one of the
            abducted draw of their noise.
        keep_causes: decode interventions on these effects without their causes, and keep the pixels that the causes
            explain, see `guidance.explained_pixels`; for effects that their causes determine. Not where the class is
            set or with a weight w other than 1.
        keep_unchanged: keep the pixels of the factual image where an intervention changes little relative to its
            largest change, see `datasets.images.keep_unchanged`; 0 for none. Not for images that were not encoded.
        correction: decodes images again whose labels, as read by a predictor, are not those that the structural model
            predicts, see `predictors/correction.py`; None for no correction.
        pixels: interventions on the same images are decoded in batches of at most this many pixels (of the network
            input); a batch of images is never split.
    """

    def __init__(
        self,
        model: DiffusionModel | DirectModel,
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
        codec_residual: bool = False,
        most_probable: bool = False,
        pixels: int = 2**16,
        use_labels: bool = False,
        keep_causes: Collection[str] = (),
        correction: LabelCorrection | None = None,
        keep_unchanged: float = 0.0,
    ) -> None:
        if not 0.0 < stop <= 1.0:
            raise InputError(f"stop: expected a fraction in (0, 1], got {stop}")
        if abduction is AbductionKind.NONE and stop < 1.0:
            raise InputError(f"stop: expected 1 with abduction 'none', got {stop}")
        for name, fraction in (("rescale_quantile", rescale_quantile), ("keep_unchanged", keep_unchanged)):
            if not 0.0 <= fraction <= 1.0:
                raise InputError(f"{name}: expected a number between 0 and 1, got {fraction}")
        if rescale_quantile and codec is not None:
            raise InputError(f"rescale_quantile: expected 0 for unbounded latent codes, got {rescale_quantile}")
        self.solver = DdimLoops(solver) if isinstance(solver, GaussianDiffusion) else solver
        self.model, self.spec, self.stop, self.residual, self.correction = model, spec, stop, residual, correction
        self.abduction, self.guidance, self.autocast = abduction, guidance or Guidance(), autocast
        self.pixel_range, self.rescale_quantile, self.codec, self.pixels = pixel_range, rescale_quantile, codec, pixels
        self.most_probable, self.use_labels, self.keep_causes = most_probable, use_labels, frozenset(keep_causes)
        self.codec_residual, self.keep_fraction = codec_residual and codec is not None, keep_unchanged
        if keep_causes and getattr(model, "null_blocks", None) is None:
            raise InputError("keep_causes: expected a model with null vectors of single variables, got one without")
        if use_labels and not (model.needs_labels or hasattr(model, "abduct_given")):
            raise InputError("use_labels: expected a model whose latents are those of the labels, got another one")

    def counterfactual(
        self,
        x_start: Tensor,
        do: Mapping[str, Any],
        classes: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Counterfactual:
        """Performs all three steps for one intervention; arguments as in `abduct` and `predict`."""
        return self.predict(self.abduct(x_start, classes, labels=labels), [do])[0]

    @torch.inference_mode()
    def abduct(
        self,
        x_start: Tensor,
        classes: Tensor | None = None,
        generator: torch.Generator | None = None,
        labels: Tensor | None = None,
    ) -> Abduction:
        """Abduction: infers the noise of images (B, C, H, W) in [-1, 1].

        Args:
            classes: (B,), required by class-conditional models and ignored by others.
            generator: generator for the noise of discrete variables and a random x_T (`NOISE`, `NONE`), on the device
                of the images.
            labels: (B, n) in label units, required by models without an encoder and with `use_labels`, and otherwise
                ignored.
        """
        if self.model.class_cond and classes is None:
            raise InputError("classes: expected the classes of the images for a class-conditional model, got none")
        if (self.model.needs_labels or self.use_labels) and labels is None:
            reason = "a model without an encoder" if self.model.needs_labels else "abduction from labels"
            raise InputError(f"labels: expected the labels of the images for {reason}, got none")
        if labels is not None and (self.model.needs_labels or self.model.unconditional_abduction):
            check_complete(labels.cpu().numpy(), self.spec.graph.names)  # NaN would be read as the first category
        check_counts(len(x_start), classes=classes, labels=labels)
        classes = classes if self.model.class_cond else None
        images, x_start = x_start, self._to_network(x_start)
        lost = images - self._from_network(x_start) if self.codec_residual else None
        given = None if labels is None else self.spec.normalise(labels)
        from_labels = self.use_labels and not self.model.needs_labels
        abduct = cast(Any, self.model).abduct_given if from_labels else self.model.abduct
        u = abduct(x_start, given, generator)
        return self.encoded(Abduction(u, u, None, classes, None, x_start, lost, images), u, generator)

    @torch.inference_mode()
    def encoded(
        self, abducted: Abduction, u: Tensor, generator: torch.Generator | None = None, causes: Causes = ()
    ) -> Abduction:
        """The abduction of the same images with noise u (B, n, d): encodes x_T under the z that it implies."""
        z, x_start, classes = self.model.predict(u), cast(Tensor, abducted.x_start), abducted.classes
        abducted = replace(abducted, u=u, z=z, state=self._encode(x_start, z, classes, generator, causes))
        if self.residual:
            again = self._decode(z, classes, abducted, _Settings(False, self._inverting, causes))
            abducted = replace(abducted, residual=x_start - again)
        return abducted

    @torch.inference_mode()
    def latents(self, x_start: Tensor) -> Tensor:
        """Returns the factual causal variables z (B, n, d) of images in [-1, 1], without encoding x_T."""
        return self.model.predict(self.model.abduct(self._to_network(x_start)))

    def act(self, do: Mapping[str, Any], count: int = 1) -> dict[str, Any]:
        """Action: validates an intervention in label units and normalises it.

        Args:
            do: variable -> one number, or (count,) numbers, one per image; a class is only validated.
        """
        checked = self.spec.check_do(do, count)
        if self.spec.class_name in checked and not self.model.class_cond:
            raise InputError(
                f"do: {self.spec.class_name}: expected a model that is conditioned on the class, got one that is not; "
                "train it with --class_cond True"
            )
        return self.spec.normalise_do(checked)

    def read_labels(self, z: Tensor) -> Tensor:
        """Labels (B, n) in label units of causal variables z (B, n, d)."""
        labels = self.spec.denormalise(self.model.read_labels(z))
        return self.spec.nearest_categories(labels) if self.model.discrete else labels

    @torch.inference_mode()
    def predict(
        self,
        abducted: Abduction,
        interventions: Sequence[Mapping[str, Any]],
        guidances: Sequence[Guidance] | None = None,
    ) -> list[Counterfactual]:
        """Prediction: returns the images under each intervention.

        Args:
            interventions: one number or (B,) numbers per variable, in label units; empty for the reconstruction. The
                class, which is no variable of the graph, replaces the factual one that x_T was encoded under.
            guidances: one per intervention; by default the guidance of the engine.
        """
        pairs = zip(interventions, guidances or [self.guidance] * len(interventions), strict=True)
        targets = [self._target(abducted, do, guidance) for do, guidance in pairs]
        fields = {causes: self._without(abducted, causes) for causes in {each.settings.causes for each in targets}}
        targets = [replace(each, **fields[each.settings.causes]) for each in targets]
        images = [self._corrected(*one) for one in zip(targets, self._images(targets), strict=True)]
        return [Counterfactual(x, self.read_labels(each.z), each.z) for each, x in zip(targets, images, strict=True)]

    def _target(self, abducted: Abduction, do: Mapping[str, Any], guidance: Guidance) -> _Target:
        """The causal variables under an intervention, and how it is decoded."""
        if not do:
            return _Target(abducted, abducted.z, abducted.classes, _Settings(False, self._inverting))
        count = len(abducted.u)
        z = self.model.predict(abducted.u, self.act(do, count), self.most_probable)
        chosen = self.spec.classes_of(self.spec.check_do(do, count, warn=False), count)
        classes = abducted.classes if chosen is None else chosen.to(z.device)
        keeps = chosen is None and guidance.is_off and self._encoded(abducted)
        effects = self.keep_causes.intersection(do) if keeps else ()
        causes = dropped_causes(self.spec.graph, effects, do)
        return _Target(abducted, z, classes, _Settings(True, guidance, causes, sets_class=chosen is not None))

    def _without(self, abducted: Abduction, causes: Causes) -> dict[str, Any]:
        """Fields of a target: the abduction of x_T without `causes`, and the pixels that these explain."""
        if not causes:
            return {}
        again = self.encoded(abducted, abducted.u, causes=causes) if self._encoded(abducted) else abducted
        known = (self.solver.diffusion.noise_schedule, cast(Tensor, abducted.x_start), abducted.z, causes)
        return {"abducted": again, "kept": explained_pixels(cast(Any, self.model), *known, abducted.classes)}

    def _images(self, targets: Sequence[_Target]) -> list[Tensor]:
        """The images (B, C, H, W) of targets of the same factual images, in [-1, 1] or NaN."""
        results = []
        for target, decoded in zip(targets, self._decode_all(targets), strict=True):
            abducted = target.abducted
            if abducted.residual is not None:
                decoded = decoded + abducted.residual
            if target.kept is not None:
                decoded = torch.where(target.kept, cast(Tensor, abducted.x_start), decoded)
            images = self._from_network(decoded.float(), abducted.codec_residual)
            # NaN stays NaN under clamp; infinity must not become white.
            images = torch.where(images.isfinite(), images.clamp(-1, 1), torch.nan)
            if self.keep_fraction and target.settings.intervenes and self._encoded(abducted):
                images = keep_unchanged(images, cast(Tensor, abducted.images), self.keep_fraction)
            results.append(images)
        return results

    def _corrected(self, target: _Target, images: Tensor) -> Tensor:
        """The images of an intervention, some of them decoded again under other latents; see `LabelCorrection`."""
        abducted = target.abducted
        if self.correction is None or abducted.images is None or not target.settings.intervenes:
            return images
        changed = (target.z != abducted.z).any(dim=2)
        reference = abducted.images if target.settings.sets_class else images

        def decode(rows: Tensor, shift: Tensor) -> Tensor:
            chosen = target.select(rows)
            z = chosen.z + (shift / shift.new_tensor(self.spec.scale))[:, :, None]
            return self._images([replace(chosen, z=z)])[0]

        labels = self.read_labels(target.z).masked_fill(~changed, torch.nan)
        corrected = changed | target.settings.sets_class
        return self.correction.apply(images, labels, corrected, reference, target.classes, decode)

    def _encode(
        self, x_start: Tensor, z: Tensor, classes: Tensor | None, generator: torch.Generator | None, causes: Causes
    ) -> SolverState | None:
        """x_T under the factual latents, without guidance; None for a model without x_T."""
        if isinstance(self.model, DirectModel):
            return None
        if self.abduction is AbductionKind.DDIM:
            condition = None if self.model.unconditional_abduction else z
            output = guided_model_output(self.model, condition, classes, causes=causes)
            return self.solver.encode(in_low_precision(output, self.autocast), x_start, self.stop)
        noise = torch.randn(x_start.shape, generator=generator, device=x_start.device, dtype=x_start.dtype)
        if self.abduction is AbductionKind.NOISE:
            return self.solver.noised(x_start, noise, self.stop)
        return SolverState(noise)

    def _encoded(self, abducted: Abduction) -> bool:  # whether x_T encodes images
        return self.abduction is AbductionKind.DDIM and abducted.state is not None and abducted.x_start is not None

    @property
    def _inverting(self) -> Guidance:
        """The guidance under which decoding inverts encoding, for reconstructions."""
        return Guidance(w=0.0) if self.model.unconditional_abduction else Guidance()

    def _decode_all(self, targets: Sequence[_Target]) -> list[Tensor]:
        """Decodes interventions on the same factual images; consecutive ones with equal settings are batched."""
        decoded: list[Tensor] = []
        for settings, group in groupby(targets, key=lambda target: target.settings):
            abducted = (alike := list(group))[0].abducted
            size = self.spec.image_size**2 if abducted.x_T is None else abducted.x_T[0, 0].numel()
            together = max(self.pixels // max(len(abducted.u) * size, 1), 1)
            for batch in (alike[i : i + together] for i in range(0, len(alike), together)):
                if len(batch) == 1:
                    decoded.append(self._decode(batch[0].z, batch[0].classes, abducted, settings))
                    continue
                rows = torch.arange(len(abducted.u), device=abducted.u.device).repeat(len(batch))
                classes = [each.classes for each in batch if each.classes is not None]
                z, copies = torch.cat([each.z for each in batch]), abducted.select(rows)
                decoded += self._decode(z, torch.cat(classes) if classes else None, copies, settings).chunk(len(batch))
        return decoded

    def _decode(self, z: Tensor, classes: Tensor | None, abducted: Abduction, settings: _Settings) -> Tensor:
        if isinstance(self.model, DirectModel):
            return self.model.decode(z, classes)
        assert abducted.state is not None
        process, causes = self.solver.diffusion, settings.causes
        factual = (abducted.z, process.max_timestep, abducted.classes if self._encoded(abducted) else None)
        output = guided_model_output(self.model, z, classes, settings.guidance, *factual, causes)
        model = in_low_precision(output, self.autocast)
        if self.rescale_quantile and settings.intervenes and not causes:
            model = thresholded(model, process.noise_schedule, self.rescale_quantile)
        return self.solver.decode(model, abducted.state)

    def _to_network(self, images: Tensor) -> Tensor:
        low, high = self.pixel_range
        images = images if (low, high) == (-1.0, 1.0) else low + (high - low) * (images + 1.0) / 2.0
        return images if self.codec is None else self.codec.encode(images)

    def _from_network(self, images: Tensor, residual: Tensor | None = None) -> Tensor:
        low, high = self.pixel_range
        images = images if self.codec is None else self.codec.decode(images)
        images = images if (low, high) == (-1.0, 1.0) else 2.0 * (images - low) / (high - low) - 1.0
        return images if residual is None else images + residual
