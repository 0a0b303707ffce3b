"""Devices without float64, such as Apple's MPS: nothing of that type is made on them or moved to them.

The device `meta`, which every machine has, takes the place of MPS: float64 is used on the CPU and on CUDA only.
"""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from device_copies import META
from tiny import small_config, squares, squares_spec, training_draws
from tiny_models import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from causaldiffae import CausalDiffAE
from causaldiffae.datasets.images import model_inputs
from causaldiffae.guidance import Guidance
from causaldiffae.mechanisms.gumbel import counterfactual_probabilities
from causaldiffae.metrics.axioms import distance
from causaldiffae.nn import float_for_tables
from causaldiffae.resample import LossSecondMomentResampler
from causaldiffae.script_util import MODELS, create_model_and_diffusion, model_entry
from causaldiffae.training.random_draws import copy_together


class RefusesFloat64(TorchDispatchMode):
    """Fails where an operation returns float64 on `meta`; counts the other tensors there."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device == META:
                self.count += 1
                assert leaf.dtype != torch.float64, f"{func} returns float64"
        return result


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # does not know `meta`


def test_the_check_notices_float64() -> None:
    with RefusesFloat64() as mode:
        torch.zeros(3).to(META)
        assert mode.count == 1
        with pytest.raises(AssertionError, match="returns float64"):
            torch.zeros(3, dtype=torch.float64).to(META)


def test_tables_have_float64_where_it_exists() -> None:
    found = {name: float_for_tables(torch.device(name)) for name in ("cpu", "cuda:1", "mps")}
    assert found == {"cpu": torch.float64, "cuda:1": torch.float64, "mps": torch.float32}


@pytest.mark.parametrize("name", ["pendulum-mini", "morphomnist-mini", "circuit-mini"])
def test_shipped_models_have_no_float64_weights_or_buffers(name: str) -> None:
    network = CausalDiffAE.from_pretrained(name, device="cpu").network
    with RefusesFloat64() as mode:
        network.to(META)
    assert mode.count >= len(list(network.parameters()))
    assert not [key for key, value in [*network.named_parameters(), *network.named_buffers()] if value.is_cpu]


@pytest.mark.parametrize("options", [{}, {"solver": "obelm"}, {"timestep_respacing": "4"}, {"rescale_quantile": 0.9}])
@pytest.mark.parametrize("model_type", ["causaldae", "diffae", "causalvae"])  # others check the labels on the host
def test_counterfactuals(options: dict[str, Any], model_type: str) -> None:
    loaded = tiny_model(model_type=model_type)
    engine = loaded.engine(steps=4, guidance=Guidance(1.5, low=0.2), **options)
    with RefusesFloat64() as mode:
        loaded.model.to(META)
        x_start, classes, labels = model_inputs(squares(2), META)
        abduction = engine.abduct(x_start, classes, labels=labels)
        results = engine.predict(abduction, [{}, {"size": 6.0}, {"size": np.array([2.0, 3.0])}])
    assert {result.images.device for result in results} == {META} and mode.count > 100


@pytest.mark.parametrize("kind", MODELS)
def test_training_steps(kind: str) -> None:
    config = small_config(model_type=kind, label_forcing=0.5, drop_prob=0.1, learn_sigma=kind != "causalvae")
    model, diffusion = create_model_and_diffusion(config, squares_spec())
    draws = training_draws(torch.zeros(4, dtype=torch.long), model.latent_shape)
    with RefusesFloat64():
        step = model_entry(kind).training_step(model.to(META), diffusion, config.loss)
        names, tensors = vars(draws), list(vars(draws).values())
        draws = replace(draws, **dict(zip(names, copy_together(tensors, META), strict=True)))
        images, labels = torch.zeros(4, 1, 8, 8, device=META), torch.zeros(4, 2, device=META)
        step(images, labels, None, torch.ones(4, dtype=torch.bool, device=META), draws, 1.0)[0].backward()


def test_sums_and_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    with RefusesFloat64():
        images = torch.zeros(2, 1, 4, 4, device=META)
        assert distance(images, images).dtype == torch.float32
        logits, category = torch.zeros(2, 3, device=META), torch.zeros(2, dtype=torch.long, device=META)
        counterfactual_probabilities(logits, logits, category)
    monkeypatch.setattr("causaldiffae.resample.float_for_tables", lambda device: torch.float32)
    sampler = LossSecondMomentResampler(3, history_per_term=1)
    sampler.update(torch.tensor([0, 1, 2]), torch.tensor([1.0, 4.0, 2.0]))
    assert sampler.weights().argmax() == 1
    assert sampler.sample(5, torch.Generator().manual_seed(0)).t.shape == (5,)
