"""Diff-SCM where everything is known: two classes of Gaussian images, whose scores and predictor have closed forms."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import REPO
from running import assert_refused, run
from tiny import randomise, small_config, squares, squares_spec
from torch import Tensor, nn

from causaldiffae.checkpoints.checkpoint import export_weights
from causaldiffae.config import ModelConfig
from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.diff_scm import DiffScm, DiffScmTrainingStep, label_width
from causaldiffae.dit import DiT
from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import GaussianDiffusion, ModelMeanType, get_named_beta_schedule
from causaldiffae.graphs import CausalGraph
from causaldiffae.guidance import Guidance
from causaldiffae.predictors.noised_predictor import NoisedPredictor, NoisedPredictorConfig, save_noised_predictor
from causaldiffae.scm import LatentSCM
from causaldiffae.script_util import create_model_and_diffusion, describe_checkpoint, load_model
from causaldiffae.solvers import NoiseSchedule, OdeSolver
from causaldiffae.unet import UNetModel

SHARE = REPO / "assets" / "mnist_share"
SCRIPT = REPO / "scripts" / "image_diffscm_test.py"
BETAS = get_named_beta_schedule("linear", 1000)
SCHEDULE = NoiseSchedule(np.cumprod(1 - BETAS))
KINDS = (ModelMeanType.EPSILON, ModelMeanType.START_X, ModelMeanType.VELOCITY)
MEANS, SPREAD = (-0.5, 0.5), 0.3  # an image of class k has pixels N(MEANS[k], SPREAD^2), all independent


def two_classes() -> DatasetSpec:
    spec = squares_spec()
    return replace(
        spec, graph=CausalGraph(("kind",), ()), shift=(0.0,), scale=(1.0,), low=(0.0,), high=(1.0,),
        kinds=("categorical",), categories=(("dark", "bright"),),
    )  # fmt: skip


def level(t: Tensor) -> tuple[Tensor, Tensor]:
    signal, noise = SCHEDULE.signal_and_noise(t.double().numpy())
    return tuple(torch.as_tensor(part).reshape(-1, 1, 1, 1) for part in (signal, noise))  # type: ignore[return-value]


def class_eps(x_t: Tensor, t: Tensor, k: int) -> Tensor:
    """eps of one class: -sigma times the score of N(a MEANS[k], a^2 SPREAD^2 + sigma^2)."""
    a, sigma = level(t)
    return sigma * (x_t - a * MEANS[k]) / (a**2 * SPREAD**2 + sigma**2)


def log_posterior(x_t: Tensor, t: Tensor) -> Tensor:
    """log p(y | x_t), (B, 2), both classes alike before."""
    a, sigma = level(t)
    logits = [-((x_t - a * mean) ** 2 / (2 * (a**2 * SPREAD**2 + sigma**2))).flatten(1).sum(1) for mean in MEANS]
    return torch.log_softmax(torch.stack(logits, dim=1), dim=1)


def free_eps(x_t: Tensor, t: Tensor) -> Tensor:
    """eps of the mixture: the classes' eps, weighted by their posterior."""
    weights = log_posterior(x_t, t).exp()
    return sum(weights[:, k].reshape(-1, 1, 1, 1) * class_eps(x_t, t, k) for k in range(2))  # type: ignore[return-value]


class ExactPredictor(nn.Module):
    """p(y | x_t) of the two classes, as `NoisedPredictor` answers."""

    def gradient(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            x = x_t.clone().requires_grad_()
            chosen = log_posterior(x, t.clone()).gather(1, labels.clone().round().long())
            return torch.autograd.grad(chosen.sum(), x)[0]


class ExactUNet(nn.Module):
    """The mixture's network, in any of the three outputs; with `labels`, the classes' own where it is told one."""

    num_classes = None

    def __init__(self, kind: ModelMeanType, labels: bool = False, learned: bool = False) -> None:
        super().__init__()
        self.kind, self.learned, self.calls = kind, learned, 0
        self.cond_dim = 2 if labels else None

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, z: Tensor | None = None, keep: Tensor | None = None
    ) -> Tensor:
        self.calls += 1
        eps = free_eps(x, t)
        if z is not None:
            own = torch.stack([class_eps(x, t, k) for k in range(2)], dim=1)
            told = (z[:, :, None, None, None] * own).sum(dim=1)
            keep = torch.ones(len(x), dtype=torch.bool) if keep is None else keep
            eps = torch.where(keep.reshape(-1, 1, 1, 1), told, eps)
        a, sigma = level(t)
        x_start = (x - sigma * eps) / a
        answer = {KINDS[0]: eps, KINDS[1]: x_start, KINDS[2]: a * eps - sigma * x_start}[self.kind]
        return torch.cat([answer, answer + 7.0], dim=1) if self.learned else answer


def exact_model(kind: ModelMeanType, explicit: bool, learned: bool = False) -> DiffScm:
    spec = two_classes()
    model = DiffScm(LatentSCM(spec.graph, 1), ExactUNet(kind, labels=not explicit, learned=learned), spec)  # type: ignore[arg-type]
    if explicit:
        process = GaussianDiffusion(betas=BETAS, model_mean_type=kind)
        model.set_predictor(ExactPredictor(), process.noise_schedule)  # type: ignore[arg-type]
    return model.eval()


def exact_images(classes: Sequence[int], seed: int = 0) -> Tensor:
    noise = torch.randn(len(classes), 1, 8, 8, generator=torch.Generator().manual_seed(seed)).double()
    return torch.tensor([MEANS[k] for k in classes]).reshape(-1, 1, 1, 1) + SPREAD * noise


def as_z(*labels: float) -> Tensor:
    return torch.tensor(labels, dtype=torch.float64).reshape(-1, 1, 1)


# ---------------------------------------------------------------------- the score


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("explicit", [True, False])
def test_at_scale_one_guidance_gives_the_classes_own_score(kind: ModelMeanType, explicit: bool) -> None:
    """Bayes: eps - sigma grad log p(y | x_t) is eps under y, whatever the network's output means."""
    model = exact_model(kind, explicit)
    t = torch.tensor([0.0, 130.0, 500.0, 870.0, 999.0])
    x_t = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(5)).double()
    told = ExactUNet(kind, labels=True)
    found = model.model_outputs(x_t, t, [as_z(0, 1, 0, 1, 1), None, as_z(1, 1, 1, 0, 0)])
    onehot = nn.functional.one_hot
    torch.testing.assert_close(found[0], told(x_t, t, z=onehot(torch.tensor([0, 1, 0, 1, 1]), 2)))
    torch.testing.assert_close(found[1], told(x_t, t))
    torch.testing.assert_close(found[2], told(x_t, t, z=onehot(torch.tensor([1, 1, 1, 0, 0]), 2)))


def test_the_network_is_asked_once_for_all_conditions() -> None:
    for explicit in (True, False):
        model = exact_model(KINDS[0], explicit)
        model.model_outputs(exact_images([0, 1]), torch.tensor([5.0, 5.0]), [as_z(0, 0), None, as_z(1, 1)])
        assert model.network.calls == 1


def test_a_learned_variance_is_left_alone() -> None:
    model, plain = exact_model(KINDS[0], True, learned=True), exact_model(KINDS[0], True)
    x, t = exact_images([0, 1]), torch.tensor([300.0, 300.0])
    found, expected = model.model_outputs(x, t, [as_z(1, 0)])[0], plain.model_outputs(x, t, [as_z(1, 0)])[0]
    torch.testing.assert_close(found[:, :1], expected)
    torch.testing.assert_close(found[:, 1:], free_eps(x, t) + 7.0)


def test_without_any_predictor_it_says_what_to_do() -> None:
    spec = two_classes()
    model = DiffScm(LatentSCM(spec.graph, 1), ExactUNet(KINDS[0]), spec)  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match="predictor_path: expected a noised predictor for a score network trained without labels"
    ):
        model.model_outputs(exact_images([0]), torch.tensor([3.0]), [as_z(1)])
    with pytest.raises(
        InputError, match="labels: expected the labels of the images for a model without an explicit predictor"
    ):
        model.abduct(exact_images([0]))


# ---------------------------------------------------------------------- counterfactuals


def engine(
    kind: ModelMeanType, explicit: bool, guidance: Guidance | None = None, **options: float
) -> CounterfactualEngine:
    process = GaussianDiffusion(betas=BETAS, model_mean_type=kind)
    return CounterfactualEngine(
        exact_model(kind, explicit),
        OdeSolver(process, steps=60),
        two_classes(),
        guidance=guidance,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("explicit", [True, False])
def test_counterfactuals_change_the_class_and_keep_the_rest(kind: ModelMeanType, explicit: bool) -> None:
    """Dark pixels become bright ones; what was brighter than its neighbours still is."""
    asked, labels = engine(kind, explicit), torch.zeros(6, 1, dtype=torch.float64)
    factual = exact_images([0] * 6)
    result = asked.predict(asked.abduct(factual, labels=labels), [{"kind": "bright"}, {}, {"kind": "dark"}])
    bright, undone, dark = (answer.images for answer in result)
    assert (bright.flatten(1).mean(1) - MEANS[1]).abs().max() < 0.1
    assert (undone - factual.clamp(-1, 1)).abs().max() < 2e-3, "s = 0: the unguided flow there and back"
    assert (dark.flatten(1).mean(1) - MEANS[0]).abs().max() < 0.1
    inner = [np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(bright.numpy(), factual.numpy(), strict=True)]
    assert min(inner) > 0.95
    assert result[0].labels.tolist() == [[1.0]] * 6 and result[1].labels.tolist() == [[0.0]] * 6


def test_the_scale_grades_the_change() -> None:
    factual, means = exact_images([0] * 6), []
    for scale in (0.0, 0.3, 1.0, 2.0):
        asked = engine(KINDS[0], True, Guidance(w=scale))
        answer = asked.counterfactual(factual, {"kind": 1}, labels=torch.zeros(6, 1, dtype=torch.float64))
        means.append(float(answer.images.mean()))
    assert means[0] == pytest.approx(float(factual.clamp(-1, 1).mean()), abs=2e-3), "s = 0 is the image"
    assert means == sorted(means) and means[2] == pytest.approx(MEANS[1], abs=0.05)


def test_encoding_asks_no_predictor() -> None:
    """Algorithm 2 is unguided: x_T is the same whatever the labels are."""
    asked, factual = engine(KINDS[0], False), exact_images([0, 1])
    states = [asked.abduct(factual, labels=labels).x_T for labels in (as_z(0, 1)[:, :, 0], as_z(1, 0)[:, :, 0])]
    assert states[0] is not None and torch.equal(states[0], states[1])


def test_thresholding_acts_on_interventions_alone() -> None:
    labels = torch.zeros(2, 1, dtype=torch.float64)
    strong = Guidance(w=4.0)
    plain, rescaled = engine(KINDS[0], True, strong), engine(KINDS[0], True, strong, rescale_quantile=0.5)
    factual = exact_images([0, 0])
    for do, same in (({}, True), ({"kind": 1}, False)):
        answers = [asked.counterfactual(factual, do, labels=labels).images for asked in (plain, rescaled)]
        assert torch.equal(*answers) == same
    with pytest.raises(InputError, match="rescale_quantile: expected a number between 0 and 1, got 1.5"):
        engine(KINDS[0], True, rescale_quantile=1.5)


# ---------------------------------------------------------------------- the model


def built(spec: DatasetSpec, **changes: object) -> DiffScm:
    torch.manual_seed(0)
    config = small_config(model_type="diffscm", **changes)
    return DiffScm.from_config(config.model, spec)


def test_labels_have_a_graph_of_their_own() -> None:
    spec = squares_spec()
    model = built(spec, label_cond=True).eval()
    randomise(model.scm)
    labels = spec.normalise(torch.tensor([[3.0, 120.0], [5.0, 200.0]]))
    u = model.abduct(torch.zeros(2, 1, 8, 8), labels)
    torch.testing.assert_close(model.read_labels(model.predict(u)), labels)
    moved = model.read_labels(model.predict(u, {"size": 1.5}))
    assert torch.equal(moved[:, 0], torch.full((2,), 1.5)) and (moved[:, 1] != labels[:, 1]).all()
    still = model.read_labels(model.predict(u, {"grey": 0.3}))
    torch.testing.assert_close(still[:, 0], labels[:, 0])


def test_labels_as_the_network_takes_them() -> None:
    spec = replace(
        squares_spec(), kinds=("continuous", "categorical"), categories=((), ("a", "b", "c")), low=(1.0, 0.0),
        high=(7.0, 2.0), shift=(4.0, 1.0), scale=(2.0, 0.7),
    )  # fmt: skip
    assert label_width(spec) == 4
    model = built(spec, label_cond=True)
    labels = spec.normalise(torch.tensor([[3.0, 2.0], [5.0, 0.0]]))
    expected = torch.tensor([[-0.5, 0.0, 0.0, 1.0], [0.5, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(model.embed_labels(labels[:, :, None]), expected)
    with pytest.raises(InputError, match="model: expected conditioning of width 2, got 3"):
        DiffScm(model.scm, UNetModel(8, 1, 32, 1, num_res_blocks=1, attention_resolutions=(), cond_dim=3), spec)


@pytest.mark.parametrize("label_cond", [False, True])
def test_training_asks_for_labels_only_where_the_network_takes_them(label_cond: bool) -> None:
    data = squares(8)
    config = small_config(model_type="diffscm", label_cond=label_cond)
    model, diffusion = create_model_and_diffusion(config, data.spec)
    assert isinstance(model, DiffScm) and model.has_labels is label_cond
    randomise(model)
    step = DiffScmTrainingStep(model, diffusion, config.loss)
    losses = {keep: _loss(step, data.labels, keep) for keep in (True, False)}
    assert (losses[True] == losses[False]) is not label_cond
    images = [_loss(step, labels, True, mechanism=False) for labels in (data.labels, data.labels + 1.0)]
    assert (images[0] == images[1]) is not label_cond


def _loss(step: DiffScmTrainingStep, labels: np.ndarray, keep: bool, mechanism: bool = True) -> float:
    from causaldiffae.model import TrainingDraws

    generator = torch.Generator().manual_seed(0)
    draws = TrainingDraws(
        t=torch.arange(8) * 10,
        weights=torch.ones(8),
        noise=torch.randn(8, 1, 8, 8, generator=generator),
        latent_noise=torch.zeros(8, 2, 1),
        keep=torch.full((8,), keep),
        keep_blocks=torch.ones(8, 2, dtype=torch.bool),
        forced=torch.zeros(8, dtype=torch.bool),
    )
    normalised = squares_spec().normalise(torch.from_numpy(labels))
    x_start = torch.linspace(-1, 1, 8 * 64).reshape(8, 1, 8, 8)
    loss, terms = step(x_start, normalised, None, torch.ones(8, dtype=torch.bool), draws, 1.0)
    return float((loss if mechanism else terms["loss"].mean()).detach())


# ---------------------------------------------------------------------- scripts


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Diff-SCM of the digits, with a predictor beside its weights."""
    folder = tmp_path_factory.mktemp("diffscm") / "model"
    config = small_config(model_type="diffscm", dataset="mnist", label_cond=True, image_size=28, channel_mult="1,1")
    config = replace(config, model=replace(config.model, attention_resolutions="", patch_size=2))
    spec = dataset_spec("mnist")
    torch.manual_seed(0)
    model, _ = create_model_and_diffusion(config, spec)
    export_weights(folder, randomise(model, scale=0.02).state_dict(), describe_checkpoint(config, spec))
    network = NoisedPredictorConfig(channel_mult="1,1", patch_size=2)
    save_noised_predictor(folder / "predictor", NoisedPredictor(spec, network), config.diffusion, {})
    return folder


def ask(folder: Path, out: Path, *more: str) -> Callable[[], object]:
    common = [f"--model_path={folder}", f"--data_dir={SHARE}", f"--out_dir={out}", "--num_images=3", "--steps=2"]
    return lambda: run(SCRIPT, *common, *more)


def test_the_script_finds_the_predictor_and_draws_every_class(model_folder: Path, tmp_path: Path) -> None:
    outcome = run(
        SCRIPT, f"--model_path={model_folder}", f"--data_dir={SHARE}", f"--out_dir={tmp_path}", "--num_images=3",
        "--steps=2", "--do=digit=5", "--traverse=digit", "--w=1.5", "--stop=0.75", "--rescale_quantile=0.99",
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    assert "digit reached" in outcome.stdout and "do(digit=5)" in outcome.stdout
    rows = (tmp_path / "traversal_digit.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == [str(k) for k in range(10)]
    assert (tmp_path / "traversal_digit.png").is_file()
    assert load_model(str(model_folder)).model.predictor is not None
    assert load_model(str(model_folder), predictor="none").model.predictor is None


def test_the_test_script_refuses(model_folder: Path, tmp_path: Path) -> None:
    base = [f"--model_path={model_folder}", f"--data_dir={SHARE}", f"--out_dir={tmp_path}"]
    assert_refused(run(SCRIPT, *base, "--do=digit=12"), "--do 'digit=12'", "allowed are 0, 1, 2")
    assert_refused(run(SCRIPT, *base, "--do=digt=1"), "unknown variable 'digt'")
    assert_refused(run(SCRIPT, *base, "--w=.inf"), "w: inf given, a finite number is needed")
    assert_refused(run(SCRIPT, *base, f"--predictor_path={tmp_path / 'none'}"), "none")
    causal = REPO / "weights" / "pendulum_causaldae_mini"
    assert_refused(run(SCRIPT, f"--model_path={causal}", *base[1:]), "a model of type causaldae")
    with pytest.raises(InputError, match="predictor_path: expected none for a model of type causaldae"):
        load_model(str(causal), predictor="somewhere")


def test_the_score_network_may_be_a_transformer() -> None:
    spec, changes = two_classes(), {"network": "dit", "depth": 2, "patch_size": 2}
    model = randomise(built(spec, label_cond=True, **changes)).eval()
    assert isinstance(model, DiffScm) and isinstance(model.network, DiT) and not model.class_cond
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0.0, 12.5, 99.0])
    with torch.no_grad():
        dark, free, bright = model.model_outputs(x, t, [as_z(0, 0, 0).float(), None, as_z(1, 1, 1).float()])
        torch.testing.assert_close(free, model.model_output(x, t, None))
        torch.testing.assert_close(bright, model.model_output(x, t, as_z(1, 1, 1).float()))
    assert not torch.equal(dark, bright) and not torch.equal(dark, free)
    assert built(spec, **changes).network.cond_dim is None
    with pytest.raises(InputError, match="label_cond: expected one categorical variable for network dit"):
        built(squares_spec(), label_cond=True, **changes)
    with pytest.raises(InputError, match="network: expected unet for model_type causaldae, got dit"):
        small_config(network="dit")
    with pytest.raises(InputError, match="network: expected unet or dit, got 'mlp'"):
        small_config(network="mlp")


def test_a_model_config_without_labels_is_the_published_one() -> None:
    assert not ModelConfig().label_cond
    assert built(squares_spec()).network.cond_dim is None
