"""Spread of counterfactuals over several abductions, and draws from the prior."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import squares
from tiny_models import tiny_model

from causaldiffae.errors import InputError
from causaldiffae.evaluation.sampling import Spread, check_samples, spread
from causaldiffae.model import CausalDiffAE
from causaldiffae.pretrained import CounterfactualModel
from causaldiffae.script_util import LoadedModel

DOS: list[dict[str, Any]] = [{"size": 5.0}, {"grey": 100.0}, {}]
X = torch.from_numpy(squares(3).images).float() / 127.5 - 1


def with_variance(value: float) -> LoadedModel:
    """A model whose encoder returns this log-variance for every image."""
    loaded = tiny_model(diffusion_steps=8, noise_schedule="cosine")
    assert isinstance(loaded.model, CausalDiffAE)
    encode = loaded.model.encode
    loaded.model.encode = lambda x: encode(x)._replace(  # type: ignore[method-assign]
        logvar=torch.full(encode(x).logvar.shape, value)
    )
    return loaded


def spread_of(loaded: LoadedModel, samples: int = 6, seed: int = 0, **options: Any) -> list[Spread]:
    return spread(loaded.engine(4), (X, None, None), DOS, samples, seed, **options)


def test_without_posterior_variance_there_is_no_spread() -> None:
    for found in spread_of(with_variance(-float("inf"))):
        assert found.pixel_std.shape == (3, 1, 8, 8) and found.label_std.shape == (3, 2)
        assert not found.pixel_std.any() and not found.label_std.any()


def test_a_noisy_encoder_spreads_what_the_intervention_leaves_open() -> None:
    of_size, of_grey, null = spread_of(with_variance(0.0))
    assert not of_size.label_std[:, 0].any() and (of_size.label_std[:, 1] > 0).all(), "grey follows size"
    assert (of_grey.label_std[:, 0] > 0).all() and not of_grey.label_std[:, 1].any()
    assert (null.label_std > 0).all()
    assert of_size.pixel_std.any()
    less = spread_of(with_variance(-4.0))[0]
    assert (less.label_std[:, 1] < of_size.label_std[:, 1]).all()


def test_every_draw_reconstructs_the_image() -> None:
    engine = with_variance(0.0).engine(4, "obelm")  # inverts exactly
    found, null = spread(engine, (X, None, None), [{"size": 5.0}, {}], 6, 0)
    assert null.pixel_std.max() < 1.0 < found.pixel_std.mean()


def test_the_spread_is_the_standard_deviation_of_the_labels() -> None:
    """Of a root that is not set: block means of u, in label units."""
    loaded = with_variance(0.0)
    (null,) = spread(loaded.engine(2), (X, None, None), [{}], 60, 0)
    d = loaded.model.latent_shape[1]
    assert null.label_std[:, 0] == pytest.approx(loaded.spec.scale[0] / d**0.5, rel=0.3)


def test_draws_have_the_variance_that_training_drew() -> None:
    loaded = with_variance(0.0)
    engine = loaded.engine(2)
    whole, less = (spread(engine, (X, None, None), [{}], 60, 0, variance_factor=each)[0] for each in (1.0, 0.01))
    np.testing.assert_allclose(less.label_std[:, 0], 0.1 * whole.label_std[:, 0], rtol=1e-3)
    config = replace(loaded.config, loss=replace(loaded.config.loss, variance_factor=0.0))
    cf = CounterfactualModel(replace(loaded, config=config), steps=2).counterfactual(squares(2), {}, samples=3)
    assert cf.label_std is not None and not cf.label_std["size"].any()


def test_draws_depend_on_the_seed_alone() -> None:
    loaded = with_variance(0.0)
    first, again, other = (spread_of(loaded, seed=seed) for seed in (1, 1, 2))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a.pixel_std, b.pixel_std)
        np.testing.assert_array_equal(a.label_std, b.label_std)
        assert not np.array_equal(a.pixel_std, c.pixel_std)


def test_the_noise_of_the_image_may_be_perturbed() -> None:
    loaded = with_variance(-float("inf"))
    little, much = (spread_of(loaded, x_T_noise=share)[0] for share in (0.1, 0.5))
    assert 0 < little.pixel_std.mean() < much.pixel_std.mean() and not much.label_std.any()


def test_a_category_spreads_by_the_share_of_other_draws() -> None:
    loaded = with_variance(4.0)
    kinds: dict[str, Any] = {"kinds": ("binary", "continuous"), "low": (0.0, 50.0), "high": (1.0, 250.0)}
    loaded = LoadedModel(loaded.model, loaded.config, replace(loaded.spec, **kinds), 0, "nowhere")
    null = spread(loaded.engine(4), (X, None, None), [{}], 7, 0)[0]
    shares = null.label_std[:, 0] * 7
    np.testing.assert_allclose(shares, np.rint(shares), atol=1e-9)
    assert (null.label_std[:, 0] <= 0.5).all()


@pytest.fixture
def model() -> Iterator[CounterfactualModel]:
    yield CounterfactualModel(with_variance(0.0), steps=4)


def test_the_answer_is_that_of_the_mean_with_any_number_of_samples(model: CounterfactualModel) -> None:
    one, many = (model.counterfactual(squares(3).images, {"size": 5.0}, samples=samples) for samples in (1, 4))
    np.testing.assert_array_equal(one.images, many.images)
    assert one.pixel_std is None and one.label_std is None
    assert many.pixel_std is not None and many.pixel_std.shape == (3, 1, 8, 8) and many.pixel_std.any()
    assert many.label_std is not None and many.label_std["grey"].all() and not many.label_std["size"].any()
    assert "std_grey" in many.to_dataframe() and "std_grey" not in one.to_dataframe()


@pytest.mark.parametrize(("samples", "noise"), [(0, 0.0), (-1, 0.0), (2.0, 0.0), (2, 1.5), (2, -0.1), (1, 0.2)])
def test_refusals(samples: Any, noise: float) -> None:
    with pytest.raises(InputError, match=r"samples|x_T_noise: expected"):
        check_samples(samples, noise)
