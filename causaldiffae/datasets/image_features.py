"""Features of images that tell unusual ones apart, without a network.

    layout       32 principal components of the image at 14 x 14 pixels, and the norm of what they leave out
    statistics   24 principal components of the quantiles of the grey levels of each channel, and of the differences of
                 neighbouring pixels at three scales

Components are whitened, so directions in which ordinary images hardly vary count as much as the others.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from causaldiffae.datasets.images import resize_area

_THUMBNAIL: Final = 14  # pixels
_COMPONENTS: Final = 32
_STATISTICS: Final = 24
_LAYOUT_WEIGHT: Final = 0.5  # the layout of ordinary images varies more than their statistics
_RANKS: Final = (0.0, 0.01, 0.03, 0.07, 0.15, 0.25, 0.5, 0.75, 0.85, 0.93, 0.97, 0.99, 1.0)
_SCALES: Final = 3
_BATCH: Final = 256


def statistics(images: np.ndarray) -> np.ndarray:
    """Grey levels and detail of images (N, C, H, W) uint8: (N, S) float64."""
    pixels = images.astype(np.float32) / 255
    flat = pixels.reshape(*images.shape[:2], -1)
    ranks = np.unique([round(rank * (flat.shape[2] - 1)) for rank in _RANKS])
    parts = [np.partition(flat, ranks, axis=2)[:, :, ranks].reshape(len(images), -1)]
    for _ in range(_SCALES):
        if min(pixels.shape[2:]) < 2:
            break
        for axis in (2, 3):
            change = np.abs(np.diff(pixels, axis=axis))
            parts += [np.log(change.mean(axis=(2, 3)) + 0.003), np.log((change**2).mean(axis=(2, 3)) ** 0.5 + 0.003)]
        height, width = (side // 2 * 2 for side in pixels.shape[2:])
        halves = pixels[:, :, :height, :width].reshape(*images.shape[:2], height // 2, 2, width // 2, 2)
        pixels = halves.mean(axis=(3, 5))
    return np.concatenate(parts, axis=1).astype(np.float64)


def layout(images: np.ndarray) -> np.ndarray:
    """Images (N, C, H, W) uint8 at low resolution: (N, D) float64."""
    small = resize_area(images, min(_THUMBNAIL, images.shape[-1]))
    return small.reshape(len(images), -1).astype(np.float64) / 127.5 - 1.0


def _principal(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal axes (K, D) of centred rows (N, D), at most `count`, and standard deviations (K,) along them."""
    values, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    count = min(count, len(values))
    return np.ascontiguousarray(vectors[:, ::-1][:, :count].T), np.sqrt(np.maximum(values[::-1][:count], 0.0))


class ImageFeatures(NamedTuple):
    """Features of images, fitted to training images.

    Attributes:
        centre, axes, spread: mean (D,), principal axes (K, D) and standard deviations (K,) of the images at low
            resolution.
        residual: (2,) mean and standard deviation of the log of what the axes leave out.
        average, whitening: mean (S,) of the statistics, and (J, S) their axes divided by the standard deviations.
    """

    centre: np.ndarray
    axes: np.ndarray
    spread: np.ndarray
    residual: np.ndarray
    average: np.ndarray
    whitening: np.ndarray

    @classmethod
    def fit(cls, images: np.ndarray) -> ImageFeatures:
        """Fits the features to images (N, C, H, W) uint8."""
        pixels, values = layout(images), statistics(images)
        centre, average = pixels.mean(axis=0), values.mean(axis=0)
        axes, spread = _principal(pixels - centre, _COMPONENTS)
        scale = values.std(axis=0) + 1e-3
        directions, deviations = _principal((values - average) / scale, _STATISTICS)
        whitening = directions / np.maximum(deviations, 0.05)[:, None] / scale
        fitted = cls(centre, axes, np.maximum(spread, 1e-3), np.array([0.0, 1.0]), average, whitening)
        left_out = fitted._left_out(pixels - centre)
        return fitted._replace(residual=np.array([left_out.mean(), left_out.std() + 1e-3]))

    def _left_out(self, centred: np.ndarray) -> np.ndarray:
        squares = (centred**2).sum(axis=1) - ((centred @ self.axes.T) ** 2).sum(axis=1)
        return np.log(np.sqrt(np.maximum(squares, 0.0)) + 0.05)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features (N, F) of images (N, C, H, W) uint8."""
        parts = [self._batch(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
        return np.concatenate(parts) if parts else np.empty((0, len(self.spread) + 1 + len(self.whitening)))

    def _batch(self, images: np.ndarray) -> np.ndarray:
        centred = layout(images) - self.centre
        components = _LAYOUT_WEIGHT * (centred @ self.axes.T) / self.spread
        left_out = (self._left_out(centred) - self.residual[0]) / self.residual[1]
        values = (statistics(images) - self.average) @ self.whitening.T
        return np.concatenate([components, left_out[:, None], values], axis=1)
