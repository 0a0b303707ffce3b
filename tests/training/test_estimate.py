"""Resources of a training run."""

import time
from itertools import count

import pytest
import torch
from tiny import small_config, squares_spec

from causaldiffae.model import TrainingStep
from causaldiffae.nn import count_parameters
from causaldiffae.script_util import MODELS, create_model_and_diffusion
from causaldiffae.training import estimate as module
from causaldiffae.training.estimate import Estimate, Trial, _measure, duration, estimate, estimated_hours, idle_clock


@pytest.mark.parametrize("kind", MODELS)
def test_every_model_is_estimated(kind: str) -> None:
    config = small_config(model_type=kind, ema_rate="0.9,0.99", num_images=4096, total_steps=1000)
    found = estimate(config, squares_spec())
    parameters = count_parameters(create_model_and_diffusion(config, squares_spec())[0])
    assert found.state_mib == pytest.approx(parameters * 24 / 2**20), "weight, gradient, two moments, two averages"
    assert found.data_mib == pytest.approx(4096 * 64 / 2**20)
    assert found.hours == pytest.approx(1000 * 8 / found.images_per_second / 3600)
    assert len(found.lines()) == 2 and "MiB" in found.lines()[0]


@pytest.mark.parametrize(
    ("options", "images"), [({"batch_size": 3}, 3), ({"batch_size": 64}, 16), ({"batch_size": 64, "microbatch": 5}, 5)]
)
def test_the_time_is_measured_on_a_microbatch(options: dict[str, int], images: int) -> None:
    found = estimate(small_config(**options, total_steps=1000), squares_spec())
    assert found.trial_images == images and f"(measured on {images} images" in found.lines()[1]
    assert found.hours == pytest.approx(1000 * options["batch_size"] / found.images_per_second / 3600)


def test_distillation_counts_its_teacher_and_the_gradients_through_all_steps() -> None:
    options = {"predict_v": True, "batch_size": 2, "init_weights": "teacher"}
    plain = estimate(small_config(**options), squares_spec())
    student = estimate(small_config(**options, few_steps=3, teacher_steps=4), squares_spec())
    moments = 16 * (plain.parameters - student.parameters) / 2**20  # gradients, moments and an average of frozen parts
    assert student.parameters < plain.parameters
    assert student.state_mib == pytest.approx(plain.state_mib - moments + plain.parameters * 4 / 2**20, rel=1e-5)
    assert student.activation_mib > 3 * plain.activation_mib
    assert student.step_seconds > 2 * plain.step_seconds


def test_bfloat16_is_measured_where_it_is_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    requested = []
    monkeypatch.setattr(module, "activation_dtype", lambda use, device: requested.append(use))
    estimate(small_config(use_bf16=True), squares_spec())
    assert requested == [True]


def test_memory_grows_with_the_images_of_a_forward_pass() -> None:
    found = {size: estimate(small_config(batch_size=64, microbatch=size), squares_spec()) for size in (4, 0)}
    assert found[4].activation_mib == found[0].activation_mib > 0
    assert (found[4].images, found[0].images) == (4, 64)
    difference = found[0].memory_mib - found[4].memory_mib
    assert difference == pytest.approx(60 * 1.3 * found[0].activation_mib), (
        "the process needs 1.3 times what is counted"
    )


@pytest.mark.parametrize(
    ("free_mib", "fits", "advice"),
    [
        (0, True, ""),  # unknown
        (4000, True, ""),
        (34, False, "does not fit; --microbatch 16 does"),
        (0.001, False, "does not fit; use a smaller configuration"),
    ],
)
def test_a_run_that_does_not_fit_gets_advice(
    free_mib: float, fits: bool, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(batch_size=4096)
    monkeypatch.setattr(module, "training_costs", lambda *_: module_costs)
    module_costs = type("Costs", (), {"activation_mib": 0.5})
    monkeypatch.setattr(module, "free_memory", lambda _: int(free_mib * 2**20))
    found = estimate(config, squares_spec())
    assert (found.fits, found.advice()) == (fits, advice)
    assert (advice in found.lines()[0]) and ("MiB are free" in found.lines()[0]) is bool(free_mib)


def test_a_trial_is_timed_by_its_clock() -> None:
    config = small_config()
    step = TrainingStep(*create_model_and_diffusion(config, squares_spec()), config.loss)
    ticks = count()
    clock = iter([0.0, 50.0, 50.0, 53.0, 60.0, 62.0])  # the first step is not counted
    assert Trial(step, config, squares_spec(), "cpu", 2, lambda: (next(ticks), next(clock))[1]).run(None, 2) == 2.0


def test_time_spent_waiting_for_a_processor_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: 100.0)
    monkeypatch.setattr(module, "waiting_time", lambda: 30.0)
    assert idle_clock() == 70.0
    values = dict.fromkeys(Estimate._fields, 1.0)
    assert "waited" not in Estimate(**values | {"waited": 0.05}).lines()[1]  # type: ignore[arg-type]
    assert "waited 30 % of the time" in Estimate(**values | {"waited": 0.3}).lines()[1]  # type: ignore[arg-type]


def test_hours_of_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(dataset="morphomnist", total_steps=1000)
    seen = []

    def recorded(config: object, spec: object, device: object) -> Estimate:
        seen.append((config, spec.name, spec.image_size, torch.device(device).type))  # type: ignore[attr-defined, arg-type]
        return Estimate(**dict.fromkeys(Estimate._fields, 2.5))  # type: ignore[arg-type]

    monkeypatch.setattr(module, "estimate", recorded)
    assert estimated_hours(config, "cpu") == 2.5 and seen == [(config, "morphomnist", 28, "cpu")]


def test_a_budget_in_minutes_is_the_time_of_the_run() -> None:
    assert estimate(small_config(minutes=30.0), squares_spec()).hours == 0.5


@pytest.mark.parametrize(("seconds", "text"), [(3.21, "3.2 s"), (90, "1.5 min"), (5400, "1.5 hours")])
def test_durations_have_a_readable_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_slow_model_is_measured_on_two_images_as_batch_normalisation_requires() -> None:
    asked: list[int] = []
    assert _measure(lambda count: asked.append(count) or 100.0, 8, torch.device("cpu")) == (2, 100.0, 0.0)  # type: ignore[func-returns-value]
    assert _measure(lambda count: asked.append(count) or 0.001, 8, torch.device("cpu"))[0] == 8  # type: ignore[func-returns-value]
    assert _measure(lambda count: asked.append(count) or 100.0, 1, torch.device("cpu"))[0] == 1  # type: ignore[func-returns-value]
    assert asked == [2, 2, 8, 1]
