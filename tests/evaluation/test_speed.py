"""The speed benchmark: both sides compute the same, and ratios mean what they say."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from paths import REPO
from running import assert_refused, run
from tiny import randomise, small_config, squares_spec
from torch import nn

from causaldiffae import nn as layers
from causaldiffae.evaluation import speed
from causaldiffae.evaluation.speed import (
    Bench,
    SpeedSettings,
    Timing,
    evaluations,
    explicit_attention,
    make_bench,
    median_interval,
    peak_memory,
    reference_attention,
    time_alternately,
    time_counterfactuals,
    time_forward,
    time_training,
    train_one_side,
    training_step,
)

FEW = SpeedSettings(batch_size=2, repeats=2, steps=2, reference_steps=1, max_spread=0)


@pytest.fixture
def bench() -> Bench:
    return make_bench(small_config(), squares_spec(), FEW)


@pytest.mark.parametrize("new_order", [True, False])
def test_explicit_attention_equals_fused_attention(new_order: bool) -> None:
    torch.manual_seed(0)
    args = torch.randn(2, 24, 9), nn.Conv1d(24, 72, 1), nn.Conv1d(24, 24, 1), 4, new_order
    torch.testing.assert_close(explicit_attention(*args), layers.self_attention(*args))


def test_both_sides_compute_the_same(bench: Bench) -> None:
    for model in (bench.reference, bench.ours):
        randomise(model)
    t, z = torch.tensor([3.0, 50.0]), torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(1))
    ours, original = bench.ours.model_output(bench.x_start, t, z), layers.self_attention
    with reference_attention():
        assert layers.self_attention is explicit_attention
        torch.testing.assert_close(bench.reference.model_output(bench.x_start, t, z), ours, rtol=1e-4, atol=1e-4)
    assert layers.self_attention is original


def test_one_training_step_leads_to_the_same_weights(bench: Bench) -> None:
    for reference in (True, False):
        torch.manual_seed(3)
        training_step(bench, reference)()
    pairs = zip(bench.reference.parameters(), bench.ours.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_ratios_are_those_of_pairs() -> None:
    timing = Timing("x", [2.0, 4.0, 3.0], [1.0, 1.5, 1.2], scale=10.0)
    assert timing.ratio == pytest.approx(1.2 / 30)
    slow = Timing("x", [2.0, 20.0, 200.0], [1.0, 10.0, 100.0])
    assert slow.ratios == [0.5, 0.5, 0.5], "a slowdown of both sides does not count"
    assert evaluations(1, 25) == (500, 50) and evaluations(4, 25) == (2000, 125)


@pytest.mark.parametrize(("count", "rank"), [(5, 0), (6, 1), (8, 1), (9, 2), (20, 6), (100, 40)])
def test_the_interval_of_a_median_has_the_ranks_of_the_sign_test(count: int, rank: int) -> None:
    expected = (rank, count + 1 - rank) if rank else (-math.inf, math.inf)
    assert median_interval(range(count, 0, -1)) == expected


class Machine:
    """Workloads on a fake clock: each run takes the next of its durations, the last one for ever."""

    def __init__(self, reference: list[float], ours: list[float]) -> None:
        self.now, self.calls, self._durations = 0.0, [], {"reference": reference, "ours": ours}  # type: ignore[var-annotated]

    def clock(self) -> float:
        return self.now

    def run(self, side: str) -> None:
        done = self.calls.count(side)
        self.calls.append(side)
        durations = self._durations[side]
        self.now += durations[min(done, len(durations) - 1)]

    def time(self, bench: Bench, **settings: float) -> Timing:
        bench = replace(bench, settings=replace(bench.settings, **settings))  # type: ignore[arg-type]
        return time_alternately("x", lambda: self.run("reference"), lambda: self.run("ours"), bench, clock=self.clock)


def test_sides_alternate_and_change_places_after_a_warm_up(bench: Bench) -> None:
    machine = Machine([9.0, 1.0], [9.0, 0.5])
    timing = machine.time(bench)
    assert machine.calls == ["reference", "ours", "reference", "ours", "ours", "reference"]
    assert (timing.reference, timing.ours) == ([1.0, 1.0], [0.5, 0.5])


def test_pairs_are_added_until_the_interval_is_narrow(bench: Bench) -> None:
    steady = Machine([1.0], [0.5]).time(bench, repeats=1, max_spread=0.1)
    assert len(steady.ours) == 6 and not steady.withheld(0.1), "fewer pairs have no interval"
    noise = [0.5, 0.9, 0.3, 0.8, 0.5]
    noisy = Machine([1.0], [0.5, *noise, 0.5]).time(bench, repeats=1, max_spread=0.1, max_seconds=1000.0)
    assert 6 < len(noisy.ours) < 40 and noisy.ratio == 0.5 and not noisy.withheld(0.1)


def test_a_ratio_is_withheld_where_time_is_not_enough(bench: Bench) -> None:
    wild = [0.1 * (1 + 7 * i % 13) for i in range(200)]
    timing = Machine([1.0], wild).time(bench, repeats=1, max_spread=0.1, max_seconds=30.0)
    assert 10 < len(timing.ours) < 30
    assert f"after {len(timing.ours)} pairs, wider than 10 % of the ratio" in timing.withheld(0.1)
    short = Machine([1.0], wild).time(bench, repeats=3, max_spread=0.1, max_seconds=0.0)
    assert len(short.ours) == 3 and short.withheld(0.1).startswith("no interval after 3 pairs")


def test_everything_is_timed(bench: Bench) -> None:
    for timing in (time_forward(bench), time_training(bench), time_counterfactuals(bench, 2)):
        assert len(timing.ours) == 2 and min(*timing.ours, *timing.reference) > 0
    assert timing.scale == 2 * 250 and timing.name == "counterfactuals, 2 interventions"
    assert peak_memory(small_config(), squares_spec(), FEW, True) > 0


@pytest.mark.parametrize("reference", [True, False])
def test_memory_is_that_of_one_side(bench: Bench, monkeypatch: pytest.MonkeyPatch, reference: bool) -> None:
    trained: list[Bench] = []
    monkeypatch.setattr(speed, "make_bench", lambda *_: bench)
    monkeypatch.setattr(speed, "training_step", lambda bench, _: trained.append(bench) or (lambda: None))
    train_one_side(small_config(), squares_spec(), FEW, reference)
    assert trained[0].reference is trained[0].ours is (bench.reference if reference else bench.ours)


def test_the_script(tmp_path: Path) -> None:
    script = REPO / "scripts" / "benchmark.py"
    small = ["--size=mini", "--repeats=1", "--batch_size=2", "--reference_steps=1", "--steps=2", "--compile=False"]
    outcome = run(script, *small, "--max_spread=0", f"--json={tmp_path / 'speed.json'}")
    assert outcome.returncode == 0, outcome.stderr
    found = json.loads((tmp_path / "speed.json").read_text())
    expected = {"forward_ratio", "train_ratio", "memory_ratio", "counterfactual_speedup", "counterfactual_speedup_4"}
    assert expected | {"composition_l1", "composition_l1_8bit"} <= set(found)
    assert abs(found["composition_l1"] - found["composition_l1_8bit"]) < 0.5, "rounding moves a pixel by half a level"
    assert found["counterfactual_speedup"] > 1 and "evaluations, 4 intervention(s)" in outcome.stdout
    busy = run(script, *small, "--max_seconds=0", f"--json={tmp_path / 'busy.json'}")
    assert busy.returncode == 0 and "withheld: forward: no interval after 1 pairs" in busy.stdout
    withheld = json.loads((tmp_path / "busy.json").read_text())
    assert withheld["forward_ratio"] is None and len(withheld["withheld"]) == 4
    assert_refused(run(script, "--steps=1"), "steps: expected 2 or more, got 1")
    assert_refused(run(script, "--size=huge"), "size: expected a configuration configs/morphomnist_causaldae_huge.yaml")
    if not torch.cuda.is_available():
        assert_refused(run(script, "--device=cuda"), "device: expected cpu, got cuda")
