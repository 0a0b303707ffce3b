"""Responses while a model trains: the best step, and stopping."""

from pathlib import Path
from typing import Any

import pytest
import torch
from loops import STOCHASTIC, assert_same, loop
from paths import REPO
from tiny import small_config, squares, squares_spec

from causaldiffae.checkpoints.folder_layout import BEST
from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.datasets.registry import example_images
from causaldiffae.files.reading import read_json
from causaldiffae.metrics.intervals import Figure
from causaldiffae.pretrained import CounterfactualModel
from causaldiffae.script_util import create_model_and_diffusion, load_model
from causaldiffae.training.response_tracker import ResponseTracker
from causaldiffae.training.responses import Response, read_responses
from causaldiffae.training.stopping import StopRequest


def measuring(monkeypatch: pytest.MonkeyPatch, shares: list[tuple[float, float]]) -> None:
    """Replaces the measurements by these shares of size and grey, one pair per call."""
    rest = iter(shares)

    def measured(*_: Any, **__: Any) -> dict[str, Response]:
        names = zip(("size", "grey"), next(rest), strict=True)
        return {name: Response(Figure(share, None, None, 8), "measured") for name, share in names}

    monkeypatch.setattr("causaldiffae.training.response_tracker.measure_responses", measured)


def tracked(tracker: ResponseTracker, steps: range) -> list[str]:
    """The reason to stop after each step."""
    config, spec = small_config(), squares_spec()
    model, _ = create_model_and_diffusion(config, spec)
    reasons = []
    for step in steps:
        tracker.measure(model, config, squares(), step)
        reasons.append(tracker.stop_reason())
    return reasons


def test_the_tracker_reports_progress_and_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, said = squares_spec(), list[str]()
    shares = iter([0.2, 0.5, 0.5, 0.5, 0.505])

    def measured(*_: Any, **__: Any) -> dict[str, Response]:
        return {
            "size": Response(Figure(next(shares), None, None, 8), ""),
            "grey": Response(Figure(None, None, None, 0), ""),
        }

    monkeypatch.setattr("causaldiffae.training.response_tracker.measure_responses", measured)
    config = small_config()
    model, _ = create_model_and_diffusion(config, spec)
    tracker = ResponseTracker("", said.append)
    for step in range(5):
        found = tracker.measure(model, config, squares(), step)
    assert found == {"response_size": 0.505} and tracker.latest["size"].share.mean == 0.505
    assert said[1] == "step 1: counterfactuals show 50% of the requested changes"
    assert said[4].endswith("; no better than before the last 3 measurements")
    assert not any("no better" in line for line in said[:4])
    unlabelled, _ = create_model_and_diffusion(small_config(model_type="diffscm"), spec)
    assert tracker.measure(unlabelled, config, squares(), 5) == {}, "nothing to intervene with"
    with pytest.warns(UserWarning, match="train_until: no effect, nothing measures interventions; only a Diff-SCM"):
        assert ResponseTracker("", said.append, 0.5).measure(unlabelled, config, squares(), 5) == {}


def test_responses_are_those_of_the_default_engine_without_label_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = list[CounterfactualEngine]()
    monkeypatch.setattr(
        "causaldiffae.training.response_tracker.measure_responses",
        lambda engine, *_, **__: engines.append(engine) or {},
    )
    for name in ("pendulum", "morphomnist"):
        loaded = load_model(str(REPO / "weights" / f"{name}_causaldae_mini"))
        ResponseTracker("", print).measure(loaded.model, loaded.config, example_images(loaded.spec, 2), 0)
        default = loaded.engine()
        assert engines[-1].keep_causes == default.keep_causes and engines[-1].keep_fraction == default.keep_fraction
        assert engines[-1].correction is None
    assert engines[0].keep_causes


def test_training_stops_when_every_variable_shows_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    measuring(monkeypatch, [(0.9, 0.2), (0.9, 0.79), (0.81, 0.8)])
    first, second, third = tracked(ResponseTracker("", lambda line: None, until=0.8), range(3))
    assert not first and not second
    assert third == "train_until 0.8: the pictures show at least 80% of every requested change"
    measuring(monkeypatch, [(1.0, 1.0)])
    assert tracked(ResponseTracker("", lambda line: None), range(1)) == [""], "off by default"


def test_training_stops_when_the_responses_no_longer_rise(monkeypatch: pytest.MonkeyPatch) -> None:
    measuring(monkeypatch, [(0.0, 0.0)] * 6 + [(0.3, 0.2), (0.4, 0.3)] + [(0.4, 0.3)] * 3)
    reasons = tracked(ResponseTracker("", lambda line: None, until=0.8), range(11))
    assert not any(reasons[:10]), "at first no pictures respond, which is no reason to stop"
    assert reasons[10] == "train_until 0.8: the responses have not risen in the last 3 measurements"


def test_the_state_is_that_of_the_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [(0.2, 0.1), (0.6, 0.4), (0.5, 0.3), (0.5, 0.3), (0.6, 0.4)]
    measuring(monkeypatch, shares)
    whole, first, second = (ResponseTracker("", lambda line: None, until=0.8) for _ in range(3))
    expected = tracked(whole, range(5))
    measuring(monkeypatch, shares)
    reasons = tracked(first, range(2))
    second.load_state_dict(first.state_dict())
    assert second.has_measured(1) and not second.has_measured(2)
    assert reasons + tracked(second, range(2, 5)) == expected and expected[4]
    assert second.best == whole.best and whole.best is not None and whole.best.step == 1


def test_the_weights_of_the_best_step_are_a_model_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measuring(monkeypatch, [(0.2, 0.1), (0.6, 0.4), (0.5, 0.3)])
    config, spec = small_config(), squares_spec()
    tracker, kept = ResponseTracker("", lambda line: None, until=0.8), []
    for step in range(3):
        torch.manual_seed(step)
        model, _ = create_model_and_diffusion(config, spec)
        tracker.measure(model, config, squares(), step)
        kept.append(tracker.keep_best(tmp_path, model, config, spec, 10 * step))
        if step == 1:
            best = model
    assert kept == [True, True, False]
    opened = CounterfactualModel.from_pretrained(tmp_path / BEST)
    for name, value in best.state_dict().items():
        torch.testing.assert_close(opened.network.state_dict()[name], value)
    assert read_responses(tmp_path / BEST)["size"].share.mean == 0.6
    off = ResponseTracker("", lambda line: None)
    off.load_state_dict(tracker.state_dict()[:2])
    assert not off.keep_best(tmp_path / "off", best, config, spec, 0) and not (tmp_path / "off").exists()


OPTIONS: dict[str, Any] = STOCHASTIC | {"preview": True, "train_until": 0.8, "total_steps": 12, "sample_interval": 2}
SHARES = [(0.2, 0.1), (0.5, 0.4), (0.9, 0.8)]


def test_a_run_ends_with_a_checkpoint_and_its_best_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measuring(monkeypatch, SHARES)
    run = loop(tmp_path, **OPTIONS)
    run.run()
    assert run.step == 7 and run.stopped, "measured after steps 2, 4 and 6; all processes stop after the next step"
    assert run.stop.reason() == run.responses.stop_reason() and run.stop.reason().startswith("train_until 0.8: ")
    described = read_json(tmp_path / BEST / "config.json")
    assert described["trained_steps"] == 6 and described["images_seen"] == 6 * run.source.batch_size
    again = loop(tmp_path, **OPTIONS)
    again.run()
    assert again.step == 7 and again.stopped, "there is nothing left to do"
    measuring(monkeypatch, [(0.9, 0.8)] * 5)
    further = loop(tmp_path, **OPTIONS | {"train_until": 0.0})
    further.run()
    assert further.step == 12, "the end may be lifted"


def test_an_interrupted_run_stops_where_the_uninterrupted_one_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Interrupted after step 4, before its responses were measured."""
    measuring(monkeypatch, SHARES)
    whole = loop(tmp_path / "whole", **OPTIONS)
    whole.run()
    measuring(monkeypatch, SHARES)
    stop = StopRequest()
    part = loop(tmp_path / "parts", stop=stop, **OPTIONS)
    step = part.run_step

    def run_step() -> dict[str, float]:
        if part.step == 3:
            stop.request("a test")
        return step()

    part.run_step = run_step  # type: ignore[method-assign]
    part.run()
    assert part.step == 4 and not part.responses.has_measured(4)
    resumed = loop(tmp_path / "parts", **OPTIONS)
    resumed.run()
    assert_same(whole, resumed)
    assert resumed.responses.history == whole.responses.history
