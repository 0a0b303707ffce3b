"""Opens guided-diffusion's `.pt` files (Dhariwal and Nichol, 2021): the U-Net and the classifier on noised images.

Sizes come from the keys and shapes of the state dict. What these do not determine, such as the number of attention
heads, is an argument. The scripts pass all of guided-diffusion's flags (`AdmSizes`), which must then agree with the
state dict. No pickled code is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from causaldiffae.checkpoints.checkpoint import build_with_weights
from causaldiffae.config import parse_ints
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.predictors.noised_predictor import NoisedPredictor, NoisedPredictorConfig
from causaldiffae.unet import EncoderUNetModel, UNetModel

State = Mapping[str, Tensor]
_DOWNWARD_KEYS: Final = (
    "time_embed.0.weight",
    "input_blocks.0.0.weight",
    "input_blocks.1.0.in_layers.2.weight",
    "input_blocks.1.0.emb_layers.1.weight",
    "middle_block.0.in_layers.0.weight",
)
UNET_KEYS: Final = (*_DOWNWARD_KEYS, "output_blocks.0.0.in_layers.0.weight", "out.2.weight")


@dataclass(frozen=True)
class AdmSizes:
    """The flags of guided-diffusion for both networks; the defaults are those of its 256-pixel networks.

    Attributes:
        image_size: height and width of the images, in pixels.
        num_res_blocks: residual blocks per resolution.
        channel_mult: width multipliers per resolution.
        attention_resolutions: sides of the feature maps at which attention is applied.
        num_head_channels: channels per attention head.
    """

    image_size: int = 256
    num_res_blocks: int = 2
    channel_mult: str = "1,1,2,2,4,4"
    attention_resolutions: str = "32,16,8"
    num_head_channels: int = 64

    def arguments(self) -> dict[str, Any]:
        """The arguments of both networks."""
        sides = parse_ints("attention_resolutions", self.attention_resolutions)
        return {
            "image_size": self.image_size,
            "num_res_blocks": self.num_res_blocks,
            "channel_mult": parse_ints("channel_mult", self.channel_mult),
            "attention_resolutions": {self.image_size // side for side in sides},
            "num_head_channels": self.num_head_channels,
            "use_scale_shift_norm": True,
            "resblock_updown": True,
        }


def load_unet(state: State, where: str = "state dict", **known: Any) -> UNetModel:
    """The U-Net of a state dict with its weights, in evaluation mode; with classes if the state dict has them.

    Args:
        state: the state dict, under the published keys.
        where: what messages begin with.
        known: arguments of the network that replace those read from the state dict: always `image_size`; with
            attention, `num_heads` or `num_head_channels`, and `use_new_attention_order` where it is set.

    Raises:
        DataError: if it is another network or one of other sizes.
        InputError: if shapes do not determine a size.
    """
    with shapes_of(where):
        require_keys(state, UNET_KEYS, "guided-diffusion's U-Net")
        sizes = unet_sizes(state) | known
    return build_with_weights(lambda: UNetModel(**sizes), state, where, hold_once=True)


def load_classifier(state: State, where: str = "state dict", **known: Any) -> EncoderUNetModel:
    """The classifier of a state dict with its weights, in evaluation mode.

    Args:
        state, where, known: as for `load_unet`; and `num_res_blocks`, where several numbers explain the shapes.
    """
    with shapes_of(where):
        require_keys(state, (*_DOWNWARD_KEYS, "out.0.weight"), "guided-diffusion's classifier")
        if state["out.0.weight"].dim() == 2:
            pool, last = ("spatial_v2", "out.3.weight") if "out.3.weight" in state else ("spatial", "out.2.weight")
        elif "out.2.positional_embedding" in state:
            pool, last = "attention", "out.2.c_proj.weight"
        else:
            pool, last = "adaptive", "out.3.weight"
        sizes = _downward_sizes(state, known.get("num_res_blocks"))
        sizes |= {"pool": pool, "out_channels": state[last].shape[0], **known}
    return build_with_weights(lambda: EncoderUNetModel(**sizes), state, where, hold_once=True)


def build_adm_unet(state: State, sizes: AdmSizes, where: str = "state dict") -> UNetModel:
    """`load_unet` with guided-diffusion's flags."""
    return load_unet(state, where, **sizes.arguments())


def build_adm_classifier(
    state: State, sizes: AdmSizes, spec: DatasetSpec, where: str = "state dict"
) -> NoisedPredictor:
    """The classifier of a state dict as the noised predictor of a data set with one variable, its class.

    Raises:
        DataError: if it is another network or one of other sizes.
        InputError: if it was trained for other classes or other images.
    """
    network = load_classifier(state, where, **sizes.arguments())
    classes, expected = network.out_channels, len(spec.category_values(0))
    if classes != expected:
        raise InputError(f"predictor: {where}: expected {expected} classes, got {classes}")
    channels = state["input_blocks.0.0.weight"].shape[1]
    if (channels, sizes.image_size) != (spec.channels, spec.image_size):
        raise InputError(
            f"predictor: {where}: expected a classifier of images {spec.channels}x{spec.image_size} (channels x "
            f"pixels), got {channels}x{sizes.image_size}"
        )
    return NoisedPredictor(spec, NoisedPredictorConfig(), network).eval()


# ---------------------------------------------------------------------- sizes from keys and shapes


@contextmanager
def shapes_of(where: str) -> Iterator[None]:
    """While sizes are read from a state dict: starts messages with `where`, and turns shapes that do not fit into one.

    Raises:
        DataError: in place of errors of indexing and arithmetic.
    """
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except InputError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, ZeroDivisionError, OverflowError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{where}: expected shapes of a published network ({reason})") from None


def require_keys(state: State, keys: Iterable[str], network: str) -> None:
    """`DataError` that names the first five of `keys` that a state dict of `network` lacks."""
    missing = [key for key in keys if key not in state]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(f"expected {network}; missing: {', '.join(missing[:5])}{more}")


def count(state: State, pattern: str) -> int:
    """One more than the largest number that the group of `pattern` matches at the start of a key; 0 without any."""
    found = [int(match.group(1)) for key in state if (match := re.match(pattern, key)) and len(match.group(1)) < 10]
    if found and max(found) >= len(state):
        raise DataError(f"expected numbers below {len(state)}, the number of tensors, in keys, got {max(found)}")
    return max(found) + 1 if found else 0


def unet_sizes(state: State) -> dict[str, Any]:
    """Arguments of `UNetModel` that keys and shapes determine: all but the image size and attention heads."""
    # An output block that doubles the resolution, by a convolution or a residual block, is the last of its level.
    layers = [f"{j}.{layer}.weight" for j in (1, 2) for layer in ("conv", "in_layers.0")]
    upward = range(count(state, r"output_blocks\.(\d+)\."))
    ends = [i for i in upward if any(f"output_blocks.{i}.{layer}" in state for layer in layers)]
    # Without any: one level, or levels separated by pooling, which has no weights.
    blocks = range(1, count(state, r"input_blocks\.(\d+)\."))
    one_level = all(f"input_blocks.{i}.0.out_layers.3.weight" in state for i in blocks)
    num_res_blocks = ends[0] if ends else len(blocks) if one_level else None
    classes = state.get("label_emb.weight")
    return {
        **_downward_sizes(state, num_res_blocks),
        "out_channels": state["out.2.weight"].shape[0],
        "num_classes": None if classes is None else len(classes),
    }


def _downward_sizes(state: State, num_res_blocks: int | None) -> dict[str, Any]:
    """Arguments that the downward path determines: widths, blocks per level, attention, the kind of resampling."""
    blocks = count(state, r"input_blocks\.(\d+)\.")
    outputs = {i: state.get(f"input_blocks.{i}.0.out_layers.3.weight") for i in range(1, blocks)}
    widths = {i: weight.shape[0] for i, weight in outputs.items() if weight is not None}
    if num_res_blocks is None:
        bare = [i for i in outputs if i not in widths]  # pooling or one convolution: a change of resolution
        num_res_blocks = bare[0] - 1 if bare else _only_depth(widths, blocks)
    period = num_res_blocks + 1
    firsts = range(1, blocks, period)
    if num_res_blocks < 1 or blocks % period or any(i not in widths for i in firsts):
        raise DataError(f"expected levels of {num_res_blocks} residual blocks, got {blocks} input blocks")
    model_channels = state["time_embed.0.weight"].shape[1]
    border = f"input_blocks.{period}.0"
    attention = [2**level for level, i in enumerate(firsts) if f"input_blocks.{i}.1.qkv.weight" in state]
    return {
        "in_channels": state["input_blocks.0.0.weight"].shape[1],
        "model_channels": model_channels,
        "num_res_blocks": num_res_blocks,
        "channel_mult": [widths[i] // model_channels for i in firsts],
        "attention_resolutions": attention,
        "use_scale_shift_norm": state["input_blocks.1.0.emb_layers.1.weight"].shape[0] == 2 * widths[1],
        "resblock_updown": f"{border}.in_layers.0.weight" in state,
        "conv_resample": f"{border}.op.weight" in state or f"{border}.in_layers.0.weight" in state or blocks == period,
    }


def _only_depth(widths: Mapping[int, int], blocks: int) -> int:
    """Residual blocks per level where resampling looks like any other block: widths change between levels only."""

    def explains(depth: int) -> bool:
        levels = (range(1 + first, 1 + first + depth) for first in range(0, blocks, depth + 1))
        return all(len({widths[i] for i in level}) == 1 for level in levels)

    found = [depth for depth in range(1, blocks) if blocks % (depth + 1) == 0 and explains(depth)]
    if len(found) != 1:
        raise InputError(f"num_res_blocks: expected one of {found or 'no number'} (the state dict's shapes), got none")
    return found[0]
