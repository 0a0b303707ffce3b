"""Distillation: a network that encodes and decodes images in a few steps.

The student learns the counterfactuals of the teacher. Both encode an image under its own latents z and decode it under
those of an intervention, z', with exact DDIM; the student takes fewer steps:

    loss = || student(x, do) - teacher(x, do) ||^2,    with gradients through encoding, corrections and decoding

The intervention sets one variable of every image, or its class, to the value that it has in the next image of the
batch. The teacher decodes a new class under guidance (`CLASS_WEIGHT`), the student without. The null intervention needs
no loss: exact DDIM returns the image with any network and any number of steps. Learning each step of
the ODE by itself, as in progressive distillation (Salimans and Ho, 2022, arXiv 2202.00512), or a consistency model for
each direction (Starodubcev et al., 2024, arXiv 2406.14539) was less accurate, see docs/performance.md.

A Diff-SCM encodes without labels and decodes under guidance, out(null) + s [out(y) - out(null)]; its student learns to
decode under the labels alone.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from causaldiffae.config import Config, LossConfig
from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import GaussianDiffusion
from causaldiffae.guidance import CLASS_WEIGHT
from causaldiffae.losses import Observed
from causaldiffae.model import LabelModel, TrainingDraws, TrainingStep
from causaldiffae.nn import ModelFn, mean_flat
from causaldiffae.noise_schedule import ModelMeanType
from causaldiffae.script_util import Model, model_entry
from causaldiffae.solvers import CLEANEST, ExactDdim
from causaldiffae.training.acceleration import score_network


def create_training_step(config: Config, model: Model, diffusion: GaussianDiffusion) -> TrainingStep:
    """The loss of a run: that of the model type, or of distillation for a model of few steps.

    Args:
        model: with its initial weights, which are those of the teacher of a distilled model.
    """
    steps = config.diffusion.few_steps
    if not steps:
        return model_entry(config.model.model_type).training_step(model, diffusion, config.loss)
    if not config.train.init_weights:
        raise InputError("init_weights: expected the teacher of a distilled model, got none; use scripts/distill.py")
    return DistillationStep(model, diffusion, config.loss, steps, config.diffusion.few_step_start)


class DistillationStep(TrainingStep):
    """The loss of one batch; only the score network is trained.

    Args:
        model: the student, which has the weights of the teacher.
        diffusion: its diffusion process.
        config: `teacher_steps`, `teacher_start` and `teacher_scale` are used.
        few_steps: steps of the student in each direction.
        start: log(a / sigma) of the level at which it starts to encode.

    Raises:
        InputError: for a model without a score network, without an implicit predictor or that does not predict v, or if
            a number of steps is too small.
    """

    def __init__(
        self,
        model: nn.Module,
        diffusion: GaussianDiffusion,
        config: LossConfig,
        few_steps: int,
        start: float = CLEANEST,
    ) -> None:
        network = score_network(model)
        if network is None:
            raise InputError(f"few_steps: expected a model with a score network, got {type(model).__name__}")
        if getattr(model, "has_labels", True) is False:
            raise InputError(
                "model_path: expected a Diff-SCM with an implicit predictor, got one trained without labels"
            )
        if diffusion.model_mean_type is not ModelMeanType.VELOCITY:
            raise InputError(f"few_steps: expected a network that predicts v, got {diffusion.model_mean_type.name}")
        if few_steps < 2:
            raise InputError(f"few_steps: expected at least 2, got {few_steps}")
        if config.teacher_steps <= few_steps:
            raise InputError(f"teacher_steps: expected more than few_steps ({few_steps}), got {config.teacher_steps}")
        super().__init__(model, diffusion, replace(config, block_drop_prob=0.0))
        self.of_labels = isinstance(model, LabelModel)
        if config.teacher_scale != 1.0 and not (self.of_labels and cast(Any, model).unconditional_abduction):
            raise InputError(f"teacher_scale: expected 1 for a model other than Diff-SCM, got {config.teacher_scale:g}")
        model.requires_grad_(False)
        self.teacher = copy.deepcopy(model)
        network.requires_grad_(True)
        self.solver = ExactDdim(diffusion, few_steps, cleanest=start)
        self.exact = ExactDdim(diffusion, config.teacher_steps, cleanest=config.teacher_start)

    def train(self, mode: bool = True) -> DistillationStep:
        """Stays in evaluation mode: latents and targets are those of the model, and only weights are trained."""
        return super().train(False)

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
        """As `TrainingStep.forward`; the terms are `loss` and `mse`, the squared error of the counterfactual per image.

        Raises:
            InputError: for a single image, which has no other one to take a value from.
        """
        if len(x_start) < 2:
            raise InputError("batch_size: expected at least 2 images in every (micro)batch to distil a model, got 1")
        model = cast(Any, self.model)
        encoding, decoding = self.conditional(Observed.of(labelled, labelled_of_batch))
        with torch.no_grad():
            u = model.abduct(x_start, labels)
            z = model.predict(u)
            chosen = draws.t % (z.shape[1] + (classes is not None))
            changed = self.intervened(u, z, chosen)
            asked = None if classes is None else torch.where(chosen == z.shape[1], classes.roll(-1), classes)
            state = self.exact.encode(self.output(self.teacher, z, classes, encoding), x_start)
            guided = self.output(self.teacher, changed, asked, decoding, self.config.teacher_scale, classes)
            target = self.exact.decode(guided, state)
        state = self.solver.differentiable_encode(self.output(model, z, classes, encoding), x_start)
        found = self.solver.differentiable_decode(self.output(model, changed, asked, decoding), state)
        error = mean_flat((found - target) ** 2)
        return error.mean(), {"mse": error, "loss": error}

    def conditional(self, observed: Observed) -> tuple[Tensor, Tensor]:
        """Which images are encoded, and which are decoded, under their latents, (B,) bool; the others under null."""
        known = observed.labels.all(dim=1)
        decoding = known & known.roll(-1) if self.of_labels else torch.ones_like(known)
        free = cast(Any, self.model).unconditional_abduction
        return torch.zeros_like(known) if free else decoding, decoding

    def intervened(self, u: Tensor, z: Tensor, chosen: Tensor) -> Tensor:
        """Latents (B, n, d) under an intervention that sets one variable to its value in the next image.

        Args:
            u, z: noise and latents of the images, (B, n, d) each.
            chosen: (B,) indices of the variables; n for none.
        """
        model, changed = cast(Any, self.model), z.clone()
        values = model.read_labels(z).roll(-1, dims=0)
        for i, name in enumerate(model.scm.graph.names):
            rows = chosen == i
            if rows.any():
                changed[rows] = model.predict(u[rows], {name: values[rows, i]})
        return changed

    def output(
        self,
        model: nn.Module,
        z: Tensor,
        classes: Tensor | None,
        keep: Tensor,
        scale: float = 1.0,
        factual: Tensor | None = None,
    ) -> ModelFn:
        """The network of a model under the latents z where `keep`, with a guidance scale and that of a new class.

        Args:
            factual: (B,) the classes before the intervention; None for no guidance of the class.
        """
        network = cast(Any, model)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            conditional = network.model_output(x, t, z, classes, keep)
            if factual is not None and classes is not None and not torch.equal(factual, classes):
                before = network.model_output(x, t, z, factual, keep)
                conditional = torch.lerp(before.float(), conditional.float(), CLASS_WEIGHT)
            if scale == 1.0:
                return conditional
            null = network.model_output(x, t, None, classes)
            return torch.lerp(null.float(), conditional.float(), scale)

        return predict
