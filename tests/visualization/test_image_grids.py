"""Grids of images: sizes, and captions that look like formulas."""

import numpy as np

from causaldiffae.visualization.image_grids import labelled_grid, tile


def test_tiles_are_separated_by_two_pixels() -> None:
    grid = tile(np.zeros((2, 3, 1, 4, 5), np.uint8))
    assert grid.shape == (2 * 6 + 2, 3 * 7 + 2, 1)
    assert (grid == 0).sum() == 6 * 20 and set(np.unique(grid)) == {0, 255}


def test_captions_are_not_parsed_as_formulas() -> None:
    odd = r"do($\frac{$)"
    assert labelled_grid([(odd, np.zeros((1, 1, 8, 8), np.uint8))], [odd], [[odd]], odd).shape[2] == 3
