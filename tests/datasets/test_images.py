"""Images in memory: resizing, and the ranges of stored images and of networks."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import squares

from causaldiffae.datasets.images import (
    evenly_spread,
    finite_images,
    keep_unchanged,
    model_inputs,
    resize_area,
    to_model_range,
    to_uint8,
)
from causaldiffae.errors import InputError


def test_every_grey_level_survives_the_model_range() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    scaled = to_model_range(levels)
    assert scaled.dtype == torch.float32 and scaled.min() == -1 and scaled.max() == 1
    np.testing.assert_array_equal(to_uint8(scaled).numpy(), levels)
    np.testing.assert_array_equal(to_uint8(scaled.numpy()), levels)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
    with pytest.raises(InputError, match="images: expected uint8, got torch.float32"):
        to_model_range(torch.zeros(1))


def test_resizing_averages_areas(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 96, 96)).astype(np.uint8)
    boxed = [Image.fromarray(i.transpose(1, 2, 0)).resize((32, 32), Image.Resampling.BOX) for i in images]
    expected = np.stack([np.array(b) for b in boxed]).transpose(0, 3, 1, 2)
    assert np.abs(resize_area(images, 32).astype(int) - expected).max() <= 1
    assert resize_area(images, 96) is images
    ramp = np.array([[0, 30, 60]] * 3, np.uint8)[None, None]
    assert resize_area(ramp, 2)[0, 0].tolist() == [[10, 50]] * 2
    assert np.abs(resize_area(images, 64).mean() - images.mean()) < 0.1
    whole = resize_area(images, 8)
    monkeypatch.setattr("causaldiffae.datasets.images._RESIZED_AT_ONCE", 9 * 96 * 96)
    np.testing.assert_array_equal(resize_area(images, 8), whole)
    assert resize_area(images[:0], 8).shape == (0, 3, 8, 8)


def test_a_subset_keeps_images_labels_and_names_together() -> None:
    data = squares(8, num_classes=3)
    subset = data.subset([5, 1])
    assert subset.ids == ["5", "1"] and subset.classes is not None and data.classes is not None
    np.testing.assert_array_equal(subset.images, data.images[[5, 1]])
    np.testing.assert_array_equal(subset.labels, data.labels[[5, 1]])
    np.testing.assert_array_equal(subset.classes, data.classes[[5, 1]])
    assert subset.labelled is None and model_inputs(subset).x_start.shape == (2, 1, 8, 8)
    assert evenly_spread(3, 8).tolist() == [0, 4, 7]


def test_images_that_are_not_finite_are_named() -> None:
    images = torch.zeros(4, 1, 8, 8)
    assert finite_images(images) is images
    images[1, 0, 3, 3], images[3] = torch.nan, torch.inf
    with pytest.raises(
        InputError, match=r"do\(a=1\): expected finite pixels, got NaN or infinity in 2 of 4 images .*1, 3"
    ):
        finite_images(images, "do(a=1)")


def test_pixels_that_hardly_change_are_those_of_the_factual_image() -> None:
    factual = torch.linspace(-0.5, 0.5, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    images = factual + 0.01
    images[0, 1, 8:16, 8:16] += 0.5
    kept = keep_unchanged(images, factual, 0.1)
    far = torch.ones(32, 32, dtype=torch.bool)
    far[7:17, 7:17] = False  # the changed pixels and their neighbours
    assert torch.equal(kept[0, :, far], factual[0, :, far])
    torch.testing.assert_close(kept[0, :, 8:16, 8:16], images[0, :, 8:16, 8:16])
    assert 0.4 < (kept[0] != factual[0]).float().mean() * 32 * 32 / 10**2 <= 1, "the region is hardly wider"
    torch.testing.assert_close(kept[1], images[1], msg="a small change of the whole image is kept")
    assert keep_unchanged(images, factual, 0.0) is images


def test_changes_near_the_threshold_are_blended() -> None:
    factual, images = torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 32)
    images[..., :8] = 0.5
    for share, weight in ((0.049, 0.0), (0.075, 0.5), (0.101, 1.0)):
        images[..., 20:] = 0.5 * share
        found = keep_unchanged(images, factual, 0.1)[..., 24:]
        torch.testing.assert_close(found, torch.full_like(found, 0.5 * share * weight), rtol=0, atol=1e-6)


def test_neighbourhoods_grow_with_the_image() -> None:
    for side, width in ((28, 1), (32, 1), (64, 2), (128, 3)):
        images = torch.zeros(1, 1, side, side)
        images[..., side // 2 :] = 1.0
        drift = images + 0.001 * (images == 0)
        changed = keep_unchanged(drift, torch.zeros_like(images), 0.1)[0, 0, 0] != 0
        assert int(changed[: side // 2].sum()) == width, side


@pytest.mark.parametrize("sign", [1, -1])
def test_the_threshold_rises_with_the_change_of_the_pixels_that_change_least(sign: int) -> None:
    weak, weights = 0.13, {0.0: 1.0, 0.0125: 1.0, 0.02: 0.625, 0.024: 2 * 0.13 / 0.192 - 1, 0.05: 0.3}
    images = torch.zeros(len(weights), 3, 32, 128)
    images[:, 1, :, :16] = 1.0  # the largest change is that of one channel
    images[..., 52:96] = torch.tensor(list(weights))[:, None, None, None]  # 27 % of the pixels do not change at all
    images[..., 96:] = weak
    factual = torch.zeros_like(images)
    expected = sign * weak * torch.tensor(list(weights.values()))[:, None, None, None].expand_as(images[..., 100:])
    found = keep_unchanged(sign * images, factual, 0.1)[..., 100:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    images[..., 96:] = 0.2  # at twice the fraction every change counts
    torch.testing.assert_close(keep_unchanged(sign * images, factual, 0.1)[..., 100:], sign * images[..., 100:])


def test_the_largest_change_counts_and_an_equal_image_is_returned() -> None:
    factual = torch.linspace(-0.5, 0.5, 3 * 32 * 32).reshape(1, 3, 32, 32)
    uniform = factual + 0.3
    torch.testing.assert_close(keep_unchanged(uniform, factual, 1.0), uniform)
    assert torch.equal(keep_unchanged(factual.clone(), factual, 0.1), factual)


def test_pixels_that_are_not_finite_stay_and_hide_no_others() -> None:
    factual, images = torch.zeros(2, 1, 32, 32), torch.full((2, 1, 32, 32), 0.5)
    images[0, 0, 3, 4] = torch.nan
    found = keep_unchanged(images, factual, 0.1)
    assert found.isnan().sum() == 1 and found[0, 0, 3, 4].isnan()
    assert torch.equal(found.nan_to_num(0.5), torch.full_like(images, 0.5))


def test_changes_at_the_border_are_averaged_over_the_pixels_that_exist() -> None:
    factual, images = torch.zeros(1, 1, 32, 32), torch.full((1, 1, 32, 32), 0.01)
    images[..., 0, 0] = 1.0
    assert not keep_unchanged(images, factual, 0.1)[..., 8:, 8:].any()
