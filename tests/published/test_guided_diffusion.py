"""Sizes of guided-diffusion's U-Nets are read from keys and shapes."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from parity import rule_weights
from paths import SHARED
from support import published_causaldiffae
from tiny import randomise

from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.errors import DataError
from causaldiffae.published.guided_diffusion import AdmSizes, build_adm_classifier, build_adm_unet, unet_sizes
from causaldiffae.unet import UNetModel

GOLDEN = SHARED / "golden"
UNETS: list[dict[str, Any]] = [
    {"num_res_blocks": 1, "channel_mult": (1, 2, 2), "attention_resolutions": {2, 4}, "resblock_updown": True},
    {"num_res_blocks": 2, "channel_mult": (1, 2), "attention_resolutions": {2}, "use_scale_shift_norm": True},
    {"num_res_blocks": 2, "channel_mult": (1, 1, 2), "attention_resolutions": set(), "conv_resample": False},
    {"num_res_blocks": 3, "channel_mult": (2,), "attention_resolutions": {1}, "num_classes": 7},
    {"num_res_blocks": 1, "channel_mult": (1, 2), "attention_resolutions": {1}, "out_channels": 6},
]


@pytest.mark.parametrize("arguments", UNETS, ids=lambda arguments: str(arguments["channel_mult"]))
def test_unets_open_by_their_shapes(arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    sizes = {"image_size": 16, "in_channels": 3, "model_channels": 32, "out_channels": 3, "num_heads": 2}
    net = UNetModel(**(sizes | arguments))
    randomise(net)
    opened = UNetModel(**unet_sizes(net.state_dict()), image_size=16, num_heads=2)
    opened.load_state_dict(net.state_dict())
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([5, 600])
    y = torch.tensor([1, 2]) if "num_classes" in arguments else None
    with torch.no_grad():
        assert torch.equal(opened(x, t, y), net(x, t, y))


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden is missing")
@pytest.mark.parametrize("name", ["adm_unet_a", "adm_unet_b"])
def test_published_shapes_are_read(name: str) -> None:
    with np.load(GOLDEN / f"{name}.npz") as file:
        meta = json.loads(str(file["meta"]))
    given = {"image_size", "num_heads", "num_head_channels", "use_new_attention_order"}
    known = {key: value for key, value in meta["config"].items() if key in given}
    network = UNetModel(**unet_sizes(rule_weights(meta["state_dict"])), **known)
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == meta["state_dict"]


def test_other_networks_are_refused() -> None:
    sizes, spec = AdmSizes(image_size=28), dataset_spec("mnist")
    with pytest.raises(DataError, match="a.pt: expected guided-diffusion's U-Net; missing: .* and 2 more"):
        build_adm_unet({"a": torch.zeros(1)}, sizes, "a.pt")
    with pytest.raises(DataError, match="a.pt: expected guided-diffusion's classifier; missing"):
        build_adm_classifier({"a": torch.zeros(1)}, sizes, spec, "a.pt")
    state = {k: v for k, v in published_causaldiffae()[0].items() if "rep_emb" not in k}
    with pytest.raises(DataError, match="a.pt: weights: expected those of this model, got .* differences"):
        build_adm_unet(state, AdmSizes(28, 1, "1,2", "14", 8), "a.pt")
