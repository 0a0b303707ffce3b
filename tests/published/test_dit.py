"""Published transformers: `.pt` state dicts, diffusers folders, and that both are the same function."""

import json
import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import randomise
from torch import Tensor, nn

from causaldiffae.dit import DiT
from causaldiffae.errors import DataError, InputError
from causaldiffae.published.dit import build_dit, from_diffusers, load_dit

SIZES = {"image_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 48, "depth": 2, "num_heads": 2}


def network(**changes: int) -> DiT:
    torch.manual_seed(0)
    return randomise(DiT(**(SIZES | {"num_classes": 10} | changes))).eval()  # type: ignore[arg-type, return-value]


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 4, 8, 8, generator=generator), torch.tensor([0, 130, 999]), torch.tensor([1, 9, 10])


@torch.no_grad()
def assert_same(ours: DiT, theirs: DiT) -> None:
    torch.testing.assert_close(ours(*inputs()), theirs(*inputs()), rtol=0, atol=0)


def test_a_state_dict_opens(tmp_path: Path) -> None:
    saved = network()
    torch.save(saved.state_dict(), tmp_path / "model.pt")
    opened = load_dit(tmp_path / "model.pt", num_heads=2)
    assert not opened.training
    assert (opened.num_classes, opened.image_size, opened.patch_size, len(opened.blocks)) == (10, 8, 2, 2)
    assert not opened.pos_embed.is_meta
    assert_same(opened, saved)


def test_training_checkpoints_and_safetensors_open(tmp_path: Path) -> None:
    saved, other = network(), network(depth=2)
    checkpoint = {"model": randomise(other).state_dict(), "ema": saved.state_dict(), "opt": {}, "args": Namespace(lr=1)}
    torch.save(checkpoint, tmp_path / "0400000.pt")
    save_file({f"module.{name}": tensor for name, tensor in saved.state_dict().items()}, tmp_path / "m.safetensors")
    for name in ("0400000.pt", "m.safetensors"):
        assert_same(load_dit(tmp_path / name, num_heads=2), saved)


def test_half_precision_and_no_learned_variance(tmp_path: Path) -> None:
    saved = network(learn_sigma=False)
    state = {key: value.half() for key, value in saved.state_dict().items()}
    torch.save(state, tmp_path / "model.pt")
    opened = load_dit(tmp_path / "model.pt", num_heads=2)
    assert opened.out_channels == 4
    assert {value.dtype for value in opened.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (768, 12), (1152, 16)])
def test_published_widths_determine_the_heads(width: int, heads: int) -> None:
    assert build_dit(network(hidden_size=width, depth=1).state_dict()).num_heads == heads


def test_other_widths_need_the_heads() -> None:
    with pytest.raises(InputError, match="num_heads: expected a number for width 48 of state dict"):
        build_dit(network().state_dict())
    with pytest.raises(DataError, match="hidden_size: "):
        build_dit(network().state_dict(), num_heads=5)


def test_other_state_dicts_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pt")
    with pytest.raises(DataError, match=r"linear\.pt: expected the network of a DiT; the file holds the tensors"):
        load_dit(tmp_path / "linear.pt")
    state = network().state_dict()
    with pytest.raises(DataError, match="1 differences: blocks.1.attn.proj.bias: .* got none"):
        build_dit({key: value for key, value in state.items() if key != "blocks.1.attn.proj.bias"}, 2)
    with pytest.raises(DataError, match="odd: unexpected"):
        build_dit(state | {"odd": torch.zeros(1)}, 2)
    with pytest.raises(DataError, match=r"none\.pt: "):
        load_dit(tmp_path / "none.pt")


# ---------------------------------------------------------------------- diffusers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer of diffusers, as its `save_pretrained` writes it."""
    pytest.importorskip("diffusers")
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 24, "in_channels": 4, "out_channels": 8, "num_layers": 2}
    theirs = DiTTransformer2DModel(**sizes, sample_size=8, num_embeds_ada_norm=10)
    first = theirs.transformer_blocks[0].norm1.emb
    for block in theirs.transformer_blocks:  # the same embedding, as in the published weights
        block.norm1.emb.load_state_dict(first.state_dict())
    path = tmp_path_factory.mktemp("pipeline")
    theirs.save_pretrained(path / "transformer")
    return path


@torch.no_grad()
def theirs_of(folder: Path, frequency_shift: int) -> Tensor:
    """The output of diffusers with time frequencies exp(-log(10000) i / (128 - shift))."""
    from diffusers import DiTTransformer2DModel

    theirs = DiTTransformer2DModel.from_pretrained(folder / "transformer", low_cpu_mem_usage=False).eval()
    for block in theirs.transformer_blocks:
        assert block.norm1.emb.time_proj.downscale_freq_shift == 1  # the default
        block.norm1.emb.time_proj.downscale_freq_shift = frequency_shift
    x, t, y = inputs()
    return theirs(x, t, y).sample


def test_it_equals_diffusers_except_for_the_time_frequencies(folder: Path) -> None:
    with torch.no_grad():
        ours = load_dit(folder / "transformer")(*inputs())
    torch.testing.assert_close(ours, theirs_of(folder, 0), rtol=1e-4, atol=1e-5)
    shipped = theirs_of(folder, 1)
    assert (ours[0] - shipped[0]).abs().max() < 1e-5  # independent of the frequencies at t = 0
    assert (ours[1:] - shipped[1:]).norm() > 1e-3 * shipped[1:].norm()


def test_pipelines_and_bin_files_open(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((folder / "transformer" / "config.json").read_bytes())
    assert_same(load_dit(folder), load_dit(folder / "transformer"))
    assert_same(load_dit(tmp_path), load_dit(folder))


def altered(folder: Path, tmp_path: Path, **changes: object) -> Path:
    """A copy of the folder with changes to config.json or, for names with a dot, to tensors; None removes."""
    config = json.loads((folder / "transformer" / "config.json").read_text())
    state = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    for name, value in changes.items():
        target = state if "." in name else config
        target[name] = value
        if value is None:
            del target[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(
        {key: value.contiguous() for key, value in state.items()}, tmp_path / "diffusion_pytorch_model.safetensors"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"_class_name": "UNet2DModel"},
            "_class_name: expected DiTTransformer2DModel or Transformer2DModel, got 'UNet",
        ),
        ({"norm_type": "layer_norm"}, "norm_type: expected 'ada_norm_zero', got 'layer_norm'"),
        ({"activation_fn": "gelu"}, "activation_fn: expected 'gelu-approximate', got 'gelu'"),
        ({"num_layers": "2"}, "num_layers: expected an integer in 1..4096, got '2'"),
        ({"sample_size": 0}, "sample_size: expected an integer in 1..4096, got '0'"),
        ({"num_layers": 3}, "tensor transformer_blocks.2.attn1.to_q.weight is missing"),
        ({"num_layers": 1}, "tensor 'transformer_blocks.1.attn1.to_k.bias' is unknown"),
        ({"proj_out_1.bias": None}, "tensor proj_out_1.bias is missing"),
        ({"odd.weight": torch.zeros(1)}, "tensor 'odd.weight' is unknown"),
        ({"proj_out_2.weight": torch.zeros(3, 3)}, "differences: final_layer.linear.weight: expected shape"),
        (
            {"transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias": torch.ones(48)},
            "expected one timestep_embedder.linear_2.bias for all blocks, got different ones",
        ),
    ],
)
def test_other_folders_are_refused(folder: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        load_dit(altered(folder, tmp_path, **changes))


def test_folders_without_files(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="config.json: "):
        load_dit(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "transformer" / "config.json").read_bytes())
    with pytest.raises(DataError, match="expected weights, diffusion_pytorch_model.safetensors or"):
        load_dit(tmp_path)


def test_all_keys_are_mapped(folder: Path) -> None:
    state = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    mapped = from_diffusers(state, depth=2)
    assert set(mapped) == set(network().state_dict()) - {"pos_embed"}
    q = state["transformer_blocks.1.attn1.to_q.weight"]
    torch.testing.assert_close(mapped["blocks.1.attn.qkv.weight"][:48], q, rtol=0, atol=0)
