"""Constructed networks, and comparisons, that several test files use."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import randomise
from torch import Tensor, nn

from causaldiffae.datasets.images import ImageData, resize_area
from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.encoder import CausalEncoder
from causaldiffae.generators import pendulum
from causaldiffae.model import CausalDiffAE
from causaldiffae.scm import LatentSCM
from causaldiffae.unet import UNetModel

CHECKPOINT_CONFIG = {"graph": {"names": ["a", "b"], "edges": [["a", "b"]]}, "batch_size": 8, "lr": 1e-4}


def small_network(seed: int = 0) -> nn.Module:
    """Three layers, with a buffer of integers."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def bitwise_equal(a: Any, b: Any) -> bool:
    """Whether nested states have equal types and equal bits, NaN included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(bitwise_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(bitwise_equal, a, b))
    return bool(a == b or (a != a and b != b))


def flip_byte(path: Path, at: int = -3) -> None:
    """Damages a file without changing its size."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


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


def pendulum_images(count: int, seed: int = 0) -> ImageData:
    """Pendulums (count, 3, 32, 32) with their labels."""
    rng = np.random.default_rng(seed)
    labels = pendulum.true_labels(rng.integers(-40, 44, count), rng.integers(60, 100, count))
    images = np.stack([pendulum.render(*row[:2])[..., :3].transpose(2, 0, 1) for row in labels])
    ids = [str(i) for i in range(count)]
    spec = dataset_spec("pendulum", 32, 3)
    return ImageData(spec, "train", resize_area(images, 32), labels.astype(np.float32), None, ids)
