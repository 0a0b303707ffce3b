"""Images of every kind that people have come out as one and the same tensor."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import squares, squares_spec

from causaldiffae.datasets.image_input import as_model_images
from causaldiffae.datasets.images import to_model_range
from causaldiffae.errors import DataError, InputError

SPEC = squares_spec()


def test_every_kind_gives_the_same(tmp_path: Path) -> None:
    arrays = squares(2).images
    wanted = to_model_range(arrays)
    pictures = [Image.fromarray(image[0]) for image in arrays]
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    for given in (arrays, torch.from_numpy(arrays), wanted, list(arrays), pictures, paths, [str(p) for p in paths]):
        torch.testing.assert_close(as_model_images(given, SPEC), wanted, rtol=0, atol=0)
    for single in (arrays[0], wanted[0], pictures[0], str(paths[0])):
        torch.testing.assert_close(as_model_images(single, SPEC), wanted[:1], rtol=0, atol=0)


def test_other_sizes_are_averaged_and_colours_become_grey() -> None:
    large = squares(1).images.repeat(3, axis=2).repeat(3, axis=3)
    torch.testing.assert_close(as_model_images(large, SPEC), to_model_range(squares(1).images))
    red = Image.new("RGB", (50, 40), (255, 0, 0))
    assert as_model_images(red, SPEC).shape == (1, 1, 8, 8)
    assert as_model_images(red.convert("CMYK"), replace(SPEC, channels=3)).shape == (1, 3, 8, 8)
    np.testing.assert_allclose(as_model_images(red, SPEC).numpy(), 76 / 127.5 - 1, atol=0.01)  # the luma of red


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.zeros((2, 1, 8, 8)), "an array of float64 given, uint8 is needed"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"shape \(2, 3, 8, 8\) given, \(N, 1, S, S\)"),
        (np.zeros((2, 1, 8, 9), np.uint8), r"shape \(2, 1, 8, 9\)"),
        (np.zeros((0, 1, 8, 8), np.uint8), r"shape \(0, 1, 8, 8\)"),
        (torch.zeros(2, 1, 9, 9), r"shape \(2, 1, 9, 9\) given, \(N, 1, 8, 8\)"),
        (torch.full((1, 1, 8, 8), 3.0), r"spans 3\.\.3, \[-1, 1\] is needed"),
        (torch.full((1, 1, 8, 8), float("nan")), "spans nan"),
        ([], "an empty list"),
        ([7], "int given, an array, a tensor, a PIL image or a path"),
        (7, "int given"),
    ],
)
def test_what_is_refused(given: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        as_model_images(given, SPEC)  # type: ignore[arg-type]


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match=r"text\.png: it cannot be read as a JPEG, PNG or WebP image"):
        as_model_images(tmp_path / "text.png", SPEC)
    with pytest.raises(DataError, match=r"none\.png: it cannot be opened \(No such file"):
        as_model_images(str(tmp_path / "none.png"), SPEC)
