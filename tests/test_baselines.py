"""The baselines: the effect of do(), the terms of each loss, and training, opening and counterfactuals of each."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import normal, randomise, small_config, squares, squares_spec, training_draws
from torch import Tensor

from causaldiffae.baselines.causalvae import CausalVAETrainingStep, ConvDecoder
from causaldiffae.baselines.conditional import ConditionalTrainingStep, LabelConditional
from causaldiffae.baselines.diffae import DiffAETrainingStep
from causaldiffae.config import LossConfig
from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.datasets.images import to_model_range
from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import GaussianDiffusion, get_named_beta_schedule
from causaldiffae.graphs import CausalGraph
from causaldiffae.logger import Logger
from causaldiffae.losses import Observed, gaussian_nll, label_kl, prior_kl
from causaldiffae.model import LabelTrainingStep, TrainingStep
from causaldiffae.scm import LatentSCM
from causaldiffae.script_util import MODELS, create_model_and_diffusion, load_model, model_entry
from causaldiffae.train_util import TrainLoop
from causaldiffae.training import previews

B = 4
DIFFUSION = GaussianDiffusion(betas=get_named_beta_schedule("linear", 100))
LABELS = torch.tensor([[0.5, 0.2], [-1.0, -0.4], [1.5, 0.9], [0.0, -0.3]])
IMAGES, T = normal(B, 1, 8, 8, seed=1).clamp(-1, 1).float(), torch.tensor([0, 30, 60, 99])
EVERYONE = torch.ones(B, dtype=torch.bool)
CONDITIONAL: dict[str, Any] = {"model_type": "conditional"}
UNALIGNED: dict[str, Any] = {"model_type": "diffae"}
ALIGNED: dict[str, Any] = {"model_type": "diffae", "aligned": True}
DIFFSCM: dict[str, Any] = {"model_type": "diffscm", "label_cond": True}
CAUSALVAE: dict[str, Any] = {"model_type": "causalvae", "decoder_channels": "8,8"}
STEPS = {"conditional": ConditionalTrainingStep, "diffae": DiffAETrainingStep, "causalvae": CausalVAETrainingStep}


def build(model_type: str = "causaldae", **changes: Any) -> Any:
    torch.manual_seed(0)
    return randomise(
        create_model_and_diffusion(small_config(model_type=model_type, **changes), squares_spec())[0]
    ).eval()


def step(net: Any, model_type: str = "causaldae", labelled: Tensor = EVERYONE) -> tuple[Tensor, dict[str, Tensor]]:
    training_step = STEPS.get(model_type, TrainingStep)(net, DIFFUSION, LossConfig(label_std=0.3, mechanism_weight=0.4))
    return training_step(IMAGES, LABELS, None, labelled, training_draws(T, net.latent_shape), 0.7)


# ---------------------------------------------------------------------- all of them


@pytest.mark.parametrize("changes", [CONDITIONAL, UNALIGNED, ALIGNED, CAUSALVAE])
def test_every_baseline_trains_opens_and_generates_counterfactuals(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(previews, "PREVIEW_STEPS", 3)
    data = squares(num_classes=3)
    TrainLoop(
        small_config(class_cond=True, total_steps=2, **changes), data, Logger(tmp_path, use_tensorboard=False), data
    ).run()
    loaded = load_model(str(tmp_path))
    assert loaded.config.model.model_type == changes["model_type"]
    engine = CounterfactualEngine(loaded.model, loaded.diffusion("3"), loaded.spec)
    x, labels, classes = to_model_range(data.images), torch.from_numpy(data.labels), torch.from_numpy(data.classes)  # type: ignore[arg-type]
    factual, moved = engine.predict(engine.abduct(x, classes, labels=labels), [{}, {"size": 7.0}])
    assert moved.images.shape == x.shape and not torch.equal(factual.images, moved.images)
    torch.testing.assert_close(moved.labels[:, 0], torch.full((len(x),), 7.0))


@pytest.mark.parametrize("changes", [UNALIGNED, ALIGNED, CAUSALVAE])
def test_encoder_and_unet_have_the_sizes_of_causaldiffae(changes: dict[str, Any]) -> None:
    causal, net = build(), build(**changes)
    for part in ("encoder", "unet"):
        if hasattr(net, part):
            found, expected = ([p.shape for p in getattr(each, part).parameters()] for each in (net, causal))
            assert found == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gan"}, "model_type: expected causaldae, diffscm, conditional, diffae, causalvae, got 'gan'"),
        (CAUSALVAE | {"learn_sigma": True}, "learn_sigma: expected False for model_type causalvae"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    assert list(MODELS) == ["causaldae", "diffscm", "conditional", "diffae", "causalvae"]
    with pytest.raises(InputError, match=message):
        build(**changes)


# ---------------------------------------------------------------------- discrete variables


@pytest.mark.parametrize("changes", [{}, CONDITIONAL, UNALIGNED, ALIGNED, CAUSALVAE, DIFFSCM])
def test_every_model_trains_on_discrete_variables_and_predicts_categories(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    data = squares()
    kinds = {"kinds": ("continuous", "categorical"), "categories": ((), ("black", "dark", "light"))}
    ranges = {"low": (1.0, 0.0), "high": (7.0, 2.0), "shift": (4.0, 0.9), "scale": (2.0, 0.7)}
    data.spec = replace(data.spec, name="folder", **kinds, **ranges)  # type: ignore[arg-type]
    data.labels[:, 1] = np.arange(len(data)) % 3
    config = small_config(discrete=True, rep_dim=6, mechanism="spline", total_steps=2, **changes)
    TrainLoop(config, data, Logger(tmp_path, use_tensorboard=False)).run()
    loaded = load_model(str(tmp_path))
    engine = loaded.engine(2)
    x, labels = to_model_range(data.images), torch.from_numpy(data.labels)
    factual, moved, chosen = engine.predict(engine.abduct(x, labels=labels), [{}, {"size": 6.0}, {"grey": "light"}])
    assert all(each.images.isfinite().all() for each in (factual, moved, chosen))
    if changes is UNALIGNED:  # its latents are not tied to labels, so a linear probe reads real values
        assert not loaded.model.discrete
        return
    assert loaded.model.discrete and chosen.labels[:, 1].tolist() == [2.0] * len(x)
    assert set(moved.labels[:, 1].tolist()) <= {0.0, 1.0, 2.0}
    if changes in (CONDITIONAL, DIFFSCM):
        assert torch.equal(factual.labels[:, 1], labels[:, 1]) and loaded.model.latent_shape == (2, 3)


def test_label_models_condition_the_network_on_codes_or_one_hot_categories() -> None:
    spec = replace(
        squares_spec(), kinds=("continuous", "binary"), low=(1, 0), high=(7, 1), shift=(4, 0.4), scale=(2, 0.5)
    )
    torch.manual_seed(0)
    net, _ = create_model_and_diffusion(small_config(discrete=True, **CONDITIONAL), spec)
    labels = spec.normalise(torch.tensor([[2.0, 0.0], [5.0, 1.0]]))
    z = net.predict(net.abduct(IMAGES[:2], labels))
    torch.testing.assert_close(z, torch.tensor([[[-1.0, -1.0], [1.0, -1.0]], [[0.5, 0.5], [-1.0, 1.0]]]))
    diff_scm, _ = create_model_and_diffusion(small_config(discrete=True, **DIFFSCM), spec)
    embedded = diff_scm.embed_labels(z)  # type: ignore[union-attr]
    torch.testing.assert_close(embedded, torch.tensor([[-1.0, 1.0, 0.0], [0.5, 0.0, 1.0]]))


# ---------------------------------------------------------------------- conditional


def test_the_conditional_model_abducts_labels_and_propagates_do_to_the_unet() -> None:
    net, seen = build(**CONDITIONAL), []
    u = net.abduct(IMAGES, LABELS)
    of_size, of_grey = (net.read_labels(net.predict(u, {name: 2.0})) for name in ("size", "grey"))
    assert (of_size[:, 0] == 2.0).all() and (of_size[:, 1] != LABELS[:, 1]).all()
    torch.testing.assert_close(of_grey[:, 0], LABELS[:, 0])
    net.unet.register_forward_pre_hook(lambda module, args: seen.append(args[3]))
    net.model_outputs(IMAGES, T, [net.predict(u)])
    torch.testing.assert_close(seen[0], LABELS)
    with pytest.raises(InputError, match="labels: expected the labels of the images"):
        net.abduct(IMAGES)
    with pytest.raises(InputError, match="model: expected a U-Net conditioned on 2 x 2 label entries, got width 2"):
        LabelConditional(LatentSCM(squares_spec().graph, 2), net.unet)


def test_the_conditional_loss_is_that_of_diffusion_and_of_the_labels() -> None:
    net = build(**CONDITIONAL)
    loss, terms = step(net, "conditional")
    torch.testing.assert_close(loss, terms["mse"].mean() + 0.4 * terms["mechanism_nll"])
    assert terms["mechanism_nll"] != 0 and not terms["label_kl"].any() and not terms["prior_kl"].any()
    unlabelled = step(net, "conditional", ~EVERYONE)[1]
    assert (unlabelled["mse"] != terms["mse"]).all(), "without labels the null token is trained"
    assert unlabelled["mechanism_nll"] == 0


def test_the_conditional_model_is_conditioned_where_all_labels_are_observed() -> None:
    net, plain = build(**CONDITIONAL), LABELS.clone()
    labelled = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    (_, terms), (_, every), (_, none) = (step(net, "conditional", mask) for mask in (labelled, EVERYONE, ~EVERYONE))
    assert (terms["mse"] == every["mse"]).tolist() == [True, False, False, False]
    assert (terms["mse"] == none["mse"]).tolist() == [False, True, True, True], "the null token"
    alone = LabelTrainingStep(net, DIFFUSION, LossConfig()).represent(
        IMAGES[:1], plain[:1], Observed.of(EVERYONE[:1]), training_draws(T[:1], net.latent_shape)
    )[1]
    torch.testing.assert_close(terms["mechanism_nll"], alone["mechanism_nll"])


def test_the_one_hop_likelihood_needs_the_labels_of_all_ancestors() -> None:
    """The noise of c is abducted from the labels of a and b."""
    graph = CausalGraph(("a", "b", "c"), (("a", "b"), ("b", "c")))
    hidden = torch.tensor([[False, True, True], [True, True, True]])
    one_hop, additive = (LatentSCM(graph, 1, mechanism) for mechanism in ("one_hop", "additive"))
    assert one_hop.known_terms(hidden).tolist() == [[False] * 3, [True] * 3]
    assert additive.known_terms(hidden).tolist() == [[False, False, True], [True] * 3]
    net = build(mechanism="one_hop", **CONDITIONAL)
    labelled = torch.tensor([[True, False], [True, True], [False, True], [True, True]])
    terms = step(net, "conditional", labelled)[1]
    nll = gaussian_nll(net.abduct(IMAGES, LABELS), torch.zeros(())).squeeze(2)
    torch.testing.assert_close(terms["mechanism_nll"], nll[[0, 1, 3], 0].mean() + nll[[1, 3], 1].mean())


def test_the_probe_learns_from_every_observed_label() -> None:
    net = build(**UNALIGNED)
    labelled = torch.tensor([[True, False], [True, True], [False, True], [False, False]])
    terms = step(net, "diffae", labelled)[1]
    posterior, noise = net.encode(IMAGES), training_draws(T, net.latent_shape).latent_noise
    error = (net.read_labels(posterior.mean + torch.exp(0.5 * posterior.logvar) * noise) - LABELS) ** 2
    torch.testing.assert_close(terms["probe_mse"], (error[:2, 0].mean() + error[1:3, 1].mean()) / 2)


@pytest.mark.parametrize("model_type", ["conditional", "diffscm"])
def test_labels_train_the_mechanisms_of_the_published_settings_too(model_type: str) -> None:
    """Nothing else trains them without an encoder; untrained, an effect would be that of a random network."""
    torch.manual_seed(0)
    config = small_config(model_type=model_type, mechanism="one_hop", mechanism_weight=0.0)
    net, diffusion = create_model_and_diffusion(config, squares_spec())
    training_step = model_entry(model_type).training_step(net, diffusion, config.loss)
    optimizer = torch.optim.Adam(net.scm.parameters(), lr=1e-2)
    size = normal(64, 1, dtype=torch.float32)
    labels = torch.cat([size, 0.5 - 0.8 * size], dim=1)
    draws = training_draws(torch.zeros(64, dtype=torch.long), net.latent_shape)
    images, everyone = torch.zeros(64, 1, 8, 8), Observed.of(torch.ones(64, dtype=torch.bool))
    for _ in range(300):
        optimizer.zero_grad()
        terms = training_step.represent(images, labels, everyone, draws)[1]
        (training_step.mechanism_weight * terms["mechanism_nll"]).backward()
        optimizer.step()
    u = net.abduct(images, labels)
    torch.testing.assert_close(net.read_labels(net.predict(u)), labels)
    effect = net.read_labels(net.predict(u, {"size": 1.0}))[:, 1]
    torch.testing.assert_close(effect, torch.full((64,), -0.3), atol=0.15, rtol=0.0)


# ---------------------------------------------------------------------- DiffAE


def test_aligned_do_sets_its_block_and_moves_no_other() -> None:
    net = build(**ALIGNED)
    u = net.abduct(IMAGES)
    moved = net.predict(u, {"size": 2.0})
    assert (moved[:, 0] == 2.0).all() and torch.equal(moved[:, 1], u[:, 1])
    assert net.scm.graph.edges == () and torch.equal(net.predict(u), u)


def test_unaligned_do_takes_the_shortest_step_to_the_value_of_the_probe() -> None:
    net = build(**UNALIGNED)
    u, direction = net.abduct(IMAGES), net.probe.weight[1]
    assert torch.equal(net.predict(u), u)
    moved = net.predict(u, {"grey": 2.0})
    torch.testing.assert_close(net.read_labels(moved)[:, 1], torch.full((B,), 2.0))
    taken = (moved - u).flatten(1)
    parallel = (taken @ direction)[:, None] * direction / direction.square().sum()
    torch.testing.assert_close(taken, parallel, rtol=1e-4, atol=1e-5)
    both = net.read_labels(net.predict(u, {"grey": 2.0, "size": -1.0}))
    torch.testing.assert_close(both, torch.tensor([-1.0, 2.0]).expand(B, 2), rtol=1e-4, atol=1e-4)


def test_unaligned_do_takes_numbers_and_arrays_together() -> None:
    net = build(**UNALIGNED)
    u = net.abduct(IMAGES)
    mixed = net.predict(u, {"size": torch.tensor(0.5), "grey": torch.full((B,), 0.25)})
    torch.testing.assert_close(mixed, net.predict(u, {"size": torch.full((B,), 0.5), "grey": torch.full((B,), 0.25)}))


def test_unaligned_latents_are_trained_on_images_without_labels() -> None:
    net = build(**UNALIGNED)
    loss, _ = step(net, "diffae", torch.zeros(B, dtype=torch.bool))
    loss.backward()
    assert float(net.unet.up_emb.weight.grad.abs().max()) > 0, "decoded from z, not from zeros"


def test_categories_of_a_diff_scm_share_the_first_layer_of_its_condition() -> None:
    spec = replace(
        squares_spec(), kinds=("continuous", "binary"), low=(1, 0), high=(7, 1), shift=(4, 0.4), scale=(2, 0.5)
    )
    options = {**DIFFSCM, "cond_hidden": 8, "separate_embeddings": True}
    net, _ = create_model_and_diffusion(small_config(discrete=True, **options), spec)
    assert isinstance(net.network.up_emb[0], torch.nn.Linear)
    numbers, _ = create_model_and_diffusion(small_config(**options), squares_spec())
    assert isinstance(numbers.network.up_emb[1], torch.nn.Conv1d)


def test_the_aligned_loss_is_that_of_causaldiffae_without_mechanisms() -> None:
    net = build(**ALIGNED)
    loss, terms = step(net, "diffae")
    posterior = net.encode(IMAGES)
    torch.testing.assert_close(terms["label_kl"], label_kl(posterior.mean, posterior.logvar, LABELS, 0.3))
    torch.testing.assert_close(terms["prior_kl"], prior_kl(posterior))
    torch.testing.assert_close(loss, terms["mse"].mean() + 0.7 * (terms["prior_kl"] + terms["label_kl"]).mean())


def test_the_unaligned_loss_has_no_label_term_and_labels_train_the_probe_only() -> None:
    net = build(**UNALIGNED)
    loss, terms = step(net, "diffae")
    torch.testing.assert_close(loss, terms["mse"].mean() + 0.7 * terms["prior_kl"].mean() + terms["probe_mse"])
    assert not terms["label_kl"].any() and terms["mechanism_nll"] == 0
    terms["probe_mse"].backward()
    assert net.probe.weight.grad.any() and all(p.grad is None or not p.grad.any() for p in net.encoder.parameters())
    assert step(net, "diffae", ~EVERYONE)[1]["probe_mse"] == 0


# ---------------------------------------------------------------------- CausalVAE


def test_causalvae_has_the_latents_and_divergences_of_causaldiffae() -> None:
    vae, causal = build(**CAUSALVAE), build()
    vae.encoder.load_state_dict(causal.encoder.state_dict())
    vae.scm.load_state_dict(causal.scm.state_dict())
    (loss, terms), (_, expected) = step(vae, "causalvae"), step(causal)
    for name in ("prior_kl", "label_kl", "mechanism_nll", "label_mse"):
        torch.testing.assert_close(terms[name], expected[name])
    divergences = (terms["prior_kl"] + terms["label_kl"]).mean()
    torch.testing.assert_close(loss, terms["mse"].mean() + 0.7 * divergences + 0.4 * terms["mechanism_nll"])
    u = vae.abduct(IMAGES)
    moved = vae.predict(u, {"size": 2.0})
    assert (moved[:, 1] != vae.predict(u)[:, 1]).all() and vae.decode(moved).abs().max() <= 1


@pytest.mark.parametrize("size", [8, 16])
def test_causalvae_weights_the_noise_by_its_decoder_and_the_labels_as_causaldiffae(size: int) -> None:
    spec = replace(squares_spec(), image_size=size)
    net = create_model_and_diffusion(small_config(**CAUSALVAE), spec)[0]
    config = LossConfig(label_std=0.3, mechanism_weight=0.0, kl_weight=0.02, decoder_std=0.2)
    images = torch.nn.functional.interpolate(IMAGES, size)
    draws = replace(training_draws(T, net.latent_shape), noise=torch.zeros_like(images))  # type: ignore[arg-type]
    half_way = 0.01  # gamma rises to 0.02
    loss, terms = CausalVAETrainingStep(net, DIFFUSION, config)(images, LABELS, None, EVERYONE, draws, half_way)
    bound = terms["mse"].mean() + 0.5 * (2 * 0.2**2 / size**2) * terms["prior_kl"].mean()
    torch.testing.assert_close(loss, bound + half_way * terms["label_kl"].mean())


@pytest.mark.parametrize(("size", "channels"), [(8, (8,)), (28, (16, 8, 8)), (30, (8, 8, 8))])
def test_decoders_generate_images_of_any_size(size: int, channels: tuple[int, ...]) -> None:
    decoder = ConvDecoder(4, size, 3, channels, num_classes=2)
    assert decoder(torch.randn(2, 4), torch.tensor([0, 1])).shape == (2, 3, size, size)
    with pytest.raises(InputError, match="y: expected class labels for this decoder, got none"):
        decoder(torch.randn(2, 4))
