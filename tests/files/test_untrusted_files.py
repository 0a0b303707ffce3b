"""Untrusted files and texts, where several modules refuse them together."""

import ast
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import REPO
from tiny import small_config, squares, squares_spec

from causaldiffae.checkpoints.checkpoint import export_weights
from causaldiffae.config import Config
from causaldiffae.datasets import interventional
from causaldiffae.datasets.registry import read_split
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.files.idx import read_idx
from causaldiffae.files.npz import NpzFile
from causaldiffae.generators.morphomnist import read_morpho_csv
from causaldiffae.script_util import create_model_and_diffusion, describe_checkpoint, load_model

OPENERS = {
    ("torch", "load"): set(),
    ("Image", "open"): {"images"},
    ("np", "load"): {"circuit_writer"},  # its own parts, in the folder that it writes
    ("zipfile", "ZipFile"): {"torch_archives", "npz", "tables", "circuit_writer"},
    ("gzip", "GzipFile"): {"idx"},
    ("yaml", "load"): set(),
    ("yaml", "unsafe_load"): set(),
    ("pickle", "load"): set(),
    ("pickle", "loads"): set(),
}


def refuses(act: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 3000


def test_each_kind_of_file_is_opened_by_one_module() -> None:
    for path in (REPO / "causaldiffae").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                called = (owner.id if isinstance(owner, ast.Name) else "", node.func.attr)
                assert path.stem in OPENERS.get(called, {path.stem}), f"{path.name}:{node.lineno}: {'.'.join(called)}"
                if called == ("np", "load"):
                    assert "allow_pickle=False" in ast.unparse(node)


# --- archives and tables ----------------------------------------------------------------------------------------------


def test_pipes_are_not_files(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    os.mkfifo(tmp_path / "train" / "a_1_70_3_9.png")
    refuses(lambda: read_split("pendulum", tmp_path, "train"), "png: file not found, or not a regular file")
    os.mkfifo(tmp_path / "pipe")
    for read in (read_idx, read_morpho_csv):
        refuses(lambda read=read: read(tmp_path / "pipe"), "pipe: not a regular file")


def test_tables_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(gzip.compress(b"index,thickness,intensity\n" + b"," * (1 << 24)))
    refuses(lambda: read_morpho_csv(tmp_path / "a.csv"), "a.csv: expected at most 16777216 bytes uncompressed")
    (tmp_path / "b.csv").write_bytes(b'"' + b"x\n" * 5000 + b'",b\n')
    refuses(lambda: read_morpho_csv(tmp_path / "b.csv"), "b.csv.*index")


def test_members_whose_shape_the_file_decides_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros((3, 4)), b=np.zeros(2, np.uint8))
    monkeypatch.setattr("causaldiffae.files.npz.MAX_ARRAY_BYTES", 90)
    with NpzFile(tmp_path / "a.npz") as file:
        assert file.array("a", (3, 4)).shape == (3, 4)
        refuses(lambda: file.array("a", (None, 4)), "a: expected at most 90 bytes, got 96")
        refuses(lambda: file.arrays("fu", 200), "expected at most 200 bytes uncompressed, got ")


def test_stored_interventional_images_are_checked(tmp_path: Path) -> None:
    data, path = squares(2, num_classes=3), tmp_path / "a.npz"
    images, labels = np.zeros((4, 1, 8, 8), np.uint8), np.zeros((4, 2), np.float32)

    def read(**changes: np.ndarray) -> Any:
        np.savez(path, **{"images": images, "labels": labels, "classes": np.zeros(4, np.int64), **changes})
        return interventional._read(path, data, 2)

    assert len(read()) == 4
    for change in ({"classes": np.full(4, 3)}, {"classes": np.full(4, -1)}, {"labels": labels + np.nan}):
        refuses(lambda change=change: read(**change), "a.npz: expected the images of its name, got others; delete it")
    refuses(lambda: read(images=images.astype(np.uint16)), "expected the images of its name")
    refuses(lambda: read(images=images[:3]), r"images: expected shape \(4, 1, 8, 8\), got .*; delete it")
    refuses(lambda: read(images=np.array([[[[{}]]]] * 4)), "images: expected a dtype of kind u, got object")


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, spec = small_config(), squares_spec()
    model = create_model_and_diffusion(config, spec)[0]
    return export_weights(tmp_path_factory.mktemp("model") / "m", model.state_dict(), describe_checkpoint(config, spec))


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("model", "num_channels", 8192, "weights: expected those of this model"),
        ("model", "num_channels", 2**40, "num_channels: expected .*8192, got 1099511627776"),
        ("model", "rep_dim", 65536, "weights: expected those of this model"),
        ("model", "num_res_blocks", 10**9, "num_res_blocks: expected .*16, got 1000000000"),
        ("model", "channel_mult", "1," * 50, "channel_mult: expected at most 16 numbers up to 65536"),
        ("model", "num_channels", 33, "expected valid layer sizes|num_channels"),
        ("diffusion", "diffusion_steps", 10**12, "diffusion_steps: expected .*100000, got 1000000000000"),
    ],
)
def test_a_model_of_untrusted_sizes_is_refused_without_building_it(
    model_folder: Path, tmp_path: Path, part: str, key: str, value: Any, message: str
) -> None:
    assert load_model(str(model_folder)).spec == squares_spec()
    described = json.loads((model_folder / "config.json").read_text())
    described["config"][part][key] = value
    (tmp_path / "config.json").write_text(json.dumps(described))
    (tmp_path / "model.safetensors").write_bytes((model_folder / "model.safetensors").read_bytes())
    refuses(lambda: load_model(str(tmp_path)), message)


def test_shipped_configurations_are_within_the_bounds() -> None:
    for path in (REPO / "weights").glob("*/config.json"):
        described = json.loads(path.read_text())
        if "config" in described:
            assert Config.from_dict(described["config"])
        DatasetSpec.from_dict(described["dataset"])
