"""CausalDiffAE's parts put together, guidance, and one training step's loss."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import randomise, small_config, squares_spec
from torch import Tensor

from causaldiffae.config import LossConfig, ModelConfig
from causaldiffae.encoder import CausalEncoder
from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import GaussianDiffusion, get_named_beta_schedule
from causaldiffae.graphs import CausalGraph
from causaldiffae.losses import label_kl, prior_kl
from causaldiffae.model import CausalDiffAE, TrainingDraws, TrainingStep, mechanism_nll, unet_from_config
from causaldiffae.scm import MECHANISMS, LatentSCM

BATCH = 4
DIFFUSION = GaussianDiffusion(betas=get_named_beta_schedule("linear", 100))


def model(num_classes: int | None = None, **changes: Any) -> CausalDiffAE:
    torch.manual_seed(0)
    config = small_config(class_cond=num_classes is not None, **changes).model
    return randomise(CausalDiffAE.from_config(config, squares_spec(num_classes)))  # type: ignore[return-value]


def images(seed: int = 1) -> Tensor:
    return torch.rand(BATCH, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def labels() -> Tensor:
    return torch.tensor([[0.5, 0.2], [-1.0, -0.4], [1.5, 0.9], [0.0, -0.3]])


def draws(**changes: Tensor) -> TrainingDraws:
    generator = torch.Generator().manual_seed(5)
    given = TrainingDraws(
        t=torch.tensor([0, 30, 60, 99]),
        weights=torch.ones(BATCH),
        noise=torch.randn(BATCH, 1, 8, 8, generator=generator),
        latent_noise=torch.randn(BATCH, 2, 2, generator=generator),
        keep=torch.ones(BATCH, dtype=torch.bool),
        keep_blocks=torch.ones(BATCH, 2, dtype=torch.bool),
        forced=torch.zeros(BATCH, dtype=torch.bool),
    )
    return replace(given, **changes)


EVERYONE = torch.ones(BATCH, dtype=torch.bool)


def step(net: CausalDiffAE, config: LossConfig | None = None, **changes: Any) -> tuple[Tensor, dict[str, Tensor]]:
    arguments = {
        "x_start": images(),
        "labels": labels(),
        "classes": None,
        "labelled": EVERYONE,
        "draws": draws(),
        "kl_weight": 0.7,
    }
    return TrainingStep(net, DIFFUSION, config or LossConfig(label_std=0.3))(**(arguments | changes))


# ---------------------------------------------------------------------- layout


def test_latents_are_blocks_in_the_graphs_order() -> None:
    net = model()
    assert net.encode(images()).mean.shape == (BATCH, 2, 2)
    u = net.abduct(images())
    torch.testing.assert_close(u, net.encode(images()).mean)
    z = net.predict(u, {"grey": 0.25})
    assert (z[:, 1] == 0.25).all()
    assert torch.equal(z[:, 0], u[:, 0]), "roots are their noise"
    # Block i of variable i reaches the U-Net at places i * d .. (i + 1) * d.
    seen: dict[str, Tensor] = {}
    net.unet.up_emb.register_forward_hook(lambda module, given, out: seen.update(z=given[0]))
    net.model_output(images(), torch.zeros(BATCH, dtype=torch.long), z)
    assert torch.equal(seen["z"], torch.cat([z[:, 0], z[:, 1]], dim=1))


def test_labels_are_read_off_the_blocks() -> None:
    z = torch.tensor([[[1.0, 3.0], [0.0, -1.0]]])
    assert model().read_labels(z).tolist() == [[2.0, -0.5]]


def test_do_reaches_the_descendant_and_not_the_parent() -> None:
    net = model()
    u = net.abduct(images())
    factual, moved, other = net.predict(u), net.predict(u, {"size": 2.0}), net.predict(u, {"grey": 2.0})
    assert (moved[:, 1] != factual[:, 1]).all()
    assert torch.equal(other[:, 0], factual[:, 0])


# ---------------------------------------------------------------------- several conditions


@pytest.mark.parametrize("num_classes", [None, 3])
def test_several_conditions_are_one_batch(num_classes: int | None) -> None:
    net, sizes = model(num_classes, learned_null=True).eval(), []
    net.unet.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    x_t, t, z, other = images(), torch.tensor([0, 30, 60, 99]), torch.randn(BATCH, 2, 2), torch.randn(BATCH, 2, 2)
    classes = None if num_classes is None else torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        expected = [net.model_output(x_t, t, condition, classes) for condition in (z, None, other)]
        sizes.clear()
        together = net.model_outputs(x_t, t, [z, None, other], classes)
        assert sizes == [3 * BATCH]
        assert torch.equal(net.model_outputs(x_t, t, [z], classes)[0], expected[0])
        assert sizes == [3 * BATCH, BATCH]
    for found, wanted in zip(together, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    assert (expected[0] - expected[2]).abs().max() > 1e-2


# ---------------------------------------------------------------------- the training step


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("kind", ["posterior", "unit"])
def test_the_loss_is_its_parts(mechanism: str, kind: str) -> None:
    net = model(mechanism=mechanism)
    config = LossConfig(label_std=0.3, label_kl_variance=kind, mechanism_weight=0.4, variance_factor=0.25)
    given = draws(weights=torch.tensor([1.0, 2.0, 0.5, 0.5]), keep=torch.tensor([True, False, True, True]))
    loss, terms = step(net, config, draws=given)

    posterior = net.encode(images())
    u = posterior.mean + 0.5 * torch.exp(0.5 * posterior.logvar) * given.latent_noise
    z, stretch = net.scm.predict_with_stretch(u)
    assert not torch.equal(z, u)
    x_t = DIFFUSION.q_sample(images(), given.t, given.noise)
    eps = net.model_output(x_t, given.t, z)
    null = net.model_output(x_t, given.t, None)
    eps = torch.where(given.keep[:, None, None, None], eps, null)
    mse = ((eps - given.noise) ** 2).mean(dim=(1, 2, 3))
    torch.testing.assert_close(terms["mse"], mse, rtol=1e-4, atol=1e-5)

    prior = prior_kl(posterior, net.scm.log_scale)
    logvar = posterior.logvar + 2 * stretch if kind == "posterior" else torch.zeros_like(stretch)
    z_mean = z - stretch.exp() * (u - posterior.mean)
    label = label_kl(z_mean, logvar, labels(), 0.3)
    torch.testing.assert_close(terms["prior_kl"], prior)
    torch.testing.assert_close(terms["label_kl"], label)
    shares = [terms[f"label_kl_{name}"] for name in net.scm.graph.names]
    torch.testing.assert_close(sum(shares), label)
    alone = label_kl(z_mean[:, :1], logvar[:, :1], labels()[:, :1], 0.3)
    torch.testing.assert_close(shares[0], alone)
    torch.testing.assert_close(terms["label_mse"], ((z_mean.mean(-1) - labels()) ** 2).mean(1))
    expected = (given.weights * mse).mean() + 0.7 * (prior.mean() + label.mean()) + 0.4 * terms["mechanism_nll"]
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    assert (terms["mechanism_nll"] != 0) == (mechanism != "one_hop")


def test_prior_uses_the_learned_scale() -> None:
    net = model()
    with torch.no_grad():
        net.scm.raw_log_scale.fill_(-1.0)  # type: ignore[union-attr]
    before = step(net)[1]["prior_kl"]
    with torch.no_grad():
        net.scm.raw_log_scale.fill_(1.0)  # type: ignore[union-attr]
    assert not torch.allclose(before, step(net)[1]["prior_kl"])


def test_unlabelled_images_do_not_count() -> None:
    net = model()
    labelled = torch.tensor([True, False, True, False])
    wrong = labels()
    wrong[~labelled] += 3.0
    (first, a), (second, b) = (step(net, labelled=labelled, labels=y) for y in (labels(), wrong))
    assert torch.equal(first, second)
    for key in ("label_kl", "label_mse"):
        assert torch.equal(a[key], b[key])
        assert a[key].bool().tolist() == labelled.tolist()
    assert torch.equal(a["mechanism_nll"], b["mechanism_nll"])
    alone = mechanism_nll(net.scm, labels()[labelled], torch.ones(2, dtype=torch.bool))
    torch.testing.assert_close(a["mechanism_nll"], alone)
    # The mean is over labelled images, not over the batch.
    expected = a["loss"].mean() + 0.7 * (a["prior_kl"].mean() + a["label_kl"].sum() / 2) + a["mechanism_nll"]
    torch.testing.assert_close(first, expected)


def test_unlabelled_images_train_under_the_null_token() -> None:
    net = model()
    labelled = torch.tensor([True, False, True, True])
    masked, dropped = step(net, labelled=labelled)[1], step(net, draws=draws(keep=labelled))[1]
    assert torch.equal(masked["mse"], dropped["mse"])
    assert masked["mse"][1] != step(net)[1]["mse"][1]


def test_a_batch_without_labels_has_finite_gradients() -> None:
    net = model()
    loss, terms = step(net, labelled=~EVERYONE)
    assert not terms["label_kl"].any()
    assert terms["mechanism_nll"] == 0
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_gradient_reaches_every_part(mechanism: str) -> None:
    net = model(mechanism=mechanism, learned_null=True, cond_hidden=8)
    loss, _ = step(net, draws=draws(keep=torch.tensor([True, True, False, True])))
    loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A one-hop root's network only ever sees 0, so its first weights stay as they are.
        assert parameter.grad.any() or name == "scm.networks.0.0.weight", name


def test_the_diffusion_loss_alone_trains_the_encoder_through_the_mechanisms() -> None:
    net = model()
    step(net)[1]["loss"].mean().backward()
    for part in (net.encoder.fc_mu, net.encoder.fc_var, net.scm.networks[1][0], net.unet.up_emb):
        assert part.weight.grad is not None
        assert part.weight.grad.abs().max() > 0


def test_drop_everything_leaves_the_encoder_to_the_divergences() -> None:
    net = model()
    step(net, draws=draws(keep=~EVERYONE))[1]["loss"].mean().backward()
    assert not net.encoder.fc_mu.weight.grad.any()  # type: ignore[union-attr]


def test_learned_variance() -> None:
    torch.manual_seed(0)
    config = small_config(learn_sigma=True)
    net = CausalDiffAE.from_config(config.model, squares_spec(), learn_sigma=True)
    assert net.unet.out_channels == 2


# ---------------------------------------------------------------------- the mechanisms' likelihood


def line_labels(count: int = 512) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    parent = torch.randn(count, generator=generator)
    child = 2 * parent + 0.3 * torch.randn(count, generator=generator)
    return torch.stack([parent, child], dim=1)


@pytest.mark.parametrize("mechanism", ["additive", "affine"])
def test_mechanisms_are_recovered_from_labels(mechanism: str) -> None:
    """y_child = 2 y_parent + 0.3 noise: slope and residual scale."""
    torch.manual_seed(0)
    scm = LatentSCM(squares_spec().graph, 1, mechanism, width=16, depth=1)
    y, everyone = line_labels(), torch.ones(512, dtype=torch.bool)
    optimizer = torch.optim.Adam(scm.parameters(), lr=0.03)
    for _ in range(250):
        optimizer.zero_grad()
        loss = mechanism_nll(scm, y, everyone)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        prediction = scm.predict_with_stretch(torch.zeros(3, 2, 1), {"size": torch.tensor([-1.0, 0.0, 1.0])})
    scale = prediction.log_stretch[1, 1, 0].exp() if mechanism == "affine" else scm.log_scale[1].exp()
    assert abs(float(prediction.z[2, 1, 0] - prediction.z[0, 1, 0]) / 2 - 2) < 0.15
    assert abs(scale.item() - 0.3) < 0.06
    entropy = 0.5 * torch.log(torch.tensor(2 * torch.pi * torch.e * 0.09))
    assert abs(float(loss) - float(entropy)) < 0.15


def test_mechanism_nll_is_the_density_of_the_labels() -> None:
    """Against the change of variables by hand, per block entry and only for children."""
    for mechanism in ("additive", "affine"):
        torch.manual_seed(0)
        scm = randomise(LatentSCM(squares_spec().graph, 3, mechanism, width=8))
        y = labels()
        blocks = list(y[:, :, None].expand(-1, -1, 3).unbind(1))
        location, stretch = scm.location_and_stretch(1, blocks)
        scale = torch.exp(stretch) * scm.log_scale[1].exp()
        log_p = torch.distributions.Normal(location, scale).log_prob(blocks[1]).mean(dim=1)
        torch.testing.assert_close(mechanism_nll(scm, y, EVERYONE), -log_p.mean())


def test_nothing_to_fit() -> None:
    for scm in (LatentSCM(CausalGraph(("a", "b")), 2), LatentSCM(squares_spec().graph, 2, "one_hop")):
        assert mechanism_nll(scm, labels(), EVERYONE) == 0


# ---------------------------------------------------------------------- building


def test_sizes_follow_the_configuration() -> None:
    net = model(rep_dim=10, mechanism_width=0, mechanism_depth=2)
    assert (net.encoder.block_size, net.scm.block_size, net.unet.cond_dim) == (5, 5, 10)
    assert net.scm.networks[1][0].weight.shape == (10, 5)


def test_attention_is_given_in_pixels() -> None:
    config = small_config(attention_resolutions="4").model
    assert unet_from_config(config, squares_spec(), False, 4).attention_resolutions == {2}


def test_messages() -> None:
    spec = squares_spec()
    with pytest.raises(InputError, match="rep_dim: expected a multiple of the 2 variables, got 5"):
        CausalDiffAE.from_config(ModelConfig(rep_dim=5), spec)
    with pytest.raises(InputError, match="mechanism: expected one of .*, got 'spline'"):
        model(mechanism="spline")
    with pytest.raises(InputError, match="encoder_norm: expected one of .*, got 'group'"):
        model(encoder_norm="group")
    with pytest.raises(InputError, match="channel_mult: expected positive integers separated by commas, got '1,x'"):
        model(channel_mult="1,x")
    with pytest.raises(InputError, match="num_channels: expected a multiple of 32, got 20"):
        model(num_channels=20)
    net = model()
    with pytest.raises(InputError, match="model: expected an encoder of 2 x 2 latents, got \\(2, 3\\)"):
        CausalDiffAE(CausalEncoder(8, 1, 2, 3, (8,)), net.scm, net.unet)
    with pytest.raises(InputError, match="model: expected"):
        CausalDiffAE(net.encoder, LatentSCM(CausalGraph(("a", "b", "c")), 2), net.unet)


def test_forced_images_are_drawn_from_their_labels() -> None:
    """Their z is p(z | y)'s: the encoder has no part in it, and its own terms stay as they are."""
    net, config = model(), LossConfig(label_std=0.3, label_forcing=0.5)
    forced = torch.tensor([True, False, True, False])
    given, seen = draws(forced=forced), []
    net.unet.register_forward_pre_hook(lambda module, args: seen.append(args[3]))
    half = torch.tensor([True, True, False, False])
    _, plain = step(net, draws=given)
    _, terms = step(net, config, draws=given)
    step(net, config, draws=given, labelled=half)
    anchors = (labels()[:, :, None] + 0.3 * given.latent_noise).flatten(1)
    own, mixed, few = seen
    assert torch.equal(mixed[forced], anchors[forced]) and torch.equal(mixed[~forced], own[~forced])
    assert torch.equal(few[0], anchors[0]) and torch.equal(few[1:], own[1:]), "without labels nothing is forced"
    for name in ("prior_kl", "label_kl", "mechanism_nll", "label_mse"):
        assert torch.equal(terms[name], plain[name])
    everyone = draws(forced=torch.ones(BATCH, dtype=torch.bool))
    net.zero_grad()
    step(net, replace(config, kl_weight=0.0), draws=everyone, kl_weight=0.0)[0].backward()
    assert all(p.grad is None or not p.grad.any() for p in net.encoder.parameters())


# ---------------------------------------------------------------------- blocks dropped one by one


def test_a_dropped_block_is_replaced_by_its_null_vector() -> None:
    net = model(block_null=True)
    z = torch.randn(BATCH, *net.latent_shape)
    keep = torch.tensor([[True, False], [True, True], [False, True], [False, False]])
    dropped = net.drop_blocks(z, keep)
    assert net.null_blocks is not None
    for image in range(BATCH):
        for i in range(2):
            assert torch.equal(dropped[image, i], z[image, i] if keep[image, i] else net.null_blocks[i])


def test_an_image_whose_block_is_dropped_does_not_depend_on_it() -> None:
    net = model(block_null=True)
    keep = torch.tensor([[False, True]] * BATCH)
    torch.manual_seed(0)
    z = torch.randn(BATCH, *net.latent_shape)
    outputs = []
    for change in (torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])):
        moved = net.drop_blocks(z + change, keep)
        outputs.append(net.model_output(images(), torch.full((BATCH,), 30), moved))
    still = net.model_output(images(), torch.full((BATCH,), 30), net.drop_blocks(z, keep))
    assert torch.equal(outputs[0], still)
    assert not torch.allclose(outputs[1], still)


def test_null_vectors_are_trained_where_blocks_are_dropped() -> None:
    net = model(block_null=True)
    keep = torch.tensor([[False, True]] * BATCH)
    loss, _ = step(net, LossConfig(block_drop_prob=0.5), draws=draws(keep_blocks=keep))
    loss.backward()
    assert net.null_blocks is not None and net.null_blocks.grad is not None
    assert net.null_blocks.grad[0].abs().min() > 0
    assert (net.null_blocks.grad[1] == 0).all()


def test_blocks_without_null_vectors_cannot_be_dropped() -> None:
    with pytest.raises(InputError, match="block_null"):
        model().drop_blocks(torch.zeros(1, 2, 2), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(InputError, match="block_drop_prob"):
        TrainingStep(model(), DIFFUSION, LossConfig(block_drop_prob=0.1))
    with pytest.raises(InputError, match="block_null"):
        small_config(model_type="conditional", block_null=True)
