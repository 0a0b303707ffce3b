"""diffusers' autoencoder as latent space: encoding, decoding, older files, refusals."""

import sys
from pathlib import Path

import pytest
import torch
from autoencoders import save_tiny, save_vae

from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import StateDict
from causaldiffae.published import autoencoder
from causaldiffae.published.autoencoder import (
    DESCRIPTION,
    LatentSpace,
    autoencoder_of_model,
    check_same_autoencoder,
    keep_in_run,
    keep_with_model,
    load_latent_space,
)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vae(tmp_path_factory.mktemp("vae"))


def with_old_names(folder: Path, out: Path) -> Path:
    """The autoencoder with the attention's older names, as in the published folders."""
    from safetensors.torch import load_file, save_file

    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state: StateDict = {}
    for key, value in load_file(folder / "diffusion_pytorch_model.safetensors").items():
        for new_name, old_name in old.items():
            key = key.replace(new_name, old_name)
        state[key] = value
    assert any(".proj_attn." in key for key in state)
    save_file(state, out / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_bytes((folder / "config.json").read_bytes())
    return out


def test_the_latent_space(vae: Path, tmp_path: Path) -> None:
    space, images = load_latent_space(vae), torch.rand(2, 3, 16, 16) * 2 - 1
    codes = space.encode(images)
    assert (space.channels, space.downsampling, space.scale) == (4, 2, 0.18215)
    torch.testing.assert_close(codes, space.vae.encode(images).latent_dist.mean * 0.18215)
    torch.testing.assert_close(space.decode(codes), space.vae.decode(codes / 0.18215).sample)
    torch.testing.assert_close(load_latent_space(with_old_names(vae, tmp_path)).encode(images), codes)
    shifted = LatentSpace(space.vae)
    shifted.shift = 0.5
    torch.testing.assert_close(shifted.encode(images), codes - 0.5 * 0.18215)
    torch.testing.assert_close(shifted.decode(shifted.encode(images)), space.decode(codes), rtol=1e-4, atol=1e-5)


def test_other_autoencoders_are_refused(vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file, save_file

    def refuses(kind: type[InputError], message: str) -> None:
        with pytest.raises(kind, match=message):
            load_latent_space(tmp_path)

    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    refuses(DataError, r"config\.json")
    (tmp_path / "config.json").write_bytes((vae / "config.json").read_bytes())
    refuses(DataError, "diffusion_pytorch_model")
    state = load_file(vae / weights.name)
    del state["quant_conv.bias"]
    save_file(state, weights, metadata={"format": "pt"})
    refuses(DataError, r"AutoencoderKL.*quant_conv\.bias")
    weights.write_bytes(b"rubbish")
    refuses(DataError, "AutoencoderKL")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    refuses(InputError, r"diffusers is not installed.*'\.\[imagenet\]'")


def test_the_networks_have_the_size_of_the_codes(tmp_path: Path) -> None:
    space, spec = load_latent_space(save_tiny(tmp_path / "tiny", latent_channels=5)), dataset_spec("circuit", 32)
    codes = space.code_spec(spec)
    assert (codes.channels, codes.image_size, codes.graph) == (5, 16, spec.graph)
    assert space.encode(torch.zeros(1, 3, 32, 32)).shape == (1, 5, 16, 16)
    with pytest.raises(InputError, match="image_size: expected a multiple of 2.*got 33"):
        space.code_spec(dataset_spec("circuit", 33))
    with pytest.raises(InputError, match="vae_path: expected an autoencoder of images with 1 channels, got one of 3"):
        space.code_spec(dataset_spec("morphomnist"))


def test_its_sum_is_that_of_weights_and_configuration(tmp_path: Path) -> None:
    first = load_latent_space(save_tiny(tmp_path / "first"))
    described = first.describe()
    assert described == {
        **{"sha256": first.digest, "channels": 4, "image_channels": 3, "downsampling": 2},
        **{"scale": 2.0, "shift": 0.25},
    }
    assert load_latent_space(save_tiny(tmp_path / "same")).digest == first.digest
    for name, changes in {"weights": {"seed": 4}, "scale": {"scaling_factor": 3.0}}.items():
        other = load_latent_space(save_tiny(tmp_path / name, **changes))
        assert other.digest != first.digest
        with pytest.raises(InputError, match=f"vae_path: expected the autoencoder of RUN, SHA-256 {first.digest[:12]}"):
            check_same_autoencoder({DESCRIPTION: described}, other, "RUN")
    check_same_autoencoder({DESCRIPTION: described}, first, "RUN")
    check_same_autoencoder({}, None, "RUN")
    with pytest.raises(InputError, match="vae_path: expected none as for RUN, got one"):
        check_same_autoencoder({}, first, "RUN")
    with pytest.raises(InputError, match="vae_path: expected an autoencoder as for RUN, got none"):
        check_same_autoencoder({DESCRIPTION: described}, None, "RUN")


def test_a_run_keeps_a_small_autoencoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space, run = load_latent_space(save_tiny(tmp_path / "tiny")), tmp_path / "run"
    keep_in_run(space, run)
    assert load_latent_space(run / "autoencoder").digest == space.digest
    keep_in_run(space, run)  # as a resumed run does
    assert [path.name for path in run.iterdir()] == ["autoencoder"]
    other = load_latent_space(save_tiny(tmp_path / "other", seed=4))
    with pytest.raises(InputError, match="vae_path: expected the autoencoder in .*run/autoencoder, got another one"):
        keep_in_run(other, run)
    monkeypatch.setattr(autoencoder, "MAX_COPIED_BYTES", 10)
    keep_in_run(space, tmp_path / "large")
    assert not (tmp_path / "large" / "autoencoder").exists()
    keep_with_model(space, tmp_path / "model")
    assert load_latent_space(tmp_path / "model" / "autoencoder").digest == space.digest


def test_a_model_finds_its_autoencoder_and_no_other(tmp_path: Path) -> None:
    space = load_latent_space(save_tiny(tmp_path / "tiny"))
    described, model = {DESCRIPTION: space.describe()}, tmp_path / "model"
    model.mkdir()

    def find(recorded: str = "") -> LatentSpace | None:
        return autoencoder_of_model(described, [model], recorded, "RUN", "cpu")

    assert autoencoder_of_model({}, [model], "", "RUN", "cpu") is None
    with pytest.raises(DataError, match=f"RUN: expected the autoencoder with SHA-256 {space.digest[:12]}.*got none"):
        find()
    found = find(str(tmp_path / "tiny"))
    assert found is not None and found.digest == space.digest
    save_tiny(model / "autoencoder", seed=4)
    with pytest.raises(DataError, match="got another one in .*model/autoencoder; put its config.json and weights"):
        find()
    assert find(str(tmp_path / "tiny")) is not None
    with pytest.raises(DataError, match="RUN: autoencoder: expected a mapping with sha256"):
        autoencoder_of_model({DESCRIPTION: "x"}, [model], "", "RUN", "cpu")


def test_links_are_not_followed(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="expected a regular file, got a link"):
        load_latent_space(folder)
