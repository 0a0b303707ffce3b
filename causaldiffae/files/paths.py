"""Paths in a clone of the repository: weights and example images."""

from pathlib import Path
from typing import Final

CLONE: Final = Path(__file__).resolve().parents[2]
WEIGHTS: Final = CLONE / "weights"
ASSETS: Final = CLONE / "assets"
