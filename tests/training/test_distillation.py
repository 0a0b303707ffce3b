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
from causaldiffae.script_util import create_model_and_diffusion, describe_checkpoint
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


def test_pairs_are_the_ends_of_the_teachers_solution_in_both_directions() -> None:
    step = distillation()
    images, _, classes, _, draws, _ = arguments(step)
    z = step.model.predict(step.model.abduct(images))
    low, high, nodes = step.pairs(images, z, classes, torch.ones(len(images), dtype=torch.bool), draws.noise)
    assert nodes == [0, 0, 0, 0, 1, 1, 1, 1]
    assert torch.equal(low[:4], images[:4]), "the first step starts at clean images"
    path = step.solver.path()
    for row, start in ((4, 1), (5, 2)):
        noised = float(path.signal[start]) * images[row] + float(path.noise[start]) * draws.noise[row]
        torch.testing.assert_close((low if start == 1 else high)[row], noised)

    def output(x: Tensor, t: Tensor) -> Tensor:
        return step.teacher.model_output(x, t, z[4:5])

    exact = step.exact.between(output, low[4:5], step.fine(1), step.fine(2))
    torch.testing.assert_close(exact, high[4:5], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("few_steps", [1, 2, 4])
def test_nodes_of_both_paths_have_the_same_noise_levels(few_steps: int) -> None:
    step = distillation(few_steps)
    ours, exact = step.solver.path(), step.exact.path()
    for node in range(few_steps + 1):
        assert ours.t[node] == pytest.approx(exact.t[step.fine(node)], abs=1e-6)
    assert step.fine(few_steps) == exact.last


class Oracle(torch.nn.Module):
    """A student that knows the pairs: returns the v of the steps between them."""

    def __init__(self, step: DistillationStep, images: Tensor, z: Tensor, noise: Tensor) -> None:
        super().__init__()
        low, high, nodes = step.pairs(images, z, None, torch.ones(len(images), dtype=torch.bool), noise)
        turn = step.turns[nodes][:, None, None, None]
        up, down = (high - turn.cos() * low) / turn.sin(), (turn.cos() * high - low) / turn.sin()
        self.v = torch.cat([up, down])

    def forward(self, *_: Any) -> Tensor:
        return self.v


def test_loss_is_zero_for_the_exact_steps_and_positive_for_the_teachers_own_output() -> None:
    step = distillation()
    inputs = arguments(step)
    z = step.model.predict(step.model.abduct(inputs[0]))
    before, _ = step(*inputs)
    assert before > 1e-4
    step.model.unet = Oracle(step, inputs[0], z, inputs[4].noise)
    after, terms = step(*inputs)
    assert after < 1e-9
    assert terms["encoding"].shape == terms["decoding"].shape == (8,)


def test_only_the_score_network_is_trained() -> None:
    step = distillation()
    loss, _ = step(*arguments(step))
    loss.backward()
    for name, parameter in step.model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("unet."), name
    assert all(parameter.grad is None for parameter in step.teacher.parameters())


def test_an_oracle_in_few_steps_takes_the_images_to_noise_and_back() -> None:
    step = distillation(few_steps=1, teacher_steps=9)
    inputs = arguments(step)
    z = step.model.predict(step.model.abduct(inputs[0]))
    oracle, solver = Oracle(step, inputs[0], z, inputs[4].noise), step.solver
    encoded = solver.encode(lambda x, t: oracle.v[:8], inputs[0])
    decoded = solver.decode(lambda x, t: oracle.v[8:], encoded)
    torch.testing.assert_close(decoded, inputs[0], atol=1e-4, rtol=0)


def test_the_time_tells_the_direction_of_a_step() -> None:
    solver = distillation().solver
    t, times = solver.path().t.tolist(), list[float]()

    def output(x: Tensor, time: Tensor) -> Tensor:
        times.append(float(time) / solver.time_scale)
        return torch.zeros_like(x)

    solver.decode(output, solver.encode(output, torch.zeros(1, 1, 8, 8)))
    expected = [t[0] + 0.1 * (t[1] - t[0]), t[1] + 0.1 * (t[2] - t[1])]
    expected += [t[2] - 0.1 * (t[2] - t[1]), t[1] - 0.1 * (t[1] - t[0])]
    assert times == pytest.approx(expected, rel=1e-5)


def test_a_diff_scm_learns_the_free_flow_on_half_of_the_images() -> None:
    step = distillation(model_type="diffscm", label_cond=True, teacher_scale=1.5)
    images, labels, _, labelled, draws, _ = arguments(step)
    z = step.model.predict(step.model.abduct(images, labels))
    keep = torch.tensor([True, False] * 4)
    low, high, _ = step.pairs(images, z, None, keep, draws.noise)
    other = step.model.predict(step.model.abduct(images, -labels))
    changed, changed_high, _ = step.pairs(images, other, None, keep, draws.noise)
    moved = (low != changed).flatten(1).any(1) | (high != changed_high).flatten(1).any(1)
    assert moved.tolist() == keep.tolist()
    labelled[2, 0] = False
    step(images, labels, None, labelled, draws, 0.0)  # images without all labels are on the free flow


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"teacher_steps": 10}, "teacher_steps: expected 1 more than a multiple of few_steps"),
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


def test_the_loss_falls_and_the_student_then_reconstructs_better_than_the_teacher_in_as_few_steps() -> None:
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

    def error(model: Any) -> float:
        z = step.model.predict(step.model.abduct(inputs[0]))

        def output(x: Tensor, t: Tensor) -> Tensor:
            return model.model_output(x, t, z)

        return float(
            (step.solver.decode(output, step.solver.encode(output, inputs[0])) - inputs[0]).detach().abs().mean()
        )

    assert error(step.model) < 0.7 * error(step.teacher)
