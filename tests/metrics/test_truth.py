"""Pixel distances against independent formulas, and the nearest training image."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from causaldiffae.errors import InputError
from causaldiffae.metrics.truth import l1_errors, nearest_by_labels, pixel_errors, psnr, ssim


def pictures(seed: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, channels, 16, 16), dtype=np.uint8)


def test_bytes_do_not_wrap_around() -> None:
    dark, bright = np.full((1, 1, 8, 8), 10, np.uint8), np.full((1, 1, 8, 8), 250, np.uint8)
    assert l1_errors(dark, bright)[0] == l1_errors(bright, dark)[0] == 240.0


def test_psnr_of_a_known_error_and_of_none() -> None:
    grey = np.full((1, 1, 8, 8), 100, np.uint8)
    assert psnr(grey, grey + 10)[0] == pytest.approx(20 * np.log10(25.5))
    assert psnr(grey, grey)[0] == pytest.approx(10 * np.log10(255**2 * 12))


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_the_published_one(channels: int) -> None:
    a, b = pictures(0, channels), pictures(1, channels)
    b[:, :, :8] = a[:, :, :8]
    expected = [
        structural_similarity(x.transpose(1, 2, 0), y.transpose(1, 2, 0), channel_axis=2, data_range=255)
        for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(ssim(a, b), expected, atol=1e-12)
    np.testing.assert_allclose(ssim(a, a), 1.0)


def test_pixels_that_are_no_numbers_stay_so() -> None:
    broken = pictures(0).astype(float)
    broken[1, 0, 4, 4] = np.nan
    errors = pixel_errors(broken, pictures(1))
    for values in (errors.l1, errors.psnr, errors.ssim):
        np.testing.assert_array_equal(np.isnan(values), [False, True, False])


def test_shapes_must_match() -> None:
    with pytest.raises(InputError, match="two equal"):
        pixel_errors(pictures(0), pictures(0)[:2])


def test_nearest_image_is_of_the_same_class_where_there_is_one() -> None:
    known, classes = np.array([[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]]), np.array([0, 1, 1])
    wanted = np.array([[0.1, 0.0], [0.1, 0.0], [4.0, 4.0], [0.9, 0.9]])
    np.testing.assert_array_equal(nearest_by_labels(wanted, known, None, None), [0, 0, 2, 1])
    np.testing.assert_array_equal(nearest_by_labels(wanted, known, np.array([1, 0, 0, 7]), classes), [1, 0, 0, 1])
