"""Morphometry against Morpho-MNIST's figures, and its steps against the library calls they replace."""

import json

import numpy as np
import pytest
from paths import SHARED
from scipy import ndimage
from skimage.morphology import disk, medial_axis
from skimage.transform import pyramid_expand, pyramid_reduce

from causaldiffae.errors import InputError
from causaldiffae.generators import morphology
from causaldiffae.generators.morphology import Morphometrics, measure_batch, measure_intensity, redraw, strokes_of

GOLDEN = SHARED / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden is missing")


def measured(image: np.ndarray) -> Morphometrics:
    return Morphometrics(*measure_batch(image[None])[0])


def bar(thickness: int = 4, length: int = 16, level: int = 255) -> np.ndarray:
    image = np.zeros((28, 28), np.uint8)
    image[6 : 6 + length, 12 : 12 + thickness] = level
    return image


def ring(level: int = 200) -> np.ndarray:
    y, x = np.mgrid[:28, :28] - 13.5
    return (level * np.clip(2.5 - np.abs(np.hypot(x, y) - 7.0), 0, 1)).astype(np.uint8)


@needs_golden
def test_golden_morphometrics() -> None:
    golden = np.load(GOLDEN / "morphometrics_a.npz", allow_pickle=False)
    assert json.loads(str(golden["meta"]))["columns"] == list(Morphometrics._fields)
    found, reference = measure_batch(golden["images"]), golden["metrics"]
    for i, name in enumerate(Morphometrics._fields):
        error = np.linalg.norm(found[:, i] - reference[:, i]) / np.linalg.norm(reference[:, i])
        assert error < 1e-9, (name, error)
    np.testing.assert_array_equal(morphology.mean_thickness(golden["images"][:5]), found[:5, 2])


@needs_golden
def test_golden_redrawn_digits() -> None:
    golden = np.load(GOLDEN / "set_thickness_a.npz", allow_pickle=False)
    rows = zip(strokes_of(golden["images"]), golden["thickness"], golden["intensity"], strict=True)
    drawn = np.stack([redraw(base, float(t), float(i)) for base, t, i in rows])
    error = np.abs(drawn.astype(float) - golden["out"]).mean()
    assert error < 0.01, error


def test_a_bar_measures_as_a_bar() -> None:
    metrics = measured(bar())
    assert metrics.area == pytest.approx(64, rel=0.05)
    assert metrics.thickness == pytest.approx(3.8, abs=0.2)  # rounded, with axes into the corners
    assert metrics.length == pytest.approx(20.6, abs=0.5)  # 12 along the middle, the rest into the corners
    assert abs(metrics.slant) < 1e-6
    assert metrics.width == pytest.approx(5, abs=0.2) and metrics.height == pytest.approx(16.3, abs=0.3)  # blurred


def test_slant_to_the_right_is_positive() -> None:
    image = np.zeros((28, 28), np.uint8)
    for row in range(5, 23):
        column = 8 + (22 - row) // 2
        image[row, column : column + 3] = 255  # leans to the right
    assert measured(image).slant > 0.3


@pytest.mark.parametrize("level", [0, 90])
def test_an_image_of_one_grey_level_measures_as_nan(level: int) -> None:
    image = np.full((28, 28), level, np.uint8)
    assert np.isnan(measured(image)).all() and np.isnan(measure_intensity(image))
    assert np.isnan(morphology.mean_thickness(image[None])).all()
    assert not redraw(strokes_of(image[None])[0], 3.0, 100.0).any()
    assert measure_batch(image[None][:0]).shape == (0, 6)


def test_intensity_is_the_median_of_the_bright_half() -> None:
    image = bar(level=100)
    image[6:9, 12:16] = 180
    image[20, 20] = 40
    assert measure_intensity(image) == 100.0


@pytest.mark.parametrize("scale", [4, 16])
def test_upscale_is_pyramid_expand(scale: int) -> None:
    for image in (bar(), ring(), np.random.default_rng(0).integers(0, 256, (28, 28)).astype(np.uint8)):
        expected = (255.0 * pyramid_expand(image, upscale=scale, order=3)).astype(np.uint8)
        difference = np.abs(morphology.upscale(image, scale).astype(int) - expected)
        assert difference.max() <= 1 and difference.mean() < 1e-3


def test_medial_axes_are_those_of_each_stroke_alone() -> None:
    edge = np.zeros((40, 40), bool)
    edge[:30, 10:20] = True
    y, x = np.mgrid[:40, :40] - 20
    strokes = [np.hypot(x, 2 * y) < 15, edge, np.zeros((40, 40), bool), (np.abs(x + y) < 5) & (np.abs(x) < 12)]
    for stroke, (skeleton, distance) in zip(strokes, morphology.medial_axes(strokes), strict=True):
        if stroke.any():
            alone = medial_axis(stroke, return_distance=True, rng=42)
            np.testing.assert_array_equal(skeleton, alone[0])
            np.testing.assert_array_equal(distance, alone[1])
        else:
            assert not skeleton.any()


@pytest.mark.parametrize("radius", [0, 1, 2, 4, 9])
def test_dilate_is_grey_dilation_by_the_anti_aliased_disk(radius: int) -> None:
    stroke = np.random.default_rng(radius).random((60, 50)) > 0.99
    footprint = pyramid_reduce(disk(16 * radius).astype(float), downscale=16, order=1) > 0
    expected = ndimage.grey_dilation(stroke.astype(np.uint8), footprint=footprint, mode="constant").astype(bool)
    np.testing.assert_array_equal(morphology.dilate(stroke, radius), expected)


@pytest.mark.parametrize(("thickness", "intensity"), [(1.5, 80.0), (3.0, 150.0), (5.0, 240.0)])
def test_a_redrawn_digit_has_its_thickness_and_intensity(thickness: float, intensity: float) -> None:
    image = redraw(strokes_of(ring()[None])[0], thickness, intensity)
    assert measure_intensity(image) == pytest.approx(intensity, abs=3)
    assert measured(image).thickness == pytest.approx(thickness, abs=0.4)
    assert redraw(strokes_of(ring()[None])[0], 0.05, 100.0).any(), "erosion never removes the whole stroke"


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"images: expected uint8 \(N, 28, 28\), got float64 \(1, 28, 28\)"):
        measure_batch(np.zeros((1, 28, 28)))
    base = strokes_of(bar()[None])[0]
    with pytest.raises(InputError, match=r"thickness: expected a number in \(0, 28\], got 0.0"):
        redraw(base, 0.0, 100.0)
    with pytest.raises(InputError, match="intensity: expected a number in 0..255, got 256.0"):
        redraw(base, 3.0, 256.0)
