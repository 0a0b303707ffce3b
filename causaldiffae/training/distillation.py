"""Distillation: a network that decodes images in a few steps.

The solution of the probability-flow ODE from one noise level to the next cleaner one is a deterministic map. For each
step of `ExactDdim` from x_high to x_low, the teacher solves the ODE with several evaluations, and the student learns to
take this step at once:

    x_high = a x_0 + sigma eps,    loss = || step(x_high -> x_low) - x_low ||^2

The noised image has the distribution of the states of the ODE (Song et al., 2021, arXiv 2011.13456, section 4.3). The
last step, to the image, is that of the teacher. Encoding needs no loss of its own: `ExactDdim` inverts decoding
exactly, with any network. Invertible consistency distillation (Starodubcev et al., 2024, arXiv 2406.14539) trains a
network for each direction, and both to preserve the image.

A Diff-SCM encodes without labels and decodes under guidance: half of its images are on the flow without labels, and the
others on that of out(null) + s [out(y) - out(null)].
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from causaldiffae.config import Config, LossConfig
from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import GaussianDiffusion
from causaldiffae.losses import Observed
from causaldiffae.model import LabelModel, TrainingDraws, TrainingStep
from causaldiffae.nn import ModelFn, mean_flat
from causaldiffae.noise_schedule import CLEAN, ModelMeanType
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
        config: `teacher_steps` and `teacher_scale` are used.
        few_steps: steps of the student in each direction.
        start: log(a / sigma) of the level at which it starts to encode.

    Raises:
        InputError: for a model without a score network, without an implicit predictor or that does not predict v, or if
            the number of steps does not fit that of the teacher.
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
        if config.teacher_steps <= few_steps or (config.teacher_steps - 1) % (few_steps - 1):
            expected = f"1 more than a multiple of few_steps - 1 ({few_steps - 1})"
            raise InputError(f"teacher_steps: expected {expected}, got {config.teacher_steps}")
        super().__init__(model, diffusion, replace(config, block_drop_prob=0.0))
        self.of_labels = isinstance(model, LabelModel)
        if config.teacher_scale != 1.0 and not (self.of_labels and cast(Any, model).unconditional_abduction):
            raise InputError(f"teacher_scale: expected 1 for a model other than Diff-SCM, got {config.teacher_scale:g}")
        model.requires_grad_(False)
        self.teacher = copy.deepcopy(model)
        network.requires_grad_(True)
        self.solver = ExactDdim(diffusion, few_steps, cleanest=start)
        self.exact = ExactDdim(diffusion, config.teacher_steps, cleanest=start)
        self.path = self.solver.path()
        self.angles = torch.from_numpy(np.arctan2(self.path.noise, self.path.signal).astype(np.float32))

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
        """As `TrainingStep.forward`; the terms are `mse`, the squared error of the step per image, and `loss`."""
        model = cast(Any, self.model)
        with torch.no_grad():
            z = model.predict(model.abduct(x_start, labels))
            keep = self.conditional(Observed.of(labelled, labelled_of_batch))
            high, low, nodes = self.pairs(x_start, z, classes, keep, draws.noise)
        t = self.solver.time_scale * torch.from_numpy(self.path.t.astype(np.float32)).to(high.device)[nodes]
        v = model.model_output(high, t, z, classes, keep)[:, : high.shape[1]].to(high.dtype)
        turn = (self.angles[nodes] - self.angles[nodes - 1]).to(high.device)[:, None, None, None]
        error = mean_flat((turn.cos() * high - turn.sin() * v - low) ** 2)
        return error.mean(), {"mse": error, "loss": error}

    def conditional(self, observed: Observed) -> Tensor:
        """Which images are on the flow under their latents, (B,) bool; the others are on that under the null token."""
        known = observed.labels.all(dim=1)
        if not cast(Any, self.model).unconditional_abduction:
            return known if self.of_labels else torch.ones_like(known)
        return known & (torch.arange(len(known), device=known.device) % 2 == 0)

    def pairs(
        self, x_start: Tensor, z: Tensor, classes: Tensor | None, keep: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States (B, C, H, W) at the upper and the lower end of a step, and the node (B,) of the upper end.

        The batch is divided evenly among the steps.
        """
        high, low, path = torch.empty_like(x_start), torch.empty_like(x_start), self.path
        nodes = torch.empty(len(x_start), dtype=torch.long)
        for step, rows in enumerate(torch.arange(len(x_start)).tensor_split(self.solver.steps)):
            node = CLEAN + 1 + step
            nodes[rows] = node
            if not len(rows):
                continue
            x = float(path.signal[node]) * x_start[rows] + float(path.noise[node]) * noise[rows]
            output = self.teacher_output(z[rows], None if classes is None else classes[rows], keep[rows])
            reached = self.exact.between(output, x, self.fine(node), self.fine(node - 1))
            high[rows], low[rows] = x, reached.to(x.dtype)
        return high, low, nodes

    def fine(self, node: int) -> int:
        """The node of the teacher's path at a node of the student's."""
        return node if node == CLEAN else 1 + (node - 1) * (self.config.teacher_steps - 1) // (self.solver.steps - 1)

    def teacher_output(self, z: Tensor, classes: Tensor | None, keep: Tensor) -> ModelFn:
        """The teacher under the latents where `keep`, with its guidance scale."""
        teacher, scale = cast(Any, self.teacher), self.config.teacher_scale

        def output(x: Tensor, t: Tensor) -> Tensor:
            conditional = teacher.model_output(x, t, z, classes, keep)
            if scale == 1.0:
                return conditional
            null = teacher.model_output(x, t, None, classes)
            return torch.lerp(null.float(), conditional.float(), scale)

        return output
