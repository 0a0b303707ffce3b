"""Options that training chooses: bfloat16, compilation, number of steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import small_config, squares, squares_spec

from causaldiffae.config import Config
from causaldiffae.errors import DataError
from causaldiffae.logger import Logger
from causaldiffae.model import TrainingStep
from causaldiffae.script_util import create_model_and_diffusion, parse_config
from causaldiffae.train_util import TrainLoop
from causaldiffae.training import acceleration, automatic
from causaldiffae.training.automatic import _Machine, choose, with_recorded
from causaldiffae.training.estimate import Trial

CPU = torch.device("cpu")
AUTO = {"use_bf16": "auto", "compile": "auto"}


def step_of(config: Config) -> TrainingStep:
    torch.manual_seed(0)
    return TrainingStep(*create_model_and_diffusion(config, squares_spec()), config.loss)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine on which a step takes `eager` seconds, or `compiled` ones after compilation."""

    def simulate(eager: float, compiled: float, bf16: bool = True, error: str = "") -> None:
        def run(self: Trial, dtype: torch.dtype | None, repeats: int = 1) -> float:
            is_compiled = self.training_step.model.unet._compiled_call_impl is not None
            if is_compiled and error:
                raise RuntimeError(error)
            return compiled if is_compiled else eager

        monkeypatch.setattr(Trial, "run", run)
        monkeypatch.setattr(acceleration, "has_fast_bf16", lambda device: bf16)
        monkeypatch.setattr(automatic, "has_compiler", lambda device: True)

    return simulate


@pytest.mark.parametrize("bf16", [False, True])
def test_bfloat16_follows_the_hardware(machine: Callable[..., None], bf16: bool) -> None:
    machine(1.0, 0.5, bf16)
    config = small_config(use_bf16="auto")
    chosen, line = choose(config, step_of(config), squares_spec(), CPU)
    assert chosen.train.use_bf16 is bf16 and chosen.train.compile is False
    assert line == ("bfloat16" if bf16 else "float32 (this device does not support bfloat16)") + ", not compiled"


@pytest.mark.parametrize(
    ("eager", "compiled", "steps", "is_compiled"),
    [(1.0, 0.5, 601, True), (1.0, 0.5, 599, False), (1.0, 1.2, 10_000, False)],
)
def test_long_runs_are_compiled_where_that_is_faster(
    machine: Callable[..., None], eager: float, compiled: float, steps: int, is_compiled: bool
) -> None:
    machine(eager, compiled)
    config = small_config(compile="auto", total_steps=steps)
    training_step = step_of(config)
    chosen, line = choose(config, training_step, squares_spec(), CPU)
    assert chosen.train.compile is is_compiled
    assert (training_step.model.unet._compiled_call_impl is not None) is is_compiled
    reason = f"{compiled:g} s a step, 1 s without" if steps > 600 else "a run of less than 10 minutes"
    assert line.endswith(f"compiled ({'' if is_compiled or steps < 600 else 'not faster: '}{reason})")


def test_only_the_remaining_steps_count(machine: Callable[..., None]) -> None:
    machine(1.0, 0.5)
    config = small_config(compile="auto", total_steps=10_000)
    assert choose(config, step_of(config), squares_spec(), CPU, 9_500)[0].train.compile is False
    assert choose(config, step_of(config), squares_spec(), CPU, 9_000)[0].train.compile is True


def test_a_compiler_that_fails_is_a_warning(machine: Callable[..., None]) -> None:
    machine(1.0, 0.5, error="ld: cannot find -lgomp\nmore")
    config = small_config(compile="auto", total_steps=10_000)
    training_step = step_of(config)
    with pytest.warns(UserWarning, match="compile: failed, so the network is not compiled: ld: cannot find -lgomp$"):
        chosen, _ = choose(config, training_step, squares_spec(), CPU)
    assert chosen.train.compile is False and training_step.model.unet._compiled_call_impl is None


def test_nothing_is_compiled_where_one_process_has_no_compiler(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(1.0, 0.5)
    monkeypatch.setattr(automatic.dist_util, "any_of", lambda condition: True)  # true in another process
    monkeypatch.setattr(automatic, "compile_network", None)
    config = small_config(compile="auto", total_steps=10_000)
    training_step = step_of(config)
    assert choose(config, training_step, squares_spec(), CPU)[0].train.compile is False
    assert training_step.model.unet._compiled_call_impl is None
    monkeypatch.setattr(_Machine, "can_compile", lambda self: False)
    assert choose(config, training_step, squares_spec(), CPU)[1].endswith("not compiled (no C++ compiler)")


def test_a_trial_step_takes_the_images_of_a_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    class Recorded(Trial):
        def __init__(self, *args: Any) -> None:
            counts.append(args[-1])
            super().__init__(*args)

    monkeypatch.setattr(automatic, "Trial", Recorded)
    for microbatch in (0, 4, 100):
        config = small_config(use_bf16="auto", microbatch=microbatch)
        choose(config, step_of(config), squares_spec(), CPU)
    assert counts == [8, 4, 8]


def test_the_slowest_process_decides(machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    machine(1.0, 0.5)
    monkeypatch.setattr(automatic.dist_util, "from_all", lambda action: [action(), 4.0])
    config = small_config(minutes=20.0)
    assert choose(config, step_of(config), squares_spec(), CPU)[0].train.total_steps <= 0.9 * 1200 / 4


def test_minutes_set_steps_and_decay(machine: Callable[..., None]) -> None:
    machine(1.0, 0.5)
    config = small_config(minutes=20.0, microbatch=4, **AUTO)
    chosen, line = choose(config, step_of(config), squares_spec(), CPU)
    assert 1000 < chosen.train.total_steps <= 0.9 * 1200, "two microbatches of 0.5 s"
    assert chosen.train.lr_anneal_steps == chosen.train.total_steps // 3
    assert f"{chosen.train.total_steps} steps in 20 minutes" in line
    again, line = choose(chosen, step_of(config), squares_spec(), CPU, 7)
    assert again == chosen and line == "", "a resumed run keeps its number of steps"


def test_minutes_end_the_ramps_early(machine: Callable[..., None]) -> None:
    machine(1.0, 0.5)
    config = small_config(minutes=20.0, warmup_steps=5000, kl_anneal_steps=50_000)
    chosen, _ = choose(config, step_of(config), squares_spec(), CPU)
    steps = chosen.train.total_steps
    assert (chosen.train.warmup_steps, chosen.loss.kl_anneal_steps) == (steps // 10, steps // 4)
    resumed = with_recorded(config, chosen)
    assert (resumed.train, resumed.loss) == (chosen.train, chosen.loss)
    short = small_config(minutes=20.0, warmup_steps=5, kl_anneal_steps=6)
    chosen, _ = choose(short, step_of(short), squares_spec(), CPU)
    assert (chosen.train.warmup_steps, chosen.loss.kl_anneal_steps) == (5, 6)


def test_options_that_are_set_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trial, "run", None)
    config = small_config(total_steps=10_000)
    assert choose(config, step_of(config), squares_spec(), CPU) == (config, "")


def test_a_resumed_run_keeps_the_choices() -> None:
    recorded = small_config(use_bf16=True, compile=True, minutes=5.0, total_steps=123, lr_anneal_steps=41)
    resumed = with_recorded(small_config(minutes=5.0, **AUTO), recorded).train
    assert resumed == recorded.train
    explicit = with_recorded(small_config(use_bf16=False, compile=False, total_steps=50), recorded).train
    assert (explicit.use_bf16, explicit.compile, explicit.total_steps) == (False, False, 50)


@pytest.mark.parametrize(("minutes", "began"), [(0.0, "without"), (5.0, "with --minutes 5")])
def test_other_minutes_than_at_the_start_are_a_warning(minutes: float, began: str) -> None:
    ramps = {"warmup_steps": 60, "kl_anneal_steps": 100}
    recorded = small_config(minutes=minutes, total_steps=123, lr_anneal_steps=41, **ramps)
    with pytest.warns(UserWarning, match=f"minutes: no effect on a run that began {began}; it keeps its 123 steps"):
        found = with_recorded(small_config(minutes=20.0, total_steps=6, **ramps), recorded)
    resumed = found.train
    assert (resumed.total_steps, resumed.lr_anneal_steps) == (123, 41)
    assert (resumed.warmup_steps, found.loss.kl_anneal_steps) == (60, 100), "whatever the ramps were at the start"


def test_trial_steps_leave_the_model_unchanged() -> None:
    config = small_config(encoder_norm="batch")
    training_step = step_of(config)
    before = {key: value.clone() for key, value in training_step.model.state_dict().items()}
    assert Trial(training_step, config, squares_spec(), "cpu", 4).run(None) > 0
    torch.testing.assert_close(training_step.model.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in training_step.parameters())


def test_a_trial_step_that_fails_leaves_the_model_unchanged() -> None:
    config = small_config(encoder_norm="batch")
    training_step = step_of(config)
    before = {key: value.clone() for key, value in training_step.model.state_dict().items()}
    trial = Trial(training_step, config, squares_spec(), "cpu", 4)
    training_step.model.unet.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trial.run(None)
    torch.testing.assert_close(training_step.model.state_dict(), before, rtol=0, atol=0)


def run(folder: Path, **changes: Any) -> TrainLoop:
    trained = TrainLoop(small_config(**changes), squares(), Logger(folder, use_tensorboard=False))
    trained.run()
    return trained


def test_a_run_records_its_choices_and_trains_as_if_they_were_given(tmp_path: Path) -> None:
    chosen = run(tmp_path / "auto", **AUTO)
    train = chosen.config.train
    given = run(tmp_path / "given", use_bf16=train.use_bf16, compile=train.compile)
    torch.testing.assert_close(chosen.model.state_dict(), given.model.state_dict(), rtol=0, atol=0)
    resumed = TrainLoop(
        small_config(total_steps=8, **AUTO), squares(), Logger(tmp_path / "auto", use_tensorboard=False)
    )
    assert (resumed.step, resumed.config.train.use_bf16, resumed.config.train.compile) == (
        *(6, train.use_bf16, train.compile),
    )


def test_a_resumed_run_is_compiled_if_that_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(self))
    monkeypatch.setattr(acceleration, "has_compiler", lambda device: True)
    compiled: list[torch.nn.Module] = []
    run(tmp_path, compile=True)
    for option, count in (("auto", 1), (True, 1), (False, 0)):
        compiled.clear()
        config = small_config(total_steps=8, compile=option)
        resumed = TrainLoop(config, squares(), Logger(tmp_path, use_tensorboard=False))
        assert resumed.step == 6 and len(compiled) == count
        assert resumed.config.train.compile is bool(count)


def test_the_flags_take_true_false_and_auto() -> None:
    assert parse_config([]).train.use_bf16 == "auto"
    train = parse_config(["--use_bf16", "True", "--compile", "false"]).train
    assert train.use_bf16 is True and train.compile is False
    assert parse_config(["--recipe", "reference"]).train.use_bf16 is False, "as the published code"
    with pytest.raises(DataError, match="use_bf16: expected true, false or auto, got 'yes'"):
        Config.from_dict({"train": {"use_bf16": "yes"}})
