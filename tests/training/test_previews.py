"""Previews during training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import randomise, small_config, squares

from causaldiffae.datasets.images import ImageData
from causaldiffae.script_util import create_model_and_diffusion
from causaldiffae.training.previews import draw_preview
from causaldiffae.visualization.image_grids import headed_tile

COLUMN = 98
"""Width of a column: images enlarged to 96 pixels, and the gap."""


def preview_of(data: ImageData, **changes: object) -> np.ndarray:
    config = small_config(**changes)
    model, _ = create_model_and_diffusion(config, data.spec)
    return draw_preview(randomise(model), config.diffusion, data, torch.device("cpu"))


@pytest.mark.parametrize(("label_cond", "columns"), [(False, 2), (True, 6)])
def test_a_diff_scm_without_predictor_shows_reconstructions_only(label_cond: bool, columns: int) -> None:
    shown = preview_of(squares(), model_type="diffscm", label_cond=label_cond)
    assert shown.shape[1] == columns * COLUMN + 2


def test_only_labelled_images_are_shown_by_a_model_that_needs_labels() -> None:
    data = squares()
    data.labels[:7, 0], data.labelled = np.nan, np.arange(8) == 7
    one, six = (preview_of(data, **changes) for changes in ({"model_type": "conditional"}, {}))
    assert six.shape[0] - one.shape[0] == 5 * COLUMN, "one row, and six"
    data.labelled[:] = False
    assert preview_of(data, model_type="conditional").shape[1] == COLUMN + 2, "one column"


def test_headings_name_the_intervention_and_its_category(monkeypatch: pytest.MonkeyPatch) -> None:
    headings: list[str] = []

    def record(columns: list[tuple[str, np.ndarray]]) -> np.ndarray:
        headings.extend(heading for heading, _ in columns)
        return headed_tile(columns)

    monkeypatch.setattr("causaldiffae.training.previews.headed_tile", record)
    data, changes = squares(), {"kinds": ("binary", "continuous"), "categories": (("small", "large"), ())}
    data.spec = replace(data.spec, **changes, low=(0.0, 50.0), high=(1.0, 250.0))  # type: ignore[arg-type]
    preview_of(data)
    expected = ["do(size=small)", "do(size=large)", "do(grey=70)", "do(grey=230)"]
    assert headings == ["factual", "reconstruction", *expected]
