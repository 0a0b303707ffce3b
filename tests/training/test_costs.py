"""Costs of a training step, and `tools/model_costs.py`, which prints them."""

from dataclasses import replace

import model_costs
import pytest
import torch
from paths import REPO
from tiny import small_config, squares_spec

from causaldiffae.nn import count_parameters
from causaldiffae.script_util import create_model_and_diffusion
from causaldiffae.training import costs
from causaldiffae.training.costs import training_costs


def test_costs_are_those_of_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    config, spec = small_config(ema_rate="0.9,0.99"), squares_spec()
    two = training_costs(config, spec)
    assert two.parameters == count_parameters(create_model_and_diffusion(config, spec)[0])
    assert two.state_mib == pytest.approx(two.parameters * 24 / 2**20), "weight, gradient, two moments, two averages"
    monkeypatch.setattr(costs, "IMAGES", 8)
    eight = training_costs(config, spec)
    assert eight.gflop == pytest.approx(two.gflop, rel=0.1)
    assert eight.activation_mib == pytest.approx(two.activation_mib, rel=0.3), "weights are not counted"


def test_images_of_twice_the_width_cost_four_times_as_much() -> None:
    config = small_config(attention_resolutions="", encoder_channels="8,8")
    small, large = (training_costs(config, replace(squares_spec(), image_size=size)) for size in (16, 32))
    assert large.gflop / small.gflop == pytest.approx(4, rel=0.15)
    assert large.activation_mib / small.activation_mib == pytest.approx(4, rel=0.15)


def test_bfloat16_and_checkpointing_reduce_activations() -> None:
    plain = training_costs(small_config(), squares_spec())
    bf16 = training_costs(small_config(), squares_spec(), dtype=torch.bfloat16)
    recomputed = training_costs(small_config(use_checkpoint=True), squares_spec())
    assert bf16.gflop == plain.gflop and bf16.activation_mib < 0.8 * plain.activation_mib
    assert recomputed.activation_mib < 0.8 * plain.activation_mib and recomputed.gflop > plain.gflop


def test_a_line_for_each_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    model_costs.main([str(REPO / "configs" / f"{name}_mini.yaml") for name in ("mnist_dit", "pendulum_causaldae")])
    _, first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert first[:2] == ["mnist_dit_mini", "28"] and second[:2] == ["pendulum_causaldae_mini", "32"]
    assert all(float(word.replace(",", "")) > 0 for word in first[2:])
