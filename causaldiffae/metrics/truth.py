"""Distances from the true counterfactual image (L1, PSNR, SSIM), and the nearest training image as a baseline.

L1 is the mean absolute difference in grey levels (0..255), computed in floating point: unsigned integers wrap around.
PSNR = 10 log10(255^2 / mse). Rounding to integers alone costs an mse of 1/12, so PSNR is at most 58.9 dB. SSIM (Wang et
al., 2004) is scikit-image's, with a uniform 7 x 7 window, averaged over channels. (torchmetrics pads the images: its
values differ by up to 3e-3, and it takes ten times as long.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from causaldiffae.errors import InputError

_SSIM_WINDOW: Final = 7
_ROUNDING: Final = 1.0 / 12.0


@dataclass(frozen=True)
class PixelErrors:
    """Per image, (N,) float64 each: L1 in grey levels, PSNR in dB, SSIM in -1..1."""

    l1: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray


def pixel_errors(a: np.ndarray, b: np.ndarray) -> PixelErrors:
    """All three between images (N, C, H, W) on 0..255, uint8 or floating; NaN pixels give NaN."""
    if a.shape != b.shape or a.ndim != 4:
        raise InputError(f"images: expected two arrays of equal shape (N, C, H, W), got {a.shape} and {b.shape}")
    return PixelErrors(l1_errors(a, b), psnr(a, b), ssim(a, b))


def l1_errors(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean absolute difference per image (N,), in the unit of the images."""
    difference = a.astype(np.float64) - b.astype(np.float64)
    return np.abs(difference).reshape(len(a), -1).mean(axis=1)


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio per image (N,) in dB, at most 58.9."""
    difference = a.astype(np.float64) - b.astype(np.float64)
    mse = (difference**2).reshape(len(a), -1).mean(axis=1)
    return 10.0 * np.log10(255.0**2 / np.maximum(mse, _ROUNDING))


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity per image (N,); NaN for images smaller than the window."""
    from skimage.metrics import structural_similarity

    if min(a.shape[-2:]) < _SSIM_WINDOW:
        return np.full(len(a), np.nan)
    pairs = zip(a.astype(np.float64), b.astype(np.float64), strict=True)
    return np.array([structural_similarity(x, y, data_range=255, channel_axis=0) for x, y in pairs])


def nearest_by_labels(
    target: np.ndarray, known: np.ndarray, target_classes: np.ndarray | None, known_classes: np.ndarray | None
) -> np.ndarray:
    """The index of the nearest row of `known` (M, n) for each row of `target` (N, n), of its class if there is one.

    Labels must be in comparable units: normalised, and indicators in place of codes. Returns (N,) int64.
    """
    indices = np.empty(len(target), np.int64)
    for i, row in enumerate(target):
        differences = (known - row) ** 2
        counts = (~np.isnan(differences)).sum(axis=1)  # labels that are not known are left out
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = np.nansum(differences, axis=1) * (counts.max() / counts)
        distance = np.where(counts > 0, distance, np.inf)
        if target_classes is not None and known_classes is not None:
            same = known_classes == target_classes[i]
            distance = np.where(same, distance, np.inf) if same.any() else distance
        indices[i] = distance.argmin()
    return indices
