"""Guidance on a network whose output is linear in z, and dynamic thresholding of a network that knows x_0."""

from collections.abc import Sequence

import pytest
import torch
from closed_form import as_output
from tiny import normal
from torch import Tensor

from causaldiffae.errors import InputError
from causaldiffae.gaussian_diffusion import GaussianDiffusion, get_named_beta_schedule
from causaldiffae.graphs import CausalGraph
from causaldiffae.guidance import (
    Guidance,
    dropped_causes,
    effect_model_output,
    explained_pixels,
    guided_model_output,
    thresholded,
)
from causaldiffae.noise_schedule import ModelMeanType

B = 3
Z = normal(B, 2, 2, dtype=torch.float32)
FACTUAL = torch.stack([Z[:, 0] - 1.5, Z[:, 1]], dim=1)  # the first block is affected
X, T = torch.zeros(B, 1, 4, 4), torch.tensor([0, 500, 999])
OF_Z, OF_FACTUAL, OF_NULL = Z.sum(dim=(1, 2)), FACTUAL.sum(dim=(1, 2)), torch.full((B,), 100.0)


class LinearNetwork:
    """Outputs the sum of z, and 100 under the null token; records its conditions."""

    def __init__(
        self, null: float = 100.0, null_blocks: Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        self.null, self.null_blocks, self.dtype = null, null_blocks, dtype
        self.conditions: list[str] = []

    def drop_blocks(self, z: Tensor, keep_blocks: Tensor) -> Tensor:
        return torch.where(keep_blocks[..., None], z, self.null_blocks)

    def model_outputs(
        self, x_t: Tensor, t: Tensor, conditions: Sequence[Tensor | None], classes: Tensor | None = None
    ) -> list[Tensor]:
        names = {id(Z): "z", id(FACTUAL): "factual", id(None): "null"}
        self.conditions = [names.get(id(condition), "other") for condition in conditions]
        values = [torch.full((B,), self.null) if z is None else z.sum(dim=(1, 2)) for z in conditions]
        return [value.to(self.dtype).reshape(-1, 1, 1, 1).expand(x_t.shape) for value in values]


def guided(guidance: Guidance | None, factual: Tensor | None = None, T_max: float = 1000.0) -> tuple[Tensor, list[str]]:
    """The guided output at one pixel, (B,), and the conditions that were evaluated."""
    network = LinearNetwork()
    return guided_model_output(network, Z, None, guidance, factual, T_max)(X, T)[:, 0, 0, 0], network.conditions


@pytest.mark.parametrize("factual", [None, FACTUAL])
@pytest.mark.parametrize("guidance", [None, Guidance(), Guidance(1.0, 1.0, 1.0)])
def test_without_guidance_only_z_is_evaluated(guidance: Guidance | None, factual: Tensor | None) -> None:
    value, conditions = guided(guidance, factual)
    assert conditions == ["z"] and torch.equal(value, OF_Z)


@pytest.mark.parametrize("factual", [None, FACTUAL])
@pytest.mark.parametrize("w", [0.0, 0.25, 2.0, -1.0])
def test_one_weight_mixes_z_and_the_null_token(w: float, factual: Tensor | None) -> None:
    value, conditions = guided(Guidance(w), factual)
    torch.testing.assert_close(value, w * OF_Z + (1 - w) * OF_NULL)
    assert conditions == (["z", "null"] if w else ["null"])


@pytest.mark.parametrize(("affected", "invariant"), [(0.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.0), (1.5, 0.3)])
def test_affected_and_invariant_blocks_have_their_own_weights(affected: float, invariant: float) -> None:
    value, conditions = guided(Guidance(7.0, w_affected=affected, w_invariant=invariant), FACTUAL)
    expected = OF_NULL + invariant * (OF_FACTUAL - OF_NULL) + affected * (OF_Z - OF_FACTUAL)
    torch.testing.assert_close(value, expected)
    assert ("null" in conditions) == (invariant != 1.0) and ("z" in conditions) == (affected != 0.0)


class ClassNetwork(LinearNetwork):
    """Adds 10 times the class to the output."""

    def model_outputs(
        self, x_t: Tensor, t: Tensor, conditions: Sequence[Tensor | None], classes: Tensor | None = None
    ) -> list[Tensor]:
        assert classes is not None
        outputs = super().model_outputs(x_t, t, conditions, classes)
        return [output + 10.0 * classes.reshape(-1, 1, 1, 1) for output in outputs]


@pytest.mark.parametrize("w", [1.0, 2.0])
def test_the_change_of_the_class_has_its_own_weight(w: float) -> None:
    classes, factual = torch.tensor([3, 1, 2]), torch.tensor([1, 1, 4])
    for weight in (1.0, 1.5, 3.0):
        model = guided_model_output(
            ClassNetwork(), Z, classes, Guidance(w, w_class=weight), FACTUAL, classes_factual=factual
        )
        expected = w * OF_Z + (1 - w) * OF_NULL + 10.0 * (factual + weight * (classes - factual))
        torch.testing.assert_close(model(X, T)[:, 0, 0, 0], expected)


def test_the_class_is_guided_in_the_interval_and_only_where_it_changes() -> None:
    classes, factual = torch.tensor([3, 1, 2]), torch.tensor([1, 1, 4])
    limited = Guidance(low=0.4, high=0.6, w_class=2.0)  # the second image, of t = 500, keeps its class
    found = guided_model_output(ClassNetwork(), Z, classes, limited, FACTUAL, classes_factual=factual)(X, T)
    torch.testing.assert_close(found[:, 0, 0, 0], OF_Z + 10.0 * classes)
    inside = guided_model_output(ClassNetwork(), Z, classes, limited, FACTUAL, classes_factual=factual)(X, T * 0 + 500)
    torch.testing.assert_close(inside[:, 0, 0, 0], OF_Z + 10.0 * (2 * classes - factual))
    same = guided_model_output(ClassNetwork(), Z, classes, Guidance(), FACTUAL, classes_factual=classes.clone())(X, T)
    torch.testing.assert_close(same[:, 0, 0, 0], OF_Z + 10.0 * classes)


def test_weights_that_are_not_given_are_w() -> None:
    cases = (Guidance(2.0, w_affected=3.0), Guidance(2.0, w_invariant=1.0), Guidance(2.0))
    assert [(each.affected, each.invariant) for each in cases] == [(3.0, 2.0), (2.0, 1.0), (2.0, 2.0)]


@pytest.mark.parametrize(("factual", "w"), [(Z - 1.0, 1.5), (Z, 0.3)], ids=["all affected", "none affected"])
def test_a_weight_without_blocks_is_ignored(factual: Tensor, w: float) -> None:
    guidance = Guidance(w_affected=1.5, w_invariant=0.3)
    torch.testing.assert_close(guided(guidance, factual)[0], guided(Guidance(w))[0])


@pytest.mark.parametrize(("affected", "invariant"), [(1.0, 1.0), (2.0, 1.0), (1.0, 3.0), (2.0, 0.5)])
def test_with_null_blocks_the_weights_are_decoupled(affected: float, invariant: float) -> None:
    """For an output that is a sum over blocks, each part is scaled by its own weight, whatever the factual values."""
    network, guidance = LinearNetwork(null=0.0, null_blocks=torch.zeros(2, 2)), Guidance(9.0, affected, invariant)
    found = guided_model_output(network, Z, None, guidance, FACTUAL)(X, T)[:, 0, 0, 0]
    of_blocks = Z.sum(dim=2)
    torch.testing.assert_close(found, affected * of_blocks[:, 0] + invariant * of_blocks[:, 1])


@pytest.mark.parametrize(
    ("w", "low", "high", "T_max", "inside"),
    [
        (2.0, 0.4, 0.6, 1000.0, [False, True, False]),
        (0.0, 0.4, 1.0, 1000.0, [False, True, True]),
        (2.0, 0.4, 0.6, 2000.0, [False, False, True]),
    ],
)
def test_guidance_acts_only_inside_its_interval(
    w: float, low: float, high: float, T_max: float, inside: list[bool]
) -> None:
    value, conditions = guided(Guidance(w, low=low, high=high), T_max=T_max)
    torch.testing.assert_close(value, torch.where(torch.tensor(inside), w * OF_Z + (1 - w) * OF_NULL, OF_Z))
    assert conditions == ["z", "null"], "z is needed outside of the interval"


@pytest.mark.parametrize("w", [0.0, 1.0, 3.0])
def test_outside_the_interval_a_diff_scm_is_decoded_without_labels(w: float) -> None:
    """Its scale is w and 0 is no guidance: at the other levels, decoding inverts the encoding."""
    network = LinearNetwork()
    network.unconditional_abduction = True  # type: ignore[attr-defined]
    found = guided_model_output(network, Z, None, Guidance(w, low=0.4, high=0.6))(X, T)[:, 0, 0, 0]
    expected = torch.where(torch.tensor([False, True, False]), w * OF_Z + (1 - w) * OF_NULL, OF_NULL)
    torch.testing.assert_close(found, expected)
    separate = guided_model_output(network, Z, None, Guidance(w, 2.0, 1.0, low=0.4, high=0.6), FACTUAL)(X, T)
    torch.testing.assert_close(separate[::2, 0, 0, 0], OF_NULL[::2])


def test_low_precision_outputs_are_mixed_in_float32() -> None:
    low = LinearNetwork(dtype=torch.bfloat16)
    assert guided_model_output(low, Z, None, Guidance(2.0))(X, T).dtype == torch.float32
    assert guided_model_output(low, Z)(X, T).dtype == torch.bfloat16


def test_weights_that_are_not_finite_and_intervals_out_of_range_are_refused() -> None:
    for name in ("w", "w_affected", "w_invariant"):
        with pytest.raises(InputError, match=f"{name}: expected a finite number, got nan"):
            Guidance(**{name: float("nan")})
    for low, high in ((-0.1, 1.0), (0.0, 1.1), (0.7, 0.3), (float("nan"), 1.0)):
        with pytest.raises(InputError, match="guidance_interval: expected two numbers between 0 and 1 in ascending"):
            Guidance(low=low, high=high)


# ---------------------------------------------------------------------- dynamic thresholding

STEPS, IMAGES, NOISE = torch.tensor([0.0, 12.0, 40.5, 73.25, 99.0]), normal(5, 2, 4, 4), normal(5, 2, 4, 4, seed=1)


def test_weights_of_blocks_change_nothing_where_no_block_is_affected() -> None:
    network = LinearNetwork(null_blocks=torch.full_like(Z[0], 7.0))
    output = guided_model_output(network, Z, guidance=Guidance(1.0, 3.0, 1.0), z_factual=Z.clone())
    torch.testing.assert_close(output(X, T), guided_model_output(network, Z)(X, T))


@pytest.mark.parametrize("mean_type", ModelMeanType)
@pytest.mark.parametrize("outside", [False, True])
def test_thresholding_rescales_only_images_out_of_range(mean_type: ModelMeanType, outside: bool) -> None:
    process = GaussianDiffusion(betas=get_named_beta_schedule("linear", 100), model_mean_type=mean_type)
    schedule = process.noise_schedule
    level = schedule.level(STEPS, IMAGES)
    x_start = 3.0 * IMAGES if outside else IMAGES / IMAGES.abs().max()
    x_t = level.signal * x_start + level.noise * NOISE
    model = thresholded(lambda x, t: as_output(mean_type, x_start, NOISE, *level), schedule, 0.9)
    found = schedule.xstart(model(x_t, STEPS), x_t, level)
    bound = torch.quantile(x_start.flatten(1).abs(), 0.9, dim=1).clamp(min=1).reshape(-1, 1, 1, 1)
    assert (bound > 1).all() == outside
    torch.testing.assert_close(found, x_start.clamp(-bound, bound) / bound, rtol=1e-5, atol=1e-5)


def test_thresholding_keeps_a_learned_variance() -> None:
    schedule = GaussianDiffusion(betas=get_named_beta_schedule("linear", 100)).noise_schedule
    whole = normal(5, 4, 4, 4)
    found = thresholded(lambda x, t: 5 * whole, schedule, 0.9)(IMAGES, STEPS)
    assert found.shape == whole.shape and torch.equal(found[:, 2:], 5 * whole[:, 2:])


# ---------------------------------------------------------------------- interventions on effects

DROPPED = 99.0
A, REGION = torch.tensor([0.8, -0.6]), 6  # A: the causes a and b; REGION: columns of a variable


class Strips:
    """Predicts x_0 of images of three strips, which show the causes a and b and their effect e = a + b.

    A strip shows its variable if that is given, e also if both causes are; otherwise it is 0.
    """

    def drop_blocks(self, z: Tensor, keep_blocks: Tensor) -> Tensor:
        return torch.where(keep_blocks[..., None], z, torch.full_like(z, DROPPED))

    def model_outputs(
        self, x_t: Tensor, t: Tensor, conditions: Sequence[Tensor | None], classes: Tensor | None = None
    ) -> list[Tensor]:
        outputs = []
        for z in conditions:
            assert z is not None
            a, b, e = z[:, :, 0].unbind(1)
            known = [a != DROPPED, b != DROPPED, e != DROPPED]
            e = torch.where(known[0] & known[1], a + b, torch.where(known[2], e, 0.0))  # follows its causes
            strips = [torch.where(known[0], a, 0.0), torch.where(known[1], b, 0.0), e]
            image = torch.stack(strips, dim=1).repeat_interleave(REGION, dim=1)[:, None, None]
            outputs.append(image.expand(x_t.shape))
        return outputs


CAUSES = (True, True, False)
STRIPS = torch.stack([A, A, 2 * A], dim=1)[:, :, None]


def test_an_intervention_on_an_effect_is_decoded_without_its_causes() -> None:
    x_t, t = torch.zeros(2, 1, 6, 3 * REGION), torch.full((2,), 500)
    z = STRIPS.clone()
    z[:, 2] = 0.25
    both = Strips().model_outputs(x_t, t, [z])[0]
    torch.testing.assert_close(both[:, 0, 0, -1], 2 * A)  # given its causes, the effect follows them
    found = effect_model_output(Strips(), z, CAUSES, weight=3.0)(x_t, t)
    torch.testing.assert_close(found[:, 0, 0, -1], torch.full((2,), 3 * 0.25))
    assert not found[..., : 2 * REGION].any(), "the causes are dropped"


class Drifting(Strips):
    """Condition i moves every pixel by i / 1000."""

    def model_outputs(
        self, x_t: Tensor, t: Tensor, conditions: Sequence[Tensor | None], classes: Tensor | None = None
    ) -> list[Tensor]:
        outputs = super().model_outputs(x_t, t, conditions, classes)
        return [output + i / 1000 for i, output in enumerate(outputs)]


def test_pixels_that_one_cause_explains_are_kept() -> None:
    diffusion = GaussianDiffusion(betas=get_named_beta_schedule("linear", 1000), model_mean_type=ModelMeanType.START_X)
    x_start = Strips().model_outputs(torch.zeros(2, 1, 6, 3 * REGION), T[:2], [STRIPS])[0]
    kept = explained_pixels(Strips(), diffusion.noise_schedule, x_start, STRIPS, CAUSES)
    assert kept.shape == (2, 1, 6, 3 * REGION)
    assert kept[..., : 2 * REGION - 1].all() and not kept[..., 2 * REGION + 1 :].any()
    drifting = explained_pixels(Drifting(), diffusion.noise_schedule, x_start, STRIPS, CAUSES)
    assert torch.equal(drifting, kept), "a drift of a few thousandths is no difference"
    only_a = explained_pixels(Strips(), diffusion.noise_schedule, x_start, STRIPS, (True, False, False))
    assert only_a[..., : REGION - 1].all() and not only_a[..., REGION + 1 : 2 * REGION - 1].any()


class Hinting(Strips):
    """One cause alone also tells a small part of the effect's strip."""

    def model_outputs(
        self, x_t: Tensor, t: Tensor, conditions: Sequence[Tensor | None], classes: Tensor | None = None
    ) -> list[Tensor]:
        outputs = [output.clone() for output in super().model_outputs(x_t, t, conditions, classes)]
        for output, z in zip(outputs, conditions, strict=True):
            assert z is not None
            a, b, e = z[:, :, 0].unbind(1)
            alone = (a != DROPPED) & (b == DROPPED) & (e == DROPPED)
            output[alone, :, 1:5, -5:-1] = 2 * a[alone, None, None, None]
        return outputs


def test_small_areas_of_the_effect_are_not_kept() -> None:
    diffusion = GaussianDiffusion(betas=get_named_beta_schedule("linear", 1000), model_mean_type=ModelMeanType.START_X)
    x_start = Strips().model_outputs(torch.zeros(2, 1, 6, 3 * REGION), T[:2], [STRIPS])[0]
    args = (diffusion.noise_schedule, x_start, STRIPS, CAUSES)
    expected = explained_pixels(Strips(), *args)
    assert torch.equal(explained_pixels(Hinting(), *args), expected)


def test_causes_that_are_set_are_not_dropped_and_all_of_them_are_a_warning() -> None:
    graph = CausalGraph(("a", "b", "c"), (("a", "c"), ("b", "c")))
    assert dropped_causes(graph, ["c"], ["c"]) == (True, True, False)
    assert dropped_causes(graph, ["c"], ["a", "c"]) == (False, True, False)
    assert dropped_causes(graph, [], ["a"]) == ()
    with pytest.warns(UserWarning, match="do: c: its causes a, b are set, too, and determine it"):
        assert dropped_causes(graph, ["c"], ["a", "b", "c"]) == ()
