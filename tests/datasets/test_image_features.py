"""Features of images: layout at low resolution, and statistics that see what low resolution hides."""

import numpy as np
import pytest

from causaldiffae.datasets.image_features import ImageFeatures, layout, statistics


def blobs(count: int, seed: int = 0, low: float = 8, high: float = 20) -> np.ndarray:
    """Smooth images (N, 1, 28, 28) of a bright spot that moves."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((28, 28))
    centre = rng.uniform(low, high, (count, 2, 1, 1))
    spots = 150 * np.exp(-((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2) / rng.uniform(10, 30, (count, 1, 1))) + 50
    return spots[:, None].astype(np.uint8)


def farther(features: ImageFeatures, images: np.ndarray, changed: np.ndarray) -> bool:
    """Whether all changed images are farther from every one of `images` than these are from each other, mostly."""
    rows, others = features(images), features(changed)
    between = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    np.fill_diagonal(between, np.inf)
    ordinary = np.quantile(between.min(axis=1), 0.99)
    return bool((np.linalg.norm(others[:, None] - rows[None], axis=2).min(axis=1) > ordinary).all())


def test_texture_that_low_resolution_hides_is_seen() -> None:
    images = blobs(200)
    checks = 20 * (-1) ** np.indices((28, 28)).sum(axis=0)
    changed = (blobs(20, seed=1).astype(int) + checks).astype(np.uint8)
    np.testing.assert_allclose(layout(changed), layout(blobs(20, seed=1)), atol=0.02)
    assert farther(ImageFeatures.fit(images), images, changed)


def test_layout_that_statistics_hide_is_seen() -> None:
    """A spot at the border has the grey levels and the texture of others."""
    images = blobs(200)
    moved = np.roll(blobs(20, seed=1, low=12, high=16), 14, axis=(2, 3))
    assert farther(ImageFeatures.fit(images), images, moved)


@pytest.mark.parametrize("side", [1, 3, 8, 96])
@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_any_size_have_finite_features(side: int, channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, channels, side, side), np.uint8)
    images[:, -1] = 255
    features = ImageFeatures.fit(images)
    assert np.isfinite(features(images)).all() and features(images[:0]).shape[1] == features(images).shape[1]
    assert statistics(images).dtype == np.float64
