"""Opens state dicts of the published CausalDiffAE code.

The published network is one module: guided-diffusion's U-Net that contains the encoder (`rep_emb`), the mechanisms
(`causal_mask.nonlinearities`) and the embedding of the latents (`up_emb`). It opens as `CausalDiffAE` with the one-hop
mechanism. Sizes come from keys and shapes; the number of attention heads is 4 in all published configurations.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from causaldiffae.checkpoints.checkpoint import CONFIG, build_with_weights
from causaldiffae.config import Config, DiffusionConfig, ModelConfig
from causaldiffae.datasets.registry import DATASETS, dataset_spec, find_dataset
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.encoder import CausalEncoder
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.weights import Weights
from causaldiffae.graphs import CausalGraph
from causaldiffae.model import CausalDiffAE
from causaldiffae.published.guided_diffusion import UNET_KEYS, State, count, require_keys, shapes_of, unet_sizes
from causaldiffae.scm import LatentSCM
from causaldiffae.unet import UNetModel

_ENCODER, _MECHANISMS = "rep_emb.", "causal_mask.nonlinearities."
_NUM_HEADS: Final = 4
_IMAGE_SIZES: Final = (28, 96, 128)
KEYS: Final = (
    *UNET_KEYS,
    "up_emb.weight",
    f"{_ENCODER}encoder.0.0.weight",
    f"{_ENCODER}fc_mu.weight",
    f"{_ENCODER}fc_var.weight",
    f"{_MECHANISMS}0.net.0.weight",
    f"{_MECHANISMS}0.net.2.weight",
)


"""Tensors by which the network is found in a file."""


def load_model(state: State, graph: CausalGraph) -> CausalDiffAE:
    """The network of a published CausalDiffAE state dict with its weights, in evaluation mode.

    Args:
        state: the state dict, under the published keys.
        graph: the causal graph, whose variables are in the order of the latent blocks; the published code keeps it in
            its source.

    Raises:
        DataError: if it is another network, or its sizes do not fit the graph.
    """
    where = "state dict"
    with shapes_of(where):
        require_keys(state, KEYS, "the published CausalDiffAE network")
        variables = count_variables(state)
        if variables != len(graph):
            raise DataError(f"expected a mechanism for each of {len(graph)} variables, got {variables}")
        latents, features = state[f"{_ENCODER}fc_mu.weight"].shape
        depth = count(state, rf"{_ENCODER}encoder\.(\d+)")
        convolutions = [tuple(state[f"{_ENCODER}encoder.{i}.0.weight"].shape) for i in range(depth)]
        widths, channels = [shape[0] for shape in convolutions], convolutions[0][1]
        hidden, block_size = state[f"{_MECHANISMS}0.net.0.weight"].shape
        if latents != len(graph) * block_size:
            raise DataError(f"expected {len(graph)} blocks of {block_size} latents, got {latents} latents")
        sizes = unet_sizes(state) | {
            "image_size": _image_size(features // widths[-1], depth),
            "num_heads": _NUM_HEADS,
            "cond_dim": latents,
        }

    def build() -> CausalDiffAE:
        encoder = CausalEncoder(sizes["image_size"], channels, len(graph), block_size, widths, "batch")
        return CausalDiffAE(encoder, LatentSCM(graph, block_size, "one_hop", width=hidden), UNetModel(**sizes))

    return build_with_weights(build, _rename(state), where)


def count_variables(state: State) -> int:
    """Number of causal variables of a published CausalDiffAE state dict; 0 for another one."""
    return count(state, re.escape(_MECHANISMS) + r"(\d+)\.")


def _rename(state: State) -> dict[str, Tensor]:
    """The state dict under our keys, with the counters of batch norm, which the published files may lack."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith(_ENCODER):
            key = "encoder." + key.removeprefix(_ENCODER)
            if key.endswith("running_mean"):
                renamed.setdefault(key.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
        elif key.startswith(_MECHANISMS):
            key = "scm.networks." + key.removeprefix(_MECHANISMS).replace(".net.", ".")
        else:
            key = "unet." + key
        renamed[key] = value
    return renamed


def _image_size(positions: int, depth: int) -> int:
    """The image size, which is not stored: the published size whose `depth` halvings leave so many positions.

    If there is none, the largest size.
    """

    def reduced(size: int) -> int:
        for _ in range(depth):
            size = (size + 1) // 2
        return size

    side = round(positions**0.5)
    return next((size for size in _IMAGE_SIZES if reduced(size) == side), side * 2**depth)


def open_weights(path: str, dataset: str = "") -> tuple[CausalDiffAE, Config, DatasetSpec]:
    """Opens a file of published weights; returns the model, its configuration, and its data set with raw labels.

    The published code uses images in 0..1, eps-prediction and a linear schedule.

    Args:
        dataset: name of the data set; by default the one that matches variables and channels.

    Raises:
        InputError: if no data set matches, or it does not fit.
        DataError: for another file.
    """
    weights = Weights(path)
    if weights.has(("unet.input_blocks.0.0.weight", "encoder.fc_mu.weight")):
        raise DataError(f"{path}: expected {CONFIG} beside the weights of a model of this package; open its folder")
    state = weights.state(KEYS, "the published CausalDiffAE network, or a run directory or model folder")
    variables, weight = count_variables(state), state.get("input_blocks.0.0.weight")
    channels = weight.shape[1] if weight is not None and weight.dim() == 4 else None
    matching = [
        name
        for name, entry in DATASETS.items()
        if channels is not None and entry.published_channels == channels and len(dataset_spec(name).graph) == variables
    ]
    if not dataset and not matching:
        raise InputError(
            f"{path}: expected the network of a published data set, got {variables} mechanisms and {channels} "
            "channels; set --dataset"
        )
    name = dataset or matching[0]
    try:
        spec = dataset_spec(name)
        model = load_model(state, spec.graph)
    except InputError as error:
        raise type(error)(f"{path}: {error}") from error
    unet, n = model.unet, len(spec.graph)
    config = Config(
        model=ModelConfig(class_cond=model.class_cond, mechanism="one_hop", rep_dim=math.prod(model.latent_shape)),
        diffusion=DiffusionConfig(
            diffusion_steps=find_dataset(name).published_steps, learn_sigma=unet.out_channels == 2 * unet.in_channels
        ),
    )
    raw = replace(spec, image_size=unet.image_size, channels=unet.in_channels, shift=(0.0,) * n, scale=(1.0,) * n)
    return model, config, raw
