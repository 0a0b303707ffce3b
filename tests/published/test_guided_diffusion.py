"""guided-diffusion's networks open by the keys and shapes of their state dicts."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from parity import rule_weights
from paths import SHARED
from support import published_causaldiffae
from tiny import randomise

from causaldiffae.errors import DataError, InputError
from causaldiffae.published.guided_diffusion import load_classifier, load_unet
from causaldiffae.unet import EncoderUNetModel, UNetModel

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
    net = randomise(UNetModel(**(sizes | arguments))).eval()
    opened = load_unet(net.state_dict(), image_size=16, num_heads=2)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([5, 600])
    y = torch.tensor([1, 2]) if "num_classes" in arguments else None
    with torch.no_grad():
        assert torch.equal(opened(x, t, y), net(x, t, y))


def classifier(**changes: Any) -> EncoderUNetModel:
    sizes = {"num_res_blocks": 2, "attention_resolutions": {2}, "channel_mult": (1, 2), "num_head_channels": 16}
    torch.manual_seed(0)
    network = EncoderUNetModel(16, 1, 32, 10, **(sizes | changes))
    randomise(network)
    return network.eval()


@pytest.mark.parametrize("pool", EncoderUNetModel.POOLS)
def test_classifiers_open_by_their_shapes(pool: str) -> None:
    net = classifier(pool=pool)
    opened = load_classifier(net.state_dict(), image_size=16, num_head_channels=16)
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([5, 600])
    with torch.no_grad():
        assert torch.equal(opened(x, t), net(x, t))


def test_a_depth_that_the_shapes_do_not_determine() -> None:
    ambiguous = {"attention_resolutions": set(), "channel_mult": (1, 1), "resblock_updown": True, "pool": "spatial"}
    state = classifier(**ambiguous).state_dict()
    with pytest.raises(InputError, match=r"num_res_blocks: expected one of \[1, 2, 5\] \(.*\), got none"):
        load_classifier(state, image_size=16)
    assert load_classifier(state, image_size=16, num_res_blocks=2).pool == "spatial"
    with pytest.raises(DataError, match="expected levels of 3 residual blocks, got 6 input blocks"):
        load_classifier(state, image_size=16, num_res_blocks=3)


def test_other_networks_are_refused() -> None:
    with pytest.raises(DataError, match="a.pt: expected guided-diffusion's U-Net; missing: .* and 2 more"):
        load_unet({"a": torch.zeros(1)}, "a.pt", image_size=16)
    with pytest.raises(DataError, match="expected guided-diffusion's classifier; missing"):
        load_classifier({"a": torch.zeros(1)}, image_size=16)
    state = {k: v for k, v in published_causaldiffae()[0].items() if "rep_emb" not in k and "up_emb" not in k}
    with pytest.raises(DataError, match="causal_mask.nonlinearities.0.net.0.weight: unexpected"):
        load_unet(state, image_size=28)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden is missing")
@pytest.mark.parametrize("name", ["adm_unet_a", "adm_unet_b", "adm_classifier_a"])
def test_golden_outputs(name: str) -> None:
    with np.load(GOLDEN / f"{name}.npz") as file:
        meta, x, t = json.loads(str(file["meta"])), torch.from_numpy(file["x"]), torch.from_numpy(file["t"])
        out, y = file["out"], torch.from_numpy(file["y"]) if "y" in file.files else None
    config, state = meta["config"], rule_weights(meta["state_dict"])
    known = {k: config[k] for k in ("num_heads", "num_head_channels", "use_new_attention_order") if k in config}
    known["image_size"] = config["image_size"]
    with torch.no_grad():
        if "classifier" in name:
            found = load_classifier(state, num_res_blocks=1, **known)(x, t)
        else:
            found = load_unet(state, **known)(x, t, y if config.get("num_classes") else None)
    torch.testing.assert_close(found.numpy(), out, rtol=1e-4, atol=1e-5)
