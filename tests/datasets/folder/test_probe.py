"""Properties of image files that are measured for the whole data set."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import GRAPH, make_folder, table_rows
from PIL import Image

from causaldiffae.datasets.folder import probe
from causaldiffae.datasets.folder.check import check_folder
from causaldiffae.datasets.folder.image_folder import folder_spec
from causaldiffae.datasets.folder.probe import measure_value_range, probe_images
from causaldiffae.datasets.registry import read_split
from causaldiffae.files.storage import LocalFolder


def deep_folder(folder: Path, largest: int, graph: str = GRAPH) -> Path:
    """A folder whose images have 16 bits and values up to `largest`, in the training split."""
    make_folder(folder, graph=graph)
    for i in range(20):
        pixels = np.linspace(0, largest * (1 + i) / 12, 64).reshape(8, 8)
        Image.fromarray(pixels.astype(np.uint16)).save(folder / f"im/{i}.png")
    return folder


def test_the_range_of_deep_images_is_that_of_the_training_split(tmp_path: Path) -> None:
    folder = deep_folder(tmp_path / "set", 4000)
    spec = folder_spec(folder)
    assert spec.value_range == (0, 4095)
    train, test = (read_split("folder", folder, split, spec=spec) for split in ("train", "test"))
    assert train.images[11].max() == 4000 >> 4 and train.images[2].max() == 1000 >> 4, "images stay comparable"
    assert test.images.max() == 255
    assert any("black is 0, white 4095" in note for note in check_folder(folder).notes)
    (folder / "graph.yaml").write_text(GRAPH + "value_range: [0, 8191]\n")
    assert read_split("folder", folder, "train").images[11].max() == 4000 >> 5


def test_models_of_before_read_all_16_bits(tmp_path: Path) -> None:
    folder = deep_folder(tmp_path / "set", 4000)
    old: dict[str, Any] = folder_spec(make_folder(tmp_path / "plain")).to_dict()
    old.pop("value_range")
    spec = type(folder_spec(folder)).from_dict(json.loads(json.dumps(old)))
    assert read_split("folder", folder, "train", spec=spec).images.max() == 4000 >> 8


def test_the_range_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = deep_folder(tmp_path / "set", 4000)
    names = [row["file"] for row in table_rows()]
    assert measure_value_range(LocalFolder(folder), names) == (0, 8191)
    monkeypatch.setattr(probe, "limits", lambda image: (0.0, 9.0))
    assert measure_value_range(LocalFolder(folder), names) == (0, 8191)
    (folder / ".cache/value_range.json").write_text("{}")
    assert measure_value_range(LocalFolder(folder), names) == (0, 255), "a damaged cache is measured again"
    assert measure_value_range(LocalFolder(make_folder(tmp_path / "plain")), names) is None


def test_files_are_probed_by_their_headers(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set")
    frames = [Image.new("L", (9, 7), shade) for shade in (0, 255)]
    frames[0].save(folder / "im/0.gif", save_all=True, append_images=frames[1:])
    (folder / "im/1.png").write_bytes(b"")
    gif, png = probe_images(LocalFolder(folder), ["im/0.gif", "im/1.png", "im/2.png"])
    assert (
        gif.is_animated and gif.size == (9, 7) and not png.is_animated and (png.mode, png.name) == ("RGB", "im/2.png")
    )
    assert len(probe_images(LocalFolder(folder), [row["file"] for row in table_rows()], 5)) == 5
