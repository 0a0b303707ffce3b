"""The speed benchmark: both sides compute the same, and ratios mean what they say."""

import json
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
    peak_memory,
    reference_attention,
    time_alternately,
    time_counterfactuals,
    time_forward,
    time_training,
    train_one_side,
    training_step,
)

FEW = SpeedSettings(batch_size=2, repeats=2, steps=2, reference_steps=1)


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


def test_ratios() -> None:
    timing = Timing("x", [2.0, 4.0, 3.0], [1.0, 1.5, 1.2], scale=10.0)
    assert timing.ratio == pytest.approx(1.2 / 30)
    assert timing.spread == pytest.approx(2 / 3)
    assert evaluations(1, 25) == (500, 50) and evaluations(4, 25) == (2000, 125)


def test_sides_alternate_after_a_warm_up(bench: Bench) -> None:
    calls: list[str] = []
    timing = time_alternately("x", lambda: calls.append("reference"), lambda: calls.append("ours"), bench)
    assert calls == ["reference", "ours"] * 3 and len(timing.reference) == len(timing.ours) == 2


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
    outcome = run(script, *small, f"--json={tmp_path / 'speed.json'}")
    assert outcome.returncode == 0, outcome.stderr
    found = json.loads((tmp_path / "speed.json").read_text())
    expected = {"forward_ratio", "train_ratio", "memory_ratio", "counterfactual_speedup", "counterfactual_speedup_4"}
    assert expected | {"composition_l1", "composition_l1_8bit"} <= set(found)
    assert abs(found["composition_l1"] - found["composition_l1_8bit"]) < 0.5, "rounding moves a pixel by half a level"
    assert found["counterfactual_speedup"] > 1 and "evaluations, 4 intervention(s)" in outcome.stdout
    assert_refused(run(script, "--steps=1"), "steps: expected 2 or more, got 1")
    assert_refused(run(script, "--size=huge"), "no morphomnist_causaldae_huge.yaml")
    if not torch.cuda.is_available():
        assert_refused(run(script, "--device=cuda"), "device: expected cpu, got cuda")
