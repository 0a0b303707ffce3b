"""Faster ways of running a network that must not change what it computes."""

import warnings
from pathlib import Path

import pytest
import torch
from tiny import randomise, small_config, squares_spec

from causaldiffae.dit import DiT
from causaldiffae.script_util import MODELS, create_model_and_diffusion
from causaldiffae.training import acceleration
from causaldiffae.training.acceleration import (
    accelerate,
    activation_dtype,
    channels_last,
    compile_network,
    has_fast_bf16,
)


def network(**changes: object) -> torch.nn.Module:
    torch.manual_seed(0)
    model, _ = create_model_and_diffusion(small_config(**changes), squares_spec())
    return randomise(model.unet if hasattr(model, "unet") else model.network)  # type: ignore[arg-type,union-attr]


def inputs(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, None, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, z = torch.randn(batch, 1, 8, 8, generator=generator), torch.randn(batch, 4, generator=generator)
    return x, torch.tensor([0.0, 31.5, 99.0])[:batch], None, z


def given(net: torch.nn.Module) -> tuple[torch.Tensor | None, ...]:
    """What the network takes: the transformer of these tests has no labels."""
    return inputs()[:2] if isinstance(net, DiT) else inputs()


def gradients(net: torch.nn.Module) -> list[torch.Tensor]:
    net.zero_grad()
    (net(*given(net)) ** 2).sum().backward()
    return [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]


def test_memory_layout_changes_nothing() -> None:
    plain, other = network(), channels_last(network())
    assert any(p.is_contiguous(memory_format=torch.channels_last) and p.dim() == 4 for p in other.parameters())
    torch.testing.assert_close(other(*inputs()), plain(*inputs()), rtol=1e-4, atol=1e-4)
    for a, b in zip(gradients(other), gradients(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


TRANSFORMER = {"model_type": "diffscm", "network": "dit", "num_channels": 32, "depth": 2, "patch_size": 2}


@pytest.mark.slow
@pytest.mark.timeout(900)  # compiling takes half a minute, on a busy machine many
@pytest.mark.parametrize("changes", [{}, TRANSFORMER], ids=["unet", "dit"])
def test_compiled_outputs_and_gradients_are_the_eager_ones(
    changes: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inductor has miscomputed gradients of exactly these before: the U-Net's residual block, modulation by chunks."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # a killed run leaves half-written libraries behind
    plain, compiled = network(**changes), network(**changes)
    keys = list(compiled.state_dict())
    if not compile_network(compiled, "cpu"):
        pytest.skip("no C++ compiler on this machine")
    assert list(compiled.state_dict()) == keys, "state-dict keys stay"
    torch.testing.assert_close(compiled(*given(compiled)), plain(*given(plain)), rtol=1e-4, atol=1e-4)
    ours, eager = gradients(compiled), gradients(plain)
    assert len(ours) == len(eager) and all(g.any() for g in eager)
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_a_models_score_network_is_made_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(acceleration, "compile_network", lambda net, device: compiled.append(net))
    models = {kind: create_model_and_diffusion(small_config(model_type=kind), squares_spec())[0] for kind in MODELS}
    for kind, model in models.items():
        accelerate(model, "cpu")
        assert not compiled
        if kind == "causalvae":
            with pytest.warns(UserWarning, match="a CausalVAE has no score network, nothing is done"):
                accelerate(model, "cpu", compiled=True, channels_innermost=True)
            continue
        accelerate(model, "cpu", compiled=True, channels_innermost=True)
        net = compiled.pop()
        assert net is getattr(model, "unet", None) or net is getattr(model, "network", None)
        layouts = {p.is_contiguous(memory_format=torch.channels_last) for p in net.parameters() if p.dim() == 4}
        assert layouts == {True}


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(acceleration.shutil, "which", lambda name: None)
    with pytest.warns(UserWarning, match="compile: no C\\+\\+ compiler is on this machine"):
        assert compile_network(network(), "cpu") is False


def test_bf16_only_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert activation_dtype(False, "cpu") is None
    monkeypatch.setattr(acceleration, "has_fast_bf16", lambda device: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert activation_dtype(True, "cpu") is torch.bfloat16
    monkeypatch.setattr(acceleration, "has_fast_bf16", lambda device: False)
    with pytest.warns(UserWarning, match="use_bf16: this cpu has no bfloat16 arithmetic, float32 is used"):
        assert activation_dtype(True, "cpu") is None
    assert isinstance(has_fast_bf16("cpu"), bool) and has_fast_bf16("meta") is False
