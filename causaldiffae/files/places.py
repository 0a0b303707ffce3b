"""Folders of a clone that the package looks into: weights and example pictures."""

from pathlib import Path
from typing import Final

CLONE: Final = Path(__file__).resolve().parents[2]
WEIGHTS: Final = CLONE / "weights"
ASSETS: Final = CLONE / "assets"
