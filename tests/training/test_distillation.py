"""Distillation: counterfactuals of teacher and student, their loss, and what is trained."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loops import assert_same, loop
from tiny import normal, randomise, small_config, squares, squares_spec, training_draws
from torch import Tensor

from causaldiffae.checkpoints.checkpoint import export_weights
from causaldiffae.errors import InputError
from causaldiffae.guidance import CLASS_WEIGHT
from causaldiffae.losses import Observed
from causaldiffae.noise_schedule import CLEAN
from causaldiffae.script_util import create_model_and_diffusion, describe_checkpoint
from causaldiffae.solvers import ExactDdim
from causaldiffae.train_util import TrainLoop
from causaldiffae.training.distillation import DistillationStep, create_training_step

STEPS, TEACHER_STEPS = 2, 9


def distillation(few_steps: int = STEPS, teacher_steps: int = TEACHER_STEPS, **changes: Any) -> DistillationStep:
    config = small_config(predict_v=True, few_steps=few_steps, teacher_steps=teacher_steps, **changes)
    torch.manual_seed(0)
    model, diffusion = create_model_and_diffusion(config, squares_spec(3 if config.model.class_cond else None))
    return DistillationStep(randomise(model, scale=0.02), diffusion, config.loss, few_steps)


def arguments(step: DistillationStep, count: int = 8) -> tuple[Any, ...]:
    data = squares(count)
    images = torch.from_numpy(data.images).float() / 127.5 - 1
    labels = data.spec.normalise(torch.from_numpy(data.labels))
    draws = training_draws(torch.arange(count), step.model.latent_shape, noise=normal(*images.shape).float())
    return images, labels, None, torch.ones(labels.shape, dtype=torch.bool), draws, 0.0


def counterfactuals(step: DistillationStep, inputs: tuple[Any, ...], model: Any, solver: ExactDdim) -> Tensor:
    """The counterfactuals of a batch, of its images one by one."""
    images, _, _, _, draws, _ = inputs
    u = model.abduct(images)
    z = model.predict(u)
    names, labels, found = model.scm.graph.names, model.read_labels(z), []
    for i in range(len(images)):
        variable = int(draws.t[i]) % len(names)
        changed = model.predict(u[i : i + 1], {names[variable]: labels[(i + 1) % len(images), variable]})

        def output(x: Tensor, t: Tensor, latents: Tensor) -> Tensor:
            return model.model_output(x, t, latents)

        state = solver.encode(partial(output, latents=z[i : i + 1]), images[i : i + 1])
        found.append(solver.decode(partial(output, latents=changed), state))
    return torch.cat(found)


def test_the_loss_is_the_error_of_the_counterfactuals_of_each_image() -> None:
    step = distillation()
    inputs = arguments(step)
    with torch.no_grad():
        for parameter in step.model.unet.parameters():  # the student as it is during training
            parameter.mul_(1.1)
    loss, terms = step(*inputs)
    with torch.no_grad():
        target = counterfactuals(step, inputs, step.teacher, step.exact)
        found = counterfactuals(step, inputs, step.model, step.solver)
    expected = ((found - target) ** 2).flatten(1).mean(1)
    assert expected.min() > 1e-6
    torch.testing.assert_close(terms["mse"], expected, atol=1e-7, rtol=1e-3)
    torch.testing.assert_close(loss, expected.mean(), atol=1e-7, rtol=1e-3)


def test_every_variable_is_intervened_on_and_only_its_descendants_change() -> None:
    step = distillation()
    images, *_ = inputs = arguments(step)
    model, t = step.model, inputs[4].t
    u = model.abduct(images)
    z = model.predict(u)
    changed = step.intervened(u, z, t % 3)
    graph, labels = model.scm.graph, model.read_labels(z)
    for i, name in enumerate(graph.names):
        rows = t % 3 == i
        assert rows.any()
        torch.testing.assert_close(model.read_labels(changed)[rows, i], labels.roll(-1, dims=0)[rows, i])
        for j, other in enumerate(graph.names):
            if other != name and other not in graph.descendants(name):
                assert torch.equal(changed[rows, j], z[rows, j])
    assert torch.equal(changed[t % 3 == len(graph)], z[t % 3 == len(graph)]) and len(graph) == 2


def test_the_class_is_one_of_the_interventions_and_only_the_teacher_is_guided() -> None:
    step = distillation(class_cond=True)
    images, _, _, _, draws, _ = inputs = arguments(step)
    classes = torch.arange(8) % 3
    with torch.no_grad():
        for parameter in step.model.unet.parameters():
            parameter.mul_(1.1)
        _, terms = step(*inputs[:2], classes, *inputs[3:])
        model, row = step.model, 2  # two variables, so images 2 and 5 get a new class
        assert int(draws.t[row]) % 3 == 2
        x, z = images[row : row + 1], model.predict(model.abduct(images))[row : row + 1]
        old, new = classes[row : row + 1], classes[row + 1 : row + 2]

        def guided(a: Tensor, t: Tensor) -> Tensor:
            before, after = (step.teacher.model_output(a, t, z, each) for each in (old, new))
            return after + (CLASS_WEIGHT - 1) * (after - before)

        state = step.exact.encode(lambda a, t: step.teacher.model_output(a, t, z, old), x)
        target = step.exact.decode(guided, state)
        state = step.solver.encode(lambda a, t: model.model_output(a, t, z, old), x)
        found = step.solver.decode(lambda a, t: model.model_output(a, t, z, new), state)
    expected = ((found - target) ** 2).mean()
    assert expected > 1e-6
    torch.testing.assert_close(terms["mse"][row], expected, atol=1e-7, rtol=1e-3)


def test_gradients_pass_through_the_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the gradient of the decoding alone, the corrections and x_T would count as given."""
    step = distillation()
    inputs = arguments(step)
    step(*inputs)[0].backward()
    whole = [p.grad.clone() for p in step.model.unet.parameters() if p.grad is not None]
    step.model.zero_grad()
    monkeypatch.setattr(step.solver, "differentiable_encode", torch.no_grad()(step.solver.differentiable_encode))
    step(*inputs)[0].backward()
    decoding = [p.grad for p in step.model.unet.parameters() if p.grad is not None]
    assert any(not torch.allclose(a, b, rtol=1e-2) for a, b in zip(whole, decoding, strict=True))


def test_the_null_intervention_has_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    step = distillation()
    monkeypatch.setattr(step, "intervened", lambda u, z, t: z)
    assert step(*arguments(step))[0] < 1e-10


def test_starts_of_student_and_teacher() -> None:
    options: dict[str, Any] = {"init_weights": "teacher", "few_step_start": 1.0, "teacher_start": 3.0}
    config = small_config(predict_v=True, few_steps=2, teacher_steps=TEACHER_STEPS, **options)
    step = create_training_step(config, *create_model_and_diffusion(config, squares_spec()))
    assert isinstance(step, DistillationStep)
    for solver, start, steps in ((step.solver, 1.0, 2), (step.exact, 3.0, TEACHER_STEPS)):
        assert solver.path().half_logsnr(CLEAN + 1) == pytest.approx(start) and solver.steps == steps


def test_a_single_image_is_refused() -> None:
    step = distillation()
    with pytest.raises(InputError, match="batch_size: expected at least 2 images"):
        step(*arguments(step, 1))


def test_only_the_score_network_is_trained() -> None:
    step = distillation()
    loss, _ = step(*arguments(step))
    loss.backward()
    for name, parameter in step.model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("unet."), name
    assert all(parameter.grad is None for parameter in step.teacher.parameters())


def test_a_diff_scm_encodes_without_labels_and_decodes_under_guidance() -> None:
    step = distillation(model_type="diffscm", label_cond=True, teacher_scale=1.5)
    images, labels, _, labelled, draws, _ = arguments(step)
    labelled[2, 0] = False
    encoding, decoding = step.conditional(Observed.of(labelled))
    assert not encoding.any()
    assert decoding.tolist() == [True, False, False, *[True] * 5], "without all labels, or those of the next image"
    z = step.model.predict(step.model.abduct(images, labels))
    x, t = draws.noise, torch.tensor([300.0])
    keep = torch.ones(8, dtype=torch.bool)
    guided = step.output(step.teacher, z, None, keep, 1.5)(x, t)
    plain, null = step.teacher.model_output(x, t, z), step.teacher.model_output(x, t, None)
    torch.testing.assert_close(guided, null + 1.5 * (plain - null))
    loss = step(images, labels, None, labelled, draws, 0.0)[0]
    plain_step = distillation(model_type="diffscm", label_cond=True)
    assert (loss - plain_step(images, labels, None, labelled, draws, 0.0)[0]).abs() > 1e-8
    assert step(images, labels, None, torch.zeros_like(labelled), draws, 0.0)[0] < 1e-10, "null is exact"


def test_targets_have_no_dropout_and_running_statistics_do_not_change() -> None:
    step = distillation(encoder_norm="batch", dropout=0.5)
    before = {name: value.clone() for name, value in step.model.named_buffers()}
    inputs = arguments(step)
    losses = [step.train()(*inputs)[0].item() for _ in range(2)]
    assert losses[0] == losses[1] and before
    assert all(torch.equal(value, before[name]) for name, value in step.model.named_buffers())


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"few_steps": 1}, "few_steps: expected at least 2, got 1"),
        ({"teacher_steps": 2}, r"teacher_steps: expected more than few_steps \(2\), got 2"),
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
    state = {name: value.clone() for name, value in randomise(model, scale=0.02).state_dict().items()}
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
    torch.manual_seed(1)
    other = describe_checkpoint(config, squares_spec())
    shutil.rmtree(teacher)
    another, _ = create_model_and_diffusion(config, squares_spec())
    export_weights(tmp_path / "teacher", another.state_dict(), other)
    with pytest.raises(InputError, match="init_weights: expected the teacher of"):
        run("twice", 7)
    for name, value in once.model.state_dict().items():
        if not name.startswith("unet."):
            assert torch.equal(value, state[name]), name
    assert any(not torch.equal(once.model.state_dict()[name], value) for name, value in state.items())


def test_the_loss_falls_and_other_counterfactuals_come_closer_to_the_teachers() -> None:
    step = distillation()
    optimizer = torch.optim.AdamW(step.model.unet.parameters(), lr=1e-3)
    inputs, others = arguments(step), arguments(step, 13)
    others = (others[0][8:], others[1][8:], None, others[3][8:], training_draws(torch.arange(5), (2, 2)), 0.0)
    before, losses = step(*others)[0].item(), []
    for seed in range(60):
        order = torch.from_numpy(np.random.default_rng(seed).permutation(8))
        draws = replace(inputs[4], t=torch.arange(8) + seed)
        loss, _ = step(inputs[0][order], inputs[1][order], None, inputs[3], draws, 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert step(*others)[0].item() < 0.7 * before
