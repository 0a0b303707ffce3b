"""Pendulum: the published grid, images that show their labels, interventions on the shadow."""

from pathlib import Path

import numpy as np
import pytest

from causaldiffae.datasets.images import resize_area
from causaldiffae.errors import InputError
from causaldiffae.generators import pendulum
from causaldiffae.generators.pendulum import PendulumGenerator, grid, render, true_labels


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray]:
    """Labels (120, 4) and images (120, 96, 96, 4) from all over the grid."""
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


@pytest.mark.parametrize(
    ("size", "tolerance"),
    [
        (96, (0.1, 0.1, 0.2, 0.2)),
        (64, (0.15, 0.15, 0.25, 0.25)),
        (48, (0.2, 0.2, 0.25, 0.25)),
        (32, (0.4, 0.2, 0.3, 0.25)),
    ],
)
def test_labels_are_measured_on_images(
    sample: tuple[np.ndarray, np.ndarray], size: int, tolerance: tuple[float, ...]
) -> None:
    labels, images = sample
    smaller = resize_area(images.transpose(0, 3, 1, 2), size).transpose(0, 2, 3, 1)
    error = np.abs(PendulumGenerator().measure(smaller) - labels).mean(axis=0)
    assert (error < tolerance).all(), error


def test_measure_is_robust_to_pixel_noise(sample: tuple[np.ndarray, np.ndarray]) -> None:
    labels, images = sample
    noisy = images + np.random.default_rng(0).normal(0, 8, images.shape)
    error = np.abs(PendulumGenerator().measure(np.clip(noisy, 0, 255).astype(np.uint8)) - labels).mean(axis=0)
    assert (error < (0.3, 0.3, 0.3, 0.3)).all(), error


def test_measure_returns_nan_where_nothing_is_found() -> None:
    assert np.isnan(PendulumGenerator().measure(np.full((2, 48, 48, 3), 255, np.uint8))).all()


def test_rendering_is_deterministic_and_stateless() -> None:
    first = render(-13, 77)
    render(40, 140, shadow_length=9.0)
    np.testing.assert_array_equal(render(-13, 77), first)
    assert first.shape == (96, 96, 4) and first.dtype == np.uint8 and (first[..., 3] == 255).all()


def test_the_shadow_follows_its_causes(sample: tuple[np.ndarray, np.ndarray]) -> None:
    labels, generator = sample[0], PendulumGenerator()
    moved = generator.counterfactual_labels(labels, {"angle": 20.5})
    np.testing.assert_array_equal(moved, true_labels(20.5, labels[:, 1]))
    moved = generator.counterfactual_labels(labels, {"angle": -5, "shadow_position": 7.0})
    np.testing.assert_array_equal(moved[:, 2], true_labels(-5, labels[:, 1])[:, 2])
    np.testing.assert_array_equal(generator.counterfactual_images(labels[:8], {}), sample[1][:8])


def test_do_shadow_does_not_change_its_causes(sample: tuple[np.ndarray, np.ndarray]) -> None:
    labels, generator = sample[0][:12], PendulumGenerator()
    do = {"shadow_length": 6.0, "shadow_position": 10.0}
    np.testing.assert_array_equal(generator.counterfactual_labels(labels, do)[:, :2], labels[:, :2])
    images = generator.counterfactual_images(labels, do)
    np.testing.assert_array_equal(images[:, :78], sample[1][:12, :78])  # everything above the shadow
    np.testing.assert_allclose(generator.measure(images)[:, 2:], [[6.0, 10.0]] * 12, atol=0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 70, -1), "shadow_length: expected 0 or more, got -1"),
        ((0, 70, None, float("inf")), "shadow_position: expected a finite number, got inf"),
        ((float("nan"), 70), "angle: expected a finite number, got nan"),
        ((0, 0.0), "light: expected a number strictly between 0 and 200, got 0"),
    ],
)
def test_refused_values(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        render(*arguments)


@pytest.fixture
def small_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pendulum, "grid", lambda: (np.repeat([-3, 0, 4], 4), np.tile([61, 90, 110, 140], 3)))


def test_two_writes_are_the_same_bytes(tmp_path: Path, small_grid: None) -> None:
    written = []
    for name in ("a", "b"):
        out = pendulum.write_dataset(tmp_path / name, workers=1, progress=False)
        written.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert written[0] == written[1] and len(written[0]) == 13  # twelve images and the recipe
    assert sorted(p.name for p in (tmp_path / "a/test").iterdir()) == ["a_0_61_6_5.png", "a_4_61_7_5.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_finished_set_is_not_written_again(tmp_path: Path, small_grid: None) -> None:
    out = pendulum.write_dataset(tmp_path / "set", workers=1, progress=False)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert pendulum.write_dataset(out, workers=1, progress=False) == out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
