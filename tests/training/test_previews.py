"""Previews and their rough effectiveness."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import randomise, small_config, squares

from causaldiffae.datasets.images import ImageData, resize_area
from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.generators.pendulum import PendulumGenerator
from causaldiffae.script_util import create_model_and_diffusion
from causaldiffae.training.previews import Preview, draw_preview
from causaldiffae.visualization.image_grids import headed_tile

COLUMN = 98
"""Width of a column: images enlarged to 96 pixels, and the gap."""


def preview_of(data: ImageData, **changes: object) -> Preview:
    config = small_config(**changes)
    model, _ = create_model_and_diffusion(config, data.spec)
    return draw_preview(randomise(model), config.diffusion, data, torch.device("cpu"))


@pytest.mark.parametrize(("label_cond", "columns"), [(False, 2), (True, 6)])
def test_a_diff_scm_without_predictor_shows_reconstructions_only(label_cond: bool, columns: int) -> None:
    shown = preview_of(squares(), model_type="diffscm", label_cond=label_cond)
    assert shown.image.shape[1] == columns * COLUMN + 2 and shown.effectiveness == {}


def test_only_labelled_images_are_shown_by_a_model_that_needs_labels() -> None:
    data = squares()
    data.labels[:7, 0], data.labelled = np.nan, np.arange(8) == 7
    one, six = (preview_of(data, **changes).image for changes in ({"model_type": "conditional"}, {}))
    assert six.shape[0] - one.shape[0] == 5 * COLUMN, "one row, and six"
    data.labelled[:] = False
    assert preview_of(data, model_type="conditional").image.shape[1] == COLUMN + 2, "one column"


def test_effectiveness_is_measured_where_the_data_set_supports_it() -> None:
    labels = np.array([[10.0, 80.0, 3.0, 10.0], [-20.0, 120.0, 5.0, 8.0]])
    labels = PendulumGenerator().counterfactual_labels(labels, {})
    images = PendulumGenerator().counterfactual_images(labels, {})[..., :3].transpose(0, 3, 1, 2)
    spec = dataset_spec("pendulum", 32, 3)
    data = ImageData(spec, "test", resize_area(images, 32), labels.astype(np.float32), None, ["0", "1"])
    shown = preview_of(data, rep_dim=8, encoder_channels="8,8,8")
    assert shown.image.shape[1] == 10 * COLUMN + 2
    assert set(shown.effectiveness) <= set(spec.graph.names)
    assert all(np.isfinite(error) and error >= 0 for error in shown.effectiveness.values())


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
