"""Previews during training."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import randomise, small_config, squares

from causaldiffae.datasets.images import ImageData
from causaldiffae.guidance import Guidance
from causaldiffae.script_util import create_model_and_diffusion
from causaldiffae.training.previews import draw_preview
from causaldiffae.visualization.image_grids import headed_tile

COLUMN = 98
"""Width of a column: images enlarged to 96 pixels, and the gap."""


def preview_of(data: ImageData, **changes: object) -> np.ndarray:
    config = small_config(**changes)
    torch.manual_seed(0)
    model, _ = create_model_and_diffusion(config, data.spec)
    return draw_preview(randomise(model), config.diffusion, data, torch.device("cpu"))


@pytest.mark.parametrize(("label_cond", "columns"), [(False, 2), (True, 6)])
def test_a_diff_scm_without_predictor_shows_reconstructions_only(label_cond: bool, columns: int) -> None:
    shown = preview_of(squares(), model_type="diffscm", label_cond=label_cond)
    assert shown.shape[1] == columns * COLUMN + 2


def test_interventions_of_a_diff_scm_are_guided_by_its_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    guided = preview_of(squares(), model_type="diffscm", label_cond=True)
    causal = preview_of(squares())
    monkeypatch.setattr("causaldiffae.training.previews.default_guidance", lambda *_: Guidance(1.0))
    unguided = preview_of(squares(), model_type="diffscm", label_cond=True)
    same = (guided == unguided).reshape(len(guided), -1, 3)
    assert same[:, : 2 * COLUMN].all() and not same[:, 2 * COLUMN :].all(), "only the interventions differ"
    assert (preview_of(squares()) == causal).all(), "a CausalDiffAE is not guided by default"


Recorded = tuple[list[tuple[str, np.ndarray]], Sequence[Sequence[str]] | None]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """Columns and captions of all previews."""
    recorded: list[Recorded] = []

    def record(columns: list[tuple[str, np.ndarray]], captions: Sequence[Sequence[str]] | None = None) -> np.ndarray:
        recorded.append((columns, captions))
        return headed_tile(columns, captions)

    monkeypatch.setattr("causaldiffae.training.previews.headed_tile", record)
    return recorded


def test_only_labelled_images_are_shown_by_a_model_that_needs_labels(drawn: list[Recorded]) -> None:
    data = squares()
    data.labels[:7, 0], data.labelled = np.nan, np.arange(8) == 7
    for changes in ({"model_type": "conditional"}, {}):
        preview_of(data, **changes)
    assert [len(columns[0][1]) for columns, _ in drawn] == [1, 6]
    data.labelled[:] = False
    assert preview_of(data, model_type="conditional").shape[1] == COLUMN + 2, "one column"


def test_headings_name_the_intervention_and_its_category(drawn: list[Recorded]) -> None:
    data, changes = squares(), {"kinds": ("binary", "continuous"), "categories": (("small", "large"), ())}
    data.spec = replace(data.spec, **changes, low=(0.0, 50.0), high=(1.0, 250.0))  # type: ignore[arg-type]
    preview_of(data)
    expected = ["do(size=small)", "do(size=large)", "do(grey=70)", "do(grey=230)"]
    assert [heading for heading, _ in drawn[0][0]] == ["factual", "reconstruction", *expected]


def test_captions_say_what_is_read_of_the_variable_that_is_set(drawn: list[Recorded]) -> None:
    data, config = squares(), small_config()
    model, _ = create_model_and_diffusion(config, data.spec)
    for reader in (None, lambda images: np.full((len(images), 2), [4.0, 70.0])):
        draw_preview(randomise(model), config.diffusion, data, torch.device("cpu"), reader)
    (_, unread), (_, read) = drawn
    assert unread is not None and read is not None and set(read[0] + read[1]) == {""}
    assert [column[0] for column in unread[2:]] == [
        "size 1.6 requested",
        "size 6.4 requested",
        "grey 70 requested",
        "grey 230 requested",
    ]
    assert [column[5] for column in read[2:]] == ["size 4 (1.6) !", "size 4 (6.4) !", "grey 70 (70)", "grey 70 (230) !"]
