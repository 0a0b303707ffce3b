"""Graded interventions on networks whose answer is known: eps is linear in z."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from causaldiffae.errors import InputError
from causaldiffae.guidance import Guidance, guided_model_output

B = 3
Z = torch.randn(B, 2, 2, generator=torch.Generator().manual_seed(0))
FACTUAL = torch.stack([Z[:, 0] - 1.5, Z[:, 1]], dim=1)  # the first block is affected
X, T = torch.zeros(B, 1, 4, 4), torch.tensor([0, 500, 999])


class Recorder:
    """eps = sum of z over the image, 100 under the null token; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def model_outputs(
        self, x_t: Tensor, t: Tensor, conditions: Sequence[Tensor | None], classes: Tensor | None = None
    ) -> list[Tensor]:
        names = {id(Z): "z", id(FACTUAL): "factual", id(None): "null"}
        self.asked.append([names[id(condition)] for condition in conditions])
        return [answer(condition).expand(x_t.shape) for condition in conditions]


def answer(z: Tensor | None) -> Tensor:
    return torch.full((B, 1, 1, 1), 100.0) if z is None else z.sum(dim=(1, 2)).reshape(-1, 1, 1, 1)


def grade(guidance: Guidance | None, factual: Tensor | None = None, t: Tensor = T) -> tuple[Tensor, list[str]]:
    """The graded answer at one pixel (B,), and what was asked."""
    recorder = Recorder()
    score = guided_model_output(recorder, Z, None, guidance, factual)
    return score(X, t)[:, 0, 0, 0], recorder.asked[0]


def test_no_guidance_is_the_networks_own_answer() -> None:
    for guidance in (None, Guidance(), Guidance(1.0, 1.0, 1.0)):
        for factual in (None, FACTUAL):
            value, asked = grade(guidance, factual)
            assert asked == ["z"], "nothing is evaluated that has no weight"
            assert torch.equal(value, answer(Z)[:, 0, 0, 0])


@pytest.mark.parametrize("w", [0.0, 0.25, 2.0, -1.0])
def test_one_weight(w: float) -> None:
    expected = w * answer(Z) + (1 - w) * answer(None)
    for factual in (None, FACTUAL):
        value, asked = grade(Guidance(w), factual)
        torch.testing.assert_close(value, expected[:, 0, 0, 0])
        assert asked == (["z", "null"] if w else ["null"])


@pytest.mark.parametrize(("affected", "invariant"), [(0.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.0), (1.5, 0.3)])
def test_two_weights(affected: float, invariant: float) -> None:
    guidance = Guidance(w=7.0, w_affected=affected, w_invariant=invariant)
    null, factual, z = answer(None), answer(FACTUAL), answer(Z)
    expected = null + invariant * (factual - null) + affected * (z - factual)
    value, asked = grade(guidance, FACTUAL)
    torch.testing.assert_close(value, expected[:, 0, 0, 0])
    assert ("null" in asked) == (invariant != 1.0)
    assert ("z" in asked) == (affected != 0.0)


def test_weights_that_are_not_given_are_w() -> None:
    assert (Guidance(2.0, w_affected=3.0).affected, Guidance(2.0, w_affected=3.0).invariant) == (3.0, 2.0)
    assert (Guidance(2.0, w_invariant=1.0).affected, Guidance(2.0, w_invariant=1.0).invariant) == (2.0, 1.0)


def test_the_invariant_weight_is_ignored_if_all_blocks_are_affected() -> None:
    guidance = Guidance(w_affected=1.5, w_invariant=0.3)
    z, factual = torch.ones(B, 2, 1), torch.zeros(B, 2, 1)
    found = guided_model_output(Sums(), z, None, guidance, factual)(X, T)
    torch.testing.assert_close(found, guided_model_output(Sums(), z, None, Guidance(1.5))(X, T))


def test_the_affected_weight_is_ignored_if_nothing_is_affected() -> None:
    z = torch.ones(B, 2, 1)
    found = guided_model_output(Sums(), z, None, Guidance(w_affected=1.5, w_invariant=0.3), z)(X, T)
    torch.testing.assert_close(found, guided_model_output(Sums(), z, None, Guidance(0.3))(X, T))


@pytest.mark.parametrize(("affected", "invariant"), [(1.0, 1.0), (2.0, 1.0), (1.0, 3.0), (2.0, 0.5)])
def test_decoupled_weights_scale_each_part(affected: float, invariant: float) -> None:
    """For an output that is a sum over blocks, each part is scaled by its own weight, whatever the factual values."""
    model = Sums(null_blocks=torch.zeros(2, 1))
    z, factual = torch.tensor([[[3.0], [10.0]]] * B), torch.tensor([[[1.0], [10.0]]] * B)
    guidance = Guidance(w_affected=affected, w_invariant=invariant)
    found = guided_model_output(model, z, None, guidance, factual)(X, T)
    torch.testing.assert_close(found, torch.full_like(X, affected * 3.0 + invariant * 10.0))


class Sums:
    """The output is the sum of the latents, and 0 under the null token."""

    def __init__(self, null_blocks: Tensor | None = None) -> None:
        self.null_blocks = null_blocks

    def drop_blocks(self, z: Tensor, keep_blocks: Tensor) -> Tensor:
        return torch.where(keep_blocks[..., None], z, self.null_blocks)

    def model_outputs(
        self, x_t: Tensor, t: Tensor, conditions: Sequence[Tensor | None], classes: Tensor | None = None
    ) -> list[Tensor]:
        sums = [torch.zeros(len(x_t)) if z is None else z.sum(dim=(1, 2)) for z in conditions]
        return [each.reshape(-1, 1, 1, 1).expand(x_t.shape) for each in sums]


def test_an_interval_of_noise_levels() -> None:
    value, asked = grade(Guidance(2.0, low=0.4, high=0.6))
    plain, graded = answer(Z)[:, 0, 0, 0], (2 * answer(Z) - answer(None))[:, 0, 0, 0]
    assert asked == ["z", "null"]
    torch.testing.assert_close(value, torch.stack([plain[0], graded[1], plain[2]]))
    zero, asked = grade(Guidance(0.0, low=0.4, high=1.0))
    torch.testing.assert_close(zero, torch.tensor([float(plain[0]), 100.0, 100.0]))
    assert asked == ["z", "null"], "z is needed outside the interval"
    rescaled = guided_model_output(Recorder(), Z, None, Guidance(2.0, low=0.4, high=0.6), max_timestep=2000.0)
    torch.testing.assert_close(rescaled(X, T)[:, 0, 0, 0], torch.stack([plain[0], plain[1], graded[2]]))


def test_low_precision_outputs_are_graded_in_float32() -> None:
    class Low(Recorder):
        def model_outputs(self, *args: object, **kwargs: object) -> list[Tensor]:
            return [out.bfloat16() for out in super().model_outputs(*args, **kwargs)]  # type: ignore[arg-type]

    assert guided_model_output(Low(), Z, None, Guidance(2.0))(X, T).dtype == torch.float32
    assert guided_model_output(Low(), Z)(X, T).dtype == torch.bfloat16


def test_messages() -> None:
    for name in ("w", "w_affected", "w_invariant"):
        with pytest.raises(InputError, match=f"{name}: expected a finite number, got nan"):
            Guidance(**{name: float("nan")})
    for interval in ((-0.1, 1.0), (0.0, 1.1), (0.7, 0.3), (float("nan"), 1.0)):
        with pytest.raises(InputError, match="guidance_interval: expected two numbers between 0 and 1"):
            Guidance(low=interval[0], high=interval[1])
