"""Constructed networks that several test files use."""

import re

import torch
from tiny import randomise
from torch import Tensor, nn

from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.encoder import CausalEncoder
from causaldiffae.model import CausalDiffAE
from causaldiffae.scm import LatentSCM
from causaldiffae.unet import UNetModel


class Scaled(nn.Module):
    """An autoencoder whose reconstruction is the image times a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def published_causaldiffae(latents: int = 8, num_classes: int | None = 10) -> tuple[dict[str, Tensor], CausalDiffAE]:
    """A small network for MorphoMNIST, and its state dict under the keys of the published code."""
    torch.manual_seed(0)
    encoder = CausalEncoder(28, 1, 2, latents // 2, (8, 8, 16), "batch")
    scm = LatentSCM(dataset_spec("morphomnist").graph, latents // 2, "one_hop", width=latents)
    sizes = {"num_res_blocks": 1, "attention_resolutions": {2}, "channel_mult": (1, 2), "num_heads": 4}
    unet = UNetModel(28, 1, 32, 1, num_classes=num_classes, cond_dim=latents, **sizes)
    net = CausalDiffAE(encoder, scm, unet)
    randomise(net).eval()
    state = {}
    for key, value in net.state_dict().items():
        if key.startswith("encoder."):
            key = "rep_emb." + key.removeprefix("encoder.")
        elif key.startswith("scm."):
            key = "causal_mask.nonlinearities." + re.sub(r"^scm\.networks\.(\d+)\.", r"\1.net.", key)
        else:
            key = key.removeprefix("unet.")
        state[key] = value
    return state, net
