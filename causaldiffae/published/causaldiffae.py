"""Checkpoints of the published code: CausalDiffAE's network, and guided-diffusion's U-Net and classifier.

All are plain state dicts, from whose keys and shapes the sizes are read here. CausalDiffAE's is one module: the U-Net
with the encoder (`rep_emb`), the mechanisms (`causal_mask.nonlinearities`) and the latents' embedding (`up_emb`)
inside; it opens as our `CausalDiffAE` with the one-hop mechanism. What a state dict cannot tell, such as the number of
attention heads (4 in all published CausalDiffAE configurations), is an argument.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from causaldiffae.checkpoints.checkpoint import build_with_weights
from causaldiffae.encoder import CausalEncoder, Posterior
from causaldiffae.errors import DataError, InputError
from causaldiffae.graphs import CausalGraph
from causaldiffae.losses import label_kl, prior_kl
from causaldiffae.model import CausalDiffAE
from causaldiffae.nn import ModuleT
from causaldiffae.scm import LatentSCM
from causaldiffae.unet import EncoderUNetModel, UNetModel

ENCODER, MECHANISMS = "rep_emb.", "causal_mask.nonlinearities."
NUM_HEADS = 4
DOWNWARD_KEYS = (
    "time_embed.0.weight",
    "input_blocks.0.0.weight",
    "input_blocks.1.0.in_layers.2.weight",
    "input_blocks.1.0.emb_layers.1.weight",
    "middle_block.0.in_layers.0.weight",
)
UNET_KEYS = (*DOWNWARD_KEYS, "output_blocks.0.0.in_layers.0.weight", "out.2.weight")
CAUSAL_KEYS = (
    *UNET_KEYS,
    "up_emb.weight",
    f"{ENCODER}encoder.0.0.weight",
    f"{ENCODER}fc_mu.weight",
    f"{ENCODER}fc_var.weight",
    f"{MECHANISMS}0.net.0.weight",
    f"{MECHANISMS}0.net.2.weight",
)

State = Mapping[str, Tensor]


def _shapes_of_a_state(function: Callable[..., Any]) -> Callable[..., Any]:
    """Sizes are read off shapes; where these are of no such network, that is said in one way."""

    @functools.wraps(function)
    def checked(state: State, *arguments: Any, **named: Any) -> Any:
        try:
            return function(state, *arguments, **named)
        except InputError:
            raise
        except (ValueError, IndexError, KeyError, TypeError, ZeroDivisionError, OverflowError) as error:
            reason = " ".join(str(error).split())[:120]
            raise DataError(f"state dict: its shapes are not those of such a network ({reason})") from None

    return checked


@_shapes_of_a_state
def load_model(state: State, graph: CausalGraph, image_size: int | None = None) -> CausalDiffAE:
    """Builds the network that a published CausalDiffAE state dict belongs to, with its weights, in evaluation mode.

    Args:
        state: the state dict, under the published keys.
        graph: the causal graph, whose variables are in the order of the latent blocks; the published code keeps it in
            its source.
        image_size: by default the published one that the encoder's sizes allow (28, 96 or 128).

    Raises:
        DataError: if keys are missing, naming the first five, or the sizes do not fit the graph.
        InputError: if keys or shapes differ from the network's, naming the first five and what was expected.
    """
    _demand(state, CAUSAL_KEYS, "the published CausalDiffAE network")
    if count_variables(state) != len(graph):
        raise DataError(f"state dict: it has {count_variables(state)} mechanisms, the graph has {len(graph)} variables")
    latents, features = state[f"{ENCODER}fc_mu.weight"].shape
    widths = [
        tuple(state[f"{ENCODER}encoder.{i}.0.weight"].shape) for i in range(_count(state, rf"{ENCODER}encoder\.(\d+)"))
    ]
    hidden, block_size = state[f"{MECHANISMS}0.net.0.weight"].shape
    if latents != len(graph) * block_size:
        raise DataError(
            f"state dict: {latents} latents and mechanisms of width {block_size} do not fit {len(graph)} variables"
        )
    size = image_size or _image_size(features // widths[-1][0], len(widths))
    arguments = _unet_arguments(state)

    def build() -> CausalDiffAE:
        encoder = CausalEncoder(size, widths[0][1], len(graph), block_size, [width[0] for width in widths], "batch")
        scm = LatentSCM(graph, block_size, "one_hop", width=hidden)
        unet = UNetModel(**arguments, image_size=size, num_heads=NUM_HEADS, cond_dim=latents)
        return CausalDiffAE(encoder, scm, unet)

    return _with_weights(build, rename_state(state))


@_shapes_of_a_state
def load_unet(state: State, image_size: int, **unknown: Any) -> UNetModel:
    """guided-diffusion's U-Net with its weights, in evaluation mode.

    Args:
        state: the state dict, under the published keys.
        image_size: of its images.
        unknown: what keys and shapes do not tell: `num_heads` or `num_head_channels`, `use_new_attention_order`.

    Raises:
        DataError, InputError: as `load_model`.
    """
    _demand(state, UNET_KEYS, "guided-diffusion's U-Net")
    arguments = {**_unet_arguments(state), **unknown}
    return _with_weights(lambda: UNetModel(**arguments, image_size=image_size), state)


@_shapes_of_a_state
def load_classifier(state: State, image_size: int, **unknown: Any) -> EncoderUNetModel:
    """guided-diffusion's classifier on noised images with its weights, in evaluation mode.

    Args:
        unknown: as `load_unet`; and `num_res_blocks`, where several numbers would explain the shapes.
    """
    _demand(state, (*DOWNWARD_KEYS, "out.0.weight"), "guided-diffusion's classifier")
    arguments = _downward_arguments(state, unknown.get("num_res_blocks"))
    if state["out.0.weight"].dim() == 2:
        pool = "spatial_v2" if "out.3.weight" in state else "spatial"
        outputs = state["out.3.weight" if pool == "spatial_v2" else "out.2.weight"].shape[0]
    else:
        pool = "attention" if "out.2.positional_embedding" in state else "adaptive"
        outputs = state["out.2.c_proj.weight" if pool == "attention" else "out.3.weight"].shape[0]
    sizes = {**arguments, **unknown, "image_size": image_size, "out_channels": outputs}
    return _with_weights(lambda: EncoderUNetModel(**sizes, pool=pool), state)


def count_variables(state: State) -> int:
    """Number of causal variables of a published CausalDiffAE state dict; 0 for another one."""
    return _count(state, re.escape(MECHANISMS) + r"(\d+)\.")


def rename_state(state: State) -> dict[str, Tensor]:
    """Our names for the published CausalDiffAE's keys."""
    renamed = {}
    for key, value in state.items():
        if key.startswith(ENCODER):
            renamed["encoder." + key[len(ENCODER) :]] = value
        elif key.startswith(MECHANISMS):
            renamed["scm.networks." + key[len(MECHANISMS) :].replace(".net.", ".")] = value
        else:
            renamed["unet." + key] = value
    return renamed


def representation_kl(posterior: Posterior, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The published representation loss per image: KL(q(u | x0) || N(0, I)), and KL(N(z, I) || N(y, I)), (B,) each."""
    return prior_kl(posterior), label_kl(z, 0.0, labels, 1.0)


# ---------------------------------------------------------------------- sizes from keys and shapes


def _unet_arguments(state: State) -> dict[str, Any]:
    ups = [i for i in range(_count(state, r"output_blocks\.(\d+)\.")) if _has_resampling(state, i)]
    classes = state.get("label_emb.weight")
    return {
        **_downward_arguments(state, ups[0] if ups else _pooled_or_single(state)),
        "out_channels": state["out.2.weight"].shape[0],
        "num_classes": None if classes is None else len(classes),
    }


def _pooled_or_single(state: State) -> int | None:
    """Residual blocks per level of a U-Net that has one level only; None where pooling, without weights, parts them."""
    blocks = _count(state, r"input_blocks\.(\d+)\.")
    whole = all(f"input_blocks.{i}.0.out_layers.3.weight" in state for i in range(1, blocks))
    return blocks - 1 if whole else None


def _has_resampling(state: State, i: int) -> bool:
    """Whether output block i ends by doubling the resolution, by a convolution or a residual block."""
    return any(f"output_blocks.{i}.{j}.{layer}.weight" in state for j in (1, 2) for layer in ("conv", "in_layers.0"))


def _downward_arguments(state: State, num_res_blocks: int | None) -> dict[str, Any]:
    """What the downward path tells: widths, blocks per level, attention, the kind of resampling."""
    blocks = _count(state, r"input_blocks\.(\d+)\.")
    outputs = {i: state.get(f"input_blocks.{i}.0.out_layers.3.weight") for i in range(1, blocks)}
    widths = {i: weight.shape[0] for i, weight in outputs.items() if weight is not None}
    bare = [i for i in range(1, blocks) if i not in widths]  # pooling, or one convolution: a change of resolution
    if num_res_blocks is None:
        num_res_blocks = bare[0] - 1 if bare else _only_depth(widths, blocks)
    period = num_res_blocks + 1
    if num_res_blocks < 1 or blocks % period:
        raise DataError(f"state dict: {blocks} input blocks are no multiple of {period}, for {num_res_blocks} a level")
    firsts = range(1, blocks, period)
    if any(i not in widths for i in firsts):
        raise DataError(f"state dict: its input blocks are not {num_res_blocks} residual blocks a level")
    model_channels = state["time_embed.0.weight"].shape[1]
    border = f"input_blocks.{period}.0"
    return {
        "in_channels": state["input_blocks.0.0.weight"].shape[1],
        "model_channels": model_channels,
        "num_res_blocks": num_res_blocks,
        "channel_mult": [widths[i] // model_channels for i in firsts],
        "attention_resolutions": [
            2**level for level, i in enumerate(firsts) if f"input_blocks.{i}.1.qkv.weight" in state
        ],
        "use_scale_shift_norm": state["input_blocks.1.0.emb_layers.1.weight"].shape[0] == 2 * widths[1],
        "resblock_updown": f"{border}.in_layers.0.weight" in state,
        "conv_resample": f"{border}.op.weight" in state or f"{border}.in_layers.0.weight" in state or blocks == period,
    }


def _only_depth(widths: Mapping[int, int], blocks: int) -> int:
    """Residual blocks per level, where resampling looks like any other block; widths change between levels only."""

    def explains(depth: int) -> bool:
        levels = (range(1 + first, 1 + first + depth) for first in range(0, blocks, depth + 1))
        return all(len({widths[i] for i in level}) == 1 for level in levels)

    found = [depth for depth in range(1, blocks) if blocks % (depth + 1) == 0 and explains(depth)]
    if len(found) != 1:
        raise InputError(
            f"num_res_blocks: the state dict's shapes allow {found or 'no number'}; it must be given and be one of them"
        )
    return found[0]


def _image_size(positions: int, depth: int) -> int:
    """The image size is not stored.

    Of those that the encoder's `depth` halvings reduce to so many positions, take the published one or the largest.
    """

    def reduce(size: int) -> int:
        for _ in range(depth):
            size = (size + 1) // 2
        return size

    side = round(positions**0.5)
    return next((size for size in (28, 96, 128) if reduce(size) == side), side * 2**depth)


def _count(state: State, pattern: str) -> int:
    found = [int(match.group(1)) for key in state if (match := re.match(pattern, key)) and len(match.group(1)) < 10]
    if found and max(found) >= len(state):
        raise DataError(f"state dict: it counts to {max(found)} with {len(state)} tensors")
    return max(found) + 1 if found else 0


def _demand(state: State, keys: Iterable[str], what: str) -> None:
    missing = [key for key in keys if key not in state]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(f"state dict: it is not one of {what}: {', '.join(missing[:5])}{more} missing")


def _with_weights(build: Callable[[], ModuleT], state: State) -> ModuleT:
    """Builds the network of these weights; the counters of batch norm may be missing."""
    counters = {
        f"{key.rpartition('.')[0]}.num_batches_tracked": torch.tensor(0)
        for key in state
        if key.endswith("running_mean")
    }
    return build_with_weights(build, {**counters, **state}, "state dict")
