"""Diff-SCM on two classes of Gaussian images, whose scores and anti-causal predictor have closed forms."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from closed_form import as_output, gaussian_eps, levels
from tiny import normal, randomise, small_config, squares, squares_spec, training_draws
from torch import Tensor, nn

from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.diff_scm import DiffScm, DiffScmTrainingStep, label_width
from causaldiffae.dit import DiT
from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import GaussianDiffusion, ModelMeanType, get_named_beta_schedule
from causaldiffae.graphs import CausalGraph
from causaldiffae.guidance import Guidance
from causaldiffae.noise_schedule import NoiseSchedule
from causaldiffae.scm import LatentSCM
from causaldiffae.script_util import create_model_and_diffusion
from causaldiffae.solvers import OdeSolver
from causaldiffae.unet import UNetModel

BETAS = get_named_beta_schedule("linear", 1000)
SCHEDULE = NoiseSchedule(np.cumprod(1 - BETAS))
MEANS, SPREAD = (-0.5, 0.5), 0.3
"""An image of class k has pixels N(MEANS[k], SPREAD^2), all independent."""
EPS = ModelMeanType.EPSILON
TWO_CLASSES = replace(
    squares_spec(), graph=CausalGraph(("kind",), ()), shift=(0.0,), scale=(1.0,), low=(0.0,), high=(1.0,),
    kinds=("categorical",), categories=(("dark", "bright"),),
)  # fmt: skip


def class_eps(x_t: Tensor, t: Tensor, k: int) -> Tensor:
    return gaussian_eps(x_t, *levels(SCHEDULE, t), MEANS[k], SPREAD)


def log_posterior(x_t: Tensor, t: Tensor) -> Tensor:
    """log p(y | x_t), (B, 2), for equally frequent classes."""
    a, sigma = levels(SCHEDULE, t)
    logits = [-((x_t - a * mean) ** 2 / (2 * (a**2 * SPREAD**2 + sigma**2))).flatten(1).sum(1) for mean in MEANS]
    return torch.log_softmax(torch.stack(logits, dim=1), dim=1)


def mixture_eps(x_t: Tensor, t: Tensor) -> Tensor:
    """eps without a class: that of each class, weighted by its posterior."""
    dark, bright = log_posterior(x_t, t).exp().reshape(-1, 2, 1, 1, 1).unbind(1)
    return dark * class_eps(x_t, t, 0) + bright * class_eps(x_t, t, 1)


class ExactPredictor(nn.Module):
    """p(y | x_t) of the two classes, with the interface of `NoisedPredictor`."""

    def gradient(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            x = x_t.clone().requires_grad_()
            chosen = log_posterior(x, t.clone()).gather(1, labels.clone().round().long())
            return torch.autograd.grad(chosen.sum(), x)[0]


class ExactNetwork(nn.Module):
    """The score network of the mixture; with `labels`, that of a class where one is given."""

    num_classes = None

    def __init__(self, mean_type: ModelMeanType, labels: bool = False, learned: bool = False) -> None:
        super().__init__()
        self.mean_type, self.learned, self.calls = mean_type, learned, 0
        self.cond_dim = 2 if labels else None

    def forward(
        self, x: Tensor, t: Tensor, y: None = None, z: Tensor | None = None, keep: Tensor | None = None
    ) -> Tensor:
        self.calls += 1
        eps = mixture_eps(x, t)
        if z is not None:
            of_class = sum(z[:, k].reshape(-1, 1, 1, 1) * class_eps(x, t, k) for k in range(2))
            kept = torch.ones(len(x), dtype=torch.bool) if keep is None else keep
            eps = torch.where(kept.reshape(-1, 1, 1, 1), of_class, eps)
        a, sigma = levels(SCHEDULE, t)
        output = as_output(self.mean_type, (x - sigma * eps) / a, eps, a, sigma)
        return torch.cat([output, output + 7.0], dim=1) if self.learned else output


def exact_model(mean_type: ModelMeanType = EPS, explicit: bool = True, learned: bool = False) -> DiffScm:
    network = ExactNetwork(mean_type, labels=not explicit, learned=learned)
    model = DiffScm(LatentSCM(TWO_CLASSES.graph, 1), network, TWO_CLASSES)  # type: ignore[arg-type]
    if explicit:
        process = GaussianDiffusion(betas=BETAS, model_mean_type=mean_type)
        model.set_predictor(ExactPredictor(), process.noise_schedule)  # type: ignore[arg-type]
    return model.eval()


def images(classes: Sequence[int]) -> Tensor:
    return torch.tensor([MEANS[k] for k in classes]).reshape(-1, 1, 1, 1) + SPREAD * normal(len(classes), 1, 8, 8)


def as_z(*labels: float) -> Tensor:
    return torch.tensor(labels, dtype=torch.float64).reshape(-1, 1, 1)


# ---------------------------------------------------------------------- the model output


@pytest.mark.parametrize("mean_type", ModelMeanType)
@pytest.mark.parametrize("explicit", [True, False])
def test_at_scale_one_the_guided_score_is_that_of_the_class(mean_type: ModelMeanType, explicit: bool) -> None:
    """Bayes' rule: eps - sigma grad log p(y | x_t) is eps given y; the network is evaluated once for all conditions."""
    model, of_class = exact_model(mean_type, explicit), ExactNetwork(mean_type, labels=True)
    x_t, t = normal(5, 1, 8, 8, seed=5), torch.tensor([0.0, 130.0, 500.0, 870.0, 999.0])
    some, other = (0, 1, 0, 1, 1), (1, 1, 1, 0, 0)
    found = model.model_outputs(x_t, t, [as_z(*some), None, as_z(*other)])
    assert model.network.calls == 1
    for output, labels in zip(found, (some, None, other), strict=True):
        one_hot = None if labels is None else nn.functional.one_hot(torch.tensor(labels), 2)
        torch.testing.assert_close(output, of_class(x_t, t, z=one_hot))


def test_guidance_keeps_a_learned_variance() -> None:
    x, t = images([0, 1]), torch.tensor([300.0, 300.0])
    found, expected = (exact_model(learned=learned).model_outputs(x, t, [as_z(1, 0)])[0] for learned in (True, False))
    torch.testing.assert_close(found, torch.cat([expected, mixture_eps(x, t) + 7.0], dim=1))


def test_labels_without_any_predictor_are_refused() -> None:
    model = DiffScm(LatentSCM(TWO_CLASSES.graph, 1), ExactNetwork(EPS), TWO_CLASSES)  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match="predictor_path: expected a noised predictor for a score network trained without"
    ):
        model.model_outputs(images([0]), torch.tensor([3.0]), [as_z(1)])
    with pytest.raises(InputError, match="labels: expected labels for a model without an explicit"):
        model.abduct(images([0]))


# ---------------------------------------------------------------------- counterfactuals


def engine(mean_type: ModelMeanType = EPS, explicit: bool = True, **options: Any) -> CounterfactualEngine:
    solver = OdeSolver(GaussianDiffusion(betas=BETAS, model_mean_type=mean_type), steps=60)
    return CounterfactualEngine(exact_model(mean_type, explicit), solver, TWO_CLASSES, **options)


@pytest.mark.parametrize("mean_type", ModelMeanType)
@pytest.mark.parametrize("explicit", [True, False])
def test_a_counterfactual_has_the_mean_of_its_class_and_the_pattern_of_its_image(
    mean_type: ModelMeanType, explicit: bool
) -> None:
    counterfactuals, factual = engine(mean_type, explicit), images([0] * 6)
    abducted = counterfactuals.abduct(factual, labels=torch.zeros(6, 1).double())
    results = counterfactuals.predict(abducted, [{"kind": "bright"}, {}, {"kind": "dark"}])
    bright, reconstructed, dark = (result.images for result in results)
    for found, mean in ((dark, MEANS[0]), (bright, MEANS[1])):
        assert (found.flatten(1).mean(1) - mean).abs().max() < 0.1
    assert (reconstructed - factual.clamp(-1, 1)).abs().max() < 2e-3, "the unguided flow and its inverse"
    patterns = zip(bright.flatten(1).numpy(), factual.flatten(1).numpy(), strict=True)
    assert min(np.corrcoef(*pair)[0, 1] for pair in patterns) > 0.95
    assert [result.labels.unique().tolist() for result in results] == [[1.0], [0.0], [0.0]]


def test_the_guidance_scale_scales_the_change() -> None:
    factual, labels = images([0] * 6), torch.zeros(6, 1).double()
    none, weak, one, strong = (
        float(engine(guidance=Guidance(w=s)).counterfactual(factual, {"kind": 1}, labels=labels).images.mean())
        for s in (0.0, 0.3, 1.0, 2.0)
    )
    assert none == pytest.approx(float(factual.clamp(-1, 1).mean()), abs=2e-3), "s = 0 is the image"
    assert none < weak < one < strong and one == pytest.approx(MEANS[1], abs=0.05)


def test_encoding_does_not_depend_on_the_labels() -> None:
    """Algorithm 2 is unguided."""
    counterfactuals, factual = engine(explicit=False), images([0, 1])
    one, other = (counterfactuals.abduct(factual, labels=as_z(*y)[:, :, 0]).x_T for y in ((0, 1), (1, 0)))
    assert one is not None and other is not None and torch.equal(one, other)


@pytest.mark.parametrize("do", [{}, {"kind": 1}])
def test_thresholding_acts_on_interventions_only(do: dict[str, int]) -> None:
    plain, rescaled = (
        engine(guidance=Guidance(w=4.0), rescale_quantile=quantile).counterfactual(
            images([0, 0]), do, labels=torch.zeros(2, 1).double()
        )
        for quantile in (0.0, 0.5)
    )
    assert torch.equal(plain.images, rescaled.images) == (not do)


# ---------------------------------------------------------------------- labels, training, networks


def build(spec: DatasetSpec, **changes: Any) -> DiffScm:
    torch.manual_seed(0)
    return DiffScm.from_config(small_config(model_type="diffscm", **changes).model, spec)


def test_do_is_propagated_through_the_graph_of_the_labels() -> None:
    spec = squares_spec()
    model = build(spec, label_cond=True).eval()
    randomise(model.scm)
    labels = spec.normalise(torch.tensor([[3.0, 120.0], [5.0, 200.0]]))
    u = model.abduct(torch.zeros(2, 1, 8, 8), labels)
    factual, of_size, of_grey = (model.read_labels(model.predict(u, do)) for do in ({}, {"size": 1.5}, {"grey": 0.3}))
    torch.testing.assert_close(factual, labels)
    assert (of_size[:, 0] == 1.5).all() and (of_size[:, 1] != labels[:, 1]).all()
    assert (of_grey[:, 1] == 0.3).all() and torch.equal(of_grey[:, 0], factual[:, 0])


def test_categories_enter_the_network_one_hot_and_numbers_as_they_are() -> None:
    spec = replace(
        squares_spec(), kinds=("continuous", "categorical"), categories=((), ("a", "b", "c")), low=(1.0, 0.0),
        high=(7.0, 2.0), shift=(4.0, 1.0), scale=(2.0, 0.7),
    )  # fmt: skip
    model, labels = build(spec, label_cond=True), spec.normalise(torch.tensor([[3.0, 2.0], [5.0, 0.0]]))
    expected = torch.tensor([[-0.5, 0.0, 0.0, 1.0], [0.5, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(model.embed_labels(labels[:, :, None]), expected)
    assert label_width(spec) == 4
    network = UNetModel(8, 1, 32, 1, num_res_blocks=1, attention_resolutions=(), cond_dim=3)
    with pytest.raises(InputError, match="model: expected conditioning of width 4, got 3"):
        DiffScm(model.scm, network, spec)


@pytest.mark.parametrize("label_cond", [False, True])
def test_labels_train_the_network_only_if_it_is_conditional(label_cond: bool) -> None:
    data, config = squares(8), small_config(model_type="diffscm", label_cond=label_cond)
    model, diffusion = create_model_and_diffusion(config, data.spec)
    assert isinstance(model, DiffScm) and model.has_labels is label_cond
    randomise(model)
    x_start, labels = normal(8, 1, 8, 8).float(), data.spec.normalise(torch.from_numpy(data.labels))
    everyone = torch.ones(8, dtype=torch.bool)

    def image_loss(labels: Tensor, keep: Tensor) -> float:
        draws = training_draws(torch.arange(8) * 10, (2, 1), keep=keep)
        step = DiffScmTrainingStep(model, diffusion, config.loss)
        return step(x_start, labels, None, everyone, draws, 1.0)[1]["loss"].mean().item()

    loss = image_loss(labels, everyone)
    for other in (image_loss(labels, ~everyone), image_loss(labels + 1.0, everyone)):
        assert (loss != other) is label_cond


def test_the_score_network_may_be_a_transformer() -> None:
    model = randomise(build(TWO_CLASSES, label_cond=True, network="dit", depth=2, patch_size=2)).eval()
    assert isinstance(model, DiffScm) and isinstance(model.network, DiT) and not model.class_cond
    assert build(TWO_CLASSES, network="dit", depth=2, patch_size=2).network.cond_dim is None
    x, t, zs = normal(3, 1, 8, 8).float(), torch.tensor([0.0, 12.5, 99.0]), [as_z(*[k] * 3).float() for k in (0, 1)]
    with torch.no_grad():
        dark, free, bright = model.model_outputs(x, t, [zs[0], None, zs[1]])
        torch.testing.assert_close(free, model.model_output(x, t, None))
        torch.testing.assert_close(bright, model.model_output(x, t, zs[1]))
    assert not torch.equal(dark, bright) and not torch.equal(dark, free)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "dit", "label_cond": True}, "label_cond: expected one categorical variable for network dit"),
        ({"network": "dit", "class_cond": True}, "class_cond: expected False for network dit, got True"),
        ({"network": "dit", "model_type": "causaldae"}, "network: expected unet for model_type causaldae, got dit"),
        ({"network": "mlp"}, "network: expected unet or dit, got 'mlp'"),
    ],
)
def test_networks_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DiffScm.from_config(small_config(**({"model_type": "diffscm"} | changes)).model, squares_spec())
