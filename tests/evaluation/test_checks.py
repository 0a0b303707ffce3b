"""What is said about inputs and labels unlike the training data: the same sentences everywhere."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from tiny import squares, squares_spec

from causaldiffae.datasets.reference import TrainingReference
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.evaluation.checks import beyond_range, check, checks_of_test, with_distances
from causaldiffae.evaluation.interventions import InterventionResult, write_csv

SPEC = squares_spec()
LOW, HIGH = SPEC.low[1], SPEC.high[1]


def reference(seed: int = 0) -> TrainingReference:
    """Of dark images with little noise, on which grey is in the upper half where size is."""
    rng = np.random.default_rng(seed)
    share = rng.uniform(0, 1, 400)
    labels = np.array(SPEC.low) + share[:, None] * (np.array(SPEC.high) - np.array(SPEC.low))
    data = squares(400)
    images = rng.normal(40, 3, data.images.shape).astype(np.uint8)
    return TrainingReference.fit(replace(data, images=images, labels=labels.astype(np.float32)))


def test_predictions_beyond_the_data_are_named_and_kept() -> None:
    labels = np.array([[2.0, HIGH + 60], [2.0, HIGH]])
    found = check(None, SPEC, ["size"], labels)
    end = f"beyond the training data, {LOW:g} to {HIGH:g}; the value is an extrapolation"
    assert found.notes == (f"grey: 1 of 2 predictions, {HIGH + 60:g}, is {end}",)
    both = np.array([[2.0, HIGH + 60], [2.0, HIGH + 20]])
    assert check(None, SPEC, ["size"], both).notes == (f"grey: 2 of 2 predictions, such as {HIGH + 60:g}, are {end}",)
    np.testing.assert_array_equal(found.beyond["grey"], [True, False])
    assert check(None, SPEC, ["size"], labels[:1]).notes == (f"grey: the prediction {HIGH + 60:g} is {end}",)
    assert check(None, SPEC, ["grey"], labels).notes == (), "a value that is set has a warning of its own"
    assert found.images is None and found.labels is None


def test_rounding_and_categories_are_not_beyond() -> None:
    slack = 0.019 * (HIGH - LOW)
    np.testing.assert_array_equal(
        beyond_range(SPEC, 1, np.array([LOW - slack, HIGH + slack, HIGH + 2 * slack, np.nan])),
        [False, False, True, False],
    )
    discrete = DatasetSpec.from_dict({**SPEC.to_dict(), "kinds": ["continuous", "binary"]})
    assert not beyond_range(discrete, 1, HIGH + 50)


def test_far_images_and_combinations_are_named() -> None:
    known = reference()
    rng = np.random.default_rng(1)
    dark, noise = rng.normal(40, 3, (1, 1, 8, 8)).astype(np.uint8), rng.integers(0, 256, (2, 1, 8, 8), np.uint8)
    labels = np.array([[SPEC.low[0], LOW], [SPEC.high[0], LOW], [SPEC.low[0], LOW]])
    found = check(known, SPEC, ["size"], labels, np.concatenate([dark, noise]))
    of_images, of_labels = found.notes
    assert of_images.startswith("images: 2 of 3 images are far from the training images (")
    assert of_labels.startswith(
        f"labels of 1 of 3 counterfactuals: no training image is like size {SPEC.high[0]:g}, grey {LOW:g}; the nearest"
    )
    assert found.images is not None and (found.images[1:] > 1).all()
    assert found.labels is not None
    np.testing.assert_array_equal(found.labels > 1, [False, True, False])
    alone = check(known, SPEC, [], None, noise[:1])
    assert alone.notes[0].startswith("images: the image is far from") and alone.labels is None


def result() -> InterventionResult:
    rng = np.random.default_rng(1)
    images, labels = rng.integers(0, 256, (2, 1, 8, 8), np.uint8), np.array([[SPEC.high[0], LOW], [SPEC.high[0], HIGH]])
    return InterventionResult({"size": SPEC.high[0]}, images, images, images, None, labels, labels, None, labels)


def test_a_test_says_it_and_gives_shares_and_columns(tmp_path: Path) -> None:
    known, results = reference(), [result()]
    lines, shares = checks_of_test(results, SPEC, known)
    do = f"do(size={SPEC.high[0]:g})"
    assert lines[0].startswith("images: 2 of 2 images are far")
    assert lines[1].startswith(f"{do}: labels of 1 of 2 counterfactuals")
    assert shares == {do: {"images_far": 1.0, "labels_far": 0.5}}
    added = with_distances(results, known)[0]
    assert added.image_distance is not None and added.label_distance is not None
    write_csv(tmp_path / "with.csv", [added], squares(2))
    header, *rows = (line.split(",") for line in (tmp_path / "with.csv").read_text().splitlines())
    assert header[-2:] == ["image_distance", "label_distance"]
    assert [float(row[-1]) > 1 for row in rows] == [True, True, False, False]
    assert all(float(row[-2]) > 1 for row in rows)


def test_without_a_reference_nothing_is_claimed(tmp_path: Path) -> None:
    plain = result()
    assert with_distances([plain], None)[0] is plain
    assert checks_of_test([plain], SPEC, None) == ([], {f"do(size={SPEC.high[0]:g})": {}})
    write_csv(tmp_path / "without.csv", [result()], squares(2))
    assert all(line.endswith(",,") for line in (tmp_path / "without.csv").read_text().splitlines()[1:])
