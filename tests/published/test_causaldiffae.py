"""State dicts of the published CausalDiffAE code open by their shapes; others are refused, with the differences."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import published_causaldiffae
from torch import Tensor

from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.errors import DataError, InputError
from causaldiffae.graphs import CausalGraph
from causaldiffae.published.causaldiffae import load_model as load_published
from causaldiffae.script_util import load_model

GRAPH = dataset_spec("morphomnist").graph


@pytest.mark.parametrize("num_classes", [None, 10])
def test_a_published_state_dict_is_the_network(num_classes: int | None) -> None:
    state, net = published_causaldiffae(num_classes=num_classes)
    without_counters = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    opened = load_published(without_counters, GRAPH)
    x, t = torch.rand(2, 1, 28, 28), torch.tensor([3, 700])
    classes = None if num_classes is None else torch.tensor([1, 7])
    with torch.no_grad():
        z = opened.predict(opened.abduct(x), {"thickness": 0.5})
        assert torch.equal(z, net.predict(net.abduct(x), {"thickness": 0.5}))
        assert torch.equal(opened.model_output(x, t, z, classes), net.model_output(x, t, z, classes))
    assert not opened.training


def test_a_published_file_opens_as_a_model(tmp_path: Path) -> None:
    path = tmp_path / "model035000.pt"
    torch.save(published_causaldiffae()[0], path)
    loaded = load_model(str(path))
    assert loaded.spec.name == "morphomnist" and loaded.step is None
    assert loaded.pixel_range == (0.0, 1.0)
    do = loaded.spec.check_do({"thickness": 4.5})
    assert loaded.spec.normalise_do(do) == {"thickness": 4.5}, "labels are not normalised"
    assert loaded.config.diffusion.diffusion_steps == 1000 and not loaded.config.diffusion.predict_v
    x, classes = torch.rand(2, 1, 28, 28) * 2 - 1, torch.tensor([3, 4])
    result = loaded.engine(4, "ddim").counterfactual(x, {"thickness": 4.5}, classes)
    assert result.images.shape == x.shape
    torch.testing.assert_close(result.labels[:, 0], torch.full((2,), 4.5))
    assert load_model(str(path), dataset="morphomnist").spec == loaded.spec
    with pytest.raises(DataError, match="expected a mechanism for each of 4 variables, got 2"):
        load_model(str(path), dataset="pendulum")


def test_differences_are_listed(tmp_path: Path) -> None:
    state, _ = published_causaldiffae()
    path = tmp_path / "model.pt"

    def refused(changed: dict[str, Tensor]) -> str:
        torch.save(changed, path)
        with pytest.raises(DataError) as caught:
            load_model(str(path), dataset="morphomnist")
        assert str(path) in str(caught.value)
        return str(caught.value)

    message = refused({**state, "time_embed.2.bias": torch.zeros(3), "odd": torch.zeros(1)})
    assert "2 differences: unet.time_embed.2.bias: expected shape (128,), got (3,); unet.odd: unexpected" in message
    missing = tuple(f"output_blocks.1.0.{layer}" for layer in ("in_layers", "out_layers"))
    message = refused({key: value for key, value in state.items() if not key.startswith(missing)})
    assert message.count("got none") == 5 and "and 3 more" in message
    message = refused({"input_blocks.0.0.weight": torch.zeros(3)})
    assert "missing: time_embed.0.weight, input_blocks.1.0.in_layers.2.weight" in message
    message = refused({"weight": torch.zeros(3)})
    assert "expected the published CausalDiffAE network, or a run" in message and "holds the tensor weight" in message
    torch.save({**state, "causal_mask.nonlinearities.2.net.0.weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="expected the network of a published data set, got 3 mechanisms and 1"):
        load_model(str(path))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "ema_model."])
def test_prefixes_of_training_are_removed(tmp_path: Path, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in published_causaldiffae()[0].items()}
    torch.save({"state_dict": state, "optimizer": {"lr": 1}}, tmp_path / "model.pt")
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    for name in ("model.pt", "model.safetensors"):
        assert load_model(str(tmp_path / name)).spec.name == "morphomnist"


def test_weights_without_their_description_are_refused(tmp_path: Path) -> None:
    state = {"unet.input_blocks.0.0.weight": torch.zeros(1), "encoder.fc_mu.weight": torch.zeros(1)}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="expected config.json beside the weights of a model of this package"):
        load_model(str(tmp_path / "model.safetensors"))


def test_pickles_are_not_executed(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"weight": Path("x")}, path)
    with pytest.raises(DataError, match="model.pt: expected the published CausalDiffAE network.* holds no tensors"):
        load_model(str(path))
    path.write_bytes(b"no zip file")
    with pytest.raises(DataError, match="model.pt: "):
        load_model(str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_blocks.999999999.0.x": torch.zeros(1)}, "state dict: expected numbers below .*, got 999999999"),
        ({"causal_mask.nonlinearities.99999999.net.0.weight": torch.zeros(1)}, "got 99999999"),
        ({"rep_emb.fc_mu.weight": torch.zeros(8)}, "state dict: expected shapes of a published network"),
        ({"rep_emb.fc_mu.weight": torch.zeros(9, 256)}, "expected 2 blocks of 4 latents, got 9 latents"),
    ],
)
def test_shapes_that_do_not_fit(changes: dict[str, Tensor], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_published(published_causaldiffae()[0] | changes, GRAPH)


def test_a_graph_that_does_not_fit() -> None:
    with pytest.raises(DataError, match="expected a mechanism for each of 3 variables, got 2"):
        load_published(published_causaldiffae()[0], CausalGraph(("a", "b", "c")))
