"""CausalDiffAE as a whole, and the loss of one training step and its gradients."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import gradients, normal, randomise, small_config, squares_spec, training_draws
from torch import Tensor
from torch.distributions import Normal

from causaldiffae.config import LossConfig
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.encoder import CausalEncoder, Posterior
from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import GaussianDiffusion, get_named_beta_schedule
from causaldiffae.graphs import CausalGraph
from causaldiffae.losses import Observed, label_kl, prior_kl
from causaldiffae.model import CausalDiffAE, TrainingDraws, TrainingStep, mechanism_nll, unet_from_config
from causaldiffae.scm import MECHANISMS, LatentSCM

BATCH = 4
DIFFUSION = GaussianDiffusion(betas=get_named_beta_schedule("linear", 100))
GRAPH = squares_spec().graph
IMAGES, T = normal(BATCH, 1, 8, 8, seed=1).clamp(-1, 1).float(), torch.tensor([0, 30, 60, 99])
LABELS = torch.tensor([[0.5, 0.2], [-1.0, -0.4], [1.5, 0.9], [0.0, -0.3]])
EVERYONE = torch.ones(BATCH, dtype=torch.bool)
SOME = torch.tensor([True, False, True, False])
ALL, HALF = Observed.of(EVERYONE), Observed.of(torch.ones(2, dtype=torch.bool))
APART = torch.tensor([[True, False], [True, True], [False, True], [False, False]])
"""Labels observed by variable: size on images 0 and 1, grey on images 1 and 2."""


def model(num_classes: int | None = None, **changes: Any) -> CausalDiffAE:
    torch.manual_seed(0)
    config = small_config(class_cond=num_classes is not None, **changes).model
    return randomise(CausalDiffAE.from_config(config, squares_spec(num_classes)))  # type: ignore[return-value]


def draws(**changes: Tensor) -> TrainingDraws:
    return training_draws(T, (2, 2), **changes)


def step(net: CausalDiffAE, config: LossConfig | None = None, **changes: Any) -> tuple[Tensor, dict[str, Tensor]]:
    arguments = {"x_start": IMAGES, "labels": LABELS, "classes": None, "labelled": EVERYONE, "draws": draws()}
    training_step = TrainingStep(net, DIFFUSION, config or LossConfig(label_std=0.3))
    return training_step(**({"kl_weight": 0.7} | arguments | changes))


# ---------------------------------------------------------------------- the model


def test_z_reaches_the_unet_in_the_order_of_the_graph() -> None:
    net, seen = model(), []
    u = net.abduct(IMAGES)
    assert torch.equal(u, net.encode(IMAGES).mean) and u.shape == (BATCH, 2, 2)
    z = net.predict(u, {"grey": 0.25})
    assert (z[:, 1] == 0.25).all() and torch.equal(z[:, 0], u[:, 0]), "a root is its noise"
    assert (net.predict(u, {"size": 2.0})[:, 1] != net.predict(u)[:, 1]).all()
    net.unet.up_emb.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    net.model_output(IMAGES, T, z)
    assert torch.equal(seen[0], torch.cat([z[:, 0], z[:, 1]], dim=1))
    assert net.read_labels(torch.tensor([[[1.0, 3.0], [0.0, -1.0]]])).tolist() == [[2.0, -0.5]], "means of the blocks"


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_observed_labels_are_abducted_and_the_encoder_reads_the_missing_ones(mechanism: str) -> None:
    net, labels = model(mechanism=mechanism), LABELS.clone()
    labels[1, 0] = torch.nan
    z = net.predict(net.abduct_given(IMAGES, labels))
    expected = labels.nan_to_num(nan=float(net.read_labels(net.predict(net.abduct(IMAGES))).detach()[1, 0]))
    torch.testing.assert_close(net.read_labels(z), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_classes", [None, 3])
def test_several_conditions_are_evaluated_as_one_batch(num_classes: int | None) -> None:
    net, sizes = model(num_classes, learned_null=True).eval(), []
    net.unet.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    conditions = [normal(BATCH, 2, 2).float(), None, normal(BATCH, 2, 2, seed=1).float()]
    classes = None if num_classes is None else torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        expected = [net.model_output(IMAGES, T, condition, classes) for condition in conditions]
        sizes.clear()
        together = net.model_outputs(IMAGES, T, conditions, classes)
        assert torch.equal(net.model_outputs(IMAGES, T, conditions[:1], classes)[0], expected[0])
    assert sizes == [3 * BATCH, BATCH]
    for found, alone in zip(together, expected, strict=True):
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
    assert min(float((expected[0] - other).abs().max()) for other in expected[1:]) > 1e-2


def test_sizes_follow_the_configuration() -> None:
    net = model(rep_dim=10, mechanism_width=0, mechanism_depth=2)
    assert (net.encoder.block_size, net.scm.block_size, net.unet.cond_dim) == (5, 5, 10)
    assert net.scm.networks[1][0].weight.shape == (10, 5)
    config = small_config(attention_resolutions="4").model
    assert unet_from_config(config, squares_spec(), False, 4).attention_resolutions == {2}, "given in pixels"
    assert CausalDiffAE.from_config(config, squares_spec(), learn_sigma=True).unet.out_channels == 2


# ---------------------------------------------------------------------- the training step


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("kind", ["posterior", "unit"])
def test_the_loss_is_the_sum_of_its_terms(mechanism: str, kind: str) -> None:
    net = model(mechanism=mechanism)
    config = LossConfig(label_std=0.3, label_kl_variance=kind, mechanism_weight=0.4, variance_factor=0.25)
    given = draws(weights=torch.tensor([1.0, 2.0, 0.5, 0.5]), keep=torch.tensor([True, False, True, True]))
    if net.scm.raw_log_scale is not None:
        torch.nn.init.constant_(net.scm.raw_log_scale, -1.0)
    loss, terms = step(net, config, draws=given)

    posterior = net.encode(IMAGES)
    u = posterior.mean + 0.5 * torch.exp(0.5 * posterior.logvar) * given.latent_noise
    z, stretch = net.scm.predict_with_stretch(u)
    x_t = DIFFUSION.q_sample(IMAGES, T, given.noise)
    with_z, null = net.model_output(x_t, T, z), net.model_output(x_t, T, None)
    eps = torch.where(given.keep[:, None, None, None], with_z, null)
    mse = ((eps - given.noise) ** 2).mean(dim=(1, 2, 3))
    logvar = posterior.logvar + 2 * stretch if kind == "posterior" else torch.zeros_like(stretch)
    z_mean = z - stretch.exp() * (u - posterior.mean)
    if mechanism == "spline":  # at the mean, given the sampled parents
        grey, log_stretch = net.scm.mechanism_of(1, z.unbind(1)).forward(posterior.mean[:, 1])
        z_mean = torch.stack([posterior.mean[:, 0], grey], dim=1)
        logvar = torch.stack([posterior.logvar[:, 0], posterior.logvar[:, 1] + 2 * log_stretch], dim=1)
        logvar = logvar if kind == "posterior" else torch.zeros_like(stretch)
    expected = {
        "mse": mse,
        "prior_kl": prior_kl(posterior, net.scm.log_scale),
        "label_kl": label_kl(z_mean, logvar, LABELS, 0.3),
        "label_kl_size": label_kl(z_mean[:, :1], logvar[:, :1], LABELS[:, :1], 0.3),
        "label_kl_grey": label_kl(z_mean[:, 1:], logvar[:, 1:], LABELS[:, 1:], 0.3),
        "label_mse": ((z_mean.mean(-1) - LABELS) ** 2).mean(1),
    }
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-5)
    kl = expected["prior_kl"].mean() + expected["label_kl"].mean()
    total = (given.weights * mse).mean() + 0.7 * kl + 0.4 * terms["mechanism_nll"]
    torch.testing.assert_close(loss, total, rtol=1e-4, atol=1e-4)
    assert not torch.equal(z, u) and (terms["mechanism_nll"] != 0) == (mechanism != "one_hop")


def test_labels_of_unlabelled_images_have_no_effect() -> None:
    net, wrong = model(), LABELS + 3.0 * ~SOME[:, None]
    (first, a), (second, b) = (step(net, labelled=SOME, labels=labels) for labels in (LABELS, wrong))
    assert torch.equal(first, second) and all(torch.equal(a[name], b[name]) for name in a)
    assert a["label_kl"].bool().tolist() == a["label_mse"].bool().tolist() == SOME.tolist()
    torch.testing.assert_close(a["mechanism_nll"], mechanism_nll(net.scm, LABELS[SOME], HALF))
    # The mean is over labelled images, not over the batch.
    expected = a["loss"].mean() + 0.7 * (a["prior_kl"].mean() + a["label_kl"].sum() / 2) + a["mechanism_nll"]
    torch.testing.assert_close(first, expected)


def test_a_missing_label_removes_its_own_terms_only() -> None:
    net, config = model(), LossConfig(label_std=0.3)
    (loss, terms), (_, every) = step(net, config, labelled=APART), step(net, config)
    for name, rows in (("size", [0, 1]), ("grey", [1, 2])):
        kept = terms[f"label_kl_{name}"]
        assert kept.bool().tolist() == [i in rows for i in range(BATCH)]
        torch.testing.assert_close(kept.sum() / 3, every[f"label_kl_{name}"][rows].mean())  # three images have labels
    # The mechanism of grey is seen on the only image with both labels.
    one = torch.tensor([1])
    expected = mechanism_nll(net.scm, LABELS[one], Observed.of(torch.ones(1, dtype=torch.bool)))
    torch.testing.assert_close(terms["mechanism_nll"], expected)
    label_term = sum(every[f"label_kl_{name}"][rows].mean() for name, rows in (("size", [0, 1]), ("grey", [1, 2])))
    prior = every["prior_kl"].mean()
    torch.testing.assert_close(loss, terms["loss"].mean() + 0.7 * (prior + label_term) + terms["mechanism_nll"])
    assert (terms["mse"] == every["mse"]).tolist() == [True, True, True, False], "one label is enough for z"


def test_the_value_of_a_missing_label_has_no_effect_and_no_gradient() -> None:
    net, config = model(), LossConfig(label_std=0.3, label_forcing=0.5)
    given, labels = draws(forced=EVERYONE), LABELS.clone().requires_grad_()
    wrong = torch.where(APART, LABELS, torch.tensor(5.0))
    (first, a), (second, b) = (step(net, config, labelled=APART, labels=each, draws=given) for each in (labels, wrong))
    assert torch.equal(first, second) and all(torch.equal(a[name], b[name]) for name in a)
    first.backward()
    assert labels.grad is not None and torch.equal(labels.grad != 0, APART)


def test_variables_that_are_never_labelled_together_have_no_likelihood() -> None:
    campaigns = torch.tensor([[True, False], [True, False], [False, True], [False, True]])
    net = model()
    loss, terms = step(net, labelled=campaigns)
    assert terms["mechanism_nll"] == 0 and (terms["label_kl"] > 0).all()
    found = gradients(net, loss)
    assert all(gradient.isfinite().all() for gradient in found.values()) and found["encoder.fc_mu.weight"].any()


def test_processes_with_unequal_labels_average_to_one_process() -> None:
    """The first has two of the labels of size and one of grey, the second one of grey."""
    net = model()
    whole, _ = step(net, labelled=APART)
    parts = []
    for rows in (slice(0, 2), slice(2, 4)):
        own = TrainingDraws(**{name: value[rows] for name, value in vars(draws()).items()})
        given = {"x_start": IMAGES[rows], "labels": LABELS[rows], "labelled": APART[rows], "draws": own}
        parts.append(step(net, **given, labelled_of_batch=APART)[0])
    torch.testing.assert_close(sum(parts) / 2, whole)


def test_unlabelled_images_are_trained_with_the_null_token() -> None:
    net = model()
    masked, dropped, kept = (
        step(net, **each)[1]["mse"] for each in ({"labelled": SOME}, {"draws": draws(keep=SOME)}, {})
    )
    assert torch.equal(masked, dropped) and (masked == kept).tolist() == SOME.tolist()


def test_a_batch_without_labels_has_no_label_terms_and_finite_gradients() -> None:
    net = model()
    loss, terms = step(net, labelled=~EVERYONE)
    assert not terms["label_kl"].any() and terms["mechanism_nll"] == 0
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_loss_has_a_gradient_for_every_parameter(mechanism: str) -> None:
    net = model(mechanism=mechanism, learned_null=True, cond_hidden=8)
    found = gradients(net, step(net, draws=draws(keep=torch.tensor([True, True, False, True])))[0])
    still = [name for name, gradient in found.items() if not gradient.any()]
    # The network of a one-hop root sees only 0, so its first weights have no gradient.
    assert still == (["scm.networks.0.0.weight"] if mechanism == "one_hop" else [])


@pytest.mark.parametrize("keep", [EVERYONE, ~EVERYONE])
def test_the_diffusion_loss_trains_the_encoder_through_the_mechanisms_where_z_is_kept(keep: Tensor) -> None:
    net = model()
    step(net, draws=draws(keep=keep))[1]["loss"].mean().backward()
    for part in (net.encoder.fc_mu, net.encoder.fc_var, net.scm.networks[1][0]):
        assert part.weight.grad is not None and bool(part.weight.grad.any()) == bool(keep.all())


def test_forced_images_are_decoded_from_the_label_prior() -> None:
    """Their z is drawn from p(z | y); the encoder is not used, and the other terms stay the same."""
    net, config, seen = model(), LossConfig(label_std=0.3, label_forcing=0.5), []
    given, half = draws(forced=SOME), torch.tensor([True, True, False, False])
    net.unet.register_forward_pre_hook(lambda module, args: seen.append(args[3]))
    (_, plain), (_, terms) = step(net, draws=given), step(net, config, draws=given)
    step(net, config, draws=given, labelled=half)
    anchors, (own, mixed, few) = (LABELS[:, :, None] + 0.3 * given.latent_noise).flatten(1), seen
    assert torch.equal(mixed, torch.where(SOME[:, None], anchors, own))
    assert torch.equal(few, torch.where((SOME & half)[:, None], anchors, own)), "unlabelled images are not forced"
    for name in ("prior_kl", "label_kl", "mechanism_nll", "label_mse"):
        assert torch.equal(terms[name], plain[name])
    step(net, config, draws=given, labelled=APART)
    by_block = (SOME[:, None] & APART).repeat_interleave(2, dim=1)
    assert torch.equal(seen[-1], torch.where(by_block, anchors, own)), "blocks without a label are those of the encoder"
    step(net, replace(config, kl_weight=0.0), draws=draws(forced=EVERYONE), kl_weight=0.0)[0].backward()
    assert all(p.grad is None or not p.grad.any() for p in net.encoder.parameters())


# ---------------------------------------------------------------------- the likelihood of the mechanisms


@pytest.mark.parametrize("mechanism", ["additive", "affine", "spline"])
def test_mechanisms_are_recovered_from_labels(mechanism: str) -> None:
    """y_child = 2 y_parent + 0.3 noise: slope, residual scale and entropy."""
    torch.manual_seed(0)
    scm, parent = LatentSCM(GRAPH, 1, mechanism, width=16, depth=1), normal(512).float()
    y = torch.stack([parent, 2 * parent + 0.3 * normal(512, seed=1).float()], dim=1)
    optimizer = torch.optim.Adam(scm.parameters(), lr=0.03)
    for _ in range(250):
        optimizer.zero_grad()
        loss = mechanism_nll(scm, y, Observed.of(torch.ones(512, dtype=torch.bool)))
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        do = {"size": torch.tensor([-1.0, 0.0, 1.0])}
        z = scm.predict(torch.zeros(3, 2, 1), do)
        ends = [scm.predict(torch.full((3, 2, 1), end) * scm.log_scale[1].exp(), do)[1, 1, 0] for end in (-1.0, 1.0)]
        scale = (ends[1] - ends[0]).item() / 2
    assert (z[2, 1, 0] - z[0, 1, 0]).item() / 2 == pytest.approx(2, abs=0.15)
    assert scale == pytest.approx(0.3, abs=0.06)
    assert loss.item() == pytest.approx(Normal(0.0, 0.3).entropy().item(), abs=0.15)


@pytest.mark.parametrize("mechanism", ["additive", "affine", "spline"])
def test_mechanism_nll_is_the_density_of_children_per_block_entry(mechanism: str) -> None:
    torch.manual_seed(0)
    scm = randomise(LatentSCM(GRAPH, 3, mechanism, width=8))
    blocks = LABELS[:, :, None].expand(-1, -1, 3).unbind(1)
    grey = scm.mechanism_of(1, blocks)
    u = grey.inverse(blocks[1])
    log_p = Normal(0.0, scm.log_scale[1].exp()).log_prob(u) - grey.forward(u).log_stretch
    torch.testing.assert_close(mechanism_nll(scm, LABELS, ALL), -log_p.mean())
    if mechanism != "spline":
        location, scale = grey.forward(torch.zeros_like(u)).z, grey.forward(u).log_stretch + scm.log_scale[1]
        torch.testing.assert_close(log_p, Normal(location, scale.exp()).log_prob(blocks[1]))


@pytest.mark.parametrize("scm", [LatentSCM(CausalGraph(("a", "b")), 2), LatentSCM(GRAPH, 2, "one_hop")])
def test_mechanisms_without_a_likelihood_have_no_loss(scm: LatentSCM) -> None:
    assert mechanism_nll(scm, LABELS, ALL) == 0


# ---------------------------------------------------------------------- discrete variables

SHAPE = DatasetSpec(
    name="squares",
    image_size=8,
    channels=1,
    graph=CausalGraph(("shape", "size", "dark"), (("shape", "size"), ("size", "dark"))),
    shift=(0.9, 4.0, 0.3),
    scale=(0.8, 2.0, 0.45),
    low=(0.0, 1.0, 0.0),
    high=(2.0, 7.0, 1.0),
    kinds=("categorical", "continuous", "binary"),
    categories=(("disc", "square", "star"), (), ("no", "yes")),
)
GIVEN = torch.tensor([[0.0, 3.0, 1.0], [2.0, 5.0, 0.0], [1.0, 2.5, 0.0], [0.0, 6.0, 1.0]])
MIXED = SHAPE.normalise(GIVEN)


def mixed_model(**changes: Any) -> CausalDiffAE:
    torch.manual_seed(0)
    config = small_config(discrete=True, block_size=3, **changes).model
    return randomise(CausalDiffAE.from_config(config, SHAPE))  # type: ignore[return-value]


@pytest.mark.parametrize("mechanism", ["additive", "affine", "spline"])
def test_the_blocks_of_discrete_variables_are_tied_to_codes_and_their_children_see_them(mechanism: str) -> None:
    net, given = mixed_model(mechanism=mechanism), training_draws(T, (3, 3))
    _, terms = step(net, labels=MIXED, draws=given)
    posterior = net.encode(IMAGES)
    u = posterior.mean + torch.exp(0.5 * posterior.logvar) * given.latent_noise
    anchors = net.scm.label_blocks(MIXED)
    for i, name in ((0, "shape"), (2, "dark")):
        expected = label_kl(posterior.mean[:, i : i + 1], posterior.logvar[:, i : i + 1], anchors[:, i : i + 1], 0.3)
        torch.testing.assert_close(terms[f"label_kl_{name}"], expected, rtol=1e-4, atol=1e-4)
    size = net.scm.mechanism_of(1, u.unbind(1)).forward(posterior.mean[:, 1])
    logvar = posterior.logvar[:, 1:2] + 2 * size.log_stretch[:, None]
    expected = label_kl(size.z[:, None], logvar, MIXED[:, 1:2], 0.3)
    torch.testing.assert_close(terms["label_kl_size"], expected, rtol=1e-4, atol=1e-3)
    only_size = Posterior(posterior.mean[:, 1:2], posterior.logvar[:, 1:2])
    torch.testing.assert_close(terms["prior_kl"], prior_kl(only_size, net.scm.log_scale[1:2]))


def test_the_likelihood_has_a_cross_entropy_for_every_discrete_variable() -> None:
    net = mixed_model()
    blocks = net.scm.label_blocks(MIXED).unbind(1)
    shape, dark = torch.tensor([0, 2, 1, 0]), torch.tensor([1, 0, 0, 1])
    cross_entropies = [
        torch.nn.functional.cross_entropy(net.scm.discrete[i].logits(blocks[max(i - 1, 0)]), category)
        for i, category in ((0, shape), (2, dark))
    ]
    grey = net.scm.mechanism_of(1, blocks)
    density = Normal(grey.forward(torch.zeros(BATCH, 3)).z, net.scm.log_scale[1].exp()).log_prob(blocks[1])
    expected = sum(cross_entropies) - density.mean()
    torch.testing.assert_close(mechanism_nll(net.scm, MIXED, ALL), expected)
    half = mechanism_nll(net.scm, torch.where(SOME[:, None], MIXED, 7.0), Observed.of(SOME))
    torch.testing.assert_close(half, mechanism_nll(net.scm, MIXED[SOME], HALF))


def test_the_likelihood_of_each_variable_is_a_mean_over_images_with_its_label_and_those_of_its_parents() -> None:
    net = mixed_model()  # shape -> size -> dark
    labelled = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 0], [0, 1, 1]], dtype=torch.bool)
    density, cross_entropy = net.scm.label_nll(MIXED)
    expected = cross_entropy[:3, 0].mean() + density[:3, 1].mean() + cross_entropy[[1, 3], 2].mean()
    wrong = torch.where(labelled, MIXED, 0.0)
    torch.testing.assert_close(mechanism_nll(net.scm, wrong, Observed.of(labelled)), expected)


@pytest.mark.parametrize("mechanism", ["additive", "affine", "spline"])
def test_mixed_models_have_a_gradient_for_every_parameter(mechanism: str) -> None:
    net = mixed_model(mechanism=mechanism, cond_hidden=8)
    config = LossConfig(label_std=0.3, label_forcing=0.5)
    found = gradients(net, step(net, config, labels=MIXED, draws=training_draws(T, (3, 3), forced=SOME))[0])
    assert all(gradient.any() for gradient in found.values())


def test_a_categorical_prior_and_a_discrete_effect_are_learned_from_labels() -> None:
    torch.manual_seed(0)
    categories = {"shape": (0.0, 1.0, 2.0), "dark": (-1.0, 1.0)}
    scm = LatentSCM(CausalGraph(("shape", "dark"), (("shape", "dark"),)), 3, width=16, depth=1, categories=categories)
    shares, rate = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.1, 0.9, 0.4])  # not monotone in the index
    shape = torch.multinomial(shares, 4000, replacement=True)
    labels = torch.stack([shape.float(), 2.0 * (torch.rand(4000) < rate[shape]) - 1.0], dim=1)
    optimizer = torch.optim.Adam(scm.parameters(), lr=0.03)
    for _ in range(200):
        optimizer.zero_grad()
        mechanism_nll(scm, labels, Observed.of(torch.ones(4000, dtype=torch.bool))).backward()
        optimizer.step()
    found = scm.probabilities(scm.label_blocks(torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])))
    torch.testing.assert_close(found["shape"][0], shares, rtol=0, atol=0.03)
    torch.testing.assert_close(found["dark"][:, 1], rate, rtol=0, atol=0.04)


def test_a_discrete_model_reads_and_predicts_categories_and_old_ones_real_values() -> None:
    net, old = mixed_model(), CausalDiffAE.from_config(small_config(block_size=3).model, SHAPE)
    allowed = [torch.tensor(SHAPE.normalised_categories()[name]) for name in ("shape", "dark")]
    for do in ({}, {"shape": allowed[0][2]}, {"size": 2.5}):
        labels = net.read_labels(net.predict(net.abduct(IMAGES), do))
        assert torch.isin(labels[:, 0], allowed[0]).all() and torch.isin(labels[:, 2], allowed[1]).all()
    assert not torch.isin(old.read_labels(old.predict(old.abduct(IMAGES)))[:, 0], allowed[0]).any()
    assert net.discrete and not old.discrete and torch.equal(old.abduct(IMAGES), old.encode(IMAGES).mean)
    for seed in (0, 1):
        drawn = net.abduct(IMAGES, None, torch.Generator().manual_seed(seed))
        assert torch.equal(drawn, net.abduct(IMAGES)) == (seed == 0), "the draw of the noise is seeded"


# ---------------------------------------------------------------------- dropped blocks


def test_a_dropped_block_is_replaced_by_its_null_vector_and_has_no_effect() -> None:
    net, z = model(block_null=True), normal(BATCH, 2, 2).float()
    keep = torch.tensor([[True, False], [True, True], [False, True], [False, False]])
    assert net.null_blocks is not None
    assert torch.equal(net.drop_blocks(z, keep), torch.where(keep[..., None], z, net.null_blocks.expand_as(z)))
    changes = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])[..., None]
    keep = torch.tensor([False, True])
    plain, of_dropped, of_kept = (net.model_output(IMAGES, T, net.drop_blocks(z + change, keep)) for change in changes)
    assert torch.equal(of_dropped, plain) and not torch.allclose(of_kept, plain)


def test_null_vectors_are_trained_where_blocks_are_dropped() -> None:
    net = model(block_null=True)
    keep = torch.tensor([[False, True]] * BATCH)
    step(net, LossConfig(block_drop_prob=0.5), draws=draws(keep_blocks=keep))[0].backward()
    assert net.null_blocks is not None and net.null_blocks.grad is not None
    assert net.null_blocks.grad.bool().tolist() == [[True, True], [False, False]]


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rep_dim": 5}, "rep_dim: expected a multiple of the 2 variables, got 5"),
        ({"channel_mult": "1,x"}, "channel_mult: expected positive integers separated by commas, got '1,x'"),
        ({"model_type": "conditional", "block_null": True}, "block_null: expected model_type causaldae"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model(**changes)


def test_parts_that_do_not_fit_are_refused() -> None:
    net = model()
    with pytest.raises(InputError, match="model: expected an encoder of 2 x 2 latents, got \\(2, 3\\)"):
        CausalDiffAE(CausalEncoder(8, 1, 2, 3, (8,)), net.scm, net.unet)
    with pytest.raises(InputError, match="model: expected a U-Net conditioned on 2 x 2 latents, got width 6"):
        CausalDiffAE(net.encoder, net.scm, model(rep_dim=6).unet)
    with pytest.raises(InputError, match="block_null: expected a model with null vectors"):
        net.drop_blocks(torch.zeros(1, 2, 2), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(InputError, match="block_drop_prob: expected a model with null blocks"):
        TrainingStep(net, DIFFUSION, LossConfig(block_drop_prob=0.1))
