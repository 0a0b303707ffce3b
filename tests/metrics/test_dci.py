"""DCI of importances in closed form, and of latents with a known relation to the labels."""

import numpy as np
import pytest

from causaldiffae.errors import InputError
from causaldiffae.metrics.dci import REGRESSORS, by_block, r_squared, scores


def test_closed_forms() -> None:
    perfect = scores(np.eye(4))
    assert perfect.disentanglement == perfect.completeness == 1.0
    uniform = scores(np.ones((6, 3)))
    assert uniform.disentanglement == pytest.approx(0, abs=1e-12)
    assert uniform.completeness == pytest.approx(0, abs=1e-12)
    redundant = scores(np.repeat(np.eye(2), 2, axis=0))  # two latents for each label
    assert redundant.disentanglement == 1.0
    assert redundant.completeness == pytest.approx(1 - np.log(2) / np.log(4))
    blocks = scores(by_block(np.repeat(np.eye(2), 2, axis=0), 2))
    assert blocks.disentanglement == blocks.completeness == 1.0


def test_a_latent_without_importance_has_no_weight() -> None:
    with_idle = scores(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    assert with_idle.disentanglement == 1.0 and with_idle.completeness == 1.0
    weighted = scores(np.array([[3.0, 0.0], [0.5, 0.5]]))
    assert weighted.disentanglement == pytest.approx(0.75)
    assert np.isnan(scores(np.zeros((2, 2))).disentanglement)


def test_a_label_without_importance_has_no_completeness() -> None:
    assert scores(np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])).completeness == 1.0
    nothing = by_block(np.zeros((4, 0)), 2)
    assert nothing.shape == (2, 0) and np.isnan(scores(nothing).completeness)


@pytest.mark.parametrize("name", REGRESSORS)
def test_a_label_that_is_constant_in_training_is_not_fitted(name: str) -> None:
    z = np.random.default_rng(0).normal(0, 1, (60, 2))
    labels = np.stack([z[:, 0], np.full(60, 0.1)], axis=1)
    labels[50:, 1] = np.arange(10)
    fit = REGRESSORS[name](z[:40], labels[:40], z[40:], labels[40:])
    assert fit.informativeness[0] > 0.5 and np.isnan(fit.informativeness[1]) and not fit.importances[:, 1].any()


@pytest.mark.parametrize("bad", [[[-1.0, 0.0]], [[np.nan, 1.0]]])
def test_importances_are_finite_and_not_negative(bad: list[list[float]]) -> None:
    with pytest.raises(InputError, match="importances: expected non-negative finite numbers"):
        scores(np.array(bad))


@pytest.mark.parametrize("name", REGRESSORS)
def test_regressors_distinguish_a_perfect_encoder_from_a_mixed_one(name: str) -> None:
    rng = np.random.default_rng(0)
    labels = rng.normal(0, 1, (600, 3)) * [1.0, 50.0, 0.01] + [0, 100, 0]
    standard = (labels - labels.mean(0)) / labels.std(0)
    mixed = standard @ np.linalg.qr(rng.normal(0, 1, (3, 3)))[0]
    noise = rng.normal(0, 1, (600, 3))
    fits = {key: REGRESSORS[name](z[:400], labels[:400], z[400:], labels[400:]) for key, z in
            (("own", standard), ("mixed", mixed), ("noise", noise))}  # fmt: skip
    found = {key: scores(fit.importances) for key, fit in fits.items()}
    assert found["own"].disentanglement > 0.95 and found["own"].completeness > 0.95
    assert found["mixed"].disentanglement < 0.7
    assert (fits["own"].informativeness > 0.9).all()
    assert (fits["noise"].informativeness < 0.2).all()


@pytest.mark.parametrize("name", REGRESSORS)
def test_figures_of_categories_do_not_depend_on_their_codes(name: str) -> None:
    """A latent that orders three categories is a linear function of their codes 0, 1, 2, but not of 1, 0, 2."""
    rng = np.random.default_rng(0)
    place, other = rng.integers(0, 3, 300), rng.normal(0, 1, 300)
    z = np.stack([place, other], axis=1) + rng.normal(0, 0.02, (300, 2))
    codes = [np.array(permutation)[place] for permutation in ([0, 1, 2], [1, 0, 2])]
    fits = {}
    for given in ([0.0, 1.0, 2.0], []):
        labels = [np.stack([code, other], axis=1) for code in codes]
        categories = [given, []]
        fits[len(given)] = [REGRESSORS[name](z[:200], y[:200], z[200:], y[200:], categories) for y in labels]
    one, two = fits[3]
    np.testing.assert_allclose(one.informativeness, two.informativeness, atol=1e-12)
    np.testing.assert_allclose(one.importances, two.importances, atol=1e-12)
    if name == "lasso":
        of_codes = [fit.informativeness[0] for fit in fits[0]]
        assert of_codes[0] > 0.99 and of_codes[1] < 0.5, "codes as numbers"
    else:
        assert one.informativeness[0] > 0.95 and scores(one.importances).disentanglement > 0.95


@pytest.mark.parametrize("name", REGRESSORS)
def test_images_without_a_label_are_left_out_for_this_label_only(name: str) -> None:
    rng = np.random.default_rng(0)
    labels = rng.normal(0, 1, (300, 2))
    z = labels + rng.normal(0, 0.05, (300, 2))
    missing = labels.copy()
    missing[:100, 0], missing[200:250, 1] = np.nan, np.nan
    fit = REGRESSORS[name](z[:200], missing[:200], z[200:], missing[200:])
    first = REGRESSORS[name](z[:200], labels[:200], z[200:], labels[200:])
    assert fit.informativeness.min() > 0.8 and scores(fit.importances).disentanglement > 0.8
    np.testing.assert_array_equal(fit.importances[:, 1], first.importances[:, 1])
    assert fit.informativeness[1] != first.informativeness[1], "tested on the images with the label"


def test_r_squared() -> None:
    true = np.array([1.0, 2.0, 3.0])
    assert r_squared(true, true) == 1.0
    assert r_squared(np.full(3, 2.0), true) == 0.0
    assert r_squared(np.stack([true, np.full(3, 5.0)], 1), np.stack([true, 4 + true], 1)) == pytest.approx(-0.25)
    assert np.isnan(r_squared(true, np.ones(3)))
