"""CausalCircuit's stand-in: the structural equations, the laws of an intervention, pictures that show their labels."""

import importlib
import math
import subprocess
import sys
from typing import Any

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

needs_renderer = pytest.mark.skipif(
    not circuit_scene.can_render(), reason="MuJoCo or the EGL libraries it draws with are missing"
)
ARM, BLUE, GREEN, RED = range(4)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return predict(sample_noise(60, np.random.default_rng(1)), {})


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray]:
    """Labels (40, 4), among them the darkest and the brightest, and pictures (40, 128, 128, 3)."""
    labels = predict(sample_noise(40, np.random.default_rng(0)), {})
    labels[:6, 1:] = [(0, 0, 0), (1, 1, 1), (0, 1, 0), (1, 0, 1), (0, 0, 1), (1, 1, 0)]
    labels[:3, ARM] = 0, 1, 0.5
    return labels, CircuitGenerator().counterfactual_images(labels, {})


# --- the structural model ---------------------------------------------------------------------------------------------


def test_graph() -> None:
    assert GRAPH.names == ("arm", "blue", "green", "red")
    edges = {("arm", "blue"), ("arm", "green"), ("arm", "red"), ("blue", "red"), ("green", "red")}
    assert set(GRAPH.edges) == edges


def test_labels_follow_the_equations() -> None:
    noise = sample_noise(200, np.random.default_rng(0))
    arm, blue, green, red = noise.T
    b_red, b_green, b_blue = (np.maximum(0, 1 - ((0.36 * arm - 0.18 - x) / 0.05) ** 2) for x in (-0.12, 0, 0.12))

    def light(v: np.ndarray, epsilon: np.ndarray) -> np.ndarray:
        return stats.beta.ppf(epsilon, 5 * v, 5 * (1 - v))

    z_blue, z_green = light(0.2 + 0.6 * b_blue, blue), light(0.2 + 0.6 * b_green, green)
    z_red = light(0.2 + 0.6 * np.clip(z_green + z_blue + b_red, 0, 1), red)
    np.testing.assert_allclose(predict(noise, {}), np.stack([arm, z_blue, z_green, z_red], axis=1), atol=1e-9)


def test_lights_have_the_expected_mean() -> None:
    rng = np.random.default_rng(0)
    for arm, name, v in ((0.5, "green", 0.8), (0.0, "green", 0.2), (5 / 6, "blue", 0.8), (0.5, "blue", 0.2)):
        drawn = predict(sample_noise(20_000, rng), {"arm": arm})[:, GRAPH.index(name)]
        assert abs(drawn.mean() - v) < 0.01
    dark = predict(sample_noise(20_000, rng), {"arm": 1 / 6, "green": 0, "blue": 0})
    assert abs(dark[:, RED].mean() - 0.8) < 0.01  # pressed
    lit = predict(sample_noise(20_000, rng), {"arm": 0.5, "green": 0.25, "blue": 0.25})
    assert abs(lit[:, RED].mean() - 0.5) < 0.01  # half lit by its other causes


@given(st.lists(st.lists(st.floats(0.001, 0.999), min_size=4, max_size=4), min_size=1, max_size=5))
def test_abduction_is_exact(rows: list[list[float]]) -> None:
    noise = np.array(rows)
    labels = predict(noise, {})
    np.testing.assert_allclose(abduct(labels), noise, rtol=0, atol=1e-9)
    np.testing.assert_allclose(predict(abduct(labels), {}), labels, rtol=0, atol=1e-12)


def test_do_factual_changes_nothing(labels: np.ndarray) -> None:
    for names in ((), ("arm",), ("green",), ("arm", "red"), GRAPH.names):
        do = {name: labels[:, GRAPH.index(name)] for name in names}
        np.testing.assert_array_equal(CircuitGenerator().counterfactual_labels(labels, do), labels)


@pytest.mark.parametrize("name", GRAPH.names)
def test_do_moves_descendants_and_nothing_else(labels: np.ndarray, name: str) -> None:
    moved = CircuitGenerator().counterfactual_labels(labels, {name: 0.52})
    np.testing.assert_array_equal(moved[:, GRAPH.index(name)], 0.52)
    descendants = GRAPH.descendants(name)
    for other in set(GRAPH.names) - {name}:
        same = moved[:, GRAPH.index(other)] == labels[:, GRAPH.index(other)]
        # A light of an arm that presses its button neither before nor after does not change.
        assert same.all() if other not in descendants else (~same).sum() > 10, other
    expected = predict(abduct(labels), {name: 0.52})
    np.testing.assert_allclose(moved, expected, rtol=0, atol=1e-12)


def test_do_cuts_the_causes_off(labels: np.ndarray) -> None:
    moved = CircuitGenerator().counterfactual_labels(labels, {"arm": 0.5, "green": 0.1})
    np.testing.assert_array_equal(moved[:, GREEN], 0.1)
    assert (moved[:, BLUE] <= labels[:, BLUE]).all()  # the blue button is pressed no longer
    pushed = CircuitGenerator().counterfactual_labels(labels, {"green": 1.0})
    assert (pushed[:, RED] >= labels[:, RED]).all() and (pushed[:, RED] > labels[:, RED]).any()


@pytest.mark.parametrize(
    ("do", "message"),
    [
        ({"lamp": 1.0}, "unknown variable 'lamp', known are arm, blue, green, red"),
        ({"arm": "left"}, "do: arm is 'left', a number is needed"),
        ({"red": 1.25}, r"do: red is 1.25, a number in 0..1 is needed"),
        ({"arm": [0.1, -0.5]}, r"do: arm is -0.5, a number in 0..1 is needed"),
        ({"arm": [0.1] * 3}, r"do: arm has shape \(3,\), a number or one number per image \(2\) is needed"),
        ({"blue": float("nan")}, "do: blue is not finite"),
    ],
)
def test_do_is_refused_with_a_message(do: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CircuitGenerator().counterfactual_labels(np.full((2, 4), 0.5), do)


def test_labels_are_refused_with_a_message() -> None:
    with pytest.raises(InputError, match=r"labels: shape \(2, 3\), \(images, 4\) is needed"):
        abduct(np.zeros((2, 3)))
    with pytest.raises(InputError, match=r"labels: green of row 1 is 1.5, a number in 0..1 is needed"):
        CircuitGenerator().counterfactual_labels([[0, 0, 0, 0], [0, 0, 1.5, 0]], {})
    with pytest.raises(InputError, match=r"noise: arm of row 0 is nan, a number in 0..1 is needed"):
        predict([[math.nan, 0, 0, 0]], {})


# --- the scene --------------------------------------------------------------------------------------------------------


def test_the_arm_sweeps_over_red_green_and_blue() -> None:
    np.testing.assert_allclose(circuit_scene.pressed([1 / 6, 1 / 2, 5 / 6]), np.eye(3), atol=1e-12)
    np.testing.assert_array_equal(circuit_scene.pressed([0.0, 1 / 3, 2 / 3, 1.0]), np.zeros((4, 3)))
    everywhere = circuit_scene.pressed(np.linspace(0, 1, 101))
    assert everywhere.shape == (101, 3) and everywhere.min() >= 0 and everywhere.max() <= 1
    assert ((everywhere > 0).sum(axis=1) <= 1).all()
    assert (np.diff(circuit_scene.tip_column(np.linspace(0, 1, 101))) > 0).all()


@needs_renderer
@pytest.mark.parametrize("arm", [0.0, 0.17, 0.3, 0.5, 0.95])
def test_the_joints_bring_the_fingertip_to_its_place(arm: float) -> None:
    circuit_scene.render([arm, 0.5, 0.5, 0.5], 32)
    scene = circuit_scene._renderer(32, circuit_scene.threading.get_ident())
    x, y, z = scene.data.geom("tip").xpos
    np.testing.assert_allclose(x, 0.36 * arm - 0.18, atol=1e-6)  # labels are rounded to float32
    np.testing.assert_allclose(y, 0.06, atol=1e-9)
    np.testing.assert_allclose(z, 0.056 - 0.016 * circuit_scene.pressed(arm).max(), atol=1e-6)


@needs_renderer
def test_rendering_is_deterministic_and_leaves_no_trace() -> None:
    row = [0.2, 0.3, 0.6, 0.9]
    first = circuit_scene.render(row, 64)
    circuit_scene.render([0.8, 1.0, 0.0, 0.1], 64)
    np.testing.assert_array_equal(circuit_scene.render(row, 64), first)
    circuit_scene._renderer.cache_clear()
    np.testing.assert_array_equal(circuit_scene.render(np.float32(row), 64), first)
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
def test_labels_are_read_back_from_the_picture(
    sample: tuple[np.ndarray, np.ndarray], size: int, tolerance: tuple[float, ...]
) -> None:
    """Largest errors over all pictures."""
    labels, images = sample
    smaller = resize_area(images.transpose(0, 3, 1, 2), size).transpose(0, 2, 3, 1)
    error = np.abs(CircuitGenerator().measure(smaller) - labels).max(axis=0)
    assert (error < tolerance).all(), error


@needs_renderer
def test_measure_stands_the_noise_of_generated_pictures(sample: tuple[np.ndarray, np.ndarray]) -> None:
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
def test_do_shows_in_the_picture_and_leaves_the_rest(sample: tuple[np.ndarray, np.ndarray]) -> None:
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


def test_measure_says_nan_where_nothing_is_there() -> None:
    generator = CircuitGenerator()
    assert np.isnan(generator.measure(np.full((2, 48, 48, 3), 255, np.uint8))).all()
    table = np.empty((1, 48, 48, 3), np.uint8)
    table[:] = 67, 71, 80
    assert np.isnan(generator.measure(table)).all()
    with pytest.raises(InputError, match=r"images: float64 \(1, 4, 4, 3\) given, uint8 \(N, S, S, 3 or more\)"):
        generator.measure(np.zeros((1, 4, 4, 3)))
    with pytest.raises(InputError, match="images: 8 pixels a side given, 16 or more are needed"):
        generator.measure(np.zeros((1, 8, 8, 3), np.uint8))


def test_render_is_refused_with_a_message() -> None:
    for row in ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 1.5], [math.nan] * 4):
        with pytest.raises(InputError, match=r"circuit: labels .* given, arm, blue, green, red in 0..1 are needed"):
            circuit_scene.render(row, 64)
    with pytest.raises(InputError, match=r"image_size: 8 given, 16..2048 can be drawn"):
        circuit_scene.render([0.5] * 4, 8)


def test_a_missing_mujoco_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", fail)
    message = r"MuJoCo cannot be loaded \(.*'mujoco'\); install MuJoCo \(pip install 'causaldiffae\[circuit\]'"
    with pytest.raises(InputError, match=message):
        circuit_scene.render([0.5] * 4, 21)


class NoGraphics:
    """MuJoCo on a machine without EGL."""

    class MjModel:
        from_xml_string = staticmethod(lambda text: None)

    MjData = staticmethod(lambda model: None)

    @staticmethod
    def Renderer(model: Any, height: int, width: int) -> Any:
        raise AttributeError("'NoneType' object has no attribute 'eglQueryString'")


def without_egl(name: str) -> Any:
    """The import itself may fail too, where libEGL is missing."""
    if name == "mujoco":
        raise AttributeError("'NoneType' object has no attribute 'eglQueryString'")
    return None


@pytest.mark.parametrize("load", [lambda name: NoGraphics, without_egl], ids=["drawing", "import"])
def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    monkeypatch.setattr(importlib, "import_module", load)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    message = r"cannot draw off screen \(MUJOCO_GL=egl: .*\); install .* libegl1 libegl-mesa0 libgl1-mesa-dri"
    with pytest.raises(InputError, match=message):
        circuit_scene.render([0.5] * 4, 22)
    circuit_scene.can_render.cache_clear()
    monkeypatch.setattr(circuit_scene, "SIZES", (23, 2048))
    assert not circuit_scene.can_render()
    circuit_scene.can_render.cache_clear()


def test_egl_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: NoGraphics)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with pytest.raises(InputError, match="MUJOCO_GL=egl"):
        circuit_scene.render([0.5] * 4, 24)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(InputError, match="MUJOCO_GL=osmesa"):
        circuit_scene.render([0.5] * 4, 24)


@needs_renderer
def test_torch_can_be_loaded_whole_after_drawing() -> None:
    """Mesa's LLVM and Triton's in one process: in the wrong order the second one crashes."""
    program = "from causaldiffae.generators import circuit_scene as c; c.render([0.5] * 4, 32); import torchvision"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]


def test_measure_needs_no_mujoco(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuit, "render", None)
    monkeypatch.setattr(importlib, "import_module", None)
    CircuitGenerator().measure(np.zeros((1, 16, 16, 3), np.uint8))
