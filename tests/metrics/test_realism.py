"""FID, KID and CLD on cases with known answers."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg

from causaldiffae.errors import DataError, InputError
from causaldiffae.metrics import realism
from causaldiffae.metrics.realism import (
    PairedKernelDistance,
    Posteriors,
    check_inception,
    cld,
    frechet_distance,
    inception_features,
    label_bins,
    label_numbers,
    posterior_kl,
)

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")


def test_fid_of_gaussians_and_of_equal_sets() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (500, 5)), rng.normal(0.5, 2, (400, 5)) @ rng.normal(0, 1, (5, 5))
    root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(a, a + np.array([3.0, 0, 0, 0, 0])) == pytest.approx(9.0)
    assert np.isnan(frechet_distance(a[:1], b))


def test_fid_of_equal_sets_is_not_negative() -> None:
    """Rounding alone would give about -1e-14 for some sets, which prints as -0.00."""
    for seed in range(20):
        a = np.random.default_rng(seed).normal(0, 1, (30, 8))
        assert 0 <= frechet_distance(a, a) < 1e-9


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    return PairedKernelDistance(a, b)(np.arange(len(a)))


def test_kid_is_unbiased_and_grows_with_the_distance() -> None:
    rng = np.random.default_rng(0)
    same = [kernel_distance(rng.normal(0, 1, (50, 4)), rng.normal(0, 1, (50, 4))) for _ in range(200)]
    assert abs(np.mean(same)) < 4 * np.std(same) / 200**0.5
    near, far = (kernel_distance(rng.normal(0, 1, (50, 4)), rng.normal(shift, 1, (50, 4))) for shift in (0.5, 2.0))
    assert 0 < near < far
    one = rng.normal(0, 1, (50, 4))
    assert kernel_distance(one, one) == pytest.approx(0, abs=1e-9), "a row is not compared with its partner"


def test_kid_of_resampled_pairs_compares_no_row_with_its_own_partner() -> None:
    rng = np.random.default_rng(0)
    a, b, rows = rng.normal(0, 1, (20, 3)), rng.normal(1, 1, (20, 3)), rng.integers(0, 20, 20)
    distance = PairedKernelDistance(a, b)
    x, y = a[rows], b[rows]
    terms = [
        (x[i] @ x[j] / 3 + 1) ** 3 + (y[i] @ y[j] / 3 + 1) ** 3 - 2 * (x[i] @ y[j] / 3 + 1) ** 3
        for i in range(20)
        for j in range(20)
        if i != j
    ]
    assert distance(rows) == pytest.approx(np.mean(terms)) and kernel_distance(x, y) == pytest.approx(np.mean(terms))
    assert np.isnan(distance(rows[:1]))


def test_kl_of_gaussians() -> None:
    a, b = Posteriors(np.array([[1.0, 0.0]]), np.log([[4.0, 1.0]])), Posteriors(np.zeros((1, 2)), np.zeros((1, 2)))
    assert posterior_kl(a, b)[0] == pytest.approx(0.5 * (4 + 1 - 1 - np.log(4)))
    assert posterior_kl(b, a)[0] == pytest.approx(0.5 * (0.25 + 0.25 - 1 + np.log(4)))
    assert posterior_kl(a, a)[0] == 0.0


def line(positions: list[float]) -> Posteriors:
    """Unit Gaussians along a line: KL = distance^2 / 2."""
    return Posteriors(np.array(positions)[:, None], np.zeros((len(positions), 1)))


REFERENCES, CLASSES = line([0.5, -1.0, 8.0, 9.0]), np.array([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (4.0, np.log(2)),  # further than its own class, nearer than the new one
        (0.0, np.log(1 + np.e)),  # no change
        (20.0, np.log(np.e + 1)),  # too much change
        (8.5, np.log(np.exp(0.5) + 1)),
    ],
)
def test_cld_in_closed_form(position: float, expected: float) -> None:
    found = cld(line([position]), line([0.0]), REFERENCES, CLASSES, np.array([1]), np.array([0]))
    assert found[0] == pytest.approx(expected)


def test_cld_is_nan_without_a_change_of_class_or_references() -> None:
    found = cld(line([0.1, 0.1]), line([0.0, 0.0]), REFERENCES, CLASSES, np.array([0, 3]), np.array([0, 0]))
    assert np.isnan(found).all()


def test_a_missing_label_is_in_no_bin_and_has_no_divergence() -> None:
    numbers = label_numbers(np.array([0.5, 2.5, np.nan, 9.0]), np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(numbers, [0.0, 2.0, np.nan, 3.0])
    one = Posteriors(np.zeros((1, 1)), np.zeros((1, 1)))
    reference = Posteriors(np.zeros((4, 1)), np.zeros((4, 1)))
    assert np.isnan(cld(one, one, reference, numbers, numbers[:1], numbers[2:3])).all()


def test_without_labels_of_references_there_is_no_divergence() -> None:
    one, reference = (Posteriors(np.zeros((count, 1)), np.zeros((count, 1))) for count in (1, 4))
    missing, known = np.full(4, np.nan), np.array([0.5])
    bins = [label_numbers(labels, label_bins(missing)) for labels in (missing, known, known)]
    assert np.isnan(cld(one, one, reference, *bins)).all()


def test_label_bins_have_equally_many_images() -> None:
    labels = np.random.default_rng(0).exponential(1, 1000)
    found = np.bincount(np.searchsorted(label_bins(labels), labels, side="right"))
    np.testing.assert_array_equal(found, [200] * 5)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A TorchScript network with the mean of each channel as features."""

    class ChannelMeans(torch.nn.Module):
        def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
            return images.float().mean(dim=[2, 3])

    torch.jit.script(ChannelMeans()).save(str(tmp_path / "net.pt"))
    return tmp_path / "net.pt"


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)


def test_features_of_a_trusted_network(network: Path) -> None:
    features = inception_features(IMAGES, network, trusted=True, batch_size=2)
    np.testing.assert_allclose(features, np.repeat(IMAGES.mean(axis=(1, 2, 3))[:, None], 3, axis=1), rtol=1e-5)


def test_other_files_than_the_published_network_are_not_executed(
    network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.jit, "load", None)
    with pytest.raises(InputError, match=r"expected inception-2015-12-05.pt \(SHA-256 f58cb9b6ec32.*trust_inception"):
        inception_features(IMAGES, network)
    with pytest.raises(InputError, match="trust_inception True executes the code in this file"):
        check_inception(network)
    assert check_inception(network, trusted=True) == network.read_bytes()


def test_the_published_network_is_accepted(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realism, "INCEPTION_SHA256", hashlib.sha256(network.read_bytes()).hexdigest())
    assert inception_features(IMAGES, network).shape == (5, 3)


def test_files_that_are_not_networks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none.pt, which does not exist"):
        inception_features(IMAGES, tmp_path / "none.pt")
    (tmp_path / "bad.pt").write_bytes(b"no network")
    with pytest.raises(DataError, match="bad.pt: expected a network that returns features"):
        inception_features(IMAGES, tmp_path / "bad.pt", trusted=True)
