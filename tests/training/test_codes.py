"""Codes of training images: computed once, again after a change or damage, and never those of another autoencoder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from autoencoders import save_tiny
from folders import make_folder, paint
from processes import ended, start_group

from causaldiffae import dist_util
from causaldiffae.config import TrainConfig
from causaldiffae.datasets.images import ImageData, to_model_range
from causaldiffae.datasets.registry import read_split
from causaldiffae.errors import DataError, InputError
from causaldiffae.published.autoencoder import LatentSpace, load_latent_space
from causaldiffae.training.codes import encode_split, open_codec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data")


@pytest.fixture
def codec(tmp_path: Path) -> LatentSpace:
    return load_latent_space(save_tiny(tmp_path / "tiny"))


def train_split(folder: Path) -> ImageData:
    return read_split("folder", folder, "train")


def caches(folder: Path) -> list[Path]:
    return sorted((folder / ".cache").glob("codes-*.npy"))


def count_encoded(codec: LatentSpace, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each call from here on."""
    counts: list[int] = []
    encode = codec.vae.encode
    monkeypatch.setattr(codec.vae, "encode", lambda images: (counts.append(len(images)), encode(images))[1])
    return counts


def test_images_are_encoded_once(folder: Path, codec: LatentSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    data, counts = train_split(folder), count_encoded(codec, monkeypatch)
    first, again = encode_split(data, codec, folder), encode_split(data, codec, folder)
    assert sum(counts) == len(data) == 12 and first.codec is codec
    expected = codec.encode(to_model_range(data.images)).numpy()
    assert first.array.dtype == np.float16 and first.array.shape == (12, 4, 4, 4)
    np.testing.assert_allclose(first.array, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(first.array, again.array)
    assert [path.name.rpartition("-")[0] for path in caches(folder)] == ["codes-train-12x4x4x4"]


def test_changed_images_and_autoencoders_are_encoded_again(
    folder: Path, codec: LatentSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = encode_split(train_split(folder), codec, folder).array.copy()
    counts = count_encoded(codec, monkeypatch)
    paint(99).save(folder / "im/3.png")
    after = encode_split(train_split(folder), codec, folder).array
    assert sum(counts) == 12 and len(caches(folder)) == 1
    assert [i for i in range(12) if not np.array_equal(before[i], after[i])] == [3]
    other = load_latent_space(save_tiny(tmp_path / "other", scaling_factor=4.0))
    np.testing.assert_allclose(encode_split(train_split(folder), other, folder).array, 2 * after, rtol=2e-3, atol=2e-3)
    assert len(caches(folder)) == 1  # the old one is gone


def test_a_damaged_cache_is_encoded_again(folder: Path, codec: LatentSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    data = train_split(folder)
    expected = encode_split(data, codec, folder).array.copy()
    (path,) = caches(folder)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    counts = count_encoded(codec, monkeypatch)
    with pytest.warns(UserWarning, match="the cache is damaged .*; the images are encoded again"):
        np.testing.assert_array_equal(encode_split(data, codec, folder).array, expected)
    assert sum(counts) == 12


def test_without_a_place_for_the_cache_codes_are_in_memory(
    folder: Path, codec: LatentSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = train_split(folder)
    expected = encode_split(data, codec, folder).array
    monkeypatch.setattr("causaldiffae.training.codes.cache_folder", lambda folder: None)
    np.testing.assert_array_equal(encode_split(data, codec, folder).array, expected)


def test_machines_with_and_without_a_cache_take_part_in_the_same_collective_operations(
    folder: Path, codec: LatentSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise they wait for each other until the time-out."""
    called: list[str] = []
    for name in ("once_per_machine", "from_all"):
        monkeypatch.setattr(dist_util, name, lambda action, name=name: (called.append(name), action())[1])
    encode_split(train_split(folder), codec, folder)
    cached, called[:] = called[:], []
    monkeypatch.setattr("causaldiffae.training.codes.cache_folder", lambda folder: None)
    encode_split(train_split(folder), codec, folder)
    assert called == cached == ["once_per_machine", "from_all"]


IN_TWO = """
import sys, time
from causaldiffae import dist_util
from causaldiffae.datasets.registry import read_split
from causaldiffae.published.autoencoder import load_latent_space
from causaldiffae.training.codes import encode_split

dist_util.setup_dist("gloo", timeout_minutes=0.4)
data, codec = read_split("folder", sys.argv[1], "train"), load_latent_space(sys.argv[2])
encode = codec.vae.encode
codec.vae.encode = lambda images: (print("encodes", flush=True), time.sleep(35), encode(images))[2]
codes = encode_split(data, codec, sys.argv[1])
print(codes.array.astype(float).sum())
dist_util.cleanup()
"""


@pytest.mark.slow
def test_one_process_encodes_for_longer_than_a_collective_operation_may_take(folder: Path, tmp_path: Path) -> None:
    done = ended(start_group(IN_TWO, folder, save_tiny(tmp_path / "tiny")))
    assert [process.code for process in done] == [0, 0], done
    lines = [line for process in done for line in process.out.splitlines()]
    assert lines.count("encodes") == 1 and len(lines) == 3 and len(set(lines)) == 2


def test_codes_that_are_not_finite_are_an_error_and_leave_nothing(folder: Path, codec: LatentSpace) -> None:
    with torch.no_grad():
        codec.vae.encoder.layers[-1].bias[0] = 1e5  # beyond float16
    with np.errstate(over="ignore"), pytest.raises(InputError, match="vae_path: expected finite codes"):
        encode_split(train_split(folder), codec, folder)
    assert not caches(folder)


def test_the_autoencoder_must_fit_the_images(folder: Path, tmp_path: Path) -> None:
    spec, grey = train_split(folder).spec, save_tiny(tmp_path / "grey", channels=1)
    assert open_codec(TrainConfig(), spec) is None
    assert open_codec(TrainConfig(vae_path=str(save_tiny(tmp_path / "tiny"))), spec) is not None
    with pytest.raises(InputError, match="expected an autoencoder of images with 3 channels, got one of 1"):
        open_codec(TrainConfig(vae_path=str(grey)), spec)
    with pytest.raises(DataError, match=r"nowhere: expected the folder of an AutoencoderKL or AutoencoderTiny"):
        open_codec(TrainConfig(vae_path=str(tmp_path / "nowhere")), spec)
