"""Ranges of images with more than 8 bits."""

import io

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from causaldiffae.datasets.folder.value_range import covering_range, limits, scale_values


@pytest.mark.parametrize(
    ("limits", "is_float", "expected"),
    [
        ([(0, 200)], False, (0, 255)),
        ([(3, 255), (0, 256)], False, (0, 511)),
        ([(0, 4095)], False, (0, 4095)),
        ([(0, 4096), (7, 9)], False, (0, 8191)),
        ([(0, 65535)], False, (0, 65535)),
        ([(0, 70_000)], False, (0, 70_000)),
        ([(-1024, 3071)], False, (-1024, 3071)),
        ([(0, 1)], True, (0, 1)),
        ([(0, 1), (-0.5, 0.5)], True, (-1, 1)),
        ([(0, 254.5)], True, (0, 255)),
        ([(0, 3000)], True, (0, 3000)),
        ([(7, 7), (-2, -2)], True, (-2, 7)),
        ([(300, 300)], True, (300, 301)),
    ],
)
def test_the_range_covers_all_images(
    limits: list[tuple[float, float]], is_float: bool, expected: tuple[float, float]
) -> None:
    assert covering_range(limits, is_float) == expected


def test_a_tiff_may_declare_its_largest_value() -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[281] = 4095
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), 700, np.uint16)).save(file, "TIFF", tiffinfo=tags)
    with Image.open(io.BytesIO(file.getvalue())) as image:
        assert limits(image) == (700, 4095)


def test_values_outside_the_range_become_black_or_white() -> None:
    values = np.array([-5, 0, 2048, 4095, 5000])
    assert scale_values(values, (0, 4095)).tolist() == [0, 0, 128, 255, 255]
    assert scale_values(values, (-5, 5000)).tolist() == [0, 0, 105, 209, 255]
    assert scale_values(values / 4095, (0, 1)).tolist() == [0, 0, 128, 255, 255]
