"""A network's weights are found under any prefix, in files of torch and safetensors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from causaldiffae.errors import DataError
from causaldiffae.files.weights import Weights

KEYS = ("in.weight", "out.bias")


def network(value: float) -> dict[str, Tensor]:
    return {"in.weight": torch.full((2, 3), value), "middle.weight": torch.ones(2), "out.bias": torch.full((1,), value)}


def under(prefix: str, value: float = 1.0) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in network(value).items()}


def assert_found(path: Path, value: float = 1.0) -> None:
    weights = Weights(path)
    state = weights.state(KEYS, "a network")
    assert weights.has(KEYS) and list(state) == list(network(value))
    assert all(torch.equal(state[name], tensor) for name, tensor in network(value).items())


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module.", "model.diffusion_model."])
def test_prefixes_are_removed(tmp_path: Path, prefix: str) -> None:
    torch.save(under(prefix), tmp_path / "m.pt")
    assert_found(tmp_path / "m.pt")
    save_file(under(prefix), tmp_path / "m.bin")
    assert_found(tmp_path / "m.bin")


def test_parts_that_were_compiled_are_found(tmp_path: Path) -> None:
    torch.save({name.replace(".", "._orig_mod."): each for name, each in network(1.0).items()}, tmp_path / "m.pt")
    assert_found(tmp_path / "m.pt")


@pytest.mark.parametrize(
    "content",
    [
        {"model": network(0.0), "ema": network(1.0), "opt": {"state": {0: {"exp_avg": torch.zeros(2, 3)}}}},
        {"state_dict": {**under("model.", 0.0), **under("ema_model.", 1.0), "x_T": torch.zeros(3)}, "epoch": 3},
        {"state_dict": under("net."), "hyper_parameters": {"lr": 1e-4}},
        {**network(0.0), **under("ema.", 1.0)},
        {"model": under("module.")},
        {"params": network(0.0), "params_ema": network(1.0)},
    ],
    ids=["DiT", "diffae", "Lightning", "flat", "several GPUs", "params"],
)
def test_moving_averages_take_precedence(tmp_path: Path, content: dict[str, Any]) -> None:
    torch.save(content, tmp_path / "m.ckpt")
    assert_found(tmp_path / "m.ckpt")


def test_a_part_does_not_hold_the_tensors_of_another(tmp_path: Path) -> None:
    torch.save({**network(1.0), "teacher": network(0.0)}, tmp_path / "m.pt")
    assert_found(tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"a": torch.zeros(1), "b": torch.zeros(1)}, "opt": {"c": torch.zeros(1)}, "epoch": 1},
         r"the file holds model \(2 tensors\), opt \(1 tensor\)$"),
        ({f"layer{i}": torch.zeros(1) for i in range(9)}, "the file holds the tensors layer0, layer1, .* and 4 more$"),
        ({"weight": torch.zeros(1)}, "the file holds the tensor weight$"),
        ({"epoch": 1}, "the file holds no tensors$"),
    ],
)  # fmt: skip
def test_otherwise_the_content_is_listed(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    torch.save(content, tmp_path / "m.pt")
    weights = Weights(tmp_path / "m.pt")
    assert not weights.has(KEYS)
    with pytest.raises(DataError, match=f"m.pt: expected a network; {message}"):
        weights.state(KEYS, "a network")


def test_files_of_other_formats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes((50).to_bytes(8, "little") + b"{" + bytes(60))
    with pytest.raises(DataError, match="expected a safetensors file"):
        Weights(tmp_path / "m.safetensors")
    (tmp_path / "m.pt").write_bytes(b"hello")
    with pytest.raises(DataError, match="expected a file of torch.save"):
        Weights(tmp_path / "m.pt")
    with pytest.raises(DataError, match="file not found"):
        Weights(tmp_path / "none.pt")
