"""Distillation: a network that encodes and decodes images in a few steps.

The solution of the probability-flow ODE between two noise levels is a deterministic map, and the same one in both
directions but for its sign. For each step of `FewStepSolver`, the teacher solves the ODE from one end to the other with
several evaluations, which gives a pair of states (x_low, x_high). The student learns to take this step at once, in both
directions:

    loss = || step(x_low -> x_high) - x_high ||^2 + || step(x_high -> x_low) - x_low ||^2

The teacher starts from x_t = a x_0 + sigma eps with fresh noise, whose distribution is that of the states of the ODE
(Song et al., 2021, arXiv 2011.13456, section 4.3), or from a clean image. Both directions learn from the same pair, so
that decoding inverts encoding. The preservation losses of invertible consistency distillation (Starodubcev et al.,
2024, arXiv 2406.14539) have the same purpose; their targets are the student's own outputs.

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
from causaldiffae.noise_schedule import CLEAN
from causaldiffae.script_util import Model, model_entry
from causaldiffae.solvers import FewStepSolver, Grid, OdeSolver, Solver
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
    return DistillationStep(model, diffusion, config.loss, steps)


class DistillationStep(TrainingStep):
    """The loss of one batch; only the score network is trained.

    Args:
        model: the student, which has the weights of the teacher.
        diffusion: its diffusion process.
        config: `teacher_steps` and `teacher_scale` are used.
        few_steps: steps of the student in each direction.

    Raises:
        InputError: for a model without a score network or without an implicit predictor, or if the number of steps does
            not fit that of the teacher.
    """

    def __init__(self, model: nn.Module, diffusion: GaussianDiffusion, config: LossConfig, few_steps: int) -> None:
        network = score_network(model)
        if network is None:
            raise InputError(f"few_steps: expected a model with a score network, got {type(model).__name__}")
        if getattr(model, "has_labels", True) is False:
            raise InputError(
                "model_path: expected a Diff-SCM with an implicit predictor, got one trained without labels"
            )
        if config.teacher_steps < 3 or (config.teacher_steps - 1) % few_steps:
            expected = f"1 more than a multiple of few_steps ({few_steps})"
            raise InputError(f"teacher_steps: expected {expected}, got {config.teacher_steps}")
        super().__init__(model, diffusion, replace(config, block_drop_prob=0.0))
        self.of_labels = isinstance(model, LabelModel)
        if config.teacher_scale != 1.0 and not (self.of_labels and cast(Any, model).unconditional_abduction):
            raise InputError(f"teacher_scale: expected 1 for a model other than Diff-SCM, got {config.teacher_scale:g}")
        model.requires_grad_(False)
        self.teacher = copy.deepcopy(model)
        network.requires_grad_(True)
        self.solver = FewStepSolver(diffusion, few_steps)
        self.exact = OdeSolver(diffusion, Solver.DPMPP2M, Grid.CENTRED, config.teacher_steps)
        self.path = self.solver.path()
        self.turns = torch.from_numpy(np.diff(np.arctan2(self.path.noise, self.path.signal)).astype(np.float32))

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
        """As `TrainingStep.forward`; the terms are `encoding` and `decoding`, squared errors per image, and `loss`."""
        model = cast(Any, self.model)
        with torch.no_grad():
            z = model.predict(model.abduct(x_start, labels))
            keep = self.conditional(Observed.of(labelled, labelled_of_batch))
            low, high, nodes = self.pairs(x_start, z, classes, keep, draws.noise)
        v_low, v_high = self.both_directions(low, high, nodes, z, classes, keep)
        turn = self.turns[nodes].to(low.device)[:, None, None, None]
        terms = {
            "encoding": mean_flat((turn.cos() * low + turn.sin() * v_low - high) ** 2),
            "decoding": mean_flat((turn.cos() * high - turn.sin() * v_high - low) ** 2),
        }
        terms["loss"] = terms["encoding"] + terms["decoding"]
        return terms["loss"].mean(), terms

    def conditional(self, observed: Observed) -> Tensor:
        """Which images are on the flow under their latents, (B,) bool; the others are on that under the null token."""
        known = observed.labels.all(dim=1)
        if not cast(Any, self.model).unconditional_abduction:
            return known if self.of_labels else torch.ones_like(known)
        return known & (torch.arange(len(known), device=known.device) % 2 == 0)

    def pairs(
        self, x_start: Tensor, z: Tensor, classes: Tensor | None, keep: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, list[int]]:
        """States (B, C, H, W) at the lower and the upper end of a step, and the node of the lower end per image.

        The batch is divided among the steps, and half of the images of a step start at its upper end, except in the
        first step, where all of them start at the clean image.
        """
        low, high, path = torch.empty_like(x_start), torch.empty_like(x_start), self.path
        parts = torch.arange(len(x_start)).tensor_split(self.solver.steps)
        for node, part in enumerate(parts):
            halves = [(node, node + 1, part)]
            if node != CLEAN:
                halves = [(node, node + 1, part[::2]), (node + 1, node, part[1::2])]
            for start, end, rows in halves:
                if not len(rows):
                    continue
                x = float(path.signal[start]) * x_start[rows] + float(path.noise[start]) * noise[rows]
                output = self.teacher_output(z[rows], None if classes is None else classes[rows], keep[rows])
                reached = self.exact.between(output, x, self.fine(start), self.fine(end)).to(x.dtype)
                low[rows], high[rows] = (x, reached) if start < end else (reached, x)
        return low, high, [node for node, part in enumerate(parts) for _ in part]

    def fine(self, node: int) -> int:
        """The node of the teacher's path at a node of the student's."""
        return node if node == CLEAN else 1 + node * (self.config.teacher_steps - 1) // self.solver.steps

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

    def both_directions(
        self, low: Tensor, high: Tensor, nodes: list[int], z: Tensor, classes: Tensor | None, keep: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The student's v (B, C, H, W) for the steps from `low` to `high`, and back, as one batch."""
        above = [node + 1 for node in nodes]
        times = self.solver.times(self.path, [*nodes, *above], [*above, *nodes])
        t = self.solver.time_scale * torch.tensor(times, dtype=torch.float32, device=low.device)
        twice = None if classes is None else classes.repeat(2)
        model = cast(Any, self.model)
        v = model.model_output(torch.cat([low, high]), t, z.repeat(2, 1, 1), twice, keep.repeat(2))
        return v[:, : low.shape[1]].to(low.dtype).chunk(2)
