"""Acceleration must not change what a network computes."""

import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from device_copies import META, Copies
from tiny import randomise, small_config, squares, squares_spec, training_draws

from causaldiffae.dit import DiT
from causaldiffae.logger import Logger
from causaldiffae.script_util import MODELS, create_model_and_diffusion, model_entry
from causaldiffae.train_util import TrainLoop
from causaldiffae.training import acceleration
from causaldiffae.training.acceleration import (
    accelerate,
    activation_dtype,
    compile_network,
    has_fast_bf16,
)

DIT = {"model_type": "diffscm", "network": "dit", "num_channels": 32, "depth": 2, "patch_size": 2}


def network(**changes: object) -> torch.nn.Module:
    torch.manual_seed(0)
    model, _ = create_model_and_diffusion(small_config(**changes), squares_spec())
    return randomise(model.unet if hasattr(model, "unet") else model.network)  # type: ignore[arg-type,union-attr]


def output(net: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x, z = torch.randn(3, 1, 8, 8, generator=generator), torch.randn(3, 4, generator=generator)
    t = torch.tensor([0.0, 31.5, 99.0])
    return net(x, t) if isinstance(net, DiT) else net(x, t, None, z)


def gradients(net: torch.nn.Module) -> list[torch.Tensor]:
    net.zero_grad()
    (output(net) ** 2).sum().backward()
    return [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]


def assert_same_function(net: torch.nn.Module, plain: torch.nn.Module) -> None:
    torch.testing.assert_close(output(net), output(plain), rtol=1e-4, atol=1e-4)
    found, expected = gradients(net), gradients(plain)
    assert all(g.any() for g in expected)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_memory_layout_changes_nothing() -> None:
    other = network().to(memory_format=torch.channels_last)
    assert any(p.is_contiguous(memory_format=torch.channels_last) and p.dim() == 4 for p in other.parameters())
    assert_same_function(other, network())


@pytest.mark.slow
@pytest.mark.timeout(900)  # compiling takes half a minute, and many on a busy machine
@pytest.mark.parametrize("changes", [{}, DIT], ids=["unet", "dit"])
def test_compilation_changes_nothing(
    changes: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inductor has miscompiled gradients of the U-Net's residual block and of modulation by chunks before."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # a killed run leaves half-written libraries behind
    plain, compiled = network(**changes), network(**changes)
    keys = list(compiled.state_dict())
    if not compile_network(compiled, "cpu"):
        pytest.skip("no C++ compiler on this machine")
    assert list(compiled.state_dict()) == keys
    assert_same_function(compiled, plain)


@pytest.mark.parametrize("kind", MODELS)
def test_the_score_network_of_a_model_is_accelerated(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(acceleration, "compile_network", lambda net, device: compiled.append(net))
    model, _ = create_model_and_diffusion(small_config(model_type=kind), squares_spec())
    accelerate(model, "cpu")
    assert not compiled
    if kind == "causalvae":
        with pytest.warns(UserWarning, match="no effect, CausalVAE has no score network"):
            accelerate(model, "cpu", compiled=True, channels_last=True)
        return
    accelerate(model, "cpu", compiled=True, channels_last=True)
    (net,) = compiled
    assert net is getattr(model, "unet", None) or net is getattr(model, "network", None)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in net.parameters() if p.dim() == 4)


def test_previews_compile_nothing_for_their_shapes(tmp_path: Path) -> None:
    trained = TrainLoop(small_config(), squares(), Logger(tmp_path, use_tensorboard=False), squares())
    net, calls = trained.model.unet, list[torch.Size]()

    def compiled(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
        calls.append(x.shape)
        return net._call_impl(x, *arguments)

    net._compiled_call_impl = compiled
    trained.log_preview()
    assert calls == [] and trained.responses.latest
    trained.run_step()
    assert calls == [(8, 1, 8, 8)]


@pytest.mark.parametrize("kind", MODELS)
def test_the_host_waits_for_no_copy_in_a_step(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device `meta`, where also every other reason to wait (`item`, a mask as an index) is an error."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # does not know the device
    config = small_config(model_type=kind, label_forcing=0.5, drop_prob=0.1, learn_sigma=kind != "causalvae")
    model, diffusion = create_model_and_diffusion(config, squares_spec())
    step = model_entry(kind).training_step(model.to(META), diffusion, config.loss)
    draws = training_draws(torch.zeros(4, dtype=torch.long), model.latent_shape)
    draws = replace(draws, **{name: value.to(META) for name, value in vars(draws).items()})
    images, labels = torch.zeros(4, 1, 8, 8, device=META), torch.zeros(4, 2, device=META)
    batch = (images, labels, None, torch.ones(4, dtype=torch.bool, device=META), draws, 1.0)
    step(*batch)  # copies the tables of the diffusion process, once
    with Copies() as copies:
        step(*batch)[0].backward()
    assert copies.waiting == copies.other == []


def test_a_missing_compiler_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(acceleration.shutil, "which", lambda name: None)
    with pytest.warns(UserWarning, match=r"compile: no C\+\+ compiler found"):
        assert compile_network(network(), "cpu") is False


def test_missing_bf16_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(has_fast_bf16("cpu"), bool) and has_fast_bf16("meta") is False
    assert activation_dtype(False, "cpu") is None
    monkeypatch.setattr(acceleration, "has_fast_bf16", lambda device: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert activation_dtype(True, "cpu") is torch.bfloat16
    monkeypatch.setattr(acceleration, "has_fast_bf16", lambda device: False)
    with pytest.warns(UserWarning, match="use_bf16: this cpu does not support bfloat16, using float32"):
        assert activation_dtype(True, "cpu") is None
