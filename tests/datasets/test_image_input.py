"""Images in every common form are converted to the same tensor."""

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


def test_every_form_gives_the_same_tensor(tmp_path: Path) -> None:
    arrays = squares(2).images
    expected = to_model_range(arrays)
    images = [Image.fromarray(image[0]) for image in arrays]
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    for given in (arrays, torch.from_numpy(arrays), expected, list(arrays), images, paths, [str(p) for p in paths]):
        torch.testing.assert_close(as_model_images(given, SPEC), expected, rtol=0, atol=0)
    for single in (arrays[0], expected[0], images[0], str(paths[0])):
        torch.testing.assert_close(as_model_images(single, SPEC), expected[:1], rtol=0, atol=0)


def test_other_sizes_are_averaged_and_colours_become_grey() -> None:
    large = squares(1).images.repeat(3, axis=2).repeat(3, axis=3)
    torch.testing.assert_close(as_model_images(large, SPEC), to_model_range(squares(1).images))
    red = Image.new("RGB", (50, 40), (255, 0, 0))
    assert as_model_images(red, SPEC).shape == (1, 1, 8, 8)
    assert as_model_images(red.convert("CMYK"), replace(SPEC, channels=3)).shape == (1, 3, 8, 8)
    np.testing.assert_allclose(as_model_images(red, SPEC).numpy(), 76 / 127.5 - 1, atol=0.01)  # the luma of red


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 1, 8, 8)), r"expected a uint8 array or a float tensor in \[-1, 1\], got an array of float64"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"expected an array \(N, 1, S, S\), got shape \(2, 3, 8, 8\)"),
        (np.zeros((2, 1, 8, 9), np.uint8), r"got shape \(2, 1, 8, 9\)"),
        (np.zeros((0, 1, 8, 8), np.uint8), r"got shape \(0, 1, 8, 8\)"),
        (torch.zeros(2, 1, 9, 9), r"expected a tensor \(N, 1, 8, 8\), got shape \(2, 1, 9, 9\)"),
        (torch.full((1, 1, 8, 8), 3.0), r"expected floats in \[-1, 1\] or uint8 in 0..255, got floats in 3\.\.3"),
        (torch.full((1, 1, 8, 8), float("nan")), r"got floats in nan\.\.nan"),
        ([], "expected at least one image, got an empty list"),
        ([7], "expected an array, a tensor, a PIL image or a path, got int"),
        (7, "got int"),
    ],
)
def test_anything_else_is_refused(given: object, message: str) -> None:
    with pytest.raises(InputError, match=f"^images: .*{message}"):
        as_model_images(given, SPEC)  # type: ignore[arg-type]


def test_files_that_are_not_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match=r"text\.png: .*JPEG, PNG or WebP image"):
        as_model_images(tmp_path / "text.png", SPEC)
    with pytest.raises(DataError, match=r"none\.png: "):
        as_model_images(str(tmp_path / "none.png"), SPEC)
