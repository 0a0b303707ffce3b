"""Distillation: pairs of the teacher, the loss of both directions, and what is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import assert_same, loop
from tiny import normal, randomise, small_config, squares, squares_spec, training_draws
from torch import Tensor

from causaldiffae.checkpoints.checkpoint import export_weights
from causaldiffae.errors import InputError
from causaldiffae.noise_schedule import CLEAN
from causaldiffae.script_util import create_model_and_diffusion, describe_checkpoint
from causaldiffae.solvers import ExactDdim, SolverState
from causaldiffae.train_util import TrainLoop
from causaldiffae.training.distillation import DistillationStep, create_training_step

STEPS, TEACHER_STEPS = 2, 9


def distillation(few_steps: int = STEPS, teacher_steps: int = TEACHER_STEPS, **changes: Any) -> DistillationStep:
    config = small_config(predict_v=True, few_steps=few_steps, teacher_steps=teacher_steps, **changes)
    torch.manual_seed(0)
    model, diffusion = create_model_and_diffusion(config, squares_spec())
    return DistillationStep(randomise(model, scale=0.02), diffusion, config.loss, few_steps)


def arguments(step: DistillationStep, count: int = 8) -> tuple[Any, ...]:
    data = squares(count)
    images = torch.from_numpy(data.images).float() / 127.5 - 1
    labels = data.spec.normalise(torch.from_numpy(data.labels))
    draws = training_draws(
        torch.zeros(count, dtype=torch.long), step.model.latent_shape, noise=normal(*images.shape).float()
    )
    return images, labels, None, torch.ones(labels.shape, dtype=torch.bool), draws, 0.0


def test_pairs_are_the_ends_of_the_teachers_solution() -> None:
    step = distillation(few_steps=3)
    images, _, classes, _, draws, _ = arguments(step, 9)
    z = step.model.predict(step.model.abduct(images))
    high, low, nodes = step.pairs(images, z, classes, torch.ones(len(images), dtype=torch.bool), draws.noise)
    assert nodes.tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    path = step.solver.path()
    for row, node in ((0, 1), (4, 2), (8, 3)):
        noised = float(path.signal[node]) * images[row] + float(path.noise[node]) * draws.noise[row]
        torch.testing.assert_close(high[row], noised)

        def output(x: Tensor, t: Tensor, row: int = row) -> Tensor:
            return step.teacher.model_output(x, t, z[row : row + 1])

        exact = step.exact.between(output, high[row : row + 1], step.fine(node), step.fine(node - 1))
        torch.testing.assert_close(exact, low[row : row + 1], atol=1e-5, rtol=1e-4)
    t = torch.tensor([step.solver.time_scale * path.t[1]], dtype=torch.float32)
    v = step.teacher.model_output(high[:1], t, z[:1])
    torch.testing.assert_close(low[:1], float(path.signal[1]) * high[:1] - float(path.noise[1]) * v)


@pytest.mark.parametrize("start", [2.5, 0.5])
@pytest.mark.parametrize("few_steps", [2, 3, 5])
def test_nodes_of_both_paths_have_the_same_noise_levels(few_steps: int, start: float) -> None:
    options = {"init_weights": "teacher", "few_step_start": start}
    config = small_config(predict_v=True, few_steps=few_steps, teacher_steps=TEACHER_STEPS, **options)
    step = create_training_step(config, *create_model_and_diffusion(config, squares_spec()))
    assert isinstance(step, DistillationStep)
    assert step.path.half_logsnr(CLEAN + 1) == pytest.approx(start)
    ours, exact = step.solver.path(), step.exact.path()
    for node in range(few_steps + 1):
        assert ours.t[node] == pytest.approx(exact.t[step.fine(node)], abs=1e-6)
    assert step.fine(few_steps) == exact.last


class Oracle(torch.nn.Module):
    """A student that knows the pairs: returns the v of the steps between them."""

    def __init__(self, step: DistillationStep, images: Tensor, z: Tensor, noise: Tensor) -> None:
        super().__init__()
        high, low, nodes = step.pairs(images, z, None, torch.ones(len(images), dtype=torch.bool), noise)
        turn = (step.angles[nodes] - step.angles[nodes - 1])[:, None, None, None]
        self.v = (turn.cos() * high - low) / turn.sin()

    def forward(self, *_: Any) -> Tensor:
        return self.v


def test_loss_is_zero_for_the_exact_steps_and_positive_for_the_teachers_own_output() -> None:
    step = distillation()
    inputs = arguments(step)
    z = step.model.predict(step.model.abduct(inputs[0]))
    before, terms = step(*inputs)
    assert before > 1e-4 and terms["mse"].shape == (8,)
    assert terms["mse"][:4].max() < 1e-9, "the step to the image is that of the teacher"
    step.model.unet = Oracle(step, inputs[0], z, inputs[4].noise)
    assert step(*inputs)[0] < 1e-9


def test_the_step_that_is_learned_is_the_one_that_the_solver_takes() -> None:
    step = distillation()
    inputs = arguments(step, 2)
    z = step.model.predict(step.model.abduct(inputs[0]))
    oracle = Oracle(step, inputs[0], z, inputs[4].noise)
    high, low, nodes = step.pairs(inputs[0], z, None, torch.ones(2, dtype=torch.bool), inputs[4].noise)
    taken = step.solver.between(lambda x, t: oracle.v[1:], high[1:], int(nodes[1]), int(nodes[1]) - 1)
    torch.testing.assert_close(taken, low[1:], atol=1e-5, rtol=0)
    seen = list[float]()
    step.model.unet.register_forward_pre_hook(lambda _, args: seen.extend(args[1].tolist()))
    step(*inputs)
    torch.testing.assert_close(torch.tensor(seen[-2:]) / step.solver.time_scale, torch.tensor(step.path.t[1:]).float())


def test_only_the_score_network_is_trained() -> None:
    step = distillation()
    loss, _ = step(*arguments(step))
    loss.backward()
    for name, parameter in step.model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("unet."), name
    assert all(parameter.grad is None for parameter in step.teacher.parameters())


def test_a_diff_scm_learns_the_free_flow_on_half_of_the_images() -> None:
    step = distillation(model_type="diffscm", label_cond=True, teacher_scale=1.5)
    images, labels, _, labelled, draws, _ = arguments(step)
    z = step.model.predict(step.model.abduct(images, labels))
    keep = torch.tensor([True, False] * 4)
    _, low, _ = step.pairs(images, z, None, keep, draws.noise)
    other = step.model.predict(step.model.abduct(images, -labels))
    moved = (low != step.pairs(images, other, None, keep, draws.noise)[1]).flatten(1).any(1)
    assert moved.tolist() == keep.tolist()
    labelled[2, 0] = False
    step(images, labels, None, labelled, draws, 0.0)  # images without all labels are on the free flow


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"few_steps": 3, "teacher_steps": 10}, r"expected 1 more than a multiple of few_steps - 1 \(2\)"),
        ({"few_steps": 1}, "few_steps: expected at least 2, got 1"),
        ({"teacher_steps": 2}, "teacher_steps: expected 1 more"),
        ({"teacher_scale": 2.0}, "teacher_scale: expected 1"),
        ({"model_type": "diffscm"}, "got one trained without"),
        ({"model_type": "causalvae"}, "score network"),
    ],
)
def test_refuses_what_cannot_be_distilled(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        distillation(**changes)


def test_refuses_a_network_that_does_not_predict_v() -> None:
    config = small_config(few_steps=2)
    model, diffusion = create_model_and_diffusion(config, squares_spec())
    with pytest.raises(InputError, match="predicts v"):
        DistillationStep(model, diffusion, config.loss, 2)


def test_refuses_a_run_without_a_teacher() -> None:
    config = small_config(predict_v=True, few_steps=2)
    model, diffusion = create_model_and_diffusion(config, squares_spec())
    with pytest.raises(InputError, match="init_weights"):
        create_training_step(config, model, diffusion)


def test_a_run_resumes_exactly_and_keeps_the_encoder(tmp_path: Path) -> None:
    options: dict[str, Any] = {"predict_v": True, "channel_mult": "1", "attention_resolutions": ""}
    config = small_config(**options)
    torch.manual_seed(0)
    model, _ = create_model_and_diffusion(config, squares_spec())
    state = randomise(model, scale=0.02).state_dict()
    teacher = str(export_weights(tmp_path / "teacher", state, describe_checkpoint(config, squares_spec())))

    def run(folder: str, total: int) -> TrainLoop:
        student: dict[str, Any] = {"few_steps": 2, "teacher_steps": 5, "init_weights": teacher}
        place = {"run_dir": str(tmp_path / folder), "total_steps": total}
        trained = loop(tmp_path / folder, **options, **student, **place)
        trained.run()
        return trained

    once = run("once", 6)
    run("twice", 3)
    assert_same(once, run("twice", 6))
    for name, value in once.model.state_dict().items():
        if not name.startswith("unet."):
            assert torch.equal(value, state[name]), name
    assert any(not torch.equal(once.model.state_dict()[name], value) for name, value in state.items())


def test_the_loss_falls_and_the_student_then_decodes_noise_as_the_teacher_in_many_steps() -> None:
    step = distillation(teacher_steps=9)
    optimizer = torch.optim.AdamW(step.model.unet.parameters(), lr=4e-3)
    inputs = arguments(step)
    losses = []
    for seed in range(60):
        draws = replace(inputs[4], noise=normal(8, 1, 8, 8, seed=seed).float())
        loss, _ = step(*inputs[:4], draws, 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    z = step.model.predict(step.model.abduct(inputs[0]))
    few = ExactDdim(step.diffusion, STEPS, kind="ddim")

    def decoded(model: Any, solver: ExactDdim) -> Tensor:
        return solver.decode(lambda x, t: model.model_output(x, t, z), SolverState(normal(8, 1, 8, 8, seed=99).float()))

    with torch.no_grad():
        expected = decoded(step.teacher, step.exact)
        student, teacher = ((decoded(model, few) - expected).abs().mean() for model in (step.model, step.teacher))
    assert student < 0.7 * teacher
