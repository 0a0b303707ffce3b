"""Fixtures for tests of several folders, and the profiles of property tests.

HYPOTHESIS_PROFILE=ci (the default) draws the same examples each time; explore draws 10,000 new ones per test.
"""

import os
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch
from circuits import painted, write_painted
from hypothesis import HealthCheck, settings
from PIL import Image

from causaldiffae.generators import circuit_writer, pendulum

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
EXAMPLES = 10_000

settings.register_profile("ci", derandomize=True, deadline=None, database=None)
settings.register_profile(
    "explore", max_examples=EXAMPLES, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck)
)
settings.load_profile(PROFILE)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Random weights of a test file do not depend on the files that were imported before."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Random weights of fixtures do not depend on the tests that ran before."""
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Random weights of a test depend neither on them nor on whether its fixtures were set up for another test."""
    torch.manual_seed(0)
    return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives tests that set their own number of examples the profile's, when exploring."""
    if PROFILE == "explore":
        for item in items:
            test = getattr(item, "obj", None)
            chosen = getattr(test, "_hypothesis_internal_use_settings", None)
            if chosen is not None:
                test._hypothesis_internal_use_settings = settings(chosen, max_examples=EXAMPLES)
                item.add_marker(pytest.mark.timeout(0))


@pytest.fixture(scope="session")
def circuit_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A painted CausalCircuit, written in chunks of 4 pairs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(circuit_writer, "render", painted)
        patch.setattr(circuit_writer, "CHUNK", 4)
        return write_painted(tmp_path_factory.mktemp("circuit") / "set")


@pytest.fixture(scope="session")
def pendulum_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 training and 4 test images."""
    folder = tmp_path_factory.mktemp("pendulum")
    for split, angles in (("train", (-30, 0, 25)), ("test", (10,))):
        (folder / split).mkdir()
        for labels in pendulum.true_labels(np.repeat(angles, 4), np.tile([70, 90, 110, 130], len(angles))):
            Image.fromarray(pendulum.render(*labels[:2])).save(folder / split / pendulum.file_name(labels))
    return folder


@pytest.fixture
def circuit_members(circuit_dir: Path) -> dict[str, np.ndarray]:
    """The members of its training file."""
    with np.load(circuit_dir / "train.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}
