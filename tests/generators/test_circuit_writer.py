"""CausalCircuit's files in the publisher's format: pairs, reproducible bytes, and continuing after an interruption."""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from circuits import painted, write_painted
from paths import REPO

from causaldiffae.datasets.registry import read_split
from causaldiffae.errors import InputError
from causaldiffae.generators import circuit_scene, circuit_writer
from causaldiffae.generators.circuit import abduct, predict

SCRIPT = REPO / "scripts" / "make_dataset.py"


def test_members_are_those_of_the_published_files(circuit_dir: Path, circuit_members: dict[str, np.ndarray]) -> None:
    assert sorted(path.name for path in circuit_dir.iterdir()) == ["recipe.json", "test.npz", "train.npz", "val.npz"]
    shapes = {key: (array.shape, array.dtype.kind) for key, array in circuit_members.items()}
    assert shapes == {
        "original_latents": ((7, 2, 4), "f"),
        "epsilon": ((7, 2, 4), "f"),
        "pressed": ((7, 2, 3), "f"),
        "intervention_labels": ((7,), "i"),
        "intervention_masks": ((7, 4), "b"),
        "imgs": ((7, 2), "S"),
        "stand_in": ((), "S"),
    }
    assert circuit_members["original_latents"].dtype == np.float64
    recipe = json.loads((circuit_dir / "recipe.json").read_text())
    note = json.loads(circuit_members["stand_in"].item())
    assert recipe["stand_in"] is True and note["stand_in"] is True and "not the CausalCircuit files" in note["note"]
    assert recipe["num"] == {"train": 7, "val": 2, "test": 3} and note["image_size"] == 32


def test_a_pair_differs_by_one_intervention() -> None:
    pairs = circuit_writer.sample_pairs(400, np.random.default_rng(0))
    latents, epsilon, kind = (pairs[key] for key in ("original_latents", "epsilon", "intervention_labels"))
    assert set(kind) == {0, 1, 2, 3, 4}
    ours = [3, 2, 1, 0]  # red, green, blue, arm -> arm, blue, green, red
    for half in (0, 1):
        np.testing.assert_allclose(predict(epsilon[:, half, ours], {}), latents[:, half, ours], atol=1e-9)
        np.testing.assert_allclose(pairs["pressed"][:, half], circuit_scene.pressed(latents[:, half, 3]))
    np.testing.assert_array_equal(latents[kind == 0, 0], latents[kind == 0, 1])
    for i in range(4):
        rows = kind == i + 1
        assert (pairs["intervention_masks"][rows].argmax(axis=1) == i).all()
        assert (latents[rows, 0, i] != latents[rows, 1, i]).all() and pairs["intervention_masks"][
            rows
        ].sum() == rows.sum()
        others = [j for j in range(4) if j != i]
        np.testing.assert_allclose(epsilon[rows, 0][:, others], epsilon[rows, 1][:, others], atol=1e-9)
    red = latents[kind == 1]
    np.testing.assert_array_equal(red[:, 0, 1:], red[:, 1, 1:])  # its causes stay
    np.testing.assert_allclose(abduct(latents[:, 0, ours]), epsilon[:, 0, ours], atol=1e-9)


def test_two_writes_are_the_same_bytes_and_a_larger_set_begins_with_them(
    circuit_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, circuit_members: dict[str, np.ndarray]
) -> None:
    monkeypatch.setattr(circuit_writer, "render", painted)
    monkeypatch.setattr(circuit_writer, "CHUNK", 4)
    again = write_painted(tmp_path / "again")
    for path in circuit_dir.iterdir():
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256((again / path.name).read_bytes()).digest()
    assert [path.name for path in tmp_path.iterdir()] == ["again"]  # no chunks are left
    larger = write_painted(tmp_path / "larger", num_train=9)
    with np.load(larger / "train.npz") as file:
        np.testing.assert_array_equal(file["epsilon"][:7], circuit_members["epsilon"])
        assert file["imgs"][:7].tolist() == circuit_members["imgs"].tolist()
    other = write_painted(tmp_path / "other", seed=1)
    with np.load(other / "train.npz") as file:
        assert (file["epsilon"] != circuit_members["epsilon"]).any()


def test_an_interrupted_run_continues(circuit_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuit_writer, "CHUNK", 4)
    drawn: list[int] = []

    def stops(labels: Any, size: int) -> np.ndarray:
        drawn.append(1)
        if len(drawn) == 14:  # in the second chunk, beside the first trial
            raise KeyboardInterrupt
        return painted(labels, size)

    monkeypatch.setattr(circuit_writer, "render", stops)
    with pytest.raises(KeyboardInterrupt):
        write_painted(tmp_path / "set")
    (chunks,) = tmp_path.iterdir()
    assert chunks.name.startswith(".set.chunks-") and [path.name for path in chunks.iterdir()] == ["train-000000-4.npz"]
    (chunks / "train-000001-3.npz").write_bytes(b"half a chunk")
    drawn[:] = [1] * 100
    write_painted(tmp_path / "set")
    assert len(drawn) == 100 + 1 + 2 * (3 + 2 + 3)  # the trial, and all pairs but those of the first chunk
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert (tmp_path / "set/train.npz").read_bytes() == (circuit_dir / "train.npz").read_bytes()
    monkeypatch.setattr(circuit_writer, "render", None)
    assert write_painted(tmp_path / "set") == tmp_path / "set"  # a finished set is left alone


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train": 0}, "num: expected 1..1000000, got 0"),
        ({"num_test": -1}, "num_test: expected 1..1000000, got -1"),
        ({"image_size": 4}, "image_size: expected 16..2048, got 4"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
        ({"workers": 0}, "workers: expected 1 or more, got 0"),
    ],
)
def test_invalid_arguments_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit_writer, "render", painted)
    with pytest.raises(InputError, match=message):
        write_painted(tmp_path / "set", **changes)
    assert not (tmp_path / "set").exists()


def test_a_folder_with_other_content_is_refused(circuit_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got a data set of another recipe"):
        write_painted(circuit_dir, seed=5)
    (tmp_path / "diary.txt").touch()
    with pytest.raises(InputError, match="got one with other files"):
        write_painted(tmp_path)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_dataset_circuit", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_command_line(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit_writer, "render", painted)
    command = ["circuit", "--out", str(tmp_path / "set"), "--image_size", "16", "--workers", "1"]
    assert script.main([*command, "--num", "12"]) == 0
    output = capsys.readouterr()
    assert output.out.strip() == str(tmp_path / "set") and "circuit" in output.err  # the progress bar
    assert [len(read_split("circuit", tmp_path / "set", split)) for split in ("train", "test")] == [12, 1]
    monkeypatch.undo()

    def fail(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", fail)
    circuit_scene._renderer.cache_clear()
    assert script.main(["circuit", "--out", str(tmp_path / "other"), "--num", "3"]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: circuit: cannot load MuJoCo") and output.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
