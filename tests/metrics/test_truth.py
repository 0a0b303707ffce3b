"""Pixel distances in closed form, and the nearest training image."""

import numpy as np
import pytest

from causaldiffae.errors import InputError
from causaldiffae.metrics.truth import l1_errors, nearest_by_labels, pixel_errors, psnr, ssim


def images(seed: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, channels, 16, 16), dtype=np.uint8)


def test_l1_of_bytes_does_not_wrap_around() -> None:
    dark, bright = np.full((1, 1, 8, 8), 10, np.uint8), np.full((1, 1, 8, 8), 250, np.uint8)
    assert l1_errors(dark, bright)[0] == l1_errors(bright, dark)[0] == 240.0


def test_psnr_of_a_known_error_and_of_equal_images() -> None:
    grey = np.full((1, 1, 8, 8), 100, np.uint8)
    assert psnr(grey, grey + 10)[0] == pytest.approx(20 * np.log10(25.5))
    assert psnr(grey, grey)[0] == pytest.approx(10 * np.log10(255**2 * 12))


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_of_known_images(channels: int) -> None:
    a, b = images(0, channels), images(1, channels)
    np.testing.assert_allclose(ssim(a, a), 1.0)
    assert (np.abs(ssim(a, b)) < 0.1).all(), "independent noise"
    flat = np.full((1, channels, 16, 16), 100, np.uint8)
    constant = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + constant) / (100**2 + 150**2 + constant)
    np.testing.assert_allclose(ssim(flat, flat + 50), expected)
    assert np.isnan(ssim(a[..., :6], b[..., :6])).all(), "smaller than the window"


def test_nan_pixels_give_nan() -> None:
    broken = images(0).astype(float)
    broken[1, 0, 4, 4] = np.nan
    errors = pixel_errors(broken, images(1))
    for values in (errors.l1, errors.psnr, errors.ssim):
        np.testing.assert_array_equal(np.isnan(values), [False, True, False])


def test_shapes_must_match() -> None:
    with pytest.raises(InputError, match="images: expected two arrays of equal shape"):
        pixel_errors(images(0), images(0)[:2])


def test_the_nearest_image_is_of_the_same_class_if_there_is_one() -> None:
    known, classes = np.array([[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]]), np.array([0, 1, 1])
    target = np.array([[0.1, 0.0], [0.1, 0.0], [4.0, 4.0], [0.9, 0.9]])
    np.testing.assert_array_equal(nearest_by_labels(target, known, None, None), [0, 0, 2, 1])
    np.testing.assert_array_equal(nearest_by_labels(target, known, np.array([1, 0, 0, 7]), classes), [1, 0, 0, 1])


def test_images_with_missing_labels_are_no_nearer_for_it() -> None:
    known = np.array([[0.5, np.nan], [0.4, 0.4], [np.nan, np.nan]])
    np.testing.assert_array_equal(nearest_by_labels(np.array([[0.0, 0.0], [0.5, 9.0]]), known, None, None), [1, 0])
