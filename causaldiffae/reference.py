"""Checkpoints of the published CausalDiffAE code.

Its network is one module: the U-Net with the encoder (`rep_emb`), the mechanisms (`causal_mask.nonlinearities`) and
the latents' embedding (`up_emb`) inside. `load_model` reads the sizes off a state dict's shapes and opens it as our
`CausalDiffAE` with the one-hop mechanism. What the state dict cannot tell, the number of attention heads, is 4 in all
published configurations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from causaldiffae.checkpoint import check_state_fits
from causaldiffae.encoder import CausalEncoder, Posterior
from causaldiffae.errors import DataError
from causaldiffae.graphs import CausalGraph
from causaldiffae.losses import label_kl, prior_kl
from causaldiffae.model import CausalDiffAE
from causaldiffae.scm import LatentSCM
from causaldiffae.unet import UNetModel

ENCODER, MECHANISMS = "rep_emb.", "causal_mask.nonlinearities."
NUM_HEADS = 4


def rename_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names for the published code's keys."""
    renamed = {}
    for key, value in state.items():
        if key.startswith(ENCODER):
            renamed["encoder." + key[len(ENCODER) :]] = value
        elif key.startswith(MECHANISMS):
            renamed["scm.networks." + key[len(MECHANISMS) :].replace(".net.", ".")] = value
        else:
            renamed["unet." + key] = value
    return renamed


def load_model(state: Mapping[str, Tensor], graph: CausalGraph) -> CausalDiffAE:
    """Builds the network that a published state dict belongs to, with its weights, in evaluation mode.

    Args:
        state: the state dict, under the published keys.
        graph: the causal graph, whose variables are in the order of the latent blocks; the published code keeps it in
            its source.

    Raises:
        DataError: if the keys are not those of the published network, or do not fit the graph.
    """
    renamed = rename_state(state)
    try:
        model = _build(renamed, graph)
    except (KeyError, IndexError, ValueError) as error:
        raise DataError(f"state dict: not one of the published CausalDiffAE network ({error})") from error
    counters = {key: value for key, value in model.state_dict().items() if key.endswith("num_batches_tracked")}
    renamed = {**counters, **renamed}
    check_state_fits(model, renamed)
    model.load_state_dict(renamed)
    return model.eval()


def _build(state: Mapping[str, Tensor], graph: CausalGraph) -> CausalDiffAE:
    n = len(graph)
    widths = [
        tuple(state[f"encoder.encoder.{i}.0.weight"].shape) for i in range(_count(state, r"encoder\.encoder\.(\d+)\."))
    ]
    latents, features = state["encoder.fc_mu.weight"].shape
    side = round((features / widths[-1][0]) ** 0.5)
    image_size = _image_size(state, side * 2 ** len(widths), len(widths), side)
    first = state["scm.networks.0.0.weight"]
    block_size = latents // n
    if latents % n or first.shape[1] != block_size:
        raise ValueError(f"{latents} latents with mechanisms of width {first.shape[1]} do not fit {n} variables")
    encoder = CausalEncoder(image_size, widths[0][1], n, block_size, [width[0] for width in widths], "batch")
    scm = LatentSCM(graph, block_size, "one_hop", width=first.shape[0])
    return CausalDiffAE(encoder, scm, _unet(state, image_size, latents))


def _image_size(state: Mapping[str, Tensor], largest: int, depth: int, side: int) -> int:
    """The image size is not stored.

    Of those that the encoder reduces to `side`, take the published one (28, 96, 128), or the largest.
    """

    def reduce(size: int) -> int:
        for _ in range(depth):
            size = (size + 1) // 2
        return size

    return next((size for size in (28, 96, 128) if reduce(size) == side), largest)


def _unet(state: Mapping[str, Tensor], image_size: int, latents: int) -> UNetModel:
    model_channels = state["unet.time_embed.0.weight"].shape[1]
    blocks = _count(state, r"unet\.input_blocks\.(\d+)\.")
    down = [i for i in range(blocks) if f"unet.input_blocks.{i}.0.op.weight" in state]
    borders = [0, *down, blocks]
    multipliers, attention = [], set()
    for level in range(len(borders) - 1):
        inside = range(borders[level] + 1, borders[level + 1])
        width = state[f"unet.input_blocks.{inside[0]}.0.out_layers.3.weight"].shape[0]
        multipliers.append(width // model_channels)
        if f"unet.input_blocks.{inside[0]}.1.qkv.weight" in state:
            attention.add(2**level)
    embedded = state["unet.input_blocks.1.0.emb_layers.1.weight"].shape[0]
    classes = state.get("unet.label_emb.weight")
    return UNetModel(
        image_size=image_size,
        in_channels=state["unet.input_blocks.0.0.weight"].shape[1],
        model_channels=model_channels,
        out_channels=state["unet.out.2.weight"].shape[0],
        num_res_blocks=(borders[1] if down else blocks) - 1,
        attention_resolutions=attention,
        channel_mult=multipliers,
        num_classes=None if classes is None else len(classes),
        num_heads=NUM_HEADS,
        use_scale_shift_norm=embedded == 2 * multipliers[0] * model_channels,
        cond_dim=latents,
    )


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    found = [int(match.group(1)) for key in state if (match := re.match(pattern, key))]
    return max(found) + 1


def representation_kl(posterior: Posterior, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The published representation loss per image: KL(q(u | x0) || N(0, I)), and KL(N(z, I) || N(y, I)), (B,) each."""
    return prior_kl(posterior), label_kl(z, 0.0, labels, 1.0)
