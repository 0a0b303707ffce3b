"""Distance from the true counterfactual image: L1, PSNR, SSIM; and the images that a model has to beat.

L1 is the mean absolute difference in grey levels (0..255), computed in floating point: unsigned bytes wrap around.
PSNR = 10 log10(255^2 / mse); an error below what rounding to whole grey levels costs (mse 1/12) cannot be told from
none, so 58.9 dB is the best there is. SSIM (Wang et al., 2004) with a uniform 7 x 7 window, averaged over channels.

Two answers need no model: the factual image itself, and the training image whose labels are nearest to those wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import ndimage

from causaldiffae.errors import InputError

_WINDOW: Final = 7
_ROUNDING: Final = 1.0 / 12.0
_BLOCK: Final = 128


@dataclass(frozen=True)
class PixelErrors:
    """Per image, (N,) float64 each: L1 in grey levels, PSNR in dB, SSIM in -1..1."""

    l1: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray


def pixel_errors(a: np.ndarray, b: np.ndarray) -> PixelErrors:
    """All three between images (N, C, H, W) on 0..255, uint8 or floating; NaN pixels give NaN."""
    if a.shape != b.shape or a.ndim != 4:
        raise InputError(f"images: shapes {a.shape} and {b.shape} given, two equal (N, C, H, W) are needed")
    return PixelErrors(l1_errors(a, b), psnr(a, b), ssim(a, b))


def l1_errors(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean absolute difference per image (N,), in the images' own unit."""
    difference = a.astype(np.float64) - b.astype(np.float64)
    return np.abs(difference).reshape(len(a), -1).mean(axis=1)


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio per image (N,) in dB, 58.9 at most."""
    difference = a.astype(np.float64) - b.astype(np.float64)
    mse = (difference**2).reshape(len(a), -1).mean(axis=1)
    return 10.0 * np.log10(255.0**2 / np.maximum(mse, _ROUNDING))


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity per image (N,), as `skimage.metrics.structural_similarity` with its defaults."""
    if min(a.shape[-2:]) < _WINDOW:
        return np.full(len(a), np.nan)
    result = np.empty(len(a))
    for start in range(0, len(a), _BLOCK):  # bounds the memory
        rows = slice(start, start + _BLOCK)
        result[rows] = _ssim(a[rows].astype(np.float64), b[rows].astype(np.float64))
    return result


def _ssim(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    window, edge = _WINDOW**2, _WINDOW // 2
    unbiased = window / (window - 1.0)
    c1, c2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2

    def average(values: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter(values, (0, 0, _WINDOW, _WINDOW))[..., edge:-edge, edge:-edge]

    mean_x, mean_y = average(x), average(y)
    var_x = unbiased * (average(x * x) - mean_x**2)
    var_y = unbiased * (average(y * y) - mean_y**2)
    covariance = unbiased * (average(x * y) - mean_x * mean_y)
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    denominator = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return (numerator / denominator).reshape(len(x), -1).mean(axis=1)


def nearest_by_labels(
    wanted: np.ndarray, known: np.ndarray, wanted_classes: np.ndarray | None, known_classes: np.ndarray | None
) -> np.ndarray:
    """For each row of `wanted` (N, n) the row of `known` (M, n) that is nearest and, where it can be, of its class.

    Labels must be in comparable units (normalised). Returns (N,) int64.
    """
    places = np.empty(len(wanted), np.int64)
    for i, row in enumerate(wanted):
        distance = ((known - row) ** 2).sum(axis=1)
        if wanted_classes is not None and known_classes is not None:
            same = known_classes == wanted_classes[i]
            distance = np.where(same, distance, np.inf) if same.any() else distance
        places[i] = distance.argmin()
    return places
