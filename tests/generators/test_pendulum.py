"""Pendulum: the published grid, pictures that show their labels, and the laws of an intervention."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from causaldiffae.datasets.images import resize_area
from causaldiffae.errors import InputError
from causaldiffae.generators import pendulum
from causaldiffae.generators.pendulum import PendulumGenerator, file_labels, grid, render, true_labels


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray]:
    """Labels (120, 4) and pictures (120, 96, 96, 4) from all over the grid."""
    angle, light = grid()
    rows = np.random.default_rng(0).permutation(len(angle))[:120]
    labels = true_labels(angle[rows], light[rows])
    return labels, np.stack([render(row[0], row[1]) for row in labels])


def test_grid_has_the_published_sizes() -> None:
    angle, light = grid()
    assert len(angle) == 7308 and 100 not in light
    assert pendulum.held_out_rows().sum() == 1826


def test_labels_follow_the_projection() -> None:
    angle, light = grid()
    theta, phi = angle * np.pi / 200, light * np.pi / 200
    pivot = (-0.5 - (10.5 - 10 * np.tan(phi))) / np.tan(phi)
    tip = (-0.5 - (10.5 - 9.5 * np.cos(theta) - (10 + 9.5 * np.sin(theta)) * np.tan(phi))) / np.tan(phi)
    labels = true_labels(angle, light)
    np.testing.assert_allclose(labels[:, 2], np.maximum(3, np.abs(pivot - tip)), rtol=1e-12)
    np.testing.assert_allclose(labels[:, 3], (pivot + tip) / 2, rtol=1e-12)
    assert round(100 * np.mean(labels[:, 2] == 3), 1) == 39.6
    np.testing.assert_array_equal(file_labels(angle, light)[:, 2:], np.trunc(labels[:, 2:]))


@pytest.mark.parametrize(
    ("size", "tolerance"),
    [
        (96, (0.1, 0.1, 0.2, 0.2)),
        (64, (0.15, 0.15, 0.25, 0.25)),
        (48, (0.2, 0.2, 0.25, 0.25)),
        (32, (0.4, 0.2, 0.3, 0.25)),
    ],
)
def test_labels_are_read_back_from_the_picture(
    sample: tuple[np.ndarray, np.ndarray], size: int, tolerance: tuple[float, ...]
) -> None:
    labels, images = sample
    smaller = resize_area(images.transpose(0, 3, 1, 2), size).transpose(0, 2, 3, 1)
    error = np.abs(PendulumGenerator().measure(smaller) - labels).mean(axis=0)
    assert (error < tolerance).all(), error


def test_measure_stands_the_noise_of_generated_pictures(sample: tuple[np.ndarray, np.ndarray]) -> None:
    labels, images = sample
    noisy = images + np.random.default_rng(0).normal(0, 8, images.shape)
    error = np.abs(PendulumGenerator().measure(np.clip(noisy, 0, 255).astype(np.uint8)) - labels).mean(axis=0)
    assert (error < (0.3, 0.3, 0.3, 0.3)).all(), error


def test_measure_says_nan_where_nothing_is_there() -> None:
    assert np.isnan(PendulumGenerator().measure(np.full((2, 48, 48, 3), 255, np.uint8))).all()
    with pytest.raises(InputError, match=r"images: float64 \(1, 4, 4, 3\) given, uint8 \(N, S, S, 3 or more\)"):
        PendulumGenerator().measure(np.zeros((1, 4, 4, 3)))


def test_rendering_is_deterministic_and_leaves_no_trace() -> None:
    first = render(-13, 77)
    render(40, 140, shadow_length=9.0)
    np.testing.assert_array_equal(render(-13, 77), first)
    assert first.shape == (96, 96, 4) and first.dtype == np.uint8 and (first[..., 3] == 255).all()


def test_do_factual_changes_nothing(sample: tuple[np.ndarray, np.ndarray]) -> None:
    labels, images = sample[0][:8], sample[1][:8]
    generator = PendulumGenerator()
    for names in ((), ("angle",), ("light", "shadow_length"), generator.graph.names):
        do = {name: labels[:, generator.graph.index(name)] for name in names}
        np.testing.assert_allclose(generator.counterfactual_labels(labels, do), labels, rtol=1e-14)
        np.testing.assert_array_equal(generator.counterfactual_images(labels, do), images)


def test_do_moves_descendants_and_nothing_else(sample: tuple[np.ndarray, np.ndarray]) -> None:
    labels, generator = sample[0], PendulumGenerator()
    moved = generator.counterfactual_labels(labels, {"angle": 20.5})
    np.testing.assert_array_equal(moved[:, 1], labels[:, 1])
    np.testing.assert_array_equal(moved, true_labels(20.5, labels[:, 1]))
    moved = generator.counterfactual_labels(labels, {"angle": -5, "shadow_position": 7.0})
    np.testing.assert_array_equal(moved[:, 3], 7.0)
    np.testing.assert_array_equal(moved[:, 2], true_labels(-5, labels[:, 1])[:, 2])


def test_do_shadow_leaves_the_causes_in_the_picture(sample: tuple[np.ndarray, np.ndarray]) -> None:
    labels, generator = sample[0][:12], PendulumGenerator()
    do = {"shadow_length": 6.0, "shadow_position": 10.0}
    np.testing.assert_array_equal(generator.counterfactual_labels(labels, do)[:, :2], labels[:, :2])
    images = generator.counterfactual_images(labels, do)
    np.testing.assert_array_equal(images[:, :78], sample[1][:12, :78])  # everything above the shadow
    np.testing.assert_allclose(generator.measure(images)[:, 2:], [[6.0, 10.0]] * 12, atol=0.3)


@pytest.mark.parametrize(
    ("do", "message"),
    [
        ({"wind": 1.0}, "unknown variable 'wind', known are angle, light, shadow_length, shadow_position"),
        ({"angle": "steep"}, "do: angle is 'steep', a number is needed"),
        ({"angle": float("nan")}, "do: angle is not finite"),
        ({"angle": [1.0, 2.0]}, r"do: angle has shape \(2,\), a number or one number per image \(3\) is needed"),
        ({"light": 0.0}, "light: 0..0 given, values strictly between 0 and 200 are needed"),
    ],
)
def test_do_is_refused_with_a_message(do: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PendulumGenerator().counterfactual_labels(file_labels([1, 2, 3], 70), do)


def test_labels_and_render_are_refused_with_a_message() -> None:
    with pytest.raises(InputError, match=r"labels: shape \(3, 2\), \(images, 4\) is needed"):
        PendulumGenerator().counterfactual_labels(np.zeros((3, 2)), {})
    with pytest.raises(InputError, match="shadow_length: -1 given, 0 or more is needed"):
        render(0, 70, shadow_length=-1)
    with pytest.raises(InputError, match="shadow_position: inf given, a finite number is needed"):
        render(0, 70, shadow_position=float("inf"))


@pytest.fixture
def small_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pendulum, "grid", lambda: (np.repeat([-3, 0, 4], 4), np.tile([61, 90, 110, 140], 3)))


def test_two_writes_are_the_same_bytes(tmp_path: Path, small_grid: None) -> None:
    for name in ("a", "b"):
        pendulum.write_dataset(tmp_path / name, workers=1, progress=False)
    digests = [
        {p.relative_to(tmp_path / name): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
        for name, files in ((n, [f for f in (tmp_path / n).rglob("*") if f.is_file()]) for n in ("a", "b"))
    ]
    assert digests[0] == digests[1] and len(digests[0]) == 13  # twelve pictures and the recipe
    assert sorted(p.name for p in (tmp_path / "a/test").iterdir()) == ["a_0_61_6_5.png", "a_4_61_7_5.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_finished_set_is_left_alone(tmp_path: Path, small_grid: None) -> None:
    out = pendulum.write_dataset(tmp_path / "set", workers=1, progress=False)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert pendulum.write_dataset(out, workers=1, progress=False) == out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_strange_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/diary.txt").write_text("mine")
    with pytest.raises(InputError, match="full: the folder is not empty and no data set of ours"):
        pendulum.write_dataset(tmp_path / "full", progress=False)
    (tmp_path / "full/recipe.json").write_text('{"dataset": "soup"}')
    with pytest.raises(InputError, match="full: the folder holds a data set of another recipe"):
        pendulum.write_dataset(tmp_path / "full", progress=False)
    with pytest.raises(InputError, match=r"diary.txt: it is a file, a new or empty folder is needed"):
        pendulum.write_dataset(tmp_path / "full/diary.txt", progress=False)


def test_a_failure_leaves_nothing_behind(tmp_path: Path, small_grid: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(chunk: object) -> int:
        raise OSError("disk full")

    monkeypatch.setattr(pendulum, "_write_chunk", fail)
    with pytest.raises(OSError, match="disk full"):
        pendulum.write_dataset(tmp_path / "set", workers=1, progress=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="workers: 0 given, 1 or more is needed"):
        pendulum.write_dataset(tmp_path / "set", workers=0, progress=False)
    assert list(tmp_path.iterdir()) == []
