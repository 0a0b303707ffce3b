"""The three steps on images whose best decoder has a closed form, so that the true counterfactual is known."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from causaldiffae.counterfactual import AbductionKind, CounterfactualEngine
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import get_named_beta_schedule
from causaldiffae.graphs import CausalGraph
from causaldiffae.guidance import Guidance
from causaldiffae.respace import SpacedDiffusion, space_timesteps
from causaldiffae.scm import Do
from causaldiffae.solvers import NoiseSchedule, OdeSolver

STD, GAIN, SLOPE = 0.2, 0.2, 0.5
BETAS = get_named_beta_schedule("linear", 1000)
SCHEDULE = NoiseSchedule((1 - BETAS).cumprod())
SPEC = DatasetSpec(
    name="plain",
    image_size=4,
    channels=2,
    graph=CausalGraph(("a", "b"), (("a", "b"),)),
    shift=(10.0, -3.0),
    scale=(2.0, 4.0),
    low=(4.0, -15.0),
    high=(16.0, 9.0),
)


def alpha_bar_at(t: Tensor) -> Tensor:
    """alpha-bar at whole or fractional steps."""
    if not t.is_floating_point():
        return torch.as_tensor((1 - BETAS).cumprod())[t]
    return torch.as_tensor(SCHEDULE.signal_and_noise(t.double().numpy())[0] ** 2)


class Oracle:
    """Channel i of an image is Gaussian around GAIN * z_i; b = SLOPE * a + its noise. Everything is known exactly."""

    def __init__(self, class_cond: bool = False, needs_labels: bool = False) -> None:
        self.class_cond, self.needs_labels, self.unconditional_abduction = class_cond, needs_labels, False
        self.asked: list[Do | None] = []
        self.conditions: list[list[Tensor | None]] = []
        self.classes: list[Tensor | None] = []
        self.labels: Tensor | None = None

    def abduct(self, x_start: Tensor, labels: Tensor | None = None) -> Tensor:
        self.labels = labels
        z = x_start.mean(dim=(2, 3))[:, :, None] / GAIN
        return torch.stack([z[:, 0], z[:, 1] - SLOPE * z[:, 0]], dim=1)

    def predict(self, u: Tensor, do: Do | None = None) -> Tensor:
        self.asked.append(do)
        do = do or {}
        a = torch.full_like(u[:, 0], do["a"]) if "a" in do else u[:, 0]
        b = torch.full_like(u[:, 1], do["b"]) if "b" in do else SLOPE * a + u[:, 1]
        return torch.stack([a, b], dim=1)

    def read_labels(self, z: Tensor) -> Tensor:
        return z.mean(dim=-1)

    def model_outputs(
        self, x_t: Tensor, t: Tensor, conditions: Sequence[Tensor | None], classes: Tensor | None = None
    ) -> list[Tensor]:
        self.conditions.append(list(conditions))
        self.classes.append(classes)
        alpha_bar = alpha_bar_at(t).reshape(-1, 1, 1, 1)
        results = []
        for z in conditions:
            mean = 0.0 if z is None else GAIN * z[:, :, :, None]  # linear in z, so grading eps grades the mean
            results.append(
                (1 - alpha_bar).sqrt() * (x_t - alpha_bar.sqrt() * mean) / (alpha_bar * STD**2 + 1 - alpha_bar)
            )
        return results


def images(batch: int = 3) -> Tensor:
    """Images whose channel means are exactly GAIN * z for some z."""
    generator = torch.Generator().manual_seed(0)
    noise = STD * torch.randn(batch, 2, 4, 4, generator=generator, dtype=torch.float64)
    z = torch.randn(batch, 2, generator=generator, dtype=torch.float64)
    return noise - noise.mean(dim=(2, 3), keepdim=True) + GAIN * z[:, :, None, None]


def engine(steps: int = 200, model: Oracle | None = None, **kwargs: object) -> CounterfactualEngine:
    diffusion = SpacedDiffusion(space_timesteps(1000, [steps]), betas=BETAS)
    return CounterfactualEngine(model or Oracle(), diffusion, SPEC, **kwargs)  # type: ignore[arg-type]


def normalised(a: float) -> float:
    return (a - SPEC.shift[0]) / SPEC.scale[0]


def test_no_intervention_returns_the_image() -> None:
    x, errors = images(), []
    for steps in (50, 200):
        result = engine(steps).counterfactual(x, {})
        errors.append(float((result.images - x).abs().max()))
    assert errors[1] < 0.04
    assert errors[1] < 0.5 * errors[0]
    z = x.mean(dim=(2, 3)) / GAIN
    torch.testing.assert_close(result.labels, SPEC.denormalise(z))


def test_intervening_on_the_cause_moves_the_effect() -> None:
    x, oracle = images(), Oracle()
    result = engine(model=oracle).counterfactual(x, {"a": 12.0})
    shift = GAIN * (normalised(12.0) - x[:, :1].mean(dim=(2, 3), keepdim=True) / GAIN)
    true = x + torch.cat([shift, SLOPE * shift], dim=1)
    assert (result.images - true.clamp(-1, 1)).abs().max() < 0.04
    assert shift.abs().min() > 0.05
    torch.testing.assert_close(result.labels[:, 0], torch.full((3,), 12.0, dtype=torch.float64))


def test_intervening_on_the_effect_leaves_the_cause() -> None:
    x = images()
    reconstructed, moved = engine().predict(engine().abduct(x), [{}, {"b": 5.0}])
    assert torch.equal(moved.images[:, 0], reconstructed.images[:, 0])
    assert torch.equal(moved.labels[:, 0], reconstructed.labels[:, 0])
    assert (moved.labels[:, 1] == 5.0).all()
    torch.testing.assert_close(
        moved.images[:, 1].mean(dim=(1, 2)), torch.full((3,), GAIN * (5.0 + 3.0) / 4.0), rtol=0, atol=0.02
    )


def test_doing_the_factual_is_the_reconstruction() -> None:
    x = images(1)
    asked = engine()
    abducted = asked.abduct(x)
    factual = SPEC.denormalise(abducted.z.mean(-1))[0].tolist()
    reconstructed, done = asked.predict(abducted, [{}, {"a": factual[0], "b": factual[1]}])
    torch.testing.assert_close(done.images, reconstructed.images, rtol=0, atol=1e-9)


def test_one_abduction_serves_every_intervention() -> None:
    x, asked = images(), engine(20)
    interventions = [{}, {"a": 12.0}, {"b": 0.0}, {"a": 8.0, "b": 4.0}]
    shared = asked.predict(asked.abduct(x), interventions)
    for do, result in zip(interventions, shared, strict=True):
        alone = asked.counterfactual(x, do)
        for name in ("images", "labels", "z"):
            assert torch.equal(getattr(result, name), getattr(alone, name))


@pytest.mark.parametrize("solver", ["ddim", "dpmpp2m", "obelm"])
def test_interventions_are_decoded_as_one_batch_of_bounded_size(solver: str) -> None:
    process = SpacedDiffusion(space_timesteps(1000, [10]), betas=BETAS)
    x, classes = images(), torch.tensor([0, 1, 2])
    dos = [{}, {"a": 12.0}, {"b": 0.0}, {"a": 8.0, "b": 4.0}, {"a": 9.0}]
    grades = [Guidance(), Guidance(), Guidance(), Guidance(), Guidance(w=1.5)]
    answers, decoded = {}, {}
    for rows in (1, 6, 100):
        oracle = Oracle(class_cond=True)
        chosen = process if solver == "ddim" else OdeSolver(process, solver, steps=10)
        asked = CounterfactualEngine(oracle, chosen, SPEC, residual=True, pixels=rows * 16)
        abducted = asked.abduct(x, classes)
        oracle.conditions.clear(), oracle.classes.clear()
        answers[rows] = asked.predict(abducted, dos, grades)
        decoded[rows] = [len(conditions[0]) for conditions in oracle.conditions if conditions[0] is not None]
        expected = [classes.repeat(count // 3) for count in decoded[rows]]
        assert all(torch.equal(a, b) for a, b in zip(oracle.classes, expected, strict=True))
    for rows in (6, 100):
        for one, other in zip(answers[rows], answers[1], strict=True):
            for name in ("images", "labels", "z"):
                torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-12)
    assert [sorted(set(sizes)) for sizes in decoded.values()] == [[3], [3, 6], [3, 9]], "{} and w = 1.5 go alone"
    assert sum(decoded[1]) == sum(decoded[6]) == sum(decoded[100]), "the same evaluations per image"


def test_do_is_normalised_once() -> None:
    oracle = Oracle()
    asked = engine(5, oracle)
    assert asked.act({"a": 12.0, "b": 5.0}) == {"a": 1.0, "b": 2.0}
    asked.counterfactual(images(), {"a": 12.0})
    assert oracle.asked[0] is None, "the factual z is asked for without an intervention"
    assert oracle.asked[-1] == {"a": 1.0}


def test_encoding_is_not_guided_and_decoding_is() -> None:
    oracle, classes = Oracle(class_cond=True), torch.tensor([0, 1, 2])
    engine(5, oracle, guidance=Guidance(2.5)).counterfactual(images(), {"a": 12.0}, classes)
    assert [len(conditions) for conditions in oracle.conditions] == [1] * 5 + [2] * 5
    assert all(conditions[1] is None for conditions in oracle.conditions[5:])
    assert all(each is classes for each in oracle.classes)


def test_labels_are_needed_exactly_where_the_model_takes_them() -> None:
    x, oracle = images(), Oracle(needs_labels=True)
    with pytest.raises(InputError, match="labels: expected the labels of the images"):
        engine(5, oracle).abduct(x)
    engine(5, oracle).counterfactual(x, {"a": 12.0}, labels=torch.tensor([[10.0, -3.0], [12.0, 1.0], [8.0, -7.0]]))
    assert oracle.labels is not None
    assert oracle.labels.tolist() == [[0.0, 0.0], [1.0, 1.0], [-1.0, -1.0]], "normalised once"


def test_classes_are_needed_exactly_where_the_model_takes_them() -> None:
    oracle = Oracle()
    engine(5, oracle).counterfactual(images(), {"a": 12.0}, torch.tensor([0, 1, 2]))
    assert oracle.classes == [None] * 10
    with pytest.raises(InputError, match="classes: expected the classes of the images"):
        engine(5, Oracle(class_cond=True)).abduct(images())


def test_grading_strengthens_the_intervention() -> None:
    x = images()
    means = [
        float(
            engine(guidance=Guidance(w)).counterfactual(x, {"a": 14.0}).images[:, 0].mean()
            - GAIN * w * normalised(14.0)
        )
        for w in (0.0, 1.0, 1.5)
    ]
    assert max(map(abs, means)) < 0.05


def test_decoding_goes_under_the_counterfactual_z_and_encoding_under_the_factual() -> None:
    oracle = Oracle()
    asked = engine(5, oracle)
    abducted = asked.abduct(images())
    result = asked.predict(abducted, [{"a": 12.0}])[0]
    assert all(torch.equal(conditions[0], abducted.z) for conditions in oracle.conditions[:5])  # type: ignore[arg-type]
    assert all(torch.equal(conditions[0], result.z) for conditions in oracle.conditions[5:])  # type: ignore[arg-type]
    assert len(oracle.conditions) == 10
    assert not torch.equal(abducted.z, result.z)


def test_affected_and_invariant_variables_have_weights_of_their_own() -> None:
    """w_affected = 0 is the reconstruction, 1 the counterfactual, and a half of it half the way."""
    x, asked, do = images(), engine(), {"b": 5.0}
    abducted = asked.abduct(x)
    nothing, everything = asked.predict(abducted, [{}, do])
    none, half, whole = asked.predict(
        abducted, [do] * 3, [Guidance(w_affected=0.0), Guidance(w_affected=0.5), Guidance(w_affected=1.0)]
    )
    assert torch.equal(whole.images, everything.images)
    torch.testing.assert_close(none.images, nothing.images, rtol=0, atol=1e-6)
    middle = (nothing.images + everything.images) / 2
    torch.testing.assert_close(half.images, middle, rtol=0, atol=1e-3)
    assert (everything.images - nothing.images).abs().max() > 0.05
    free = asked.predict(abducted, [do], [Guidance(w_affected=1.0, w_invariant=0.0)])[0]
    # The invariant channel forgets its mean, the affected one still moves by what the intervention changes.
    assert free.images[:, 0].mean(dim=(1, 2)).abs().max() < 0.02
    moved = (free.images - everything.images)[:, 1].mean(dim=(1, 2))
    expected = -GAIN * abducted.z[:, 1, 0]
    torch.testing.assert_close(moved.double(), expected, rtol=0, atol=0.02)


def test_partial_encoding_keeps_more_of_the_image() -> None:
    x, do = images(), {"a": 14.0}
    shifts = []
    for stop in (0.05, 0.3, 1.0):
        oracle = Oracle()
        result = engine(100, oracle, stop=stop).counterfactual(x, do)
        assert len(oracle.conditions) == 2 * round(100 * stop)
        shifts.append(float((result.images - x).abs().mean()))
    assert shifts[0] < 0.5 * shifts[1] and shifts[1] < shifts[2]
    noised = engine(100, abduction=AbductionKind.NOISE, stop=0.3).abduct(x, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    level = float(engine(100).solver.diffusion.alphas_cumprod[29])
    torch.testing.assert_close(noised.x_T, level**0.5 * x + (1 - level) ** 0.5 * noise)
    for stop in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="stop: expected a fraction in \(0, 1\]"):
            engine(5, stop=stop)
    with pytest.raises(InputError, match="stop: expected 1 with abduction 'none'"):
        engine(5, stop=0.5, abduction=AbductionKind.NONE)


class Painter(Oracle):
    """Draws from the latents alone."""

    def decode(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        self.classes.append(classes)
        return (GAIN * z[:, :, :, None]).expand(-1, -1, 4, 4)


def test_a_model_without_diffusion_is_asked_for_its_picture() -> None:
    painter, x, classes = Painter(class_cond=True), images(), torch.tensor([0, 1, 2])
    asked = engine(5, painter)
    abducted = asked.abduct(x, classes)
    assert abducted.x_T is None
    result = asked.predict(abducted, [{"b": 5.0}])[0]
    assert painter.conditions == []
    assert painter.classes == [classes]
    torch.testing.assert_close(result.images[:, 1], torch.full((3, 4, 4), GAIN * 2.0))


def test_pixels_of_another_range() -> None:
    class Unit(Oracle):
        """Sees images in [0, 1]."""

        def abduct(self, x_start: Tensor, labels: Tensor | None = None) -> Tensor:
            assert x_start.min() >= 0 and x_start.max() <= 1
            return super().abduct(x_start)

    x = images().clamp(-1, 1)
    result = engine(200, Unit(), pixel_range=(0.0, 1.0)).counterfactual(x, {})
    assert (result.images - x).abs().max() < 0.1
    painter = Painter()
    shown = engine(5, painter, pixel_range=(0.0, 1.0)).counterfactual(x, {"b": 5.0})
    torch.testing.assert_close(shown.images[:, 1], torch.full((3, 4, 4), 2 * GAIN * 2.0 - 1))


def test_kinds_of_abduction() -> None:
    x = images()
    alpha_bar = float(engine().solver.diffusion.alphas_cumprod[-1])
    ddim = engine().abduct(x)
    assert torch.equal(ddim.x_T, engine().abduct(x).x_T)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    none = engine(abduction=AbductionKind.NONE).abduct(x, generator=torch.Generator().manual_seed(3))
    assert torch.equal(none.x_T, noise)
    noised = engine(abduction=AbductionKind.NOISE).abduct(x, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(noised.x_T, alpha_bar**0.5 * x + (1 - alpha_bar) ** 0.5 * noise)
    for abducted in (none, noised):
        assert torch.equal(abducted.u, ddim.u)
        assert torch.equal(abducted.z, ddim.z)
    assert AbductionKind("noise") is AbductionKind.NOISE


def test_images_are_clipped_and_gradient_free() -> None:
    result = engine(20).counterfactual(images(), {"a": 16.0})
    assert result.images.abs().max() <= 1
    assert not result.images.requires_grad
    assert result.images.dtype == torch.float32


def test_low_precision_is_near() -> None:
    x = images().float()
    low = engine(20, autocast=torch.bfloat16).counterfactual(x, {"a": 12.0})
    full = engine(20).counterfactual(x, {"a": 12.0})
    assert (low.images - full.images).abs().max() < 0.05


def test_refused_interventions() -> None:
    asked = engine(5)
    abducted = asked.abduct(images())
    with pytest.raises(InputError, match="do: unknown variable 'c'"):
        asked.predict(abducted, [{"a": 12.0}, {"c": 1.0}])
    with pytest.raises(InputError, match="do: "):
        asked.predict(abducted, [{"a": float("nan")}])
    with pytest.warns(UserWarning, match="do: a=99 is outside the range of the training labels"):
        asked.act({"a": 99.0})


@pytest.mark.parametrize("kind", ["ddim", "dpmpp2m", "obelm"])
def test_solvers_give_the_same_counterfactual(kind: str) -> None:
    x, do = images(), {"a": 12.0}
    exact = engine(1000).counterfactual(x, do).images
    solver = OdeSolver(SpacedDiffusion(range(1000), betas=BETAS), kind, "logsnr", 100)
    result = CounterfactualEngine(Oracle(), solver, SPEC).counterfactual(x, do)  # type: ignore[arg-type]
    assert (result.images - exact).abs().max() < (0.03 if kind == "ddim" else 0.01)


def test_o_belm_keeps_its_pair_between_the_steps() -> None:
    x = images().clamp(-1, 1)
    solver = OdeSolver(SpacedDiffusion(range(1000), betas=BETAS), "obelm", "rho", 12)
    asked = CounterfactualEngine(Oracle(), solver, SPEC)  # type: ignore[arg-type]
    abducted = asked.abduct(x)
    assert abducted.state is not None and abducted.state.x_before is not None
    torch.testing.assert_close(asked.predict(abducted, [{}])[0].images.double(), x, rtol=0, atol=1e-6)


def test_the_residual_makes_the_null_intervention_exact() -> None:
    x = images().clamp(-1, 1)
    for asked in (engine(5, residual=True), engine(5, Painter(), residual=True)):
        abducted = asked.abduct(x)
        nothing, moved = asked.predict(abducted, [{}, {"b": 5.0}])
        torch.testing.assert_close(nothing.images.double(), x, rtol=0, atol=1e-6)
        assert abducted.residual is not None and (moved.images != nothing.images).any()
        bare = asked.predict(replace(abducted, residual=None), [{"b": 5.0}])[0]
        torch.testing.assert_close(
            moved.images.double(), (bare.images.double() + abducted.residual).clamp(-1, 1), rtol=0, atol=1e-6
        )


def test_noise_of_a_solver_has_the_level_of_its_end() -> None:
    x = images()
    diffusion = SpacedDiffusion(range(1000), betas=BETAS)
    for stop in (1.0, 0.5):
        asked = CounterfactualEngine(
            Oracle(),  # type: ignore[arg-type]
            OdeSolver(diffusion, steps=5),
            SPEC,
            AbductionKind.NOISE,
            stop=stop,
        )
        abducted = asked.abduct(x, generator=torch.Generator().manual_seed(3))
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
        level = float(diffusion.alphas_cumprod[int(1000 * stop) - 1])
        torch.testing.assert_close(abducted.x_T, level**0.5 * x + (1 - level) ** 0.5 * noise)


@pytest.mark.parametrize("rescaled", [False, True])
def test_an_interval_of_noise_levels_is_a_share_of_all_steps(rescaled: bool) -> None:
    """The network sees 0..T, or 0..1000 where steps are rescaled; the interval is a share of either."""
    x, betas = images(), get_named_beta_schedule("linear", 500)
    diffusion = SpacedDiffusion(space_timesteps(500, [50]), betas=betas, rescale_timesteps=rescaled)
    levels: list[float] = []

    class Watcher(Oracle):
        """The output under the null token shows whether it was used."""

        def model_outputs(
            self, x_t: Tensor, t: Tensor, conditions: Sequence[Tensor | None], classes: Tensor | None = None
        ) -> list[Tensor]:
            levels.append(float(t[0]) / (1000.0 if rescaled else 500.0))
            return [torch.full_like(x_t, 0.0 if z is not None else 0.02) for z in conditions]

    # Decoding a constant output: the null token's inside of the interval, that of z outside.
    engine = CounterfactualEngine(Watcher(), diffusion, SPEC)  # type: ignore[arg-type]
    abducted = engine.abduct(x)
    guidances = [Guidance(0.0, low=0.4, high=0.6), Guidance(), Guidance(0.0)]
    part, none, everywhere = (each.images for each in engine.predict(abducted, [{"b": 5.0}] * 3, guidances))
    assert not torch.equal(part, none) and not torch.equal(part, everywhere)
    assert max(levels) > 0.9 and min(levels) < 0.1
    share = float((part - none).abs().mean() / (everywhere - none).abs().mean())
    assert 0.02 < share < 0.6


def test_the_null_intervention_inverts_the_encoding_whatever_the_guidance_weight() -> None:
    """Encoding is unguided, so the reconstruction is too; only interventions are guided."""
    x, plain, guided = images(), engine(20), engine(20, guidance=Guidance(1.7))
    reconstructions = [each.predict(each.abduct(x), [{}])[0].images for each in (plain, guided)]
    assert torch.equal(*reconstructions)
