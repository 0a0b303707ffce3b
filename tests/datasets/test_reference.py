"""The reference of a model: what is far from the training data, what is not, and what a file may hold."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import squares, squares_spec

from causaldiffae.checkpoints.checkpoint import export_weights
from causaldiffae.datasets import reference as reference_module
from causaldiffae.datasets.images import ImageData
from causaldiffae.datasets.reference import (
    FILE,
    MIN_IMAGES,
    ImageReference,
    TrainingReference,
    families,
    reference_of_model,
)
from causaldiffae.errors import DataError
from causaldiffae.files.reading import read_tensors, write_tensors
from causaldiffae.graphs import CausalGraph

SPEC = replace(squares_spec(), low=(0.0, 0.0), high=(10.0, 255.0))


def data(count: int = 600, seed: int = 0) -> ImageData:
    """Smooth images on which a bright spot moves; grey follows size, with little noise."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(1, 9, count)
    labels = np.stack([size, 25 * size + rng.normal(0, 5, count)], axis=1).astype(np.float32)
    y, x = np.indices((8, 8))
    centre = rng.uniform(2, 5, (count, 2, 1, 1))
    images = 200 * np.exp(-((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2) / 4) + 20
    return ImageData(SPEC, "train", images[:, None].astype(np.uint8), labels, None, [str(i) for i in range(count)])


@pytest.fixture(scope="module")
def reference() -> TrainingReference:
    return TrainingReference.fit(data())


def test_noise_negatives_and_constant_images_are_far_and_held_out_images_are_not(reference: TrainingReference) -> None:
    held_out = data(400, seed=1).images
    ordinary = reference.image_distances(held_out)
    assert ordinary is not None and (ordinary > 1).mean() <= 0.01 and ordinary.max() > 0.5
    rng = np.random.default_rng(2)
    noisy = np.clip(held_out + rng.normal(0, 40, held_out.shape), 0, 255).astype(np.uint8)
    unusual = [rng.integers(0, 256, held_out.shape, np.uint8), 255 - held_out, noisy, np.zeros((1, 1, 8, 8), np.uint8)]
    for images in unusual:
        distances = reference.image_distances(images)
        assert distances is not None and (distances > 1).all()


def test_the_rows_are_a_random_part_of_sorted_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_module, "MAX_ROWS", 40)
    y, x = np.indices((8, 8))
    places = np.linspace(0, 7, 400)[:, None, None]  # images are sorted by the place of a spot
    images = (200 * np.exp(-((x - places) ** 2 + (y - 4) ** 2) / 2)).astype(np.uint8)[:, None]
    found = ImageReference.fit(images, np.random.default_rng(0))
    assert found is not None and len(found.rows) == 40
    left, right = (np.median(found.distances(images[rows])) for rows in (slice(0, 40), slice(360, 400)))
    assert right < 1.5 * left, "both ends are near some row"


def views(scenes: int, count: int, seed: int = 0) -> np.ndarray:
    """`count` noisy views of each of `scenes` random patterns."""
    rng = np.random.default_rng(seed)
    each = np.repeat(rng.uniform(60, 200, (scenes, 1, 8, 8)), count, axis=0)
    return (each + rng.normal(0, 2, each.shape)).astype(np.uint8)


def test_images_of_a_group_are_on_one_side_of_the_split() -> None:
    """Otherwise the threshold is the distance between views of one scene, and new scenes are far."""
    images, groups, new = views(60, 10), np.repeat([f"scene {i}" for i in range(60)], 10), views(300, 1, seed=1)
    divided, whole = (ImageReference.fit(images, np.random.default_rng(0), each) for each in (None, groups))
    assert divided is not None and whole is not None
    assert (divided.distances(new) > 1).mean() > 0.3 and (whole.distances(new) > 1).mean() < 0.05
    assert 250 <= len(whole.rows) <= 350, "about half of the images"
    assert ImageReference.fit(images, np.random.default_rng(0), np.zeros(600, int)) is None, "one group"
    spec, names = replace(SPEC, group="scene"), [str(i) for i in range(600)]
    of_data = TrainingReference.fit(ImageData(spec, "train", images, data(600).labels, None, names, groups=groups))
    assert of_data.images is not None and of_data.images.threshold == whole.threshold
    apart = ImageReference.fit(images, np.random.default_rng(0), np.arange(600))
    assert apart is not None and apart.threshold == divided.threshold


def test_copies_of_images_count_once() -> None:
    once, new = data(300).images, data(300, seed=1).images
    found = ImageReference.fit(np.repeat(once, 10, axis=0), np.random.default_rng(0))
    assert found is not None and len(found.rows) == 150
    assert (found.distances(new) > 1).mean() < 0.05
    assert ImageReference.fit(np.repeat(once[: MIN_IMAGES - 1], 10, axis=0), np.random.default_rng(0)) is None


def test_the_threshold_of_images_that_hardly_differ_is_not_0() -> None:
    """They differ in the place of one pixel, which the features do not contain."""
    images = np.full((240, 1, 64, 64), 100, np.uint8)
    images[np.arange(240), 0, np.arange(240) // 60 + 20, np.arange(240) % 60 + 2] = 101
    found = ImageReference.fit(images, np.random.default_rng(0))
    assert found is not None and found.threshold > 0.01 and (found.distances(images) <= 1).all()


def test_the_distance_of_an_image_does_not_depend_on_the_others(reference: TrainingReference) -> None:
    images = data(300, seed=1).images
    together = reference.image_distances(images)
    assert together is not None
    for i in (0, 255, 256, 299):
        alone = reference.image_distances(images[i : i + 1])
        np.testing.assert_allclose(alone, together[i : i + 1], rtol=1e-5)


def test_combinations_never_seen_are_far_and_values_seen_together_are_not(reference: TrainingReference) -> None:
    ordinary = reference.label_distances(data(400, seed=1).labels, ["size"])
    assert ordinary is not None and (ordinary.values > 1).mean() <= 0.01
    apart = reference.label_distances(np.array([[8.0, 200.0], [8.0, 40.0], [2.0, 200.0]]), ["size"])
    assert apart is not None and apart.values[0] < 1 < apart.values[1:].min()
    assert apart.farthest.startswith("no training image is like size 8, grey 40; the nearest has size ")


def test_values_beyond_a_range_are_compared_at_its_end(reference: TrainingReference) -> None:
    """Another message names them."""
    inside, beyond = (reference.label_distances(np.array([[9.0, grey]]), ["size"]) for grey in (255.0, 300.0))
    assert inside is not None and beyond is not None
    assert inside.values == beyond.values


def test_a_family_is_a_variable_and_its_causes() -> None:
    graph = CausalGraph(("a", "b", "c", "d", "alone"), (("a", "c"), ("b", "c"), ("c", "d")))
    assert families(graph) == [(0, 1, 2), (2, 3), (4,)]


def test_only_families_that_an_intervention_affects_are_compared() -> None:
    graph = CausalGraph(("a", "b", "c"), (("a", "b"),))
    spec = replace(SPEC, graph=graph, shift=(0.0,) * 3, scale=(1.0,) * 3, low=(-9.0,) * 3, high=(9.0,) * 3, units=())
    rng = np.random.default_rng(0)
    a, c = rng.normal(size=(2, 300))
    labels = np.stack([a, a, np.round(c)], axis=1).astype(np.float32)
    reference = TrainingReference.fit(replace(data(300), spec=spec, labels=labels))
    odd = np.array([[2.0, -2.0, 0.0]])
    for do, far in (("a", True), ("b", True), ("c", False)):
        found = reference.label_distances(odd, [do])
        assert found is not None and bool(found.values > 1) is far


def test_categories_never_seen_together_are_far() -> None:
    spec = replace(
        SPEC, kinds=("continuous", "binary"), categories=((), ("no", "yes")), low=(0.0, 0.0), high=(10.0, 1.0)
    )
    size = np.random.default_rng(0).uniform(0, 10, 500)
    labels = np.stack([size, size > 5], axis=1).astype(np.float32)
    found = TrainingReference.fit(replace(data(500), spec=spec, labels=labels)).label_distances(
        np.array([[8.0, 1.0], [8.0, 0.0]]), ["grey"]
    )
    assert found is not None and found.values[0] < 1 < found.values[1]
    assert "size 8, grey no" in found.farthest


def test_hidden_and_missing_labels_are_not_used_and_few_images_make_no_claim() -> None:
    hidden = replace(data(), labelled=np.zeros(600, bool))
    reference = TrainingReference.fit(hidden)
    assert reference.label_distances(hidden.labels, ["size"]) is None
    assert reference.image_distances(hidden.images[:2]) is not None
    few = TrainingReference.fit(squares(MIN_IMAGES - 1))
    assert few.image_distances(squares(2).images) is None


def test_a_file_gives_the_same_distances(reference: TrainingReference, tmp_path: Path) -> None:
    reference.write(tmp_path)
    found = reference_of_model(tmp_path / "step_0000001", SPEC)
    assert found is not None and reference_of_model(tmp_path / "other" / "model", SPEC) is None
    images, labels = data(50, seed=3).images, data(50, seed=3).labels
    first, second = (each.image_distances(images) for each in (reference, found))
    assert first is not None and second is not None
    np.testing.assert_allclose(first, second, rtol=2e-3)
    before, after = (each.label_distances(labels, ["size"]) for each in (reference, found))
    assert before is not None and after is not None
    np.testing.assert_allclose(before.values, after.values, rtol=1e-4, atol=1e-5)
    assert (tmp_path / FILE).stat().st_size < 300_000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("labels.scale", torch.ones(3)),
        ("labels.scale", torch.zeros(2)),
        ("images.axes", torch.ones(32, 5)),
        ("images.rows", torch.ones(10, 4)),
        ("images.rows", torch.full((10, 57), torch.nan)),
        ("images.threshold", torch.zeros(1)),
        ("labels.0-1.rows", torch.ones(4, 3)),
        ("labels.0-1.threshold", torch.tensor([-1.0])),
        ("images.centre", torch.ones(64, dtype=torch.int64)),
    ],
)
def test_files_of_other_sizes_or_values_are_refused(
    reference: TrainingReference, tmp_path: Path, name: str, value: torch.Tensor
) -> None:
    reference.write(tmp_path)
    write_tensors(tmp_path / FILE, read_tensors(tmp_path / FILE) | {name: value})
    with pytest.raises(DataError, match=rf"{FILE}: {name}: expected"):
        TrainingReference.read(tmp_path / FILE, SPEC)
    with pytest.warns(UserWarning, match="inputs are not compared with the training data"):
        assert reference_of_model(tmp_path, SPEC) is None


def test_a_damaged_file_is_a_warning(tmp_path: Path) -> None:
    export_weights(tmp_path, {"w": torch.ones(1)}, {})
    (tmp_path / FILE).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=FILE):
        assert reference_of_model(tmp_path, SPEC) is None
