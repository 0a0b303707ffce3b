"""Grids of images: sizes, and captions that look like formulas."""

import numpy as np

from causaldiffae.visualization.image_grids import ImageRow, headed_tile, html_table, labelled_grid, tile, wrap_heading


def test_tiles_are_separated_by_two_pixels() -> None:
    grid = tile(np.zeros((2, 3, 1, 4, 5), np.uint8))
    assert grid.shape == (2 * 6 + 2, 3 * 7 + 2, 1)
    assert (grid == 0).sum() == 6 * 20 and set(np.unique(grid)) == {0, 255}


def test_captions_are_not_parsed_as_formulas() -> None:
    odd = r"do($\frac{$)"
    assert labelled_grid([(odd, np.zeros((1, 1, 8, 8), np.uint8))], [odd], [[odd]], odd).shape[2] == 3


def test_rows_are_higher_where_captions_have_more_lines() -> None:
    columns = [("a", np.zeros((2, 1, 8, 8), np.uint8))]
    one, three = (labelled_grid(columns, cell_captions=[[text] * 2]) for text in ("a", "a\nb\nc"))
    assert three.shape[0] > one.shape[0] and three.shape[1] == one.shape[1]


def test_long_headings_stay_above_their_column() -> None:
    """White between the columns: a heading of four variables is broken to lines, and the images keep their size."""
    black = np.zeros((2, 1, 8, 8), np.uint8)
    long = "do(shadow_position=12.3, shadow_length=4.5, light=100, angle=-20)"
    short, wrapped = (labelled_grid([(text, black)] * 3) for text in ("a", long))
    assert wrapped.shape[0] > short.shape[0] and wrapped.shape[1] == short.shape[1]
    first_image = int(np.argmax((wrapped < 60).all(axis=2).mean(axis=1) > 0.3))
    ink = (wrapped[: first_image - 4] < 128).any(axis=(0, 2))
    gaps = np.diff(np.flatnonzero(ink))
    assert (gaps > 8).sum() == 2, "three separate headings"
    dark = [((grid < 60).all(axis=2)).sum() for grid in (short, wrapped)]
    assert dark[1] > 0.9 * dark[0]


def test_line_breaks_of_a_heading_are_kept() -> None:
    black = np.zeros((1, 1, 8, 8), np.uint8)
    one, two, four = (labelled_grid([(text, black)]) for text in ("a b", "a\nb", "a\nb\nc\nd"))
    assert not np.array_equal(one, two) and four.shape[0] > two.shape[0]


def test_headings_stand_above_enlarged_tiles() -> None:
    black = np.zeros((4, 1, 8, 8), np.uint8)
    short, long = (headed_tile([("a", black), (text, black)]) for text in ("b", "do(shadow_position=12.3)"))
    side = 96  # a multiple of 8
    assert short.shape[1:] == (2 * (side + 2) + 2, 3) and long.shape[0] > short.shape[0]
    height = 4 * (side + 2) + 2
    np.testing.assert_array_equal(short[-height:], long[-height:])
    assert (short[-height:] == 0).sum() == 4 * 2 * side * side * 3
    heading = short[:-height]
    assert (heading < 128).any() and heading[:, side:].min() < 128, "both columns have a heading"


def test_captions_stand_below_their_tiles() -> None:
    black = np.zeros((2, 1, 8, 8), np.uint8)
    plain, captioned = headed_tile([("a", black)]), headed_tile([("a", black)], [["size 4 (6) !", ""]])
    room = (captioned.shape[0] - plain.shape[0]) // 2
    assert room > 8 and captioned.shape[1] == plain.shape[1]
    first, second = (captioned[plain.shape[0] - 2 * 98 + i * (98 + room) - 2 + 98 :][:room] for i in range(2))
    assert first.min() < 128 and second.min() == 255, "the second caption is empty"


def test_headings_are_broken_after_signs() -> None:
    assert wrap_heading("factual", lambda text: len(text) < 9) == ["factual"]
    lines = wrap_heading("do(shadow_position=12.3, light=4)", lambda text: len(text) <= 10)
    assert lines == ["do(shadow_", "position=", "12.3,", "light=4)"]
    lines = wrap_heading("do(angle=10, light=4, size=12)", lambda text: len(text) <= 18)
    assert lines == ["do(angle=10,", "light=4, size=12)"], "first at spaces"
    assert wrap_heading("", lambda _: False) == [""] and wrap_heading("_a", lambda _: False) == ["_", "a"]


def test_texts_of_a_table_are_escaped() -> None:
    page = html_table([ImageRow("<i>", np.zeros((1, 3, 4, 4), np.uint8), {"<b>": ["<u>"]})], "<s>")
    assert not any(tag in page for tag in ("<i>", "<b>", "<u>", "<s>")) and page.count("&lt;") == 4
