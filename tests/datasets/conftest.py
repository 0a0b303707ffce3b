"""Small data sets on disk in their published forms."""

from pathlib import Path

import numpy as np
import pytest

from causaldiffae.files import idx
from causaldiffae.generators import morphomnist


@pytest.fixture(scope="session")
def morphomnist_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 training and 3 test images of rings."""
    folder = tmp_path_factory.mktemp("morpho")
    y, x = np.mgrid[:28, :28] - 13.5
    rings = np.array([255 * np.clip(2.0 - np.abs(np.hypot(x, y) - 4 - 0.5 * i), 0, 1) for i in range(8)])
    (folder / "mnist").mkdir()
    for split, count in (("train", 8), ("t10k", 3)):
        idx.write_idx(folder / f"mnist/{split}-images-idx3-ubyte.gz", rings[:count].astype(np.uint8))
        idx.write_idx(folder / f"mnist/{split}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8))
    return morphomnist.write_dataset(folder / "mnist", folder / "set", workers=1, progress=False)
