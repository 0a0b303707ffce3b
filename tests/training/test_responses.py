"""Whether the pictures of a model follow interventions."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import randomise, small_config, squares, squares_spec
from torch import Tensor

from causaldiffae.counterfactual import CounterfactualEngine
from causaldiffae.datasets.images import ImageData, to_model_range
from causaldiffae.datasets.registry import dataset_spec, example_images, measure, true_counterfactual
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.graphs import CausalGraph
from causaldiffae.metrics.intervals import Figure
from causaldiffae.script_util import create_model_and_diffusion
from causaldiffae.training.responses import (
    PREDICTED,
    Reader,
    Response,
    describe,
    find_reader,
    mean_share,
    measure_responses,
    read_responses,
    requested_share,
    requested_values,
    responses_of_model,
    stalled,
    verdicts,
    write_responses,
)

SPEC = DatasetSpec(
    name="painted",
    image_size=2,
    channels=1,
    graph=CausalGraph(("grey", "kind"), ()),
    shift=(0.0, 0.0),
    scale=(1.0, 1.0),
    low=(0.0, 0.0),
    high=(200.0, 2.0),
    kinds=("continuous", "categorical"),
    categories=((), ("a", "b", "c")),
)
READER = Reader("read", lambda images: images[:, 0, 0, :].astype(np.float64))  # the first row holds both labels


def painted(labels: np.ndarray) -> np.ndarray:
    """Images (N, 1, 2, 2) uint8 whose first row is the labels."""
    images = np.zeros((len(labels), 1, 2, 2), np.uint8)
    images[:, 0, 0] = np.nan_to_num(labels)
    return images


def data(labels: np.ndarray) -> ImageData:
    names = [str(i) for i in range(len(labels))]
    return ImageData(SPEC, "val", painted(labels), labels.astype(np.float32), None, names)


class Painter:
    """An engine whose pictures move `share` of the way to the requested grey, and never show category 2."""

    def __init__(self, share: float, needs_labels: bool = False) -> None:
        self.share = share
        self.model: Any = torch.nn.Linear(1, 1)
        self.model.needs_labels, self.model.unconditional_abduction = needs_labels, False
        self.model.class_cond = False
        self.seen = 0

    def abduct(self, x_start: Tensor, classes: Any, generator: Any, labels: Any) -> Tensor:
        self.seen += len(x_start)
        return x_start

    def predict(self, x: Tensor, interventions: list[dict[str, np.ndarray]]) -> list[Any]:
        results = []
        for do in interventions:
            images = (x.double() + 1) * 127.5
            for name, values in do.items():
                column, requested = SPEC.graph.index(name), torch.from_numpy(values)
                if name == "grey":
                    requested = images[:, 0, 0, 0] + self.share * (requested - images[:, 0, 0, 0])
                else:
                    requested = torch.where(requested == 2, images[:, 0, 0, 1], requested)
                images[:, 0, 0, column] = requested
            results.append(SimpleNamespace(images=images / 127.5 - 1))
        return results


def responses_of(share: float, labels: np.ndarray, **options: Any) -> dict[str, Response]:
    return measure_responses(Painter(share, **options), data(labels), READER)  # type: ignore[arg-type]


def labels_of(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([rng.integers(0, 200, count), rng.integers(0, 3, count)], axis=1).astype(np.float64)


@pytest.mark.parametrize("share", [1.0, 0.6, 0.0])
def test_the_share_is_that_of_the_requested_change(share: float) -> None:
    labels = labels_of(60)
    found = responses_of(share, labels)
    grey, kind = found["grey"].share, found["kind"].share
    assert grey.mean == pytest.approx(share, abs=0.01) and grey.images == 60
    assert grey.low is not None and grey.high is not None and grey.low <= grey.mean <= grey.high
    requested = requested_values(labels[:, 1], SPEC, 1, np.random.default_rng(0))
    assert kind.mean == pytest.approx((requested != 2).mean()), "the share of pictures with the requested category"


class Diverged(Painter):
    """Every second picture has NaN in a place that the reader does not look at."""

    def predict(self, x: Tensor, interventions: list[dict[str, np.ndarray]]) -> list[Any]:
        results = super().predict(x, interventions)
        for result in results:
            result.images[::2, 0, 1, 1] = torch.nan
        return results


def test_pictures_with_nan_show_nothing_of_the_change() -> None:
    labels = np.tile([[100.0, 0.0]], (8, 1))
    found = measure_responses(Diverged(1.0), data(labels), READER)  # type: ignore[arg-type]
    assert found["grey"].share.mean == pytest.approx(0.5, abs=0.01) and found["grey"].share.images == 8


class Digits(Painter):
    """Its pictures show the class in their second row, except class 3; of the last one, nothing is finite."""

    def predict(self, x: Tensor, interventions: list[dict[str, np.ndarray]]) -> list[Any]:
        results = super().predict(x, [{k: v for k, v in do.items() if k != "digit"} for do in interventions])
        for do, result in zip(interventions, results, strict=True):
            if "digit" in do:
                shown = torch.from_numpy(np.where(do["digit"] == 3, 0, do["digit"]))
                result.images[:, 0, 1, 0] = shown / 127.5 - 1
                result.images[-1] = torch.nan
        return results


def test_the_class_of_a_class_conditional_model_is_measured_too() -> None:
    spec, classes = replace(SPEC, num_classes=4, class_name="digit"), np.arange(40) % 3
    images = replace(data(labels_of(40)), spec=spec, classes=classes)
    images.images[:, 0, 1, 0] = classes
    requested: list[np.ndarray] = []

    class Recorded(Digits):
        def predict(self, x: Tensor, interventions: list[dict[str, np.ndarray]]) -> list[Any]:
            requested.extend(do["digit"] for do in interventions if "digit" in do)
            return super().predict(x, interventions)

    reader = READER._replace(read_classes=lambda images: images[:, 0, 1, 0].astype(np.int64))
    engine = Recorded(1.0)
    assert "digit" not in measure_responses(engine, images, reader), "the model has no class"  # type: ignore[arg-type]
    engine.model.class_cond = True
    assert "digit" not in measure_responses(engine, images, READER), "nothing reads it"  # type: ignore[arg-type]
    found = measure_responses(engine, images, reader, batch_size=40)  # type: ignore[arg-type]
    (values,) = requested
    assert (values != classes).all() and set(values) == {0, 1, 2, 3}
    reached = values != 3
    reached[-1] = False
    assert found["digit"].share.mean == pytest.approx(reached.mean()) and found["digit"].share.images == 40
    assert found["digit"].reader == PREDICTED and found["grey"].reader == "read"
    assert verdicts(found, ["digit"]).startswith("as measured in training, do(digit): ")


def test_every_image_has_noise_of_its_own() -> None:
    drawn: list[Tensor] = []

    class Noisy(Painter):
        def abduct(self, x_start: Tensor, classes: Any, generator: Any, labels: Any) -> Tensor:
            drawn.append(torch.rand(len(x_start), generator=generator))
            return super().abduct(x_start, classes, generator, labels)

    measure_responses(Noisy(1.0), data(labels_of(8)), READER, batch_size=4)  # type: ignore[arg-type]
    assert len(set(torch.cat(drawn).tolist())) == 8


def test_images_that_are_read_as_the_requested_category_do_not_count() -> None:
    """A reader that always says the same would otherwise credit pictures that do not change."""
    read, requested = np.zeros(6), np.array([0.0, 0.0, 0.0, 1.0, 2.0, 1.0])
    found = requested_share(read, read, requested, SPEC, 1)
    assert (found.mean, found.images) == (0.0, 3)
    assert requested_share(read, read, np.zeros(6), SPEC, 1).mean is None
    assert requested_share(np.array([1.0, 2.0]), np.array([0.0, np.nan]), np.array([1.0, 2.0]), SPEC, 1).images == 1


def test_the_error_of_the_reader_is_not_that_of_the_pictures() -> None:
    """A reader that reads everything 10 too large: pictures of what was requested show all of it."""
    factual, requested = np.linspace(0, 80, 9), np.full(9, 150.0)
    read, errors = requested + 10, np.full(9, 10.0)
    right = requested_share(read, factual + 10, requested, SPEC, 0, errors)
    assert right.mean == pytest.approx(1.0) and Response(right, "measured").verdict == "followed"
    assert requested_share(factual + 10, factual + 10, requested, SPEC, 0, errors).mean == 0.0
    plain = requested_share(read, factual + 10, requested, SPEC, 0)
    assert plain.mean is not None and plain.mean < 0.95
    partly = np.array([np.nan, *errors[1:]])
    assert requested_share(read, factual + 10, requested, SPEC, 0, partly).mean == pytest.approx(1.0)


def test_pictures_of_the_truth_follow_in_training() -> None:
    """The measurement of MorphoMNIST reads thick strokes as thicker: true images would show 77 %."""
    spec = dataset_spec("morphomnist")
    digits = example_images(spec, 12)

    class Oracle(Painter):
        def predict(self, x: Tensor, interventions: list[dict[str, np.ndarray]]) -> list[Any]:
            drawn = [to_model_range(torch.from_numpy(true_counterfactual(digits, do)[1])) for do in interventions]
            return [SimpleNamespace(images=images) for images in drawn]

    reader = Reader("measured", lambda images: measure(spec, images))
    errors: dict[str, np.ndarray | None] = {}
    found = measure_responses(Oracle(1.0), digits, reader, errors=errors)  # type: ignore[arg-type]
    assert found["thickness"].verdict == "followed" and found["thickness"].share.mean == pytest.approx(1.0, abs=0.01)
    assert measure_responses(Oracle(1.0), digits, reader, errors=errors) == found  # type: ignore[arg-type]
    own = reader._replace(name="read by the model's own encoder")
    encoded = measure_responses(Oracle(1.0), digits, own)["thickness"]  # type: ignore[arg-type]
    assert encoded.share.mean is not None and encoded.share.mean < 0.9, "it does not excuse its own errors"


def test_changes_within_the_error_of_the_reader_have_no_share() -> None:
    factual, errors = np.linspace(0, 80, 9), np.full(9, 3.0)
    nothing = requested_share(factual - 3, factual + 3, factual, SPEC, 0, errors)
    assert nothing.mean is None and nothing.images == 9
    assert requested_share(factual, factual + 3, factual - 20, SPEC, 0, errors).mean is not None
    assert requested_share(factual, factual + 3, factual - 20, SPEC, 0, 4 * errors).mean is None
    assert requested_share(factual, factual, factual - 9, SPEC, 0).mean is None, "5 % of 0..200"
    assert "too small to measure" in Response(nothing, "measured").text("do(grey)")


def test_few_images_have_no_verdict() -> None:
    for share in (0.95, 0.3):
        response = Response(Figure(share, share - 0.6, share + 0.6, 2), "measured")
        assert response.verdict == "too few images for a verdict" and not response.is_weak
        assert not [line for line in describe({"size": response}) if "train longer" in line]
    assert Response(Figure(0.9, 0.55, 1.25, 8), "measured").verdict == "followed"
    assert Response(Figure(0.1, -0.4, 0.6, 8), "measured").verdict == "hardly followed", "not followed in any case"


def test_requests_are_far_from_the_factual_labels() -> None:
    labels = labels_of(200)
    rng = np.random.default_rng(3)
    grey = requested_values(labels[:, 0], SPEC, 0, rng)
    assert set(grey) == {20.0, 180.0} and (np.abs(grey - labels[:, 0]) >= 80).all()
    kind = requested_values(labels[:, 1], SPEC, 1, rng)
    assert set(kind) == {0.0, 1.0, 2.0} and (kind != labels[:, 1]).all()


def test_missing_labels_are_those_that_are_read_unless_the_model_needs_them() -> None:
    labels = labels_of(20)
    labels[:5, 0] = np.nan
    assert responses_of(1.0, labels)["grey"].share.images == 20
    assert responses_of(1.0, labels, needs_labels=True)["grey"].share.images == 15
    labels[:, 0] = np.nan
    assert responses_of(1.0, labels, needs_labels=True) == {}


def test_images_without_readable_labels_are_left_out() -> None:
    half = Reader("half", lambda images: np.where(images[:, 0, 0, :1] < 50, np.nan, READER.read(images)))
    labels = labels_of(40)
    found = measure_responses(Painter(1.0), data(labels), half)  # type: ignore[arg-type]
    assert 0 < found["grey"].share.images < 40 and found["grey"].share.left_out > 0


@pytest.mark.parametrize(
    ("share", "verdict"),
    [
        (0.95, "followed"),
        (0.8, "followed"),
        (0.6, "followed in part"),
        (0.3, "hardly followed"),
        (0.05, "no better than doing nothing"),
        (-0.4, "no better than doing nothing"),
        (None, "the requested change is too small to measure"),
    ],
)
def test_verdicts(share: float | None, verdict: str) -> None:
    response = Response(Figure(share, None, None, 4), "measured")
    assert response.verdict == verdict and verdict in response.text("do(x)")


def test_the_description_gives_advice_where_interventions_are_not_followed() -> None:
    good, bad = Figure(0.93, 0.9, 0.95, 48), Figure(0.12, 0.05, 0.2, 48)
    lines = describe({"size": Response(good, "measured"), "hue": Response(bad, "measured")}, 64_000)
    assert lines == [
        "response to interventions, 48 images, labels measured:",
        "  do(size): 93% of the requested change (90% to 95%), followed",
        "  do(hue): 12% of the requested change (5% to 20%), hardly followed",
        "  counterfactuals of hue are not reliable yet; train longer (64,000 images seen; the example of own images "
        "needed 112,000)",
    ]
    assert describe({"hue": Response(bad, "measured")}, 200_000)[-1].endswith("train longer (200,000 images seen)")
    assert len(describe({"size": Response(good, "measured")})) == 2 and describe({}) == []


def test_a_small_negative_share_is_zero_percent() -> None:
    line = Response(Figure(-0.0001, -0.004, 0.001, 9), "measured").text("do(size)")
    assert line == "do(size): 0% of the requested change (0% to 0%), no better than doing nothing"
    assert "-12%" in Response(Figure(-0.12, None, None, 9), "measured").text("do(size)")


def test_mean_share_and_stalling() -> None:
    shares = [Response(Figure(mean, None, None, 1), "") for mean in (1.2, 0.5, -0.5, None)]
    assert mean_share({str(i): response for i, response in enumerate(shares)}) == pytest.approx(0.5)
    assert not stalled([0.1, 0.2, 0.3]) and not stalled([0.5, 0.5, 0.5, 0.52])
    assert stalled([0.5, 0.5, 0.5, 0.505]) and stalled([0.2, 0.7, 0.6, 0.7, 0.65])


def test_responses_are_stored_in_the_folder(tmp_path: Path) -> None:
    found = {"a": Response(Figure(0.5, 0.4, 0.6, 7), "measured"), "b": Response(Figure(None, None, None, 0, 7), "x")}
    assert read_responses(tmp_path) == {}
    write_responses(tmp_path, found)
    assert read_responses(tmp_path) == found


@pytest.mark.parametrize(
    "content",
    [
        '{"a": 3}',
        "[]",
        '{"a": {"share": {"mean": "high", "low": null, "high": null, "images": 3}, "reader": "x"}}',
        '{"a": {"share": {"mean": 0.1, "low": [], "high": null, "images": 3}, "reader": "x"}}',
        '{"a": {"share": {"mean": NaN, "low": null, "high": null, "images": 3}, "reader": "x"}}',
        '{"a": {"share": 3, "reader": "x"}}',
        '{"a": ' + "[" * 100_000,
    ],
)
def test_a_file_of_other_content_holds_no_responses(tmp_path: Path, content: str) -> None:
    (tmp_path / "responses.json").write_text(content)
    assert read_responses(tmp_path) == {} and verdicts(responses_of_model(str(tmp_path)), ["a"]) == ""


def engine_of(spec: DatasetSpec, **changes: Any) -> CounterfactualEngine:
    model, diffusion = create_model_and_diffusion(small_config(**changes), spec)
    return CounterfactualEngine(randomise(model).eval(), diffusion, spec)


def test_the_reader_is_a_measurement_a_predictor_or_the_encoder(tmp_path: Path) -> None:
    spec = squares_spec()
    engine = engine_of(spec)
    encoder = find_reader(spec, engine)
    assert encoder is not None and encoder.name == "read by the model's own encoder"
    images = squares().images
    z = engine.latents(torch.from_numpy(images).float() / 127.5 - 1)
    np.testing.assert_allclose(encoder.read(images), engine.read_labels(z).numpy(), rtol=1e-4)
    assert find_reader(spec, engine_of(spec, model_type="conditional")) is None, "it cannot read labels"
    for channels in (3, 4):  # the shipped predictor is for one of them
        pendulum = dataset_spec("pendulum", 32, channels)
        measured = find_reader(pendulum, engine_of(pendulum, rep_dim=8, encoder_channels="8,8,8"))
        assert measured is not None and measured.name == "measured" and measured.read_classes is None
    digits = dataset_spec("morphomnist")
    measured = find_reader(digits, engine_of(digits, rep_dim=8, encoder_channels="8,8,8"))
    assert measured is not None and measured.name == "measured" and measured.read_classes is not None
    shown = example_images(digits, 20)
    assert (measured.read_classes(shown.images) == shown.classes).mean() > 0.9
    with pytest.raises((InputError, OSError, ValueError)):
        find_reader(spec, engine_of(spec), str(tmp_path / "nothing"))


def test_responses_of_a_model(tmp_path: Path) -> None:
    spec = squares_spec()
    torch.manual_seed(0)
    engine = engine_of(spec, diffusion_steps=4, noise_schedule="cosine")
    reader = find_reader(spec, engine)
    assert reader is not None
    found = measure_responses(engine, squares(), reader, batch_size=3)
    assert list(found) == ["size", "grey"] and all(each.share.images == 8 for each in found.values())
    again = measure_responses(engine, squares(), reader, batch_size=3)
    assert found == again


def test_models_say_what_their_pictures_do_not_follow(tmp_path: Path) -> None:
    good, weak = (Response(Figure(share, None, None, 8), "measured") for share in (0.9, 0.12))
    write_responses(tmp_path, {"size": good, "grey": weak})
    (tmp_path / "step_0000003").mkdir()
    for path in (tmp_path, tmp_path / "step_0000003"):
        found = responses_of_model(str(path))
        assert verdicts(found, ["size", "grey"], weak_only=True) == (
            "as measured in training, do(grey): 12% of the requested change, hardly followed; train the model longer"
        )
        assert verdicts(found, ["size", "digit"], weak_only=True) == ""
        assert verdicts(found, ["grey", "size", "digit"]) == (
            "as measured in training, do(grey): 12% of the requested change, hardly followed; do(size): 90% of the "
            "requested change, followed; train the model longer"
        )
        assert verdicts(found, ["size"]).endswith("90% of the requested change, followed")
        assert verdicts(found, ["digit"]) == ""
        unread = {"hue": Response(Figure(None, None, None, 0), "measured")}
        assert verdicts(unread, ["hue"]).startswith("as measured in training, do(hue): unknown")
    assert responses_of_model(str(tmp_path / "nothing" / "here")) == {}
