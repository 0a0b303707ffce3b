"""Abduction, action and prediction on Gaussian images, whose best score and true counterfactual have closed forms."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from closed_form import gaussian_eps, levels
from tiny import normal, squares_spec
from torch import Tensor

from causaldiffae.counterfactual import AbductionKind, CounterfactualEngine
from causaldiffae.datasets.images import keep_unchanged
from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import get_named_beta_schedule
from causaldiffae.guidance import Guidance
from causaldiffae.noise_schedule import NoiseSchedule
from causaldiffae.respace import SpacedDiffusion, space_timesteps
from causaldiffae.scm import Do
from causaldiffae.solvers import OdeSolver

STD, GAIN, SLOPE = 0.2, 0.2, 0.5
BETAS = get_named_beta_schedule("linear", 1000)
ALPHA_BAR = np.cumprod(1 - BETAS)
SCHEDULE = NoiseSchedule(ALPHA_BAR)
SPEC = replace(squares_spec(), image_size=4, channels=2)
CLASSES = torch.tensor([0, 1, 2])
NAMES = SPEC.graph.names
DOS = [{}, {"size": 6.0}, {"grey": 187.5}, {"size": 2.0, "grey": 237.5}, {"size": 3.0}]


class Oracle:
    """Channel i is Gaussian around GAIN z_i, and grey = SLOPE size + its noise; records its arguments."""

    def __init__(self, class_cond: bool = False, needs_labels: bool = False) -> None:
        self.class_cond, self.needs_labels, self.unconditional_abduction = class_cond, needs_labels, False
        self.discrete = False
        self.interventions: list[Do | None] = []
        self.conditions: list[list[Tensor | None]] = []
        self.classes: list[Tensor | None] = []
        self.labels: Tensor | None = None

    def abduct(self, x_start: Tensor, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        self.labels = labels
        z = x_start.mean(dim=(2, 3))[:, :, None] / GAIN
        return torch.stack([z[:, 0], z[:, 1] - SLOPE * z[:, 0]], dim=1)

    def predict(self, u: Tensor, do: Do | None = None, most_probable: bool = False) -> Tensor:
        self.interventions.append(do)
        do = do or {}
        given = {
            name: torch.as_tensor(value, dtype=u.dtype).reshape(-1, 1).expand_as(u[:, 0]) for name, value in do.items()
        }
        size = given.get("size", u[:, 0])
        grey = given.get("grey", SLOPE * size + u[:, 1])
        return torch.stack([size, grey], dim=1)

    def read_labels(self, z: Tensor) -> Tensor:
        return z.mean(dim=-1)

    def model_outputs(
        self, x_t: Tensor, t: Tensor, conditions: Sequence[Tensor | None], classes: Tensor | None = None
    ) -> list[Tensor]:
        self.conditions.append(list(conditions))
        self.classes.append(classes)
        means = [0.0 if z is None else GAIN * z[:, :, :, None] for z in conditions]  # guiding eps guides the mean
        return [gaussian_eps(x_t, *levels(SCHEDULE, t), mean, STD) for mean in means]


class Direct(Oracle):
    """Generates images from the latents alone."""

    def decode(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        self.classes.append(classes)
        return (GAIN * z[:, :, :, None]).expand(-1, -1, 4, 4)


def images(side: int = 4) -> Tensor:
    """Images whose channel means are exactly GAIN z for some z."""
    noise = STD * normal(3, 2, side, side)
    return noise - noise.mean(dim=(2, 3), keepdim=True) + GAIN * normal(3, 2, seed=1)[:, :, None, None]


def engine(steps: int = 200, model: Oracle | None = None, solver: str = "", **kwargs: Any) -> CounterfactualEngine:
    """An engine with the DDIM loops of `steps` steps, or a solver with as many."""
    loops = SpacedDiffusion(space_timesteps(1000, [steps]), betas=BETAS)
    chosen = OdeSolver(loops, solver, "rho" if solver == "obelm" else "logsnr", steps) if solver else loops
    return CounterfactualEngine(model or Oracle(), chosen, SPEC, **kwargs)


# ---------------------------------------------------------------------- interventions


def test_without_an_intervention_the_image_is_reconstructed() -> None:
    x = images()
    results = [engine(steps).counterfactual(x, {}) for steps in (50, 200)]
    coarse, fine = (float((each.images - x).abs().max()) for each in results)
    assert fine < 0.04 and fine < 0.5 * coarse
    torch.testing.assert_close(results[0].labels, SPEC.denormalise(x.mean(dim=(2, 3)) / GAIN))


@pytest.mark.parametrize(
    ("solver", "steps", "bound"), [("", 200, 0.04), ("ddim", 100, 0.04), ("dpmpp2m", 50, 0.01), ("obelm", 50, 0.01)]
)
def test_do_on_the_cause_moves_the_effect_as_in_the_true_counterfactual(solver: str, steps: int, bound: float) -> None:
    x = images()
    result = engine(steps, solver=solver).counterfactual(x, {"size": 6.0})
    shift = GAIN * 1.0 - x[:, :1].mean(dim=(2, 3), keepdim=True)  # size = 6 is 1 in normalised units
    true = x + torch.cat([shift, SLOPE * shift], dim=1)
    assert (result.images - true.clamp(-1, 1)).abs().max() < bound and shift.abs().min() > 0.05
    assert (result.labels[:, 0] == 6.0).all()


def test_do_on_the_effect_does_not_change_the_cause() -> None:
    counterfactuals = engine()
    factual, moved = counterfactuals.predict(counterfactuals.abduct(images()), [{}, {"grey": 250.0}])
    for name in ("images", "labels", "z"):
        assert torch.equal(getattr(moved, name)[:, 0], getattr(factual, name)[:, 0])
    assert (moved.labels[:, 1] == 250.0).all()
    torch.testing.assert_close(moved.images[:, 1].mean(dim=(1, 2)), torch.full((3,), GAIN * 2.0), rtol=0, atol=0.02)


def test_do_with_the_factual_values_is_the_reconstruction() -> None:
    counterfactuals = engine()
    abducted = counterfactuals.abduct(images()[:1])
    factual = SPEC.denormalise(abducted.z.mean(-1))[0].tolist()
    reconstructed, done = counterfactuals.predict(abducted, [{}, {"size": factual[0], "grey": factual[1]}])
    torch.testing.assert_close(done.images, reconstructed.images, rtol=0, atol=1e-9)


def test_one_abduction_serves_every_intervention() -> None:
    x, counterfactuals = images(), engine(20)
    for do, result in zip(DOS, counterfactuals.predict(counterfactuals.abduct(x), DOS), strict=True):
        alone = counterfactuals.counterfactual(x, do)
        for name in ("images", "labels", "z"):
            assert torch.equal(getattr(result, name), getattr(alone, name))


@pytest.mark.parametrize("solver", ["", "dpmpp2m", "obelm"])
def test_interventions_are_decoded_as_batches_of_bounded_size(solver: str) -> None:
    guidances = [*[Guidance()] * 4, Guidance(w=1.5)]
    results, sizes = {}, {}
    for rows in (1, 6, 100):
        oracle = Oracle(class_cond=True)
        counterfactuals = engine(10, oracle, solver, residual=True, pixels=rows * 16)
        abducted = counterfactuals.abduct(images(), CLASSES)
        oracle.conditions.clear(), oracle.classes.clear()
        results[rows] = counterfactuals.predict(abducted, DOS, guidances)
        sizes[rows] = [len(conditions[0]) for conditions in oracle.conditions if conditions[0] is not None]
        expected = [CLASSES.repeat(count // 3) for count in sizes[rows]]
        assert all(map(torch.equal, oracle.classes, expected))
    for one, other in [*zip(results[1], results[6], strict=True), *zip(results[1], results[100], strict=True)]:
        for name in ("images", "labels", "z"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-12)
    assert [sorted(set(each)) for each in sizes.values()] == [[3], [3, 6], [3, 9]], "{} and w = 1.5 are batches alone"
    assert len({sum(each) for each in sizes.values()}) == 1, "the same evaluations per image"


def test_interventions_and_labels_are_normalised_once() -> None:
    oracle = Oracle(needs_labels=True)
    counterfactuals = engine(5, oracle)
    assert counterfactuals.act({"size": 6.0, "grey": 250.0}) == {"size": 1.0, "grey": 2.0}
    labels = torch.tensor([[4.0, 150.0], [6.0, 200.0], [2.0, 100.0]])
    counterfactuals.counterfactual(images(), {"size": 6.0}, labels=labels)
    assert oracle.interventions == [None, {"size": 1.0}]
    assert oracle.labels is not None and oracle.labels.tolist() == [[0.0, 0.0], [1.0, 1.0], [-1.0, -1.0]]


# ---------------------------------------------------------------------- conditions and guidance


@pytest.mark.parametrize("class_cond", [False, True])
def test_encoding_is_unguided_under_the_factual_z_and_decoding_guided_under_the_new_one(class_cond: bool) -> None:
    oracle = Oracle(class_cond)
    counterfactuals = engine(5, oracle, guidance=Guidance(2.5))
    abducted = counterfactuals.abduct(images(), CLASSES)
    result = counterfactuals.predict(abducted, [{"size": 6.0}])[0]
    assert [len(conditions) for conditions in oracle.conditions] == [1] * 5 + [2] * 5
    assert all(conditions[0] is abducted.z for conditions in oracle.conditions[:5])
    assert all(torch.equal(z, result.z) and null is None for z, null in oracle.conditions[5:])  # type: ignore[arg-type]
    assert all(each is (CLASSES if class_cond else None) for each in oracle.classes)


@pytest.mark.parametrize("w", [0.0, 1.0, 1.5])
def test_guidance_scales_the_effect_of_an_intervention(w: float) -> None:
    found = engine(guidance=Guidance(w)).counterfactual(images(), {"size": 7.0}).images[:, 0].mean()
    assert abs(float(found) - GAIN * w * 1.5) < 0.05


def test_the_null_intervention_inverts_the_encoding_whatever_the_guidance() -> None:
    plain, guided = (engine(20, guidance=guidance).counterfactual(images(), {}) for guidance in (None, Guidance(1.7)))
    assert torch.equal(plain.images, guided.images)


def test_affected_and_invariant_variables_are_guided_separately() -> None:
    """w_affected = 0 is the reconstruction, 1 the counterfactual, and 0.5 their mean."""
    counterfactuals, do = engine(), {"grey": 250.0}
    abducted = counterfactuals.abduct(images())
    guidances = [Guidance(), Guidance(), *(Guidance(w_affected=w) for w in (0.0, 0.5, 1.0)), Guidance(w_invariant=0.0)]
    results = counterfactuals.predict(abducted, [{}, *[do] * 5], guidances)
    nothing, everything, none, half, whole, free = (each.images for each in results)
    assert torch.equal(whole, everything) and (everything - nothing).abs().max() > 0.05
    torch.testing.assert_close(none, nothing, rtol=0, atol=1e-6)
    torch.testing.assert_close(half, (nothing + everything) / 2, rtol=0, atol=1e-3)
    # The invariant channel forgets its mean; the affected one still moves by the change of the intervention.
    assert free[:, 0].mean(dim=(1, 2)).abs().max() < 0.02
    moved = (free - everything)[:, 1].mean(dim=(1, 2)).double()
    torch.testing.assert_close(moved, -GAIN * abducted.z[:, 1, 0], rtol=0, atol=0.02)


@pytest.mark.parametrize("rescaled", [False, True])
def test_the_guidance_interval_is_a_fraction_of_all_steps(rescaled: bool) -> None:
    """With eps = 0.001 inside of the interval and 0 outside, x_0 moves by 0.001 times the change of sigma / a there."""

    class NullAlone(Oracle):
        def model_outputs(self, x_t: Tensor, t: Tensor, conditions: Any, classes: Any = None) -> list[Tensor]:
            return [torch.full_like(x_t, 0.001 if z is None else 0.0) for z in conditions]

    betas = get_named_beta_schedule("linear", 500)
    process = SpacedDiffusion(space_timesteps(500, [50]), betas=betas, rescale_timesteps=rescaled)
    counterfactuals = CounterfactualEngine(NullAlone(), process, SPEC)  # type: ignore[arg-type]
    guidances = [Guidance(), Guidance(0.0, low=0.4, high=0.6)]
    plain, part = counterfactuals.predict(counterfactuals.abduct(images()), [{"grey": 250.0}] * 2, guidances)
    ratio = np.append(0.0, np.sqrt(1 / process.alphas_cumprod - 1))
    share = process.timestep_map / 500
    shift = 0.001 * np.diff(ratio)[(share >= 0.4) & (share <= 0.6)].sum()
    assert shift > 0.002
    torch.testing.assert_close(plain.images - part.images, torch.full((3, 2, 4, 4), shift), rtol=0, atol=1e-6)


# ---------------------------------------------------------------------- abduction and models without diffusion


@pytest.mark.parametrize(("solver", "steps"), [("", 100), ("dpmpp2m", 5)])
@pytest.mark.parametrize(("kind", "stop"), [("noise", 1.0), ("noise", 0.3), ("none", 1.0)])
def test_x_T_is_a_noised_image_or_plain_noise(kind: str, stop: float, solver: str, steps: int) -> None:
    x, seed = images(), 3
    counterfactuals = engine(steps, solver=solver, abduction=AbductionKind(kind), stop=stop)
    abducted = counterfactuals.abduct(x, generator=torch.Generator().manual_seed(seed))
    last = int(1000 * stop) - 1 if solver else sorted(space_timesteps(1000, [steps]))[round(stop * steps) - 1]
    alpha_bar = ALPHA_BAR[last] if kind == "noise" else 0.0
    expected = alpha_bar**0.5 * x + (1 - alpha_bar) ** 0.5 * normal(*x.shape, seed=seed)
    torch.testing.assert_close(abducted.x_T, expected)
    encoded = engine(steps, solver=solver).abduct(x)
    assert torch.equal(abducted.u, encoded.u) and torch.equal(abducted.z, encoded.z)


class WithLabels(Oracle):
    """Takes observed labels for the causal variables."""

    def abduct_given(self, x_start: Tensor, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        z = labels.to(x_start.dtype)[:, :, None]
        return torch.stack([z[:, 0], z[:, 1] - SLOPE * z[:, 0]], dim=1)


def test_observed_labels_replace_those_of_the_encoder_on_request() -> None:
    labels = torch.tensor([[3.0, 100.0], [5.0, 150.0], [6.0, 230.0]])
    read = engine(model=WithLabels()).abduct(images(), labels=labels)
    given = engine(model=WithLabels(), use_labels=True).abduct(images(), labels=labels)
    torch.testing.assert_close(SPEC.denormalise(given.z[:, :, 0]).float(), labels)
    assert not torch.allclose(read.z, given.z)
    with pytest.raises(
        InputError, match="labels: expected the labels of the images for abduction from labels, got none"
    ):
        engine(model=WithLabels(), use_labels=True).abduct(images())
    with pytest.raises(InputError, match="use_labels: expected a model whose latents are those of the labels"):
        engine(use_labels=True)


class WithBlocks(Oracle):
    """Size and grey can be dropped; channel i shows variable i, or 0 without it."""

    null_blocks = torch.full((2, 1), torch.nan)

    def drop_blocks(self, z: Tensor, keep_blocks: Tensor) -> Tensor:
        return torch.where(keep_blocks[..., None], z, torch.zeros_like(z))


def test_interventions_on_effects_keep_the_pixels_of_their_causes_on_request() -> None:
    counterfactuals = engine(model=WithBlocks(), keep_causes=NAMES)
    plain = engine(model=WithBlocks())
    abducted, x = counterfactuals.abduct(images()), images()
    effect, cause, both = counterfactuals.predict(abducted, [DOS[2], DOS[1], DOS[3]])
    for found, do in ((cause, DOS[1]), (both, DOS[3])):
        expected = plain.predict(plain.abduct(x), [do])[0]
        assert torch.equal(found.labels, expected.labels)
        assert torch.equal(found.images, expected.images), "no causes to drop"
    assert not torch.equal(effect.images, plain.predict(plain.abduct(x), [DOS[2]])[0].images)
    with pytest.raises(InputError, match="keep_causes: expected a model with null vectors of single variables"):
        engine(keep_causes=NAMES)


class Blind(WithBlocks):
    """Size does not show in the images, so it explains no pixel."""

    def model_outputs(
        self, x_t: Tensor, t: Tensor, conditions: Sequence[Tensor | None], classes: Tensor | None = None
    ) -> list[Tensor]:
        shown = [None if z is None else torch.stack([0 * z[:, 0], z[:, 1]], dim=1) for z in conditions]
        return super().model_outputs(x_t, t, shown, classes)


@pytest.mark.parametrize("options", [{}, {"residual": True}])
def test_an_effect_that_is_set_to_its_factual_value_changes_nothing(options: dict[str, Any]) -> None:
    """x_T is encoded again without the causes; under the former one the image would change."""
    counterfactuals = engine(100, Blind(), "dpmpp2m", keep_causes=NAMES, **options)
    abducted = counterfactuals.abduct(images())
    factual = counterfactuals.read_labels(abducted.z)[:, 1]
    same, other = counterfactuals.predict(abducted, [{"grey": factual}, {"grey": 187.5}])
    torch.testing.assert_close(same.images.double(), images(), rtol=0, atol=1e-6 if options else 2e-3)
    assert (other.images - images()).abs().mean() > 0.05, "grey is not explained by size"


def test_guidance_and_samples_of_the_prior_do_not_keep_causes() -> None:
    counterfactuals, plain = engine(5, WithBlocks(), keep_causes=NAMES), engine(5, WithBlocks())
    abducted = counterfactuals.abduct(images())
    for guidance in (Guidance(w=1.5), Guidance(w_affected=1.5), Guidance(w_invariant=1.5)):
        found, expected = (each.predict(abducted, [DOS[2]], [guidance])[0].images for each in (counterfactuals, plain))
        assert torch.equal(found, expected)
    drawn = replace(abducted, x_start=None, images=None)
    found, expected = (each.predict(drawn, [DOS[2]])[0].images for each in (counterfactuals, plain))
    assert torch.equal(found, expected)


def test_only_the_given_effects_are_decoded_without_their_causes() -> None:
    for names, do in ((["size"], DOS[2]), (["grey"], DOS[3])):  # the cause that is set as well is not dropped
        counterfactuals, plain = engine(5, WithBlocks(), keep_causes=names), engine(5, WithBlocks())
        abducted = counterfactuals.abduct(images())
        found, expected = (each.predict(abducted, [do])[0].images for each in (counterfactuals, plain))
        assert torch.equal(found, expected)


def test_pixels_that_the_causes_explain_are_those_of_the_image_also_with_the_residual() -> None:
    """The size of this image explains it all: grey is as good as missing."""
    x = torch.stack([torch.full((1, 4, 4), 0.6), torch.full((1, 4, 4), 0.001)], dim=1).double()
    counterfactuals = engine(5, WithBlocks(), keep_causes=NAMES)
    abducted = replace(counterfactuals.abduct(x), residual=torch.full_like(x, 0.1))
    torch.testing.assert_close(counterfactuals.predict(abducted, [DOS[2]])[0].images.double(), x, rtol=0, atol=1e-6)


class Local(Oracle):
    """The latents show in the left quarter of 12 x 12 pixels only, apart from a drift."""

    def model_outputs(
        self, x_t: Tensor, t: Tensor, conditions: Sequence[Tensor | None], classes: Tensor | None = None
    ) -> list[Tensor]:
        where = torch.tensor([1.0] * 3 + [0.02] * 9)
        means = [0.0 if z is None else GAIN * z[:, :, :, None] * where for z in conditions]
        return [gaussian_eps(x_t, *levels(SCHEDULE, t), mean, STD) for mean in means]


@pytest.mark.parametrize("pixel_range", [(-1.0, 1.0), (0.0, 1.0)])
def test_pixels_that_an_intervention_hardly_changes_are_kept_on_request(pixel_range: tuple[float, float]) -> None:
    x, options = images(12), {"pixel_range": pixel_range, "model": Local(), "residual": True}
    plain, kept = engine(20, **options), engine(20, keep_unchanged=0.5, **options)
    null, drawn = plain.predict(plain.abduct(x), [{}, DOS[1]])
    same, found = kept.predict(kept.abduct(x), [{}, DOS[1]])
    assert torch.equal(null.images, same.images), "the reconstruction is not an intervention"
    expected = keep_unchanged(drawn.images, x.float(), 0.5)
    torch.testing.assert_close(found.images, expected)
    torch.testing.assert_close(found.images[..., 6:], x[..., 6:].float())
    assert (drawn.images - x)[..., 6:].abs().max() > 1e-3 and torch.equal(found.labels, drawn.labels)


class Averaging:
    """An autoencoder that keeps the means of 2 x 2 pixels."""

    def encode(self, images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images, 2)

    def decode(self, codes: Tensor) -> Tensor:
        return codes.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def test_pixels_that_a_latent_model_keeps_are_those_of_the_image_with_all_its_details() -> None:
    x, options = images(24), {"model": Local(), "residual": True, "codec": Averaging(), "codec_residual": True}
    counterfactuals = engine(20, keep_unchanged=0.5, **options)
    found = counterfactuals.predict(counterfactuals.abduct(x), [DOS[1]])[0].images
    torch.testing.assert_close(found[..., 12:], x[..., 12:])
    assert (found - x)[..., :6].abs().min() > 0.01


@pytest.mark.parametrize("kind", ["noise", "none"])
def test_no_pixels_are_kept_of_images_that_were_not_encoded(kind: str) -> None:
    found = []
    for fraction in (0.0, 0.5):
        counterfactuals = engine(20, Local(), abduction=AbductionKind(kind), keep_unchanged=fraction)
        abducted = counterfactuals.abduct(images(12), generator=torch.Generator().manual_seed(0))
        found.append(counterfactuals.predict(abducted, [DOS[1]])[0].images)
    assert torch.equal(*found)


def test_causes_are_not_kept_where_the_class_is_set() -> None:
    found, abducted = [], None
    for options in ({"keep_causes": NAMES}, {}):
        model = WithBlocks(class_cond=True)
        counterfactuals = engine(5, model, guidance=Guidance(w_class=1.0), **options)
        counterfactuals.spec = replace(SPEC, num_classes=3, class_name="digit")
        abducted = counterfactuals.abduct(images(), CLASSES)
        model.classes.clear()
        found.append(counterfactuals.predict(abducted, [{"grey": 187.5, "digit": 2}])[0].images)
        assert all(torch.equal(each, torch.tensor([2, 2, 2])) for each in model.classes if each is not None)
    assert torch.equal(*found)


def test_partial_encoding_keeps_more_of_the_image() -> None:
    x, changes = images(), []
    for stop in (0.05, 0.3, 1.0):
        oracle = Oracle()
        result = engine(100, oracle, stop=stop).counterfactual(x, {"size": 7.0})
        assert len(oracle.conditions) == 2 * round(100 * stop)
        changes.append(float((result.images - x).abs().mean()))
    assert changes[0] < 0.5 * changes[1] < 0.5 * changes[2]


def test_obelm_reconstructs_exactly_from_its_pair_of_states() -> None:
    x, counterfactuals = images().clamp(-1, 1), engine(12, solver="obelm")
    abducted = counterfactuals.abduct(x)
    assert abducted.state is not None and abducted.state.x_before is not None
    torch.testing.assert_close(counterfactuals.predict(abducted, [{}])[0].images.double(), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("model", [Oracle, Direct])
def test_the_residual_makes_the_null_intervention_exact_and_is_added_to_every_result(model: type[Oracle]) -> None:
    x, counterfactuals = images().clamp(-1, 1), engine(5, model(), residual=True)
    abducted = counterfactuals.abduct(x)
    factual, moved = (each.images.double() for each in counterfactuals.predict(abducted, [{}, {"grey": 250.0}]))
    torch.testing.assert_close(factual, x, rtol=0, atol=1e-6)
    bare = counterfactuals.predict(replace(abducted, residual=None), [{"grey": 250.0}])[0].images.double()
    assert abducted.residual is not None and (moved != factual).any()
    torch.testing.assert_close(moved, (bare + abducted.residual).clamp(-1, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pixel_range", [(-1.0, 1.0), (0.0, 1.0)])
def test_a_model_without_diffusion_decodes_its_latents_in_its_own_range_of_pixels(
    pixel_range: tuple[float, float],
) -> None:
    direct = Direct(class_cond=True)
    (low, high), counterfactuals = pixel_range, engine(5, direct, pixel_range=pixel_range)
    abducted = counterfactuals.abduct(images(), CLASSES)
    seen = low + (high - low) * (images() + 1) / 2
    torch.testing.assert_close(abducted.z[:, :, 0], seen.mean(dim=(2, 3)) / GAIN)
    result = counterfactuals.predict(abducted, [{"grey": 250.0}])[0]
    assert abducted.x_T is None and direct.conditions == [] and direct.classes == [CLASSES]
    expected = 2 * (GAIN * 2.0 - low) / (high - low) - 1
    torch.testing.assert_close(result.images[:, 1], torch.full((3, 4, 4), expected))


def test_images_are_clipped_float32_without_gradient_and_bfloat16_is_near() -> None:
    engines = [engine(20, autocast=dtype) for dtype in (torch.bfloat16, None)]
    low, full = (each.counterfactual(3 * images().float(), {"size": 7.0}).images for each in engines)
    assert full.abs().max() == 1 and full.dtype == torch.float32 and not full.requires_grad
    assert (low - full).abs().max() < 0.05


# ---------------------------------------------------------------------- the class, and discrete variables


@pytest.mark.parametrize("solver", ["", "dpmpp2m"])
def test_the_image_is_encoded_under_its_class_and_decoded_under_the_new_one(solver: str) -> None:
    oracle = Oracle(class_cond=True)
    counterfactuals = engine(5, oracle, solver=solver, guidance=Guidance(w_class=1.0))
    counterfactuals.spec = replace(SPEC, num_classes=3, class_name="digit")
    abducted = counterfactuals.abduct(images(), CLASSES)
    assert all(torch.equal(seen, CLASSES) for seen in oracle.classes if seen is not None)
    oracle.classes.clear()
    dos = [{"digit": 2}, {"digit": torch.tensor([2, 0, 1]), "size": 6.0}, {"size": 6.0}]
    only_class, both, only_size = counterfactuals.predict(abducted, dos)
    expected = [torch.cat([torch.tensor([2, 2, 2]), torch.tensor([2, 0, 1])]), CLASSES]
    seen = [each for each in oracle.classes if each is not None]
    assert len(seen) == 10 and all(torch.equal(each, expected[i >= 5]) for i, each in enumerate(seen))
    assert torch.equal(only_class.z, abducted.z) and torch.equal(both.z, only_size.z)
    assert counterfactuals.act({"digit": 2}) == {}
    alone = counterfactuals.predict(abducted, [dos[1]])[0]
    torch.testing.assert_close(alone.images, both.images)


def test_a_class_that_is_set_is_guided_away_from_the_factual_one() -> None:
    oracle = Oracle(class_cond=True)
    counterfactuals = engine(5, oracle)
    counterfactuals.spec = replace(SPEC, num_classes=3, class_name="digit")
    abducted = counterfactuals.abduct(images(), CLASSES)
    oracle.classes.clear()
    counterfactuals.predict(abducted, [{"digit": 2}, {"size": 6.0}])
    seen = [each for each in oracle.classes if each is not None]
    assert len(seen) == 3 * 5  # both classes under do(digit), one under do(size)
    assert all(torch.equal(each, CLASSES if i % 2 else torch.full((3,), 2)) for i, each in enumerate(seen[:10]))
    assert all(torch.equal(each, CLASSES) for each in seen[10:])


def test_the_class_is_not_guided_where_x_T_was_not_encoded_under_another_one() -> None:
    for abduction, drops_images in ((AbductionKind.NOISE, False), (AbductionKind.DDIM, True)):
        oracle = Oracle(class_cond=True)
        counterfactuals = engine(5, oracle, abduction=abduction)
        counterfactuals.spec = replace(SPEC, num_classes=3, class_name="digit")
        abducted = counterfactuals.abduct(images(), CLASSES, torch.Generator().manual_seed(0))
        oracle.classes.clear()
        counterfactuals.predict(replace(abducted, x_start=None) if drops_images else abducted, [{"digit": 2}])
        assert len([each for each in oracle.classes if each is not None]) == 5


class Recorded:
    """Decodes the second image again, with `size` shifted by one label unit; records its arguments."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def apply(self, *arguments: Any) -> Tensor:
        *given, decode = arguments
        self.calls.append(tuple(given))
        drawn = decode(torch.tensor([1]), torch.tensor([[1.0, 0.0]], dtype=torch.float64))
        return torch.stack([given[0][0], drawn[0], given[0][2]])


def test_a_correction_decodes_chosen_images_again_with_shifted_labels() -> None:
    correction, abducted = Recorded(), None
    counterfactuals = engine(30, correction=correction)
    abducted = counterfactuals.abduct(images())
    null, corrected = counterfactuals.predict(abducted, [{}, {"size": 4.0}])
    plain = engine(30)
    before, asked, null_before = plain.predict(abducted, [{"size": 4.0}, {"size": 5.0, "grey": 0.0}, {}])
    torch.testing.assert_close(null.images, null_before.images)
    assert len(correction.calls) == 1  # not for the null intervention
    decoded, labels, mask, reference, classes = correction.calls[0]
    torch.testing.assert_close(decoded, before.images)
    assert reference is decoded and classes is None
    torch.testing.assert_close(labels, before.labels)
    assert torch.equal(mask, torch.ones(3, 2, dtype=torch.bool))
    torch.testing.assert_close(corrected.images[[0, 2]], before.images[[0, 2]])
    shift = (corrected.images - before.images)[1].mean(dim=(1, 2))
    assert torch.equal(corrected.labels, before.labels)  # those of the structural model
    expected = (asked.images - before.images)[1, 0].mean()
    torch.testing.assert_close(shift, torch.stack([expected, torch.zeros_like(expected)]), atol=1e-6, rtol=1e-6)


def test_what_an_intervention_does_not_change_is_corrected_only_where_it_sets_the_class() -> None:
    correction = Recorded()
    counterfactuals = engine(5, Oracle(class_cond=True), correction=correction)
    counterfactuals.spec = replace(SPEC, num_classes=3, class_name="digit")
    abducted = counterfactuals.abduct(images(), CLASSES)
    dos = [
        {"grey": 150.0},
        {"digit": 2},
        {"digit": torch.tensor([2, 0, 1]), "grey": 200.0},
    ]
    results = counterfactuals.predict(abducted, dos)
    (_, *alone), (_, *of_class), (_, *both) = correction.calls
    assert alone[0][:, 0].isnan().all() and torch.equal(alone[0][:, 1], results[0].labels[:, 1])
    assert alone[1].tolist() == [[False, True]] * 3 and torch.equal(alone[3], CLASSES)
    assert of_class[0].isnan().all() and of_class[1].all() and torch.equal(of_class[3], torch.tensor([2, 2, 2]))
    torch.testing.assert_close(of_class[2], images())  # the reference is the factual image
    assert both[0][:, 0].isnan().all() and both[1].all() and torch.equal(both[3], torch.tensor([2, 0, 1]))


def test_samples_and_models_without_x_start_are_not_corrected() -> None:
    correction = Recorded()
    counterfactuals = engine(5, correction=correction)
    abducted = replace(counterfactuals.abduct(images()), x_start=None, images=None)
    counterfactuals.predict(abducted, [{"size": 4.0}])
    assert correction.calls == []


def test_pixels_and_residuals_of_images_that_are_decoded_again() -> None:
    for options in ({"residual": True}, {"keep_causes": NAMES}, {"pixel_range": (0.0, 1.0)}):
        model = WithBlocks() if "keep_causes" in options else Oracle()
        plain = engine(5, model, **options)  # type: ignore[arg-type]
        abducted = plain.abduct(images())
        corrected = engine(5, model, correction=Recorded(), **options)  # type: ignore[arg-type]
        found = corrected.predict(abducted, [{"grey": 150.0}])[0]
        expected = plain.predict(abducted, [{"grey": 150.0}])[0]
        torch.testing.assert_close(found.images[[0, 2]], expected.images[[0, 2]])
        changed = found.images[1] - expected.images[1]
        assert changed[0].abs().max() > 0.01 or "keep_causes" in options
        torch.testing.assert_close(changed[1], torch.zeros_like(changed[1]))


def test_the_class_is_only_set_in_models_that_are_conditioned_on_it() -> None:
    counterfactuals = engine(5)
    counterfactuals.spec = replace(SPEC, num_classes=3, class_name="digit")
    with pytest.raises(InputError, match="do: digit: expected a model that is conditioned on the class, got one that"):
        counterfactuals.counterfactual(images(), {"digit": 2})


HAT = replace(
    SPEC, kinds=("continuous", "categorical"), categories=((), ("none", "cap", "straw")), low=(1, 0), high=(7, 2)
)


class WithHat(Oracle):
    """`grey` is a hat that the encoder reads with rounding; the draw and the most probable category differ."""

    def __init__(self) -> None:
        super().__init__()
        self.discrete, self.generators = True, []

    def abduct(self, x_start: Tensor, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        self.generators.append(generator)
        return super().abduct(x_start)

    def predict(self, u: Tensor, do: Do | None = None, most_probable: bool = False) -> Tensor:
        hat = HAT.normalise(torch.tensor([0.0, 2.0 if most_probable else 1.0]))[1] * 1.0000001
        return torch.stack([u[:, 0], torch.full_like(u[:, 0], float(hat))], dim=1)


@pytest.mark.parametrize("most_probable", [False, True])
def test_labels_of_discrete_models_are_exactly_those_of_categories(most_probable: bool) -> None:
    oracle = WithHat()
    counterfactuals = engine(5, oracle, most_probable=most_probable)
    counterfactuals.spec = HAT
    generator = torch.Generator().manual_seed(3)
    abducted = counterfactuals.abduct(images().float(), generator=generator)
    assert oracle.generators == [generator], "the noise of categories is drawn with the seed of the caller"
    result = counterfactuals.predict(abducted, [{"size": 6.0}])[0]
    assert result.labels[:, 1].tolist() == [2.0 if most_probable else 1.0] * 3


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"stop": stop}, r"stop: expected a fraction in \(0, 1\]") for stop in (0.0, -1.0, 1.5, float("nan"))),
        ({"stop": 0.5, "abduction": AbductionKind.NONE}, "stop: expected 1 with abduction 'none'"),
        ({"rescale_quantile": 1.5}, "rescale_quantile: expected a number between 0 and 1, got 1.5"),
        ({"keep_unchanged": -0.1}, "keep_unchanged: expected a number between 0 and 1, got -0.1"),
        ({"keep_unchanged": float("nan")}, "keep_unchanged: expected a number between 0 and 1, got nan"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        engine(5, **options)


@pytest.mark.parametrize(("needs", "message"), [
    ({"needs_labels": True}, "labels: expected the labels of the images for a model without an encoder, got none"),
    ({"class_cond": True}, "classes: expected the classes of the images for a class-conditional model, got none"),
])  # fmt: skip
def test_missing_labels_and_classes_are_refused(needs: dict[str, bool], message: str) -> None:
    with pytest.raises(InputError, match=message):
        engine(5, Oracle(**needs)).abduct(images())


@pytest.mark.parametrize("name", ["labels", "classes"])
def test_labels_and_classes_are_one_per_image(name: str) -> None:
    given = {"labels": torch.ones(1, 2), "classes": torch.zeros(1, dtype=torch.long)}
    oracle = Oracle(needs_labels=name == "labels", class_cond=name == "classes")
    with pytest.raises(InputError, match=f"{name}: expected {len(images())}, one per image, got 1"):
        engine(5, oracle).abduct(images(), **{name: given[name]})


def test_an_image_without_a_label_is_refused_by_models_that_use_labels_only() -> None:
    labels = torch.tensor([[4.0, 150.0]]).repeat(len(images()), 1)
    labels[1, 0] = torch.nan
    with pytest.raises(InputError, match="labels: image 1 has no value of 'size'; this model needs"):
        engine(5, Oracle(needs_labels=True)).abduct(images(), labels=labels)
    assert engine(5).abduct(images(), labels=labels).u.isfinite().all()


def test_unknown_variables_and_values_are_refused_and_extrapolation_warns() -> None:
    counterfactuals = engine(5)
    abducted = counterfactuals.abduct(images())
    with pytest.raises(InputError, match="do: expected one of .*, got 'c'"):
        counterfactuals.predict(abducted, [{"size": 6.0}, {"c": 1.0}])
    with pytest.raises(InputError, match="do: size: expected a finite number, got nan"):
        counterfactuals.predict(abducted, [{"size": float("nan")}])
    with pytest.warns(UserWarning, match="do: size=99 is outside the range of the training labels, 1..7"):
        counterfactuals.act({"size": 99.0})
