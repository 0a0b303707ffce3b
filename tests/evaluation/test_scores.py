"""The benchmark on models whose answers are known: the truth, nothing, swapped variables, shuffled labels, NaN.

Pictures are Pendulum's at 32 pixels: the generator draws the truth, and its geometry stands in for the predictor, so
that every figure can be told in advance.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import randomise, small_config, squares, squares_spec

from causaldiffae.counterfactual import Counterfactual, CounterfactualEngine
from causaldiffae.datasets.images import ImageData, resize_area, to_model_range
from causaldiffae.datasets.registry import dataset_spec, exact_labels, measure, true_counterfactual
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.evaluation.protocol import ProtocolSettings, Task, TaskRunner, draw_values, evenly_spread, make_task
from causaldiffae.evaluation.scores import Judge, score, score_latents
from causaldiffae.generators import pendulum
from causaldiffae.predictors.predictor import Readings
from causaldiffae.script_util import create_gaussian_diffusion, create_model_and_diffusion

SETTINGS = ProtocolSettings(chunk=8, cycles=3, cycle_images=6, steps=1)
SPEC = dataset_spec("pendulum", 32, 3)
SWAPPED = {"angle": "light", "light": "angle", "shadow_length": "shadow_position", "shadow_position": "shadow_length"}


def pendulums(count: int, seed: int) -> ImageData:
    """Pendulums all over the grid, labels not truncated."""
    rng = np.random.default_rng(seed)
    labels = pendulum.true_labels(rng.integers(-40, 44, count), rng.integers(60, 100, count))
    images = np.stack([pendulum.render(*row[:2])[..., :3].transpose(2, 0, 1) for row in labels])
    return ImageData(
        SPEC, "test", resize_area(images, 32), labels.astype(np.float32), None, [str(i) for i in range(count)]
    )


class Constructed:
    """A model by name; what an image shows it knows from the labels that come with it."""

    def __init__(self, kind: str) -> None:
        self.kind, self.spec, self.model = (
            kind,
            SPEC,
            SimpleNamespace(needs_labels=False, unconditional_abduction=False),
        )

    def abduct(self, x_start: torch.Tensor, classes: Any, generator: Any, labels: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(images=x_start, labels=labels)

    def predict(self, abducted: SimpleNamespace, dos: Sequence[Mapping[str, Any]]) -> list[Counterfactual]:
        return [self.answer(abducted.images, abducted.labels, do) for do in dos]

    def answer(self, images: torch.Tensor, labels: torch.Tensor, do: Mapping[str, Any]) -> Counterfactual:
        if self.kind == "shuffled":
            images, labels = images.roll(1, 0), labels.roll(1, 0)
        if do and self.kind != "nothing":
            columns = {name: np.asarray(value) for name, value in do.items()}
            if self.kind == "swapped":
                columns = {SWAPPED[name]: rescaled(name, SWAPPED[name], column) for name, column in columns.items()}
            part = ImageData(
                SPEC, "test", np.zeros((len(labels), 3, 32, 32), np.uint8), labels.numpy(), None, [""] * 99
            )
            part = replace(part, ids=[str(i) for i in range(len(labels))])
            true, pictures = true_counterfactual(part, columns)
            images, labels = to_model_range(pictures), torch.from_numpy(true)
        if self.kind == "broken":
            images = images.clone()
            images[0, 0, 0, :2] = torch.tensor([torch.nan, torch.nan])
        return Counterfactual(images, labels, torch.zeros(0))


def rescaled(name: str, other: str, values: np.ndarray) -> np.ndarray:
    i, j = SPEC.graph.index(name), SPEC.graph.index(other)
    share = (values - SPEC.low[i]) / (SPEC.high[i] - SPEC.low[i])
    return SPEC.low[j] + share * (SPEC.high[j] - SPEC.low[j])


class Geometry:
    """Reads labels by geometry; features and posteriors are the picture's own coarse pixels."""

    def read(self, images: np.ndarray) -> Readings:
        return Readings(measure(SPEC, images), None, self.coarse(images).astype(np.float32))

    def posteriors(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = self.coarse(images)
        return mean, np.zeros_like(mean)

    def coarse(self, images: np.ndarray) -> np.ndarray:
        return resize_area(images, 8).reshape(len(images), -1)[:, ::3].astype(np.float64) / 25.5


@pytest.fixture(scope="module")
def task() -> Task:
    return make_task(pendulums(24, 0), SETTINGS)


@pytest.fixture(scope="module")
def found(task: Task) -> dict[str, dict[str, Any]]:
    judge = Judge(Geometry(), pendulums(60, 1))  # type: ignore[arg-type]
    results = {}
    for kind in ("truth", "nothing", "swapped", "shuffled", "broken"):
        asker = TaskRunner(Constructed(kind), task, SETTINGS)  # type: ignore[arg-type]
        results[kind] = score(
            task, task.join([asker.answer(rows) for rows in task.chunks(SETTINGS.chunk)], SETTINGS.chunk), judge
        )
    return results


@pytest.mark.parametrize("size", [1, 3, 5, 100])
def test_images_with_long_cycles_are_asked_together_and_answers_are_in_order(task: Task, size: int) -> None:
    chunks = task.chunks(size)
    assert sorted(np.concatenate(chunks).tolist()) == list(range(len(task)))
    kinds = [set((task.cycled[rows] >= 0).tolist()) for rows in chunks]
    assert all(len(kind) == 1 for kind in kinds) and kinds == sorted(kinds, key=lambda kind: kind != {True})
    assert (task.cycled >= 0).any() and (task.cycled < 0).any() and max(map(len, chunks)) <= size
    joined = task.join([{"row": rows, "square": rows[:, None] ** 2} for rows in chunks], size)
    np.testing.assert_array_equal(joined["row"], np.arange(len(task)))
    np.testing.assert_array_equal(joined["square"], np.arange(len(task))[:, None] ** 2)


def test_only_some_images_go_there_and_back() -> None:
    settings = dataclasses.replace(SETTINGS, back_images=10, chunk=5)
    few = make_task(pendulums(24, 0), settings)
    assert few.returned.sum() == 10 and few.returned[few.cycled >= 0].all() and (few.cycled >= 0).sum() == 6
    chunks = few.chunks(5)
    assert [set(few.returned[rows].tolist()) for rows in chunks] == [{True}] * 3 + [{False}] * 3
    asker = TaskRunner(Constructed("truth"), few, settings)  # type: ignore[arg-type]
    answers = few.join([asker.answer(rows) for rows in chunks], 5)
    mixed = asker.answer(np.arange(24))
    for name in few.variables:
        for found in (answers, mixed):
            np.testing.assert_array_equal(np.isfinite(found[f"reverse/{name}"]), few.returned)
        np.testing.assert_allclose(answers[f"reverse/{name}"], mixed[f"reverse/{name}"], atol=1e-6)
    figures = score(few, answers, Judge(Geometry(), pendulums(60, 1)))  # type: ignore[arg-type]
    back = figures["interventions"]["angle"]["reversibility"]["1"]
    assert (back["images"], back["left_out"]) == (10, 0)


def model(found: dict[str, Any], do: str, *keys: str, kind: str = "model") -> float:
    value = found["interventions"][do]["answers"][kind]
    for key in keys:
        value = value[key]
    return value["mean"]


@pytest.mark.parametrize("do", SPEC.graph.names)
def test_the_truth_is_the_floor(found: dict[str, Any], do: str) -> None:
    truth = found["truth"]
    assert model(truth, do, "truth", "l1") == 0.0 and model(truth, do, "truth", "ssim") == pytest.approx(1.0)
    assert model(truth, do, "truth", "psnr") == pytest.approx(58.92, abs=0.01)
    assert model(truth, do, "realism", "fid_own") == pytest.approx(0.0, abs=1e-3)
    for name in SPEC.graph.names:
        for reader in ("predictor", "measured"):
            path = ("effectiveness", reader, name)
            assert model(truth, do, *path) == model(truth, do, *path, kind="truth")
        assert model(truth, do, "effectiveness", "own_labels", name) < 1e-4
    assert truth["interventions"][do]["reversibility"]["1"]["mean"] == 0.0
    assert truth["interventions"][do]["reversibility"]["long"]["mean"] == 0.0
    for effect in truth["interventions"][do]["answers"]["model"]["effects"].values():
        assert abs(effect["error"]["mean"]) < 0.3


@pytest.mark.parametrize("do", SPEC.graph.names)
def test_doing_nothing_is_the_baseline(found: dict[str, Any], do: str) -> None:
    nothing = found["nothing"]["interventions"][do]
    ours, baseline = nothing["answers"]["model"], nothing["answers"]["do_nothing"]
    for key in ("truth", "drift", "cld", "realism", "effects"):
        assert ours[key] == baseline[key]
    assert ours["cld"]["mean"] == pytest.approx(np.log(1 + np.e))
    assert all(figure["predictor"]["mean"] == 0.0 for figure in ours["drift"].values())
    assert all(effect["model"]["mean"] == 0.0 for effect in ours["effects"].values())
    assert nothing["reversibility"]["1"]["mean"] == 0.0, "going nowhere and back is exact, and worth nothing"
    assert model(found["nothing"], do, "truth", "l1") > 0.3
    assert model(found["nothing"], do, "effectiveness", "predictor", do) > 4 * model(
        found["truth"], do, "effectiveness", "predictor", do
    )


@pytest.mark.parametrize("do", SPEC.graph.names)
@pytest.mark.parametrize("wrong", ["nothing", "swapped", "shuffled"])
def test_every_wrong_model_is_worse_than_the_truth(found: dict[str, Any], do: str, wrong: str) -> None:
    truth, other = found["truth"], found[wrong]
    assert model(other, do, "truth", "l1") > model(truth, do, "truth", "l1")
    assert model(other, do, "truth", "psnr") < model(truth, do, "truth", "psnr")
    assert model(other, do, "truth", "ssim") < model(truth, do, "truth", "ssim")
    errors = []
    for each in (truth, other):
        scaled = zip(SPEC.graph.names, SPEC.scale, strict=True)
        errors.append(sum(model(each, do, "effectiveness", "predictor", name) / scale for name, scale in scaled))
    assert errors[1] > errors[0]


def test_a_swap_misses_what_it_was_asked_for_and_moves_what_it_should_not(found: dict[str, Any]) -> None:
    for do in ("angle", "light"):
        assert model(found["swapped"], do, "effectiveness", "predictor", do) > 5.0
        assert model(found["swapped"], do, "drift", SWAPPED[do], "predictor") > 5.0
        assert model(found["truth"], do, "drift", SWAPPED[do], "predictor") < 0.5
        assert model(found["swapped"], do, "realism", "fid_own") > 0.05


def test_shuffled_labels_set_the_right_value_on_the_wrong_image(found: dict[str, Any]) -> None:
    shuffled, truth = found["shuffled"], found["truth"]
    for do in ("angle", "light"):
        assert model(shuffled, do, "effectiveness", "predictor", do) == pytest.approx(
            model(truth, do, "effectiveness", "predictor", do), abs=0.3
        )
        assert model(shuffled, do, "drift", SWAPPED[do], "predictor") > 5.0
        assert model(shuffled, do, "truth", "l1") > 1.0
    assert shuffled["composition"]["1"]["mean"] > 1.0 and truth["composition"]["1"]["mean"] == 0.0
    assert shuffled["composition"]["long"]["mean"] > 1.0


def test_effects_have_the_right_size(found: dict[str, Any], task: Task) -> None:
    low, high = task.ranges["light"]
    upper = task.values["light"] >= (low + high) / 2
    moved = pendulum.true_labels(task.labels[:, 0], task.values["light"])[:, 3] - task.labels[:, 3]
    expected = moved[upper].mean() - moved[~upper].mean()
    effect = found["truth"]["interventions"]["light"]["answers"]["model"]["effects"]["shadow_position"]
    assert abs(expected) > 0.5
    assert effect["truth"]["mean"] == pytest.approx(expected, abs=1e-4)
    assert effect["truth"]["low"] < expected < effect["truth"]["high"]
    assert effect["model"]["mean"] == pytest.approx(expected, abs=0.3)
    nothing = found["nothing"]["interventions"]["light"]["answers"]["model"]["effects"]["shadow_position"]
    assert nothing["error"]["mean"] == pytest.approx(-expected, abs=1e-4)


def test_broken_pixels_are_counted_and_their_images_in_no_figure(found: dict[str, Any], task: Task) -> None:
    broken, truth = found["broken"], found["truth"]
    count = len(task.chunks(SETTINGS.chunk))  # two pixels of the first image of each
    assert broken["broken"]["angle"] == broken["broken"]["null"] == {"images": count, "pixels": 2 * count}
    assert truth["broken"]["angle"] == {"images": 0, "pixels": 0}
    row = broken["interventions"]["angle"]["answers"]["model"]
    figures = [
        row["truth"]["l1"],
        row["effectiveness"]["predictor"]["angle"],
        row["effectiveness"]["measured"]["light"],
    ]
    figures += [row["drift"]["light"]["measured"], row["realism"]["fid_own"], broken["composition"]["1"]]
    for figure in figures:
        assert (figure["images"], figure["left_out"]) == (24 - count, count)
    assert row["truth"]["l1"]["mean"] == 0.0
    assert broken["interventions"]["angle"]["answers"]["truth"]["truth"]["l1"]["images"] == 24


def test_values_follow_from_seed_and_place_alone() -> None:
    low, high = np.array(SPEC.low), np.array(SPEC.high)
    few, many = np.array([3, 7]), np.arange(10)
    values = draw_values(SPEC, low, high, many, 5)
    np.testing.assert_array_equal(draw_values(SPEC, low, high, few, 5), values[[3, 7]])
    assert not np.array_equal(draw_values(SPEC, low, high, many, 6), values)
    assert (values >= low).all() and (values <= high).all()
    spread = draw_values(SPEC, low, high, np.arange(2000), 0)
    np.testing.assert_allclose(spread.mean(axis=0), (low + high) / 2, rtol=0.05, atol=1.5)


def test_values_of_categories() -> None:
    spec = DatasetSpec.from_dict(
        SPEC.to_dict()
        | {"kinds": ["categorical", "binary", "continuous", "continuous"], "categories": [["a", "b", "c"], [], [], []]}
    )
    values = draw_values(spec, np.array(SPEC.low), np.array(SPEC.high), np.arange(60), 0)
    assert set(values[:, 0]) == {0.0, 1.0, 2.0} and set(values[:, 1]) == {60.0, 147.0}


def test_images_are_spread_and_labels_exact() -> None:
    np.testing.assert_array_equal(evenly_spread(3, 9), [0, 4, 8])
    np.testing.assert_array_equal(evenly_spread(9, 9), np.arange(9))
    on_disk = replace(pendulums(5, 2), labels=np.trunc(pendulums(5, 2).labels))
    np.testing.assert_allclose(exact_labels(on_disk), pendulums(5, 2).labels)


def test_requests_that_cannot_be_served() -> None:
    data = pendulums(4, 0)
    with pytest.raises(InputError, match="num_images: 5 given, the test split has 4"):
        make_task(data, ProtocolSettings(num_images=5))
    with pytest.raises(InputError, match="unknown variable 'colour'"):
        make_task(data, ProtocolSettings(variables=("colour",)))
    with pytest.raises(InputError, match="chunk: expected"):
        ProtocolSettings(chunk=0)
    with pytest.raises(InputError, match="cycle_images: expected"):
        ProtocolSettings(cycle_images=-1)


def test_latents_that_are_the_labels_are_disentangled() -> None:
    labels = np.random.default_rng(0).normal(0, 1, (200, 2))
    latents = labels[:, :, None] + np.random.default_rng(1).normal(0, 0.05, (200, 2, 3))
    right = score_latents(latents[:120], labels[:120], latents[120:], labels[120:], 3, 0)
    mixed = latents[:, ::-1] + latents
    wrong = score_latents(mixed[:120], labels[:120], mixed[120:], labels[120:], 3, 0)
    for name in ("boosting", "lasso"):
        assert right[name]["block_disentanglement"]["mean"] > 0.9
        assert right[name]["block_disentanglement"]["mean"] > wrong[name]["block_disentanglement"]["mean"] + 0.3
        assert right[name]["informativeness"]["mean"] > 0.9
        assert right[name]["completeness"]["low"] <= right[name]["completeness"]["mean"]


def test_values_for_each_image_are_those_of_each_image_alone() -> None:
    loaded_spec = squares_spec()
    model, _ = create_model_and_diffusion(small_config(), loaded_spec)
    randomise(model)
    engine = CounterfactualEngine(model.eval(), create_gaussian_diffusion(small_config().diffusion, "4"), loaded_spec)
    x_start = to_model_range(squares(3).images)
    abducted = engine.abduct(x_start)
    values = np.array([2.0, 4.0, 6.0])
    each = engine.predict(abducted, [{"size": values}])[0]
    for i, value in enumerate(values):
        alone = engine.predict(abducted, [{"size": float(value)}])[0]
        torch.testing.assert_close(each.labels[i], alone.labels[i])
        torch.testing.assert_close(each.images[i], alone.images[i])
    with pytest.raises(InputError, match="one for each image"):
        engine.predict(abducted, [{"size": values[:2]}])


def test_infinity_does_not_become_white(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = squares_spec()
    model, _ = create_model_and_diffusion(small_config(), spec)
    engine = CounterfactualEngine(model.eval(), create_gaussian_diffusion(small_config().diffusion, "2"), spec)
    drawn = torch.tensor([torch.inf, -torch.inf, torch.nan, 7.0, 0.5, -0.5, 0.0, 1.0]).repeat(3, 1, 8, 1)
    monkeypatch.setattr(engine, "_draw", lambda *_: drawn)
    images = engine.predict(engine.abduct(to_model_range(squares(3).images)), [{}])[0].images
    assert images[0, 0, 0].isnan().tolist() == [True, True, True, False, False, False, False, False]
    assert images[0, 0, 0, 3:].tolist() == [1.0, 0.5, -0.5, 0.0, 1.0]
