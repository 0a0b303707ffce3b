"""Where a picture is displayed: in a notebook, in a window, or, without a screen, as a file."""

import subprocess
import sys
import types
from pathlib import Path

import pytest
from PIL import Image, ImageShow

from causaldiffae.visualization.display import has_screen, in_notebook, show_image

IMAGE = Image.new("L", (4, 3))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_window_is_opened_where_there_is_a_screen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Image.Image] = []
    monkeypatch.setattr(ImageShow, "show", lambda image, title: shown.append(image) or True)
    monkeypatch.setenv("DISPLAY", ":0")
    assert has_screen() and show_image(IMAGE, "name") is None
    assert shown == [IMAGE] and not list(folder.iterdir())


@pytest.mark.parametrize("display", ["", ":0"])
def test_without_a_screen_or_a_viewer_the_path_is_printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], display: str
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(ImageShow, "show", lambda image, title: False)
    assert has_screen() == bool(display)
    path = show_image(IMAGE, "name")
    assert path == folder / "name.png" and path.is_file()
    assert capsys.readouterr().out == f"no display: written to {path}\n"


def test_a_notebook_displays_the_picture_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Image.Image] = []
    shell = types.SimpleNamespace(kernel=object())
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
    ipython.display = types.ModuleType("IPython.display")  # type: ignore[attr-defined]
    ipython.display.display = shown.append
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    image = IMAGE.copy()
    assert in_notebook() and show_image(image, "name") is None
    assert shown == [image] and not list(folder.iterdir())
    image._ipython_display_()  # type: ignore[attr-defined]  # what the cell's last expression calls
    assert shown == [image]


def test_a_script_is_no_notebook() -> None:
    code = "from causaldiffae.visualization.display import in_notebook; print(in_notebook())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
