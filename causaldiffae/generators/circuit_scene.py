"""The scene of the CausalCircuit stand-in: a three-joint finger over three buttons, a lamp in front of each (MuJoCo).

Lengths are in metres; x runs to the right, y away from the camera, z up. The finger stands behind the buttons and the
lamps stand in front of them, so the finger never hides a lamp. `arm` alone determines the pose: the fingertip moves
along x from left (0) to right (1), over the red, the green and the blue button, and dips at each of them. With d the
distance of the tip from a button's centre, the button is pressed by

    b = max(0, 1 - (d / r)^2),      r = 0.05, the button's radius

A lamp's colour is linear in its brightness, from dark (0) to bright (1), and so is the opacity of the light around it.
The image is linear in both, so `measure` can read the brightness off it. Only rendering needs MuJoCo and the
off-screen GL libraries.
"""

from __future__ import annotations

import importlib
import math
import os
import threading
from contextlib import suppress
from functools import cache
from typing import Any, Final

import numpy as np

from causaldiffae.errors import InputError

COLOURS: Final = ("red", "green", "blue")
SIZES: Final = (16, 2048)
INSTALL: Final = "install MuJoCo (pip install 'causaldiffae[circuit]' or mujoco)"
LIBRARIES: Final = "Debian packages libegl1 libegl-mesa0 libgl1-mesa-dri"

_BUTTON_X: Final = np.array([-0.12, 0.0, 0.12])
_BUTTON_RADIUS: Final = 0.05
_SWEEP: Final = 0.18  # the fingertip moves from -_SWEEP to _SWEEP
_TIP_Y, _TIP_REST, _TIP_DIP = 0.06, 0.056, 0.016
_BASE: Final = np.array([0.0, 0.30, 0.13])
_UPPER, _LOWER = 0.19, 0.21
_CAP_Z, _CAP_TRAVEL = 0.022, 0.012
_LAMP_Y, _LAMP_RADIUS, _LAMP_HEIGHT = -0.06, 0.042, 0.026
_CAMERA: Final = np.array([0.0, -0.46, 0.50])
_LOOK_AT: Final = np.array([0.0, 0.089, 0.045])
_FIELD: Final = 37.0  # degrees, of the whole image's height

_DARK: Final = np.array([(0.13, 0.025, 0.025), (0.02, 0.10, 0.03), (0.03, 0.04, 0.17)])
_BRIGHT: Final = np.array([(0.57, 0.05, 0.04), (0.05, 0.56, 0.07), (0.07, 0.15, 0.57)])


def tip_x(arm: Any) -> np.ndarray:
    """The fingertip's x in metres, for `arm` in 0..1 of any shape."""
    return _SWEEP * (2.0 * np.asarray(arm, np.float64) - 1.0)


def pressed(arm: Any) -> np.ndarray:
    """How far the finger presses the red, green and blue button, (..., 3) float64 in 0..1, for `arm` (...)."""
    distance = tip_x(arm)[..., None] - _BUTTON_X
    return np.maximum(0.0, 1.0 - (distance / _BUTTON_RADIUS) ** 2)


def joint_angles(arm: float) -> tuple[float, float, float]:
    """The joint angles (sideways, shoulder, elbow) in radians that put the tip at its position for `arm`."""
    x = float(tip_x(arm))
    z = _TIP_REST - _TIP_DIP * float(pressed(arm).max())
    across, forward, up = x - _BASE[0], _BASE[1] - _TIP_Y, z - _BASE[2]
    reach = math.hypot(across, forward)
    distance = math.hypot(reach, up)
    # Law of cosines in the plane of the finger; the elbow points up.
    shoulder = math.acos((_UPPER**2 + distance**2 - _LOWER**2) / (2.0 * _UPPER * distance))
    elbow = math.acos((_UPPER**2 + _LOWER**2 - distance**2) / (2.0 * _UPPER * _LOWER))
    return math.atan2(across, forward), math.atan2(up, reach) + shoulder, elbow - math.pi


def _scene(size: int) -> str:
    """The MuJoCo model. With all joints at 0, the finger is straight and level and points towards the camera."""
    stations = ""
    r = _LAMP_RADIUS
    for name, x in zip(COLOURS, _BUTTON_X, strict=True):
        stations += f"""
    <geom type="cylinder" pos="{x} {_TIP_Y} 0.008" size="{_BUTTON_RADIUS} 0.008" material="rim"/>
    <geom name="cap_{name}" type="cylinder" pos="{x} {_TIP_Y} {_CAP_Z}" size="0.038 0.014" material="cap_{name}"/>
    <geom type="cylinder" pos="{x} {_LAMP_Y} 0.004" size="{r + 0.003} 0.004" material="rim"/>{_pool(name, x)}
    <geom type="ellipsoid" pos="{x} {_LAMP_Y} 0.006" size="{r} {r} {_LAMP_HEIGHT - 0.006}" material="lamp_{name}"/>"""
    caps = ("0.42 0.24 0.24", "0.24 0.38 0.25", "0.24 0.27 0.44")
    lamps = "".join(
        f'<material name="cap_{name}" rgba="{cap} 1"/><material name="lamp_{name}" emission="0.85" specular="0"/>'
        f'<material name="pool_{name}" emission="0.6" specular="0"/>'
        for name, cap in zip(COLOURS, caps, strict=True)
    )
    right, up, _ = _camera_axes()
    return f"""
<mujoco model="circuit">
  <compiler angle="radian"/>
  <statistic extent="0.7" center="0 0.1 0.05"/>
  <visual>
    <global offwidth="{size}" offheight="{size}"/>
    <quality shadowsize="1024" offsamples="4" numslices="20" numstacks="10"/>
    <headlight ambient="0.3 0.3 0.3" diffuse="0.15 0.15 0.15" specular="0 0 0"/>
  </visual>
  <asset>
    <material name="table" rgba="0.30 0.32 0.36 1" specular="0"/>
    <material name="rim" rgba="0.13 0.13 0.15 1" specular="0.1"/>
    <material name="steel" rgba="0.62 0.64 0.68 1" specular="0.3"/>
    <material name="joint" rgba="0.22 0.22 0.25 1" specular="0.2"/>
    <material name="tip" rgba="0.95 0.80 0.10 1" specular="0.1" emission="0.2"/>
    {lamps}
  </asset>
  <worldbody>
    <light pos="-0.25 -0.15 1.2" dir="0.2 0.2 -1" directional="true" diffuse="0.5 0.5 0.5" specular="0.2 0.2 0.2"/>
    <camera name="front" fovy="{_FIELD}" pos="{_text(_CAMERA)}" xyaxes="{_text(right)} {_text(up)}"/>
    <geom type="plane" size="2 2 0.1" material="table"/>{stations}
    <geom type="cylinder" pos="0 {_BASE[1]} {_BASE[2] / 2}" size="0.038 {_BASE[2] / 2}" material="joint"/>
    <body pos="{_text(_BASE)}">
      <joint name="sideways" axis="0 0 1"/>
      <geom type="sphere" size="0.036" material="joint"/>
      <body>
        <joint name="shoulder" axis="-1 0 0"/>
        <geom type="capsule" fromto="0 0 0 0 -{_UPPER} 0" size="0.023" material="steel"/>
        <body pos="0 -{_UPPER} 0">
          <joint name="elbow" axis="-1 0 0"/>
          <geom type="sphere" size="0.028" material="joint"/>
          <geom type="capsule" fromto="0 0 0 0 -{_LOWER - 0.03} 0" size="0.018" material="steel"/>
          <geom name="tip" type="sphere" pos="0 -{_LOWER} 0" size="0.021" material="tip"/>
        </body>
      </body>
    </body>
  </worldbody>
</mujoco>"""


def _pool(name: str, x: float) -> str:
    """The light on the table around a lamp: thin transparent disks of decreasing size, so that it fades outwards."""
    return "".join(
        f'\n    <geom type="cylinder" pos="{x} {_LAMP_Y} {height}" size="{radius} 0.0002" material="pool_{name}"/>'
        for radius, height in ((0.0595, 0.0005), (0.0555, 0.0010), (0.0515, 0.0015))
    )


def _text(vector: np.ndarray) -> str:
    return " ".join(f"{value:.9g}" for value in vector)


class _Renderer:
    """One scene whose parts move; building a new scene for each image takes ten times as long."""

    def __init__(self, size: int) -> None:
        # EGL needs no screen. At these sizes, more threads of Mesa's software renderer only wait for each other.
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("LP_NUM_THREADS", "1")
        # Mesa exposes its LLVM's symbols to every library loaded after it. Triton, which torch loads lazily, has an
        # LLVM of its own and crashes with them, unless it is loaded first.
        with suppress(ImportError):
            importlib.import_module("triton._C.libtriton")
        try:
            mujoco = importlib.import_module("mujoco")
            self.mujoco = mujoco
            self.model = mujoco.MjModel.from_xml_string(_scene(size))
            self.data = mujoco.MjData(self.model)
            self.renderer = mujoco.Renderer(self.model, size, size)
        except ModuleNotFoundError as error:
            raise InputError(f"circuit: cannot load MuJoCo ({_reason(error)}); {INSTALL}") from None
        except Exception as error:  # GL's bindings raise AttributeError and classes of their own, some when imported
            platform = f"MUJOCO_GL={os.environ['MUJOCO_GL']}"
            raise InputError(
                f"circuit: MuJoCo cannot render off screen ({platform}: {_reason(error)}); install {LIBRARIES}"
            ) from None

    def __call__(self, arm: float, lights: np.ndarray) -> np.ndarray:
        model, data = self.model, self.data
        data.qpos[:] = joint_angles(arm)
        for i, (name, b) in enumerate(zip(COLOURS, pressed(arm), strict=True)):
            model.geom(f"cap_{name}").pos[2] = _CAP_Z - _CAP_TRAVEL * b
            colour = _DARK[i] + lights[i] * (_BRIGHT[i] - _DARK[i])
            model.material(f"lamp_{name}").rgba[:] = (*colour, 1.0)
            model.material(f"pool_{name}").rgba[:] = (*_BRIGHT[i], 0.3 * lights[i])
        self.mujoco.mj_forward(model, data)
        self.renderer.update_scene(data, camera="front")
        return np.array(self.renderer.render())


def _reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]


@cache
def _renderer(size: int, thread: int) -> _Renderer:
    """One renderer per size and thread: a GL context belongs to the thread that created it."""
    return _Renderer(size)


def render(labels: Any, size: int) -> np.ndarray:
    """Renders one row of labels as (size, size, 3) uint8 RGB; deterministic on one machine.

    Args:
        labels: arm, blue, green, red, each in 0..1; rounded to float32 first, as data sets hold them.
        size: pixels per side.

    Raises:
        InputError: for other values, or where MuJoCo or the libraries it renders with are missing.
    """
    row = np.asarray(labels, np.float32).astype(np.float64)
    if row.shape != (4,) or not ((row >= 0) & (row <= 1)).all():
        raise InputError(f"circuit: labels: expected arm, blue, green, red in 0..1, got {row.tolist()}")
    check_size(size)
    return _renderer(size, threading.get_ident())(row[0], row[:0:-1])


def check_size(size: int) -> None:
    """`InputError` for a number of pixels per side that cannot be rendered."""
    if not SIZES[0] <= size <= SIZES[1]:
        raise InputError(f"image_size: expected {SIZES[0]}..{SIZES[1]}, got {size}")


@cache
def can_render() -> bool:
    """Whether this machine can render the scene; tried once."""
    try:
        render(np.zeros(4), SIZES[0])
    except InputError:
        return False
    return True


def tip_column(arm: Any) -> np.ndarray:
    """The column, as a share of the image's width, at which the fingertip's centre appears; any shape."""
    arm = np.asarray(arm, np.float64)
    z = _TIP_REST - _TIP_DIP * pressed(arm).max(axis=-1)
    right, _, back = _camera_axes()
    offset = np.stack([tip_x(arm), np.full(arm.shape, _TIP_Y), z], axis=-1) - _CAMERA
    scale = 1.0 / (2.0 * math.tan(math.radians(_FIELD) / 2.0))
    return 0.5 + scale * (offset @ right) / -(offset @ back)


@cache
def lamp_shares(size: int) -> np.ndarray:
    """(3, size, size) float64: the share of each pixel that the inner part of the red, green and blue lamp covers."""
    right, up, back = _camera_axes()
    fine = 4 * size
    centres = (np.arange(fine) + 0.5) / fine - 0.5
    span = 2.0 * math.tan(math.radians(_FIELD) / 2.0)
    rays = -back + span * (centres[None, :, None] * right - centres[:, None, None] * up)
    floor = _CAMERA[:2] + rays[..., :2] * ((_LAMP_HEIGHT - _CAMERA[2]) / rays[..., 2])[..., None]
    shares = np.empty((3, size, size))
    for i, x in enumerate(_BUTTON_X):
        inside = np.hypot(floor[..., 0] - x, floor[..., 1] - _LAMP_Y) < 0.75 * _LAMP_RADIUS
        shares[i] = inside.reshape(size, 4, size, 4).mean(axis=(1, 3))
    return shares


def _camera_axes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    back = (_CAMERA - _LOOK_AT) / np.linalg.norm(_CAMERA - _LOOK_AT)
    right = np.array([1.0, 0.0, 0.0])
    return right, np.cross(back, right), back
