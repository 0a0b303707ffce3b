"""Fixtures of the explorer's tests."""

import pytest
from paths import REPO

from causaldiffae.datasets.registry import example_images
from causaldiffae.explorer.session import Request, Result, Session, images_of
from causaldiffae.script_util import load_model


@pytest.fixture(scope="session")
def pendulum_result() -> Result:
    """do(angle=25) on an example image, with the shipped weights."""
    session = Session(load_model(str(REPO / "weights" / "pendulum_causaldae_mini")))
    image = images_of(example_images(session.spec, 2))[1]
    return session.run(Request(image, {"angle": 25.0}, steps=8))
