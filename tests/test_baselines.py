"""The models of comparison: what each does under do(), what its loss is made of, and that each trains and opens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import randomise, small_config, squares, squares_spec
from torch import Tensor

from causaldiffae.baselines.causalvae import CausalVAE, CausalVAETrainingStep, ConvDecoder
from causaldiffae.baselines.conditional import ConditionalTrainingStep, LabelConditional
from causaldiffae.baselines.diffae import DiffAE, DiffAETrainingStep
from causaldiffae.config import Config, LossConfig
from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.datasets.images import to_model_range
from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import GaussianDiffusion, get_named_beta_schedule
from causaldiffae.graphs import CausalGraph
from causaldiffae.logger import Logger
from causaldiffae.losses import label_kl, prior_kl
from causaldiffae.model import CausalDiffAE, TrainingDraws, TrainingStep
from causaldiffae.scm import LatentSCM
from causaldiffae.script_util import MODELS, create_model_and_diffusion, load_model
from causaldiffae.train_util import TrainLoop
from causaldiffae.training import previews

B = 4
DIFFUSION = GaussianDiffusion(betas=get_named_beta_schedule("linear", 100))
LABELS = torch.tensor([[0.5, 0.2], [-1.0, -0.4], [1.5, 0.9], [0.0, -0.3]])
EVERYONE = torch.ones(B, dtype=torch.bool)
KINDS: list[dict[str, Any]] = [
    {"model_type": "conditional"},
    {"model_type": "diffae"},
    {"model_type": "diffae", "aligned": True},
    {"model_type": "causalvae", "decoder_channels": "8,8"},
]


def name_of(changes: dict[str, Any]) -> str:
    return "-".join(str(value) for value in changes.values())


def build(num_classes: int | None = None, **changes: Any) -> tuple[Any, Config]:
    torch.manual_seed(0)
    config = small_config(class_cond=num_classes is not None, **changes)
    return randomise(create_model_and_diffusion(config, squares_spec(num_classes))[0]).eval(), config


def images() -> Tensor:
    return torch.rand(B, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def step(net: Any, kind: type[TrainingStep], labelled: Tensor = EVERYONE, **loss: Any) -> tuple[Tensor, dict]:
    generator = torch.Generator().manual_seed(5)
    draws = TrainingDraws(
        t=torch.tensor([0, 30, 60, 99]),
        weights=torch.ones(B),
        noise=torch.randn(B, 1, 8, 8, generator=generator),
        latent_noise=torch.randn(B, *net.latent_shape, generator=generator),
        keep=torch.ones(B, dtype=torch.bool),
        keep_blocks=torch.ones(B, 2, dtype=torch.bool),
        forced=torch.zeros(B, dtype=torch.bool),
    )
    return kind(net, DIFFUSION, LossConfig(label_std=0.3, **loss))(images(), LABELS, None, labelled, draws, 0.7)


# ---------------------------------------------------------------------- all of them


@pytest.mark.parametrize("changes", KINDS, ids=name_of)
def test_every_model_trains_opens_and_answers(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(previews, "PREVIEW_STEPS", 3)
    config = small_config(class_cond=True, total_steps=2, **changes)
    data = squares(num_classes=3)
    TrainLoop(config, data, Logger(tmp_path, use_tensorboard=False), data).run()
    loaded = load_model(str(tmp_path))
    assert loaded.config.model.model_type == changes["model_type"]
    engine = CounterfactualEngine(loaded.model, loaded.diffusion("3"), loaded.spec)
    x, labels = to_model_range(data.images[:B]), torch.from_numpy(data.labels[:B])
    classes = torch.from_numpy(data.classes[:B])  # type: ignore[index]
    abducted = engine.abduct(x, classes, labels=labels)
    nothing, moved = engine.predict(abducted, [{}, {"size": 7.0}])
    assert moved.images.shape == x.shape and not torch.equal(nothing.images, moved.images)
    torch.testing.assert_close(moved.labels[:, 0], torch.full((B,), 7.0))


def test_the_encoder_and_unet_are_causaldiffaes() -> None:
    causal, _ = build()
    for changes in KINDS[1:]:
        net, _ = build(**changes)
        assert [p.shape for p in net.encoder.parameters()] == [p.shape for p in causal.encoder.parameters()]
        if "unet" in dict(net.named_children()):
            assert [p.shape for p in net.unet.parameters()] == [p.shape for p in causal.unet.parameters()]


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(InputError, match="model_type: expected causaldae, diffscm, conditional, dif"):
        build(model_type="gan")
    assert list(MODELS) == ["causaldae", "diffscm", "conditional", "diffae", "causalvae"]


# ---------------------------------------------------------------------- conditional


def test_labels_are_abducted_and_propagated() -> None:
    net, _ = build(model_type="conditional")
    assert isinstance(net, LabelConditional) and net.needs_labels
    u = net.abduct(images(), LABELS)
    torch.testing.assert_close(net.read_labels(net.predict(u)), LABELS)
    moved = net.read_labels(net.predict(u, {"size": 2.0}))
    assert (moved[:, 0] == 2.0).all() and (moved[:, 1] != LABELS[:, 1]).all()
    other = net.read_labels(net.predict(u, {"grey": 2.0}))
    torch.testing.assert_close(other[:, 0], LABELS[:, 0])
    seen = []
    net.unet.register_forward_pre_hook(lambda module, args: seen.append(args[3]))
    net.model_outputs(images(), torch.zeros(B, dtype=torch.long), [net.predict(u)])
    torch.testing.assert_close(seen[0], LABELS)
    with pytest.raises(InputError, match="labels: expected the labels of the images"):
        net.abduct(images())
    with pytest.raises(InputError, match="model: expected a U-Net conditioned on 2 labels, got 2"):
        LabelConditional(LatentSCM(squares_spec().graph, 2), net.unet)


def test_the_conditional_loss_is_diffusion_and_the_labels_likelihood() -> None:
    net, _ = build(model_type="conditional")
    loss, terms = step(net, ConditionalTrainingStep, mechanism_weight=0.4)
    torch.testing.assert_close(loss, terms["mse"].mean() + 0.4 * terms["mechanism_nll"])
    assert terms["mechanism_nll"] != 0 and not terms["label_kl"].any() and not terms["prior_kl"].any()
    null, with_none = (step(net, ConditionalTrainingStep, labelled=mask)[1] for mask in (EVERYONE, ~EVERYONE))
    assert (null["mse"] != with_none["mse"]).all(), "without labels the null token is trained"
    assert with_none["mechanism_nll"] == 0


# ---------------------------------------------------------------------- DiffAE


def test_aligned_sets_a_block_and_nothing_follows() -> None:
    net, _ = build(model_type="diffae", aligned=True)
    u = net.abduct(images())
    moved = net.predict(u, {"size": 2.0})
    assert (moved[:, 0] == 2.0).all()
    assert torch.equal(moved[:, 1], u[:, 1])
    assert net.scm.graph.edges == () and torch.equal(net.predict(u), u)


def test_unaligned_takes_the_shortest_step_to_what_the_probe_should_read() -> None:
    net, _ = build(model_type="diffae")
    assert net.probe is not None
    u = net.abduct(images())
    assert torch.equal(net.predict(u), u)
    moved = net.predict(u, {"grey": 2.0})
    torch.testing.assert_close(net.read_labels(moved)[:, 1], torch.full((B,), 2.0))
    step_taken, direction = (moved - u).flatten(1), net.probe.weight[1]
    parallel = (step_taken @ direction)[:, None] * direction / direction.square().sum()
    torch.testing.assert_close(step_taken, parallel, rtol=1e-4, atol=1e-5)
    both = net.predict(u, {"grey": 2.0, "size": -1.0})
    torch.testing.assert_close(net.read_labels(both), torch.tensor([-1.0, 2.0]).expand(B, 2), rtol=1e-4, atol=1e-4)


def test_diffae_losses() -> None:
    aligned, _ = build(model_type="diffae", aligned=True)
    loss, terms = step(aligned, DiffAETrainingStep)
    expected = terms["mse"].mean() + 0.7 * (terms["prior_kl"] + terms["label_kl"]).mean()
    torch.testing.assert_close(loss, expected)
    posterior = aligned.encode(images())
    torch.testing.assert_close(terms["label_kl"], label_kl(posterior.mean, posterior.logvar, LABELS, 0.3))
    torch.testing.assert_close(terms["prior_kl"], prior_kl(posterior))
    free, _ = build(model_type="diffae")
    loss, terms = step(free, DiffAETrainingStep)
    torch.testing.assert_close(loss, terms["mse"].mean() + 0.7 * terms["prior_kl"].mean() + terms["probe_mse"])
    assert not terms["label_kl"].any() and terms["mechanism_nll"] == 0


def test_labels_reach_the_probe_and_not_the_unaligned_encoder() -> None:
    net, _ = build(model_type="diffae")
    _, terms = step(net, DiffAETrainingStep)
    terms["probe_mse"].backward()
    assert net.probe.weight.grad.abs().max() > 0
    assert all(p.grad is None or not p.grad.any() for p in net.encoder.parameters())
    assert step(net, DiffAETrainingStep, labelled=~EVERYONE)[1]["probe_mse"] == 0


# ---------------------------------------------------------------------- CausalVAE


def test_the_vae_has_causaldiffaes_latents_and_loss() -> None:
    vae, _ = build(model_type="causalvae", decoder_channels="8,8")
    causal, _ = build()
    assert isinstance(vae, CausalVAE)
    vae.encoder.load_state_dict(causal.encoder.state_dict())
    vae.scm.load_state_dict(causal.scm.state_dict())
    loss, terms = step(vae, CausalVAETrainingStep, mechanism_weight=0.4)
    _, theirs = step(causal, TrainingStep, mechanism_weight=0.4)
    for name in ("prior_kl", "label_kl", "mechanism_nll", "label_mse"):
        torch.testing.assert_close(terms[name], theirs[name])
    divergences = (terms["prior_kl"] + terms["label_kl"]).mean()
    torch.testing.assert_close(loss, terms["mse"].mean() + 0.7 * divergences + 0.4 * terms["mechanism_nll"])
    u = vae.abduct(images())
    moved = vae.predict(u, {"size": 2.0})
    assert (moved[:, 1] != vae.predict(u)[:, 1]).all(), "its graph has edges"
    assert vae.decode(moved).abs().max() <= 1


@pytest.mark.parametrize(("size", "channels"), [(8, (8,)), (28, (16, 8, 8)), (30, (8, 8, 8))])
def test_decoders_fit_their_images(size: int, channels: tuple[int, ...]) -> None:
    decoder = ConvDecoder(4, size, 3, channels, num_classes=2)
    picture = decoder(torch.randn(2, 4), torch.tensor([0, 1]))
    assert picture.shape == (2, 3, size, size)
    with pytest.raises(InputError, match="y: expected"):
        decoder(torch.randn(2, 4))


def test_nothing_is_learnt_that_is_not_there() -> None:
    with pytest.raises(InputError, match="learn_sigma: expected False"):
        build(model_type="causalvae", learn_sigma=True)
    with pytest.raises(InputError, match="model: expected an encoder of"):
        CausalDiffAE(build()[0].encoder, LatentSCM(CausalGraph(("a",)), 2), build()[0].unet)
    assert isinstance(build(model_type="diffae")[0], DiffAE)
