"""Opens guided-diffusion's published `.pt` files (Dhariwal and Nichol, 2021): the U-Net and the noised classifier.

Widths, the number of classes and a learned variance come from the tensors' shapes. The rest is said by the flags of
guided-diffusion, whose defaults here are those of its 256-pixel networks. No pickled code is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from causaldiffae.checkpoints.checkpoint import build_with_weights
from causaldiffae.config import parse_ints
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import StateDict
from causaldiffae.predictors.noised_predictor import NoisedPredictor, NoisedPredictorConfig
from causaldiffae.unet import EncoderUNetModel, UNetModel


@dataclass(frozen=True)
class AdmSizes:
    """What guided-diffusion's flags say about both networks.

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
        """As both networks take them."""
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


def build_adm_unet(state: StateDict, sizes: AdmSizes, where: str = "state dict") -> UNetModel:
    """The score network of a state dict, with its weights; it has classes where the state dict has.

    Raises:
        DataError: if it is no U-Net of guided-diffusion, or of other sizes.
        InputError: for sizes that are none.
    """
    try:
        channels, width = state["input_blocks.0.0.weight"].shape[1], state["time_embed.0.weight"].shape[1]
        out_channels = state["out.2.weight"].shape[0]
        classes = state["label_emb.weight"].shape[0] if "label_emb.weight" in state else None
    except (KeyError, IndexError) as error:
        raise DataError(f"{where}: no U-Net of guided-diffusion ({error})") from error
    arguments = sizes.arguments() | {
        "in_channels": channels,
        "model_channels": width,
        "out_channels": out_channels,
        "num_classes": classes,
    }
    return build_with_weights(lambda: UNetModel(**arguments), state, where, hold_once=True)


def build_adm_classifier(
    state: StateDict, sizes: AdmSizes, spec: DatasetSpec, where: str = "state dict"
) -> NoisedPredictor:
    """The noised classifier of a state dict as the predictor of a data set with one variable, its class.

    Raises:
        DataError: if it is no classifier of guided-diffusion, or of other sizes.
        InputError: for sizes that are none, or if it was trained for other classes or other images.
    """
    try:
        channels, width = state["input_blocks.0.0.weight"].shape[1], state["time_embed.0.weight"].shape[1]
        pool = "attention" if "out.2.c_proj.bias" in state else "adaptive"
        classes = len(state["out.2.c_proj.bias" if pool == "attention" else "out.3.bias"])
    except (KeyError, IndexError) as error:
        raise DataError(f"{where}: no classifier of guided-diffusion ({error})") from error
    needed = len(spec.category_values(0))
    if classes != needed:
        raise InputError(f"predictor: {where} tells {classes} classes apart, {needed} are needed")
    if (channels, sizes.image_size) != (spec.channels, spec.image_size):
        given, wanted = f"{channels}x{sizes.image_size}", f"{spec.channels}x{spec.image_size}"
        raise InputError(f"predictor: {where} reads images of {given} (channels x pixels), {wanted} is needed")
    arguments = sizes.arguments() | {
        "in_channels": channels,
        "model_channels": width,
        "out_channels": classes,
        "pool": pool,
    }
    network = build_with_weights(lambda: EncoderUNetModel(**arguments), state, where, hold_once=True)
    return NoisedPredictor(spec, NoisedPredictorConfig(), network).eval()
