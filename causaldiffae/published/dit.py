"""Opens published transformers: facebookresearch/DiT's `.pt` state dicts, and diffusers' folders of the same weights.

Sizes come from the tensors' shapes. The number of heads comes from the folder's config.json or from the published
widths. diffusers repeats the embeddings of time and class in every block and splits q, k and v; here they are joined
again. It also spaces its 128 time frequencies as exp(-log(10000) i / 127), where the weights were trained with i / 128;
here the trained spacing is used. No pickled code is run.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from causaldiffae.checkpoints.checkpoint import build_with_weights
from causaldiffae.dit import DiT, position_embedding
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import StateDict, read_json
from causaldiffae.files.weights import Weights

HEADS = {1152: 16, 1024: 16, 768: 12, 384: 6}
"""Attention heads by width, as published: DiT-XL, -L, -B, -S."""
KEYS = (
    "x_embedder.proj.weight",
    "y_embedder.embedding_table.weight",
    "blocks.0.mlp.fc1.weight",
    "final_layer.linear.weight",
    "pos_embed",
)
"""Tensors by which facebookresearch/DiT's network is found in a file."""
_DIFFUSERS_KEYS = ("pos_embed.proj.weight", "proj_out_1.weight", "proj_out_2.weight")
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")
_FIXED = {"norm_type": "ada_norm_zero", "activation_fn": "gelu-approximate", "attention_bias": True}
_BLOCK = re.compile(r"blocks\.\d{1,4}\.attn\.qkv\.weight")


def load_dit(path: str | Path, num_heads: int = 0) -> DiT:
    """Opens a transformer, on the CPU in float32 and evaluation mode.

    Args:
        path: a state dict or training checkpoint of facebookresearch/DiT (`.pt` or safetensors), or a diffusers folder
            with config.json and weights, or a folder that has one as its subfolder `transformer`.
        num_heads: attention heads of a `.pt` of an unpublished width; 0 for the published number.

    Raises:
        DataError: if it is another model, or damaged.
        InputError: if the number of heads is not known.
    """
    path = Path(path)
    if path.name in _WEIGHTS and (path.parent / "config.json").is_file():
        path = path.parent
    if not path.is_dir():
        return build_dit(Weights(path).state(KEYS, "the network of a DiT"), num_heads, str(path))
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    config = _diffusers_config(folder)
    path = find_weights(folder)
    theirs = Weights(path).state(_DIFFUSERS_KEYS, "the weights of a DiT of diffusers")
    state = from_diffusers(theirs, config["num_layers"], str(folder))
    side, hidden_size = config["sample_size"] // config["patch_size"], state["x_embedder.proj.weight"].shape[0]
    state["pos_embed"] = position_embedding(side, hidden_size)[None]  # constant, not in the folder
    return build_dit(state, config["num_attention_heads"], str(folder))


def build_dit(state: StateDict, num_heads: int = 0, where: str = "state dict") -> DiT:
    """The network of a state dict with its weights; arguments and errors as for `load_dit`."""
    try:
        hidden_size, in_channels, patch_size, _ = state["x_embedder.proj.weight"].shape
        classes, _ = state["y_embedder.embedding_table.weight"].shape
        mlp_width, _ = state["blocks.0.mlp.fc1.weight"].shape
        out_width, _ = state["final_layer.linear.weight"].shape
        _, tokens, _ = state["pos_embed"].shape
    except (KeyError, ValueError) as error:
        raise DataError(f"{where}: expected a state dict of a DiT ({error})") from error
    heads = num_heads or HEADS.get(hidden_size, 0)
    if not heads:
        known = ", ".join(map(str, HEADS))
        raise InputError(
            f"num_heads: expected a number for width {hidden_size} of {where}; only {known} have a default"
        )
    sizes: dict[str, Any] = {
        "image_size": math.isqrt(tokens) * patch_size,
        "patch_size": patch_size,
        "in_channels": in_channels,
        "hidden_size": hidden_size,
        "depth": sum(_BLOCK.fullmatch(key) is not None for key in state),
        "num_heads": heads,
        "mlp_ratio": mlp_width / hidden_size,
        "num_classes": classes - 1,
        "learn_sigma": out_width == 2 * in_channels * patch_size**2,
    }
    return build_with_weights(lambda: DiT(**sizes), state, where, assign=True)


def _diffusers_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    config = read_json(path)

    def refuse(name: str, expected: str) -> DataError:
        return DataError(f"{path}: {name}: expected {expected}, got {str(config.get(name))[:60]!r}")

    if config.get("_class_name") not in _CLASSES:
        raise refuse("_class_name", " or ".join(_CLASSES))
    for name, expected in _FIXED.items():
        if config.get(name, expected) != expected:
            raise refuse(name, repr(expected))
    for name in ("num_layers", "num_attention_heads", "sample_size", "patch_size"):
        if type(config.get(name)) is not int or not 0 < config[name] <= 4096:
            raise refuse(name, "an integer in 1..4096")
    return config


def find_weights(folder: Path) -> Path:
    """The file of weights in a diffusers folder; `DataError` if there is none."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder}: expected weights, {' or '.join(_WEIGHTS)}, got neither")


def from_diffusers(state: StateDict, depth: int, where: str = "state dict") -> StateDict:
    """A `DiTTransformer2DModel`'s state dict under facebookresearch/DiT's keys, without the position embedding.

    Raises:
        DataError: for a tensor that is missing or unknown, or if the blocks' embeddings of time or class differ.
    """
    left = dict(state)
    left.pop("pos_embed.pos_embed", None)  # constant; only older versions store it

    def take(key: str) -> Tensor:
        if key not in left:
            raise DataError(f"{where}: expected a DiT of diffusers, tensor {key} is missing")
        return left.pop(key)

    renamed: StateDict = {}
    for part in ("weight", "bias"):
        renamed[f"x_embedder.proj.{part}"] = take(f"pos_embed.proj.{part}")
        renamed[f"final_layer.adaLN_modulation.1.{part}"] = take(f"proj_out_1.{part}")
        renamed[f"final_layer.linear.{part}"] = take(f"proj_out_2.{part}")
        for i in range(depth):
            block, theirs = f"blocks.{i}", f"transformer_blocks.{i}"
            qkv = [take(f"{theirs}.attn1.to_{name}.{part}") for name in ("q", "k", "v")]
            renamed[f"{block}.attn.qkv.{part}"] = torch.cat(qkv)
            renamed[f"{block}.attn.proj.{part}"] = take(f"{theirs}.attn1.to_out.0.{part}")
            renamed[f"{block}.mlp.fc1.{part}"] = take(f"{theirs}.ff.net.0.proj.{part}")
            renamed[f"{block}.mlp.fc2.{part}"] = take(f"{theirs}.ff.net.2.{part}")
            renamed[f"{block}.adaLN_modulation.1.{part}"] = take(f"{theirs}.norm1.linear.{part}")
    shared = {"y_embedder.embedding_table.weight": "class_embedder.embedding_table.weight"}
    for ours, number in ((0, 1), (2, 2)):
        for part in ("weight", "bias"):
            shared[f"t_embedder.mlp.{ours}.{part}"] = f"timestep_embedder.linear_{number}.{part}"
    for key, theirs in shared.items():
        first, *others = (take(f"transformer_blocks.{i}.norm1.emb.{theirs}") for i in range(depth))
        if not all(torch.equal(first, other) for other in others):
            raise DataError(f"{where}: expected one {theirs} for all blocks, got different ones")
        renamed[key] = first
    if left:
        raise DataError(f"{where}: expected a DiT of diffusers, tensor {min(left)[:80]!r} is unknown")
    return renamed
