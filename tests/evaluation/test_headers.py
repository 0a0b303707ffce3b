"""The header of a results file: which models count as seeds of one recipe."""

from typing import Any

import torch
from tiny import small_config, squares_spec

from causaldiffae.evaluation.headers import describe_model
from causaldiffae.script_util import LoadedModel, create_model_and_diffusion


def recipe(**changes: Any) -> str:
    config = small_config(**changes)
    torch.manual_seed(0)
    model, _ = create_model_and_diffusion(config, squares_spec())
    return describe_model(LoadedModel(model, config, squares_spec(), 6, "model"))["recipe"]


def test_seeds_trained_on_several_machines_have_one_recipe() -> None:
    machine = {"device": "cuda:1", "compile": True, "use_bf16": True, "data_on_device": "never", "channels_last": True}
    assert recipe(seed=1, **machine) == recipe(seed=2, run_dir="elsewhere", keep_last=9)


def test_what_changes_the_result_is_another_recipe() -> None:
    changes: list[dict[str, Any]] = [{}, {"lr": 2e-3}, {"total_steps": 7}, {"batch_size": 4}, {"ema_rate": "0.99"}]
    assert len({recipe(**each) for each in changes}) == len(changes)
