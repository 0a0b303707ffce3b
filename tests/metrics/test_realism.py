"""FID, KID and CLD on cases with known answers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg

from causaldiffae.errors import DataError, InputError
from causaldiffae.metrics.realism import (
    Posteriors,
    cld,
    frechet_distance,
    inception_features,
    kernel_distance,
    label_bins,
    posterior_kl,
)


def test_fid_of_gaussians_and_of_one_set() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (500, 5)), rng.normal(0.5, 2, (400, 5)) @ rng.normal(0, 1, (5, 5))
    root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(a, a + np.array([3.0, 0, 0, 0, 0])) == pytest.approx(9.0)
    assert np.isnan(frechet_distance(a[:1], b))


def test_kid_is_unbiased_and_grows() -> None:
    rng = np.random.default_rng(0)
    same = [kernel_distance(rng.normal(0, 1, (50, 4)), rng.normal(0, 1, (50, 4))) for _ in range(200)]
    assert abs(np.mean(same)) < 4 * np.std(same) / 200**0.5
    near, far = (kernel_distance(rng.normal(0, 1, (50, 4)), rng.normal(shift, 1, (50, 4))) for shift in (0.5, 2.0))
    assert 0 < near < far
    one = rng.normal(0, 1, (50, 4))
    assert kernel_distance(one, one) == pytest.approx(0, abs=1e-9), "pairs do not count for being alike"
    unequal = [kernel_distance(rng.normal(0, 1, (50, 4)), rng.normal(0, 1, (40, 4))) for _ in range(200)]
    assert abs(np.mean(unequal)) < 4 * np.std(unequal) / 200**0.5


def test_kl_of_gaussians() -> None:
    a, b = Posteriors(np.array([[1.0, 0.0]]), np.log([[4.0, 1.0]])), Posteriors(np.zeros((1, 2)), np.zeros((1, 2)))
    assert posterior_kl(a, b)[0] == pytest.approx(0.5 * (4 + 1 - 1 - np.log(4)))
    assert posterior_kl(b, a)[0] == pytest.approx(0.5 * (0.25 + 0.25 - 1 + np.log(4)))
    assert posterior_kl(a, a)[0] == 0.0


def line(places: list[float]) -> Posteriors:
    """Unit Gaussians along a line: KL = distance^2 / 2."""
    return Posteriors(np.array(places)[:, None], np.zeros((len(places), 1)))


def test_cld_best_worst_and_no_change() -> None:
    references, classes = line([0.5, -1.0, 8.0, 9.0]), np.array([0, 0, 1, 1])
    factual, to, given = line([0.0]), np.array([1]), np.array([0])

    def of(place: float) -> float:
        return float(cld(line([place]), factual, references, classes, to, given)[0])

    assert of(4.0) == pytest.approx(np.log(2)), "further than its class, nearer than the other: no more than needed"
    assert of(0.0) == pytest.approx(np.log(1 + np.e)), "nothing changed"
    assert of(20.0) == pytest.approx(np.log(np.e + 1)), "gone too far"
    assert of(8.5) == pytest.approx(np.log(np.exp(0.5) + 1))
    both = line([0.1, 0.1])
    assert np.isnan(cld(both, line([0.0, 0.0]), references, classes, np.array([0, 3]), np.array([0, 0]))).all()


def test_label_bins_share_the_images() -> None:
    labels = np.random.default_rng(0).exponential(1, 1000)
    found = np.bincount(np.searchsorted(label_bins(labels), labels, side="right"))
    np.testing.assert_array_equal(found, [200] * 5)


class _Inception(torch.nn.Module):
    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return images.float().mean(dim=[2, 3])


def test_inception_network_from_a_file(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    torch.jit.script(_Inception()).save(str(tmp_path / "net.pt"))
    features = inception_features(images, tmp_path / "net.pt", batch=2)
    np.testing.assert_allclose(features, np.repeat(images.mean(axis=(1, 2, 3))[:, None], 3, axis=1), rtol=1e-5)
    with pytest.raises(InputError, match="is missing"):
        inception_features(images, tmp_path / "none.pt")
    (tmp_path / "bad.pt").write_bytes(b"no network")
    with pytest.raises(DataError, match="bad.pt"):
        inception_features(images, tmp_path / "bad.pt")
