"""The CausalCircuit stand-in: structural equations, interventions, images that show their labels."""

import importlib
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import REPO
from scipy import stats

from causaldiffae.datasets.images import resize_area
from causaldiffae.errors import InputError
from causaldiffae.generators import circuit, circuit_scene
from causaldiffae.generators.circuit import GRAPH, CircuitGenerator, abduct, predict, sample_noise

needs_renderer = pytest.mark.skipif(not circuit_scene.can_render(), reason="MuJoCo or the EGL libraries are missing")
ARM, BLUE, GREEN, RED = range(4)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return predict(sample_noise(60, np.random.default_rng(1)), {})


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray]:
    """Labels (40, 4), with the darkest and the brightest, and images (40, 128, 128, 3)."""
    labels = predict(sample_noise(40, np.random.default_rng(0)), {})
    labels[:6, 1:] = [(0, 0, 0), (1, 1, 1), (0, 1, 0), (1, 0, 1), (0, 0, 1), (1, 1, 0)]
    labels[:3, ARM] = 0, 1, 0.5
    return labels, CircuitGenerator().counterfactual_images(labels, {})


# --- the structural model ---------------------------------------------------------------------------------------------


def test_labels_follow_the_equations() -> None:
    noise = sample_noise(200, np.random.default_rng(0))
    arm, blue, green, red = noise.T
    b_red, b_green, b_blue = (np.maximum(0, 1 - ((0.36 * arm - 0.18 - x) / 0.05) ** 2) for x in (-0.12, 0, 0.12))

    def light(v: np.ndarray, epsilon: np.ndarray) -> np.ndarray:
        return stats.beta.ppf(epsilon, 5 * v, 5 * (1 - v))

    z_blue, z_green = light(0.2 + 0.6 * b_blue, blue), light(0.2 + 0.6 * b_green, green)
    z_red = light(0.2 + 0.6 * np.clip(z_green + z_blue + b_red, 0, 1), red)
    np.testing.assert_allclose(predict(noise, {}), np.stack([arm, z_blue, z_green, z_red], axis=1), atol=1e-9)


@pytest.mark.parametrize(
    ("do", "name", "mean"),
    [
        ({"arm": 0.5}, "green", 0.8),
        ({"arm": 0.0}, "green", 0.2),
        ({"arm": 5 / 6}, "blue", 0.8),
        ({"arm": 0.5}, "blue", 0.2),
        ({"arm": 1 / 6, "green": 0, "blue": 0}, "red", 0.8),
        ({"arm": 0.5, "green": 0.25, "blue": 0.25}, "red", 0.5),
    ],
)
def test_lights_have_the_expected_mean(do: dict[str, float], name: str, mean: float) -> None:
    drawn = predict(sample_noise(20_000, np.random.default_rng(0)), do)[:, GRAPH.index(name)]
    assert abs(drawn.mean() - mean) < 0.01


@given(st.lists(st.lists(st.floats(0.001, 0.999), min_size=4, max_size=4), min_size=1, max_size=5))
def test_abduction_is_exact(rows: list[list[float]]) -> None:
    noise = np.array(rows)
    labels = predict(noise, {})
    np.testing.assert_allclose(abduct(labels), noise, rtol=0, atol=1e-9)
    np.testing.assert_allclose(predict(abduct(labels), {}), labels, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", GRAPH.names)
def test_counterfactuals_keep_the_noise(labels: np.ndarray, name: str) -> None:
    moved = CircuitGenerator().counterfactual_labels(labels, {name: 0.52})
    np.testing.assert_allclose(moved, predict(abduct(labels), {name: 0.52}), rtol=0, atol=1e-12)


def test_effects_have_their_direction(labels: np.ndarray) -> None:
    moved = CircuitGenerator().counterfactual_labels(labels, {"arm": 0.5, "green": 0.1})
    assert (moved[:, BLUE] <= labels[:, BLUE]).all()  # the blue button is no longer pressed
    pushed = CircuitGenerator().counterfactual_labels(labels, {"green": 1.0})
    assert (pushed[:, RED] >= labels[:, RED]).all() and (pushed[:, RED] > labels[:, RED]).any()


def test_labels_are_in_the_unit_interval() -> None:
    with pytest.raises(InputError, match="do: red: expected a number in 0..1, got 1.25"):
        CircuitGenerator().counterfactual_labels([[0.5] * 4], {"red": 1.25})
    with pytest.raises(InputError, match="labels: row 1, green: expected a number in 0..1, got 1.5"):
        CircuitGenerator().counterfactual_labels([[0.0] * 4, [0, 0, 1.5, 0]], {})
    with pytest.raises(InputError, match="noise: row 0, arm: expected a number in 0..1, got nan"):
        predict([[math.nan, 0, 0, 0]], {})


# --- the scene --------------------------------------------------------------------------------------------------------


def test_the_arm_passes_over_red_green_and_blue() -> None:
    np.testing.assert_allclose(circuit_scene.pressed([1 / 6, 1 / 2, 5 / 6]), np.eye(3), atol=1e-12)
    np.testing.assert_array_equal(circuit_scene.pressed([0.0, 1 / 3, 2 / 3, 1.0]), np.zeros((4, 3)))
    everywhere = circuit_scene.pressed(np.linspace(0, 1, 101))
    assert everywhere.shape == (101, 3) and everywhere.min() >= 0 and everywhere.max() <= 1
    assert ((everywhere > 0).sum(axis=1) <= 1).all()
    assert (np.diff(circuit_scene.tip_column(np.linspace(0, 1, 101))) > 0).all()


@pytest.mark.parametrize("arm", [0.0, 0.17, 0.3, 0.5, 0.95])
def test_joint_angles_put_the_fingertip_at_its_position(arm: float) -> None:
    """Forward kinematics of the finger: base at (0, 0.30, 0.13), links of 0.19 and 0.21 m."""
    sideways, shoulder, elbow = circuit_scene.joint_angles(arm)
    reach = 0.19 * math.cos(shoulder) + 0.21 * math.cos(shoulder + elbow)
    height = 0.13 + 0.19 * math.sin(shoulder) + 0.21 * math.sin(shoulder + elbow)
    tip = (reach * math.sin(sideways), 0.30 - reach * math.cos(sideways), height)
    pressed = float(circuit_scene.pressed(arm).max())
    np.testing.assert_allclose(tip, (0.36 * arm - 0.18, 0.06, 0.056 - 0.016 * pressed), atol=1e-12)


@needs_renderer
def test_rendering_is_deterministic_and_stateless() -> None:
    row = [0.2, 0.3, 0.6, 0.9]
    first = circuit_scene.render(row, 64)
    circuit_scene.render([0.8, 1.0, 0.0, 0.1], 64)
    np.testing.assert_array_equal(circuit_scene.render(row, 64), first)
    with ThreadPoolExecutor(1) as pool:  # with a new renderer
        np.testing.assert_array_equal(pool.submit(circuit_scene.render, np.float32(row), 64).result(), first)
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8


@needs_renderer
@pytest.mark.parametrize(
    ("size", "tolerance"),
    [
        (128, (0.003, 0.01, 0.01, 0.01)),
        (64, (0.005, 0.025, 0.025, 0.025)),
        (32, (0.02, 0.04, 0.04, 0.04)),
        (16, (0.04, 0.09, 0.09, 0.09)),
    ],
)
def test_labels_are_measured_on_images(
    sample: tuple[np.ndarray, np.ndarray], size: int, tolerance: tuple[float, ...]
) -> None:
    labels, images = sample
    smaller = resize_area(images.transpose(0, 3, 1, 2), size).transpose(0, 2, 3, 1)
    error = np.abs(CircuitGenerator().measure(smaller) - labels).max(axis=0)
    assert (error < tolerance).all(), error


@needs_renderer
def test_measure_is_robust_to_pixel_noise(sample: tuple[np.ndarray, np.ndarray]) -> None:
    labels, images = sample
    small = resize_area(images.transpose(0, 3, 1, 2), 32).transpose(0, 2, 3, 1)
    noisy = np.clip(small + np.random.default_rng(0).normal(0, 8, small.shape), 0, 255).astype(np.uint8)
    error = np.abs(CircuitGenerator().measure(noisy) - labels).mean(axis=0)
    assert (error < (0.01, 0.03, 0.03, 0.03)).all(), error


@needs_renderer
def test_the_size_does_not_change_the_scene(sample: tuple[np.ndarray, np.ndarray]) -> None:
    labels, images = sample
    large = CircuitGenerator().counterfactual_images(labels[6:9], {}, 512)
    smaller = resize_area(large.transpose(0, 3, 1, 2), 128).transpose(0, 2, 3, 1)
    assert np.abs(smaller.astype(int) - images[6:9]).mean() < 1.0
    assert np.abs(CircuitGenerator().measure(large) - labels[6:9]).max() < 0.02


@needs_renderer
def test_do_changes_the_image_where_it_should_and_nowhere_else(sample: tuple[np.ndarray, np.ndarray]) -> None:
    labels, images = sample[0][6:12], sample[1][6:12]
    generator = CircuitGenerator()
    np.testing.assert_array_equal(generator.counterfactual_images(labels, {}), images)
    moved = generator.counterfactual_images(labels, {"red": 0.75})
    np.testing.assert_array_equal(moved[:, :, 48:], images[:, :, 48:])  # everything but the red lamp's corner
    np.testing.assert_array_equal(moved[:, :80], images[:, :80])
    np.testing.assert_allclose(generator.measure(moved)[:, RED], 0.75, atol=0.01)
    moved = generator.counterfactual_images(labels, {"arm": 0.5})
    expected = generator.counterfactual_labels(labels, {"arm": 0.5})
    np.testing.assert_allclose(generator.measure(moved), expected, atol=0.01)


def test_measure_returns_nan_where_nothing_is_found() -> None:
    measure = CircuitGenerator().measure
    assert np.isnan(measure(np.full((2, 48, 48, 3), 255, np.uint8))).all()
    assert np.isnan(measure(np.broadcast_to(np.uint8([67, 71, 80]), (1, 48, 48, 3)))).all(), "an empty table"


def test_refused_images_and_sizes() -> None:
    with pytest.raises(InputError, match="images: expected 16 or more pixels per side, got 8"):
        CircuitGenerator().measure(np.zeros((1, 8, 8, 3), np.uint8))
    for row in ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 1.5], [math.nan] * 4):
        with pytest.raises(InputError, match=r"circuit: labels: expected arm, blue, green, red in 0..1, got \["):
            circuit_scene.render(row, 64)
    with pytest.raises(InputError, match="image_size: expected 16..2048, got 8"):
        circuit_scene.render([0.5] * 4, 8)


def without_mujoco(name: str) -> Any:
    raise ModuleNotFoundError(f"No module named {name!r}")


def without_egl(name: str) -> Any:
    """MuJoCo loads, but its renderer raises."""
    return Mock(Renderer=Mock(side_effect=AttributeError("'NoneType' object has no attribute 'eglQueryString'")))


def without_libegl(name: str) -> Any:
    """Importing MuJoCo raises."""
    if name == "mujoco":
        raise AttributeError("'NoneType' object has no attribute 'eglQueryString'")


@pytest.mark.parametrize(
    ("load", "platform", "message"),
    [
        (without_mujoco, None, r"cannot load MuJoCo \(.*\); install MuJoCo \(pip install 'causaldiffae\[circuit\]'"),
        (without_egl, None, r"cannot render off screen \(MUJOCO_GL=egl: .*\); install .* libegl1 libegl-mesa0"),
        (without_libegl, "egl", r"cannot render off screen \(MUJOCO_GL=egl: .*\); install .* libegl1 libegl-mesa0"),
        (without_egl, "osmesa", "MUJOCO_GL=osmesa"),
    ],
)
def test_missing_libraries_are_named(
    monkeypatch: pytest.MonkeyPatch, load: Any, platform: str | None, message: str
) -> None:
    monkeypatch.setattr(importlib, "import_module", load)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    if platform:
        monkeypatch.setenv("MUJOCO_GL", platform)
    with pytest.raises(InputError, match=message):
        circuit_scene.render([0.5] * 4, 21)
    monkeypatch.setattr(circuit_scene, "SIZES", (23, 2048))
    circuit_scene.can_render.cache_clear()
    assert not circuit_scene.can_render()
    circuit_scene.can_render.cache_clear()


@needs_renderer
def test_torch_can_be_loaded_whole_after_drawing() -> None:
    """Mesa's and Triton's LLVM in one process: loaded in the wrong order, the second one crashes."""
    program = "from causaldiffae.generators import circuit_scene as c; c.render([0.5] * 4, 32); import torchvision"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]


def test_measure_needs_no_mujoco(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuit, "render", None)
    monkeypatch.setattr(importlib, "import_module", None)
    CircuitGenerator().measure(np.zeros((1, 16, 16, 3), np.uint8))
