"""Label correction with a predictor that reads the mean of each channel, and a decoder that misses its labels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import squares_spec
from torch import Tensor

from causaldiffae.checkpoints.model_folders import CORRECTION_FOLDER
from causaldiffae.datasets.images import to_uint8
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.predictors.correction import KEPT_LIMIT, LIMIT, LabelCorrection, find_correction_predictor
from causaldiffae.predictors.predictor import Predictor, Readings, config_for, save_predictor

SPEC = replace(squares_spec(), channels=2, image_size=4)
LOW, RANGE = np.asarray(SPEC.low), np.asarray(SPEC.high) - np.asarray(SPEC.low)
LABELS = torch.tensor(LOW + RANGE * [[0.2, 0.4], [0.6, 0.4], [0.4, 0.8]])


class MeanPredictor:
    """Reads label i from the mean of channel i, and class 1 from a bright first pixel."""

    spec = SPEC

    def read(self, images: np.ndarray) -> Readings:
        labels = LOW + RANGE * images.astype(np.float64).mean(axis=(2, 3)) / 255
        classes = (images[:, 0, 0, 0] > 250).astype(np.int64)
        return Readings(labels, classes, np.empty((len(images), 0), np.float32))


def picture(labels: Tensor) -> Tensor:
    """Images (B, 2, 4, 4) in [-1, 1] with these labels, up to the rounding to grey levels of `to_uint8`."""
    levels = (labels - torch.tensor(LOW)) / torch.tensor(RANGE)
    return (2 * levels - 1).float()[:, :, None, None].expand(-1, -1, 4, 4).clone()


def errors(images: Tensor, wanted: Tensor = LABELS) -> np.ndarray:
    """Errors (B, n) as fractions of the range."""
    return np.abs(MeanPredictor().read(to_uint8(images).numpy()).labels - wanted.numpy()) / RANGE


class Decoder:
    """Misses the requested labels by `bias`, a fraction of the range; records the rows that it decodes again."""

    def __init__(self, bias: list[float], gain: float = 1.0) -> None:
        self.bias, self.gain, self.rows = torch.tensor(bias) * torch.tensor(RANGE), gain, []

    def first(self) -> Tensor:
        return picture(LABELS + self.bias)

    def __call__(self, rows: Tensor, change: Tensor) -> Tensor:
        self.rows.append(rows.tolist())
        return picture(LABELS[rows] + self.bias + self.gain * change.double())


def correct(
    decoder: Decoder,
    changed: list[bool] | None = None,
    count: int = 2,
    sets_class: bool = False,
    images: Tensor | None = None,
    factual: Tensor | None = None,
    classes: Tensor | None = None,
) -> Tensor:
    """Corrects the decoder's images as the engine does; by default both variables are changed."""
    mask = torch.tensor(changed or [True, True]).expand(len(LABELS), -1)
    images = decoder.first() if images is None else images
    reference = (picture(LABELS) if factual is None else factual) if sets_class else images
    labels, correction = LABELS.masked_fill(~mask, torch.nan), LabelCorrection(MeanPredictor(), count)  # type: ignore[arg-type]
    return correction.apply(images, labels, mask | sets_class, reference, classes, decoder)


def test_requests_are_moved_against_the_error() -> None:
    decoder = Decoder([0.04, -0.03])
    assert errors(decoder.first()).min() > 0.02
    assert errors(correct(decoder)).max() < 0.004  # half a grey level
    assert decoder.rows == [[0, 1, 2]]  # within the tolerance after one round


def test_each_correction_reduces_what_the_former_left() -> None:
    left = [errors(correct(Decoder([0.04, -0.04], gain=0.7), count=count)).mean() for count in (1, 2)]
    assert left[1] < 0.7 * left[0] < 0.5 * 0.04


def test_small_errors_and_the_null_intervention_are_left_alone() -> None:
    decoder = Decoder([0.0, 0.001])
    assert torch.equal(correct(decoder), decoder.first()) and decoder.rows == []
    null = Decoder([0.0, 0.0])
    biased = picture(LABELS + 0.2)  # the predictor reads other labels from the factual images than the given ones
    same = correct(null, [False, False], sets_class=True, images=biased, factual=biased)
    assert torch.equal(same, biased) and null.rows == []


def test_other_variables_keep_the_label_of_the_factual_image_where_the_class_is_set() -> None:
    shifted = LABELS + 0.02 * torch.tensor(RANGE)
    kept = correct(Decoder([0.04, 0.04]), [True, False], sets_class=True, factual=picture(shifted))
    assert errors(kept)[:, 0].max() < 0.004 and errors(kept, shifted)[:, 1].max() < 0.004
    free = correct(Decoder([0.04, 0.04]), [True, False], factual=picture(shifted))
    assert errors(free)[:, 0].max() < 0.004
    assert errors(free)[:, 1] == pytest.approx(0.04, abs=0.004)  # not corrected


def test_images_that_get_worse_are_not_taken_and_the_step_is_halved() -> None:
    decoder = Decoder([0.04, 0.04], gain=-1.0)  # moves away from the target
    assert torch.equal(correct(decoder), decoder.first())
    overshooting = Decoder([0.04, 0.04], gain=2.5)  # the full step is worse, half of it better
    assert errors(correct(overshooting)).max() < errors(overshooting.first()).min()


def test_images_whose_other_labels_drift_are_not_taken() -> None:
    class Drifting(Decoder):
        def __call__(self, rows: Tensor, change: Tensor) -> Tensor:
            return super().__call__(rows, change + 2 * change[:, :1] * torch.tensor([0.0, RANGE[1] / RANGE[0]]))

    drifting = Drifting([0.04, 0.0])
    assert torch.equal(correct(drifting, [True, False]), drifting.first())


def test_a_correction_is_limited() -> None:
    decoder = Decoder([0.2, -0.2])
    assert errors(correct(decoder)) == pytest.approx(np.full((3, 2), 0.2 - LIMIT), abs=0.004)
    kept = errors(correct(decoder, [True, False], sets_class=True))
    assert kept == pytest.approx(np.tile([0.2 - LIMIT, 0.2 - KEPT_LIMIT], (3, 1)), abs=0.004)


def test_images_that_show_the_wrong_class_are_not_taken() -> None:
    decoder = Decoder([0.04, 0.04])
    first = decoder.first()
    first[1, :, 0, 0] = 1.0  # class 1, which the images drawn again do not show
    wrong = correct(decoder, images=first.clone(), classes=torch.tensor([0, 1, 0]))
    assert torch.equal(wrong[1], first[1])
    assert errors(wrong)[[0, 2]].max() < 0.004


def test_images_with_nan_are_left_alone() -> None:
    decoder = Decoder([0.04, 0.04])
    first = decoder.first()
    first[2, 0, 1, 1] = torch.nan
    corrected = correct(decoder, images=first.clone())
    assert torch.equal(corrected[2].isnan(), first[2].isnan()) and decoder.rows[0] == [0, 1]


def test_categories_are_not_shifted() -> None:
    kinds = replace(SPEC, kinds=("continuous", "categorical"), categories=((), ("a", "b", "c")))
    assert LabelCorrection(Predictor(kinds, config_for(kinds))).continuous.tolist() == [True, False]


class DosePredictor(MeanPredictor):
    """Label 1 is a binary variable of two numbers, which float32 cannot represent."""

    spec = replace(
        SPEC, kinds=("continuous", "binary"), categories=((), ()), low=(SPEC.low[0], 100.3), high=(SPEC.high[0], 200.7)
    )

    def read(self, images: np.ndarray) -> Readings:
        labels, *others = super().read(images)
        labels[:, 1] = np.where(images[:, 1].mean(axis=(1, 2)) > 127, 200.7, 100.3)
        return Readings(labels, *others)


def test_an_image_that_loses_its_category_is_not_taken() -> None:
    labels = torch.tensor([[LOW[0] + 0.5 * RANGE[0], 100.3]]).float()
    first, decoded = (picture(torch.tensor(LOW + RANGE * levels)[None]) for levels in ([0.54, 0.1], [0.5, 0.9]))
    correction = LabelCorrection(DosePredictor())  # type: ignore[arg-type]
    corrected = correction.apply(first, labels, torch.ones(1, 2, dtype=torch.bool), first, None, lambda *_: decoded)
    assert torch.equal(corrected, first)


def test_a_request_at_its_limit_is_not_decoded_again() -> None:
    decoder = Decoder([0.2, -0.2])
    correct(decoder, count=5)
    assert decoder.rows == [[0, 1, 2]]


def test_a_count_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="label_corrections: expected a number of at least 1, got 0"):
        LabelCorrection(MeanPredictor(), 0)  # type: ignore[arg-type]


def saved(folder: Path, spec: DatasetSpec) -> Path:
    return save_predictor(folder, Predictor(spec, config_for(spec)), {"seed": 1})


def test_the_predictor_of_the_model_is_preferred_to_the_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, run = replace(SPEC, name="folder"), tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    assert find_correction_predictor(spec, str(run)) is None
    shipped = saved(tmp_path / "weights" / f"folder_4_{CORRECTION_FOLDER}", spec)
    found = find_correction_predictor(spec, str(run))
    assert found is not None and Path(found.path) == shipped
    assert find_correction_predictor(spec, str(run), "none") is None
    own = saved(run / CORRECTION_FOLDER, spec)
    for path in (run, run / "step_0001000"):  # a run is opened by one of its steps
        found = find_correction_predictor(spec, str(path))
        assert found is not None and Path(found.path) == own and found.figures == {"seed": 1}
    inside = find_correction_predictor(spec, str(run / "other"))
    assert inside is not None and Path(inside.path) == shipped
    given = find_correction_predictor(spec, str(run), str(shipped))
    assert given is not None and Path(given.path) == shipped


def test_a_predictor_that_does_not_fit_is_refused_unless_it_is_a_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(SPEC, name="folder")
    monkeypatch.chdir(tmp_path)
    other = saved(tmp_path / "weights" / f"folder_4_{CORRECTION_FOLDER}", replace(spec, channels=1))
    assert find_correction_predictor(spec, str(tmp_path)) is None
    with pytest.raises(InputError, match="channels"):
        find_correction_predictor(spec, str(tmp_path), str(other))
    saved(tmp_path / "run" / CORRECTION_FOLDER, replace(spec, channels=1))
    with pytest.raises(InputError, match="channels"):
        find_correction_predictor(spec, str(tmp_path / "run"))
