"""Tensors are found in any file of `torch.save`, and nothing else in it is executed."""

import argparse
import collections
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from causaldiffae.errors import DataError
from causaldiffae.files.torch_archives import TorchArchive


class Hostile:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("pwned",)


def pt_file(path: Path, content: bytes, *others: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a/data.pkl", *others):
            archive.writestr(name, content)
    return path


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def saved(path: Path, content: object, **options: Any) -> dict[str, torch.Tensor]:
    """The tensors that are found in a file with this content."""
    torch.save(content, path / "model.pt", **options)
    archive = TorchArchive(path / "model.pt")
    return archive.read(archive.tensors)


DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int16,
    torch.uint8,
    torch.bool,
]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint16])
def test_state_dicts_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {"a": torch.arange(6).reshape(2, 3).to(dtype), "b": nn.Parameter(torch.ones(2)), "c": torch.zeros(())}
    state["d"], state["e"], state["f"] = state["a"][1:], state["a"].t(), torch.zeros(0, 3)  # a shared storage
    for given_state in (state, collections.OrderedDict(state), small_network().state_dict()):
        for protocol in (2, 4):
            found = saved(tmp_path, given_state, pickle_protocol=protocol)
            assert list(found) == list(given_state)
            assert all(torch.equal(found[key], value) for key, value in given_state.items())


def test_training_checkpoints_are_searched(tmp_path: Path) -> None:
    network = small_network()
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 3, "ema": network.state_dict(), "opt": optimizer.state_dict(), "hostile": Hostile(),
        "args": argparse.Namespace(lr=1e-4, path=Path("x")), "list": [torch.ones(1), {"deep": torch.zeros(2)}],
        "device": torch.device("cpu"), "dtype": torch.float32, "counter": collections.Counter(a=1), "set": {1, 2},
    }  # fmt: skip
    found = saved(tmp_path, content)
    assert torch.equal(found["ema.0.weight"], network[0].weight)  # type: ignore[index]
    assert found["list.1.deep"].shape == (2,) and "opt.state.0.exp_avg" in found
    assert not (Path.cwd() / "pwned").exists()


def test_a_pickled_module_yields_its_state_dict(tmp_path: Path) -> None:
    network = small_network()
    found, state = saved(tmp_path, {"model": network}), network.state_dict()
    assert set(found) == {f"model.{name}" for name in state}
    assert all(torch.equal(found[f"model.{name}"], value) for name, value in state.items())


@pytest.mark.parametrize("content", [{"a": Hostile()}, {"a": torch.zeros(3, device="meta")}, [1], 3, {"a": "x"}])
def test_a_file_without_tensors_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object) -> None:
    monkeypatch.chdir(tmp_path)
    assert saved(tmp_path, content) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


_PAIRS = b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(1, 60))
HARMFUL = {
    "64 GiB": b"\x80\x02}q\0X\x01\0\0\0ac__builtin__\nbytearray\n\x8a\x05\0\0\0\0\x10\x85Rs.",
    "a key that is hashed for years": b"\x80\x02}q\0)\x85q\x01" + _PAIRS + b"K\x01s.",
    "a constructor": b"\x80\x02ctorch\nTensor\nK\x05\x85R.",
    "a list in itself": b"\x80\x02]q\0h\0a.",
}


@pytest.mark.parametrize("content", HARMFUL.values(), ids=HARMFUL.keys())
def test_harmful_pickles_have_no_effect(tmp_path: Path, content: bytes) -> None:
    assert not TorchArchive(pt_file(tmp_path / "a.pt", content)).tensors


def test_shared_containers_are_visited_once(tmp_path: Path) -> None:
    content: dict[str, Any] = {"w": torch.zeros(1)}
    for _ in range(60):  # 2^60 paths
        content = {"a": content, "b": content}
    assert len(saved(tmp_path, content)) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.zeros(1).expand(10**9)}, r"'a': expected at most the file's \d+ bytes, got 4000000000"),
        (b"\x80\x02}q", "expected a complete pickle, got a damaged one"),
        (b"\x80\x04\x82\x01.", "expected a complete pickle, got a damaged one"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    if isinstance(content, bytes):
        pt_file(tmp_path / "model.pt", content)
    else:
        torch.save(content, tmp_path / "model.pt")
    with pytest.raises(DataError, match=rf"model\.pt: {message}"):
        TorchArchive(tmp_path / "model.pt")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", pickle.dumps({"a": Hostile()}), b"\x80\x02}q\x00."])
def test_files_of_other_programs_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.pt: expected a file of torch\.save"):
        TorchArchive(tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_other_archives_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 10**6)
    with pytest.raises(DataError, match="expected uncompressed entries no larger than the file"):
        TorchArchive(tmp_path / "x.pt")
    for others in (("b/data.pkl",), ("a/x", "a/x")):
        with pytest.raises(DataError, match="one data.pkl and unique names"):
            TorchArchive(pt_file(tmp_path / "x.pt", b".", *others))


def test_a_storage_that_is_missing_or_short_is_named(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(4)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        content = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    for change in (None, b"1234"):
        with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
            for name, part in content.items():
                if not name.endswith("data/0") or change is not None:
                    archive.writestr(name, change if name.endswith("data/0") and change else part)
        found = TorchArchive(tmp_path / "y.pt")
        with pytest.raises(DataError, match=r"y.pt: 'w': expected a complete tensor"):
            found.read(found.tensors)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_mutation_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    original = tmp_path / "original.pt"
    if not original.exists():
        torch.save({"ema": {"w": torch.zeros(4)}, "args": argparse.Namespace(a=[1, (2, 3)])}, original)
    content = original.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    changed = content[:at] + data.draw(st.binary(max_size=4)) + content[at + data.draw(st.integers(0, 8)) :]
    (tmp_path / "changed.pt").write_bytes(changed)
    try:
        archive = TorchArchive(tmp_path / "changed.pt")
        archive.read(archive.tensors)
    except DataError as error:
        assert str(error).startswith(str(tmp_path / "changed.pt"))
