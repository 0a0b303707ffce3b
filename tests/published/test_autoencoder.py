"""diffusers' autoencoder as latent space: encoding, decoding, older files, refusals."""

import sys
from pathlib import Path

import pytest
import torch
from autoencoders import save_vae

from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import StateDict
from causaldiffae.published.autoencoder import LatentSpace, load_latent_space


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
