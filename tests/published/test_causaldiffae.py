"""State dicts under the published keys: their sizes are read, their weights open, and what does not fit is named."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import SHARED
from tiny import randomise
from torch import Tensor

from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.encoder import CausalEncoder
from causaldiffae.errors import DataError, InputError
from causaldiffae.graphs import CausalGraph
from causaldiffae.model import CausalDiffAE
from causaldiffae.published import causaldiffae as reference
from causaldiffae.scm import LatentSCM
from causaldiffae.script_util import load_model
from causaldiffae.unet import EncoderUNetModel, UNetModel

GOLDEN = SHARED / "golden"
GRAPH = dataset_spec("morphomnist").graph


def published(latents: int = 8, num_classes: int | None = 10) -> tuple[dict[str, Tensor], CausalDiffAE]:
    """A small network, and its state dict under the published keys."""
    torch.manual_seed(0)
    encoder = CausalEncoder(28, 1, 2, latents // 2, (8, 8, 16), "batch")
    unet = UNetModel(28, 1, 32, 1, 1, {2}, 0.0, (1, 2), True, num_classes, num_heads=4, cond_dim=latents)
    net = randomise(CausalDiffAE(encoder, LatentSCM(GRAPH, latents // 2, "one_hop", width=latents), unet)).eval()
    state = {}
    for key, value in net.state_dict().items():
        if key.startswith("encoder."):
            key = "rep_emb." + key.removeprefix("encoder.")
        elif key.startswith("scm."):
            key = "causal_mask.nonlinearities." + re.sub(r"^scm\.networks\.(\d+)\.", r"\1.net.", key)
        else:
            key = key.removeprefix("unet.")
        state[key] = value
    return state, net  # type: ignore[return-value]


def without_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize("num_classes", [None, 10])
def test_a_published_state_dict_is_the_network(num_classes: int | None) -> None:
    state, net = published(num_classes=num_classes)
    opened = reference.load_model(without_counters(state), GRAPH)
    x, t = torch.rand(2, 1, 28, 28), torch.tensor([3, 700])
    classes = None if num_classes is None else torch.tensor([1, 7])
    with torch.no_grad():
        z = opened.predict(opened.abduct(x), {"thickness": 0.5})
        assert torch.equal(z, net.predict(net.abduct(x), {"thickness": 0.5}))
        assert torch.equal(opened.model_output(x, t, z, classes), net.model_output(x, t, z, classes))
    assert not opened.training


def test_a_file_of_the_published_code_opens_as_a_model(tmp_path: Path) -> None:
    state, _ = published()
    torch.save(state, tmp_path / "model035000.pt")
    loaded = load_model(str(tmp_path / "model035000.pt"))
    assert loaded.spec.name == "morphomnist" and loaded.step is None
    assert loaded.pixel_range == (0.0, 1.0), "its pixels are in 0..1"
    do = loaded.spec.check_do({"thickness": 4.5})
    assert loaded.spec.normalise_do(do) == {"thickness": 4.5}, "its labels are raw"
    assert loaded.config.diffusion.diffusion_steps == 1000 and not loaded.config.diffusion.predict_v
    x, classes = torch.rand(2, 1, 28, 28) * 2 - 1, torch.tensor([3, 4])
    result = loaded.engine(4, "ddim").counterfactual(x, {"thickness": 4.5}, classes)
    assert result.images.shape == x.shape
    torch.testing.assert_close(result.labels[:, 0], torch.full((2,), 4.5))
    assert load_model(str(tmp_path / "model035000.pt"), dataset="morphomnist").spec == loaded.spec
    with pytest.raises(DataError, match="2 mechanisms, the graph has 4 variables"):
        load_model(str(tmp_path / "model035000.pt"), dataset="pendulum")


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    state, _ = published()
    path = tmp_path / "model.pt"

    def refused(changed: dict[str, Tensor]) -> str:
        torch.save(changed, path)
        with pytest.raises(InputError) as caught:
            load_model(str(path), dataset="morphomnist")
        assert str(path) in str(caught.value)
        return str(caught.value)

    message = refused({**state, "time_embed.2.bias": torch.zeros(3), "odd": torch.zeros(1)})
    assert "2 differences: unet.time_embed.2.bias has shape (3,) (expected (128,)); unet.odd of shape (1,)" in message
    missing = [f"output_blocks.1.0.{layer}" for layer in ("in_layers.0", "in_layers.2", "out_layers.0", "out_layers.3")]
    gone = {key: value for key, value in state.items() if not key.startswith(tuple(missing))}
    message = refused(gone)
    assert message.count("is missing (expected shape") == 5 and "and 3 more" in message
    message = refused({"weight": torch.zeros(3)})
    assert "it has 0 mechanisms" in message or "missing" in message
    assert "time_embed.0.weight, input_blocks.0.0.weight" in message
    with pytest.raises(InputError, match="none of the published data sets; --dataset must name one"):
        load_model(str(path))


def test_files_that_need_pickle_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"weight": Path("x")}, path)
    with pytest.raises(DataError, match=r"model.pt: it needs pickle execution, refused"):
        load_model(str(path))
    path.write_bytes(b"no zip file")
    with pytest.raises(DataError, match="model.pt: it is no file of torch.save"):
        load_model(str(path))


# ---------------------------------------------------------------------- guided-diffusion's networks

UNETS: list[dict[str, Any]] = [
    {"num_res_blocks": 1, "channel_mult": (1, 2, 2), "attention_resolutions": {2, 4}, "resblock_updown": True},
    {"num_res_blocks": 2, "channel_mult": (1, 2), "attention_resolutions": {2}, "use_scale_shift_norm": True},
    {"num_res_blocks": 2, "channel_mult": (1, 1, 2), "attention_resolutions": set(), "conv_resample": False},
    {"num_res_blocks": 3, "channel_mult": (2,), "attention_resolutions": {1}, "num_classes": 7},
    {"num_res_blocks": 1, "channel_mult": (1, 2), "attention_resolutions": {1}, "out_channels": 6},
]


@pytest.mark.parametrize("arguments", UNETS, ids=lambda arguments: str(arguments["channel_mult"]))
def test_unets_open_from_their_shapes(arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    sizes = {"image_size": 16, "in_channels": 3, "model_channels": 32, "out_channels": 3, "num_heads": 2}
    net = randomise(UNetModel(**(sizes | arguments))).eval()
    opened = reference.load_unet(net.state_dict(), 16, num_heads=2)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([5, 600])
    y = torch.tensor([1, 2]) if "num_classes" in arguments else None
    with torch.no_grad():
        assert torch.equal(opened(x, t, y), net(x, t, y))


@pytest.mark.parametrize("pool", EncoderUNetModel.POOLS)
def test_classifiers_open_from_their_shapes(pool: str) -> None:
    torch.manual_seed(0)
    net = randomise(
        EncoderUNetModel(16, 1, 32, 10, 2, {2}, channel_mult=(1, 2), num_head_channels=16, pool=pool)
    ).eval()
    opened = reference.load_classifier(net.state_dict(), 16, num_head_channels=16)
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([5, 600])
    with torch.no_grad():
        assert torch.equal(opened(x, t), net(x, t))


def test_a_classifier_whose_depth_cannot_be_told() -> None:
    net = EncoderUNetModel(16, 1, 32, 10, 2, set(), channel_mult=(1, 1), resblock_updown=True, pool="spatial")
    with pytest.raises(InputError, match=r"num_res_blocks: the state dict's shapes allow \[1, 2, 5\]; it must"):
        reference.load_classifier(net.state_dict(), 16)
    assert reference.load_classifier(net.state_dict(), 16, num_res_blocks=2).pool == "spatial"
    with pytest.raises(DataError, match="6 input blocks are no multiple of 4"):
        reference.load_classifier(net.state_dict(), 16, num_res_blocks=3)


def test_networks_of_another_kind_are_refused() -> None:
    state, _ = published()
    with pytest.raises(DataError, match="guided-diffusion's U-Net: time_embed.0.weight, .* and 2 more missing"):
        reference.load_unet({"a": torch.zeros(1)}, 16)
    with pytest.raises(DataError, match="guided-diffusion's classifier"):
        reference.load_classifier({"a": torch.zeros(1)}, 16)
    with pytest.raises(InputError, match="causal_mask.nonlinearities.0.net.0.weight of shape .* is not part of"):
        reference.load_unet({k: v for k, v in state.items() if "rep_emb" not in k and "up_emb" not in k}, 28)
    with pytest.raises(DataError, match="the graph has 3 variables"):
        reference.load_model(state, CausalGraph(("a", "b", "c")))


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden figures are not beside the project")
@pytest.mark.parametrize("name", ["adm_unet_a", "adm_unet_b", "adm_classifier_a"])
def test_published_shapes_open(name: str) -> None:
    from parity import rule_weights

    with np.load(GOLDEN / f"{name}.npz") as file:
        meta, x, t = json.loads(str(file["meta"])), torch.from_numpy(file["x"]), torch.from_numpy(file["t"])
        out, y = file["out"], torch.from_numpy(file["y"]) if "y" in file.files else None
    config, state = meta["config"], rule_weights(meta["state_dict"])
    heads = {k: config[k] for k in ("num_heads", "num_head_channels", "use_new_attention_order") if k in config}
    with torch.no_grad():
        if "classifier" in name:
            found = reference.load_classifier(state, config["image_size"], num_res_blocks=1, **heads)(x, t)
        else:
            classes = y if config.get("num_classes") else None
            found = reference.load_unet(state, config["image_size"], **heads)(x, t, classes)
    torch.testing.assert_close(found.numpy(), out, rtol=1e-4, atol=1e-5)
