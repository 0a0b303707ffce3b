"""Displays a picture where the program runs: in the notebook, in a window, or, without a screen, as a file."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from PIL import Image, ImageShow


def in_notebook() -> bool:
    """Whether the program runs in a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def has_screen() -> bool:
    """Whether a window can be opened."""
    return sys.platform in ("win32", "darwin") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


def show_image(image: Image.Image, stem: str) -> Path | None:
    """Displays an image in the notebook or in a window of the system's image viewer.

    Without a screen or a viewer, writes STEM.png to the working directory and prints its path.

    Returns:
        The file, or None if the image was displayed.
    """
    if in_notebook():
        importlib.import_module("IPython.display").display(image)
        # The cell's last expression is displayed too; this hook of IPython prevents the second picture.
        image._ipython_display_ = lambda: None  # type: ignore[attr-defined]
        return None
    if has_screen() and ImageShow.show(image, stem):
        return None
    path = Path(f"{stem}.png").absolute()
    image.save(path)
    sys.stdout.write(f"no display: written to {path}\n")
    return path
