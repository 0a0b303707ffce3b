"""Training of a small autoencoder: it learns, its codes are normalised, its files open again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from folders import make_folder

from causaldiffae.datasets.images import to_model_range
from causaldiffae.errors import InputError
from causaldiffae.published.autoencoder import LatentSpace, load_latent_space
from causaldiffae.published.tiny_autoencoder import TinyAutoencoder
from causaldiffae.training.autoencoder import (
    AutoencoderSettings,
    random_crops,
    reconstruction_errors,
    reconstruction_loss,
    run_training,
    save_autoencoder,
    train_autoencoder,
)


def options(**changes: Any) -> AutoencoderSettings:
    small = {"width": 8, "downsampling": 2, "crop": 0, "batch_size": 8, "use_bf16": False, "iterations": 100}
    return AutoencoderSettings(data_dir="data", out="out", **(small | changes))


def squares(count: int) -> np.ndarray:
    """Light squares on dark backgrounds, (count, 3, 16, 16) uint8."""
    rng = np.random.default_rng(0)
    images = np.full((count, 3, 16, 16), 40, np.uint8)
    for i, (x, y) in enumerate(rng.integers(0, 10, (count, 2))):
        images[i, :, y : y + 6, x : x + 6] = rng.integers(120, 255, (3, 1, 1))
    return images


def test_the_loss_is_that_of_pixels_and_of_edges() -> None:
    images = torch.zeros(1, 1, 4, 4)
    brighter = images + 0.5
    assert float(reconstruction_loss(images, brighter)) == 0.5  # no edge differs
    step = images.clone()
    step[..., 2:] = 0.5
    expected = 0.25 + 0.5 / 3  # one of three differences along a row
    assert float(reconstruction_loss(images, step)) == pytest.approx(expected)


def test_crops_are_parts_of_images() -> None:
    images = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4)
    crops = random_crops(images, 20, 2, np.random.default_rng(0))
    corners = ((crops[:, 0, 0, 0] + 1) * 127.5).round().int()
    assert crops.shape == (20, 1, 2, 2) and {0, 10} <= set(corners.tolist()) <= {0, 1, 2, 4, 5, 6, 8, 9, 10}
    assert random_crops(images, 3, 0, np.random.default_rng(0)).shape == (3, 1, 4, 4)
    assert random_crops(images, 3, 64, np.random.default_rng(0)).shape == (3, 1, 4, 4)


def test_it_learns_and_its_codes_are_normalised(tmp_path: Path) -> None:
    images = squares(32)
    short, _ = train_autoencoder(options(iterations=2), images, images)
    network, best = train_autoencoder(options(), images, images)
    before, after = (reconstruction_errors(LatentSpace(each), images).mean() for each in (short, network))
    assert after < 0.5 * before and best < 1
    codes = LatentSpace(network).encode(to_model_range(images))
    assert abs(float(codes.mean())) < 0.05 and float(codes.std()) == pytest.approx(1, abs=0.05)
    again, _ = train_autoencoder(options(), images, images)
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True)
    )
    opened = load_latent_space(save_autoencoder(tmp_path / "out", network, {}))
    torch.testing.assert_close(opened.encode(to_model_range(images)), codes)


def test_larger_images_are_downsampled_more() -> None:
    def factor(image_size: int) -> int:
        return LatentSpace(TinyAutoencoder(options(downsampling=0).network(3, image_size))).downsampling

    assert [factor(size) for size in (32, 64, 128, 256, 512)] == [2, 2, 4, 8, 16]
    with pytest.raises(InputError, match=r"image_size: expected a multiple of 8 \(downsampling\), got 132"):
        factor(132)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"downsampling": 3}, "downsampling: expected 2, 4, 8, 16 or 0, got 3"),
        ({"crop": 7}, "crop: expected a multiple of 2, got 7"),
        ({"lr": 0.0}, "lr: expected a number between 0 and 1"),
        ({"width": 0}, "width: expected 1 or more"),
    ],
)
def test_options_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        options(**change)


def test_a_folder_of_images(tmp_path: Path) -> None:
    data, out = make_folder(tmp_path / "data"), tmp_path / "run" / "autoencoder"
    given = {"data_dir": str(data), "out": str(out), "width": 4, "iterations": 2, "batch_size": 2, "use_bf16": False}
    printed = run_training(AutoencoderSettings(**given))
    assert "codes: 3x8x8 -> 4x4x4" in printed and "L1 of reconstructions (0..255): " in printed
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "training.json",
    ]
    figures = json.loads((out / "training.json").read_text())
    assert figures["reconstruction_l1"]["images"] == 4 and figures["training"]["iterations"] == 2
    assert [path.name for path in out.parent.iterdir()] == ["autoencoder"]
    with pytest.raises(InputError, match="out: expected a new folder, got .*; delete it to train it again"):
        run_training(AutoencoderSettings(**given))
    with pytest.raises(InputError, match="image_size: expected a multiple of 16"):
        run_training(AutoencoderSettings(**{**given, "out": str(tmp_path / "new"), "downsampling": 16}))
    assert not (tmp_path / "new").exists()
