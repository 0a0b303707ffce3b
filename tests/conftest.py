"""Fixtures for tests of several folders."""

from pathlib import Path

import numpy as np
import pytest
from circuits import painted, write_painted

from causaldiffae.generators import circuit_writer


@pytest.fixture(scope="session")
def circuit_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A painted CausalCircuit, written in chunks of 4 pairs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(circuit_writer, "render", painted)
        patch.setattr(circuit_writer, "CHUNK", 4)
        return write_painted(tmp_path_factory.mktemp("circuit") / "set")


@pytest.fixture
def circuit_members(circuit_dir: Path) -> dict[str, np.ndarray]:
    """The members of its training file."""
    with np.load(circuit_dir / "train.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}
