"""Opens guided-diffusion's `.pt` files (Dhariwal and Nichol, 2021): the U-Net and the classifier on noised images.

Sizes come from the flags of guided-diffusion (`AdmSizes`), channels, base width and classes from the state dict.
`unet_sizes` reads all sizes of a U-Net from keys and shapes, for state dicts without flags (published/causaldiffae.py).
No pickled code is run.
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
UNET_KEYS: Final = (
    "time_embed.0.weight",
    "input_blocks.0.0.weight",
    "input_blocks.1.0.in_layers.2.weight",
    "input_blocks.1.0.emb_layers.1.weight",
    "middle_block.0.in_layers.0.weight",
    "output_blocks.0.0.in_layers.0.weight",
    "out.2.weight",
)


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


def build_adm_unet(state: State, sizes: AdmSizes, where: str = "state dict") -> UNetModel:
    """The U-Net of a state dict with its weights, in evaluation mode; with classes if the state dict has them.

    Raises:
        DataError: starting with `where`, if it is another network or one of other sizes.
    """
    with shapes_of(where):
        require_keys(state, UNET_KEYS, "guided-diffusion's U-Net")
        arguments = unet_sizes(state) | sizes.arguments()
    return build_with_weights(lambda: UNetModel(**arguments), state, where, assign=True)


def build_adm_classifier(
    state: State, sizes: AdmSizes, spec: DatasetSpec, where: str = "state dict"
) -> NoisedPredictor:
    """The classifier of a state dict as the noised predictor of a data set with one variable, its class.

    Raises:
        DataError: starting with `where`, if it is another network or one of other sizes.
        InputError: if it was trained for other classes or other images.
    """
    pool, last = ("attention", "out.2.c_proj.bias") if "out.2.c_proj.bias" in state else ("adaptive", "out.3.bias")
    with shapes_of(where):
        require_keys(state, (*UNET_KEYS[:2], last), "guided-diffusion's classifier")
        arguments = sizes.arguments() | {
            "in_channels": state["input_blocks.0.0.weight"].shape[1],
            "model_channels": state["time_embed.0.weight"].shape[1],
            "out_channels": len(state[last]),
            "pool": pool,
        }
    classes, expected = arguments["out_channels"], len(spec.category_values(0))
    if classes != expected:
        raise InputError(f"predictor: {where}: expected {expected} classes, got {classes}")
    got, needed = f"{arguments['in_channels']}x{sizes.image_size}", f"{spec.channels}x{spec.image_size}"
    if got != needed:
        raise InputError(f"predictor: {where}: expected images of {needed} (channels x pixels), got {got}")
    network = build_with_weights(lambda: EncoderUNetModel(**arguments), state, where, assign=True)
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
    blocks = count(state, r"input_blocks\.(\d+)\.")
    outputs = {i: state.get(f"input_blocks.{i}.0.out_layers.3.weight") for i in range(1, blocks)}
    widths = {i: weight.shape[0] for i, weight in outputs.items() if weight is not None}
    pooled = [i for i in outputs if i not in widths]  # without any, there is one level
    num_res_blocks = ends[0] if ends else pooled[0] - 1 if pooled else blocks - 1
    period = num_res_blocks + 1
    firsts = range(1, blocks, period)
    if num_res_blocks < 1 or blocks % period or any(i not in widths for i in firsts):
        raise DataError(f"expected levels of {num_res_blocks} residual blocks, got {blocks} input blocks")
    model_channels = state["time_embed.0.weight"].shape[1]
    border = f"input_blocks.{period}.0"
    classes = state.get("label_emb.weight")
    return {
        "in_channels": state["input_blocks.0.0.weight"].shape[1],
        "model_channels": model_channels,
        "out_channels": state["out.2.weight"].shape[0],
        "num_res_blocks": num_res_blocks,
        "channel_mult": [widths[i] // model_channels for i in firsts],
        "attention_resolutions": [2**k for k, i in enumerate(firsts) if f"input_blocks.{i}.1.qkv.weight" in state],
        "use_scale_shift_norm": state["input_blocks.1.0.emb_layers.1.weight"].shape[0] == 2 * widths[1],
        "resblock_updown": f"{border}.in_layers.0.weight" in state,
        "conv_resample": f"{border}.op.weight" in state or f"{border}.in_layers.0.weight" in state or blocks == period,
        "num_classes": None if classes is None else len(classes),
    }
