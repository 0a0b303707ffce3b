"""Figures of models with known outputs: the truth, nothing, swapped variables, shuffled images, NaN.

Images are Pendulum's at 32 pixels. The generator renders the truth and its geometry replaces the predictor, so every
figure is known in advance.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from tiny import randomise, small_config, squares, squares_spec

from causaldiffae.counterfactual import Counterfactual, CounterfactualEngine
from causaldiffae.datasets.images import ImageData, resize_area, to_model_range
from causaldiffae.datasets.registry import dataset_spec, measure, true_counterfactual
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.evaluation.protocol import ProtocolSettings, Task, TaskRunner, draw_values, make_task
from causaldiffae.evaluation.run import latent_scores
from causaldiffae.evaluation.scores import Scorer, score, score_latents
from causaldiffae.evaluation.tables import shown
from causaldiffae.generators import pendulum
from causaldiffae.graphs import CausalGraph
from causaldiffae.metrics import dci
from causaldiffae.predictors.predictor import Readings
from causaldiffae.script_util import create_gaussian_diffusion, create_model_and_diffusion

SETTINGS = ProtocolSettings(chunk=8, cycles=3, cycle_images=6, steps=1)
SPEC = dataset_spec("pendulum", 32, 3)
LOW, HIGH = np.array(SPEC.low), np.array(SPEC.high)
SWAPPED = {"angle": "light", "light": "angle", "shadow_length": "shadow_position", "shadow_position": "shadow_length"}


def pendulums(count: int, seed: int) -> ImageData:
    """Pendulums all over the grid, labels not truncated."""
    rng = np.random.default_rng(seed)
    labels = pendulum.true_labels(rng.integers(-40, 44, count), rng.integers(60, 100, count))
    images = np.stack([pendulum.render(*row[:2])[..., :3].transpose(2, 0, 1) for row in labels])
    names = [str(i) for i in range(count)]
    return ImageData(SPEC, "test", resize_area(images, 32), labels.astype(np.float32), None, names)


class KnownModel:
    """A model by its kind; it renders from the labels that come with the images."""

    def __init__(self, kind: str) -> None:
        self.kind, self.spec = kind, SPEC
        self.model = SimpleNamespace(needs_labels=False, unconditional_abduction=False)

    def abduct(self, x_start: torch.Tensor, classes: Any, generator: Any, labels: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(images=x_start, labels=labels)

    def predict(self, abducted: SimpleNamespace, dos: Sequence[Mapping[str, Any]]) -> list[Counterfactual]:
        return [self.answer(abducted.images, abducted.labels, do) for do in dos]

    def answer(self, images: torch.Tensor, labels: torch.Tensor, do: Mapping[str, Any]) -> Counterfactual:
        if self.kind == "shuffled":
            images, labels = images.roll(1, 0), labels.roll(1, 0)
        if do and self.kind != "nothing":
            values = {name: np.asarray(value) for name, value in do.items()}
            if self.kind == "swapped":
                values = {SWAPPED[name]: rescaled(name, SWAPPED[name], value) for name, value in values.items()}
            blank = np.zeros((len(labels), 3, 32, 32), np.uint8)
            part = ImageData(SPEC, "test", blank, labels.numpy(), None, [str(i) for i in range(len(labels))])
            true_labels, true_images = true_counterfactual(part, values)
            images, labels = to_model_range(true_images), torch.from_numpy(true_labels)
        if self.kind == "broken":
            images = images.clone()
            images[0, 0, 0, :2] = torch.nan
        return Counterfactual(images, labels, torch.zeros(0))


def rescaled(name: str, other: str, values: np.ndarray) -> np.ndarray:
    i, j = SPEC.graph.index(name), SPEC.graph.index(other)
    return LOW[j] + (values - LOW[i]) / (HIGH[i] - LOW[i]) * (HIGH[j] - LOW[j])


class Geometry:
    """A predictor that measures labels; its features and posteriors are coarse pixels."""

    def read(self, images: np.ndarray) -> Readings:
        return Readings(measure(SPEC, images), None, self.coarse(images).astype(np.float32))

    def posteriors(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = self.coarse(images)
        return mean, np.zeros_like(mean)

    def coarse(self, images: np.ndarray) -> np.ndarray:
        return resize_area(images, 8).reshape(len(images), -1)[:, ::3].astype(np.float64) / 25.5


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(Geometry(), pendulums(60, 1))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def task() -> Task:
    return make_task(pendulums(24, 0), SETTINGS)


@pytest.fixture(scope="module")
def found(task: Task, scorer: Scorer) -> dict[str, dict[str, Any]]:
    results = {}
    for kind in ("truth", "nothing", "swapped", "shuffled", "broken"):
        runner = TaskRunner(KnownModel(kind), task, SETTINGS)  # type: ignore[arg-type]
        parts = [runner.run(rows) for rows in task.chunks(SETTINGS.chunk)]
        results[kind] = score(task, task.join(parts, SETTINGS.chunk), scorer)
    return results


def mean(found: dict[str, Any], do: str, *keys: str, kind: str = "model") -> float:
    value = found["interventions"][do]["answers"][kind]
    for key in keys:
        value = value[key]
    return value["mean"]


@pytest.mark.parametrize("size", [1, 3, 5, 100])
def test_chunks_hold_images_with_the_same_cycles_and_join_in_order(task: Task, size: int) -> None:
    chunks = task.chunks(size)
    assert sorted(np.concatenate(chunks).tolist()) == list(range(len(task)))
    kinds = [set((task.long_cycle[rows] >= 0).tolist()) for rows in chunks]
    assert all(len(kind) == 1 for kind in kinds) and kinds == sorted(kinds, key=lambda kind: kind != {True})
    assert (task.long_cycle >= 0).any() and (task.long_cycle < 0).any() and max(map(len, chunks)) <= size
    joined = task.join([{"row": rows, "square": rows[:, None] ** 2} for rows in chunks], size)
    np.testing.assert_array_equal(joined["row"], np.arange(len(task)))
    np.testing.assert_array_equal(joined["square"], np.arange(len(task))[:, None] ** 2)


def test_reversibility_is_measured_on_some_images(scorer: Scorer) -> None:
    settings = dataclasses.replace(SETTINGS, back_images=10, chunk=5)
    task = make_task(pendulums(24, 0), settings)
    assert task.short_cycle.sum() == 10 and (task.long_cycle >= 0).sum() == 6
    assert task.short_cycle[task.long_cycle >= 0].all()
    chunks = task.chunks(5)
    assert [set(task.short_cycle[rows].tolist()) for rows in chunks] == [{True}] * 3 + [{False}] * 3
    runner = TaskRunner(KnownModel("truth"), task, settings)  # type: ignore[arg-type]
    outputs, at_once = task.join([runner.run(rows) for rows in chunks], 5), runner.run(np.arange(24))
    for name in task.variables:
        np.testing.assert_array_equal(np.isfinite(outputs[f"reverse/{name}"]), task.short_cycle)
        np.testing.assert_allclose(outputs[f"reverse/{name}"], at_once[f"reverse/{name}"], atol=1e-6)
    figure = score(task, outputs, scorer)["interventions"]["angle"]["reversibility"]["1"]
    assert (figure["images"], figure["left_out"]) == (10, 0)


@pytest.mark.parametrize("do", SPEC.graph.names)
def test_the_truth_is_the_floor(found: dict[str, Any], do: str) -> None:
    truth = found["truth"]
    assert mean(truth, do, "truth", "l1") == 0.0 and mean(truth, do, "truth", "ssim") == pytest.approx(1.0)
    assert mean(truth, do, "truth", "psnr") == pytest.approx(58.92, abs=0.01)
    assert mean(truth, do, "realism", "fid_own") == pytest.approx(0.0, abs=1e-3)
    for name in SPEC.graph.names:
        for reader in ("predictor", "measured"):
            path = ("effectiveness", reader, name)
            assert mean(truth, do, *path) == mean(truth, do, *path, kind="truth")
        assert mean(truth, do, "effectiveness", "own_labels", name) < 1e-4
    assert all(truth["interventions"][do]["reversibility"][key]["mean"] == 0.0 for key in ("1", "long"))
    for effect in truth["interventions"][do]["answers"]["model"]["effects"].values():
        assert abs(effect["error"]["mean"]) < 0.3


@pytest.mark.parametrize("do", SPEC.graph.names)
def test_an_unchanged_image_scores_as_the_baseline(found: dict[str, Any], do: str) -> None:
    nothing = found["nothing"]["interventions"][do]
    ours, baseline = nothing["answers"]["model"], nothing["answers"]["do_nothing"]
    for key in ("truth", "drift", "response", "cld", "realism", "effects"):
        assert ours[key] == baseline[key]
    assert ours["response"]["predictor"]["mean"] == 0.0
    assert ours["cld"]["mean"] == pytest.approx(np.log(1 + np.e))
    assert all(figure["predictor"]["mean"] == 0.0 for figure in ours["drift"].values())
    assert all(effect["model"]["mean"] == 0.0 for effect in ours["effects"].values())
    assert nothing["reversibility"]["1"]["mean"] == 0.0, "reversible, but without effect"
    assert mean(found["nothing"], do, "truth", "l1") > 0.3
    path = ("effectiveness", "predictor", do)
    assert mean(found["nothing"], do, *path) > 4 * mean(found["truth"], do, *path)


@pytest.mark.parametrize("do", SPEC.graph.names)
@pytest.mark.parametrize("wrong", ["nothing", "swapped", "shuffled"])
def test_every_wrong_model_is_worse_than_the_truth(found: dict[str, Any], do: str, wrong: str) -> None:
    truth, other = found["truth"], found[wrong]
    assert mean(other, do, "truth", "l1") > mean(truth, do, "truth", "l1")
    assert mean(other, do, "truth", "psnr") < mean(truth, do, "truth", "psnr")
    assert mean(other, do, "truth", "ssim") < mean(truth, do, "truth", "ssim")
    scales = dict(zip(SPEC.graph.names, SPEC.scale, strict=True))
    errors = [
        sum(mean(each, do, "effectiveness", "predictor", name) / scale for name, scale in scales.items())
        for each in (truth, other)
    ]
    assert errors[1] > errors[0]


@pytest.mark.parametrize("do", ["angle", "light"])
def test_swapped_and_shuffled_models_fail_in_their_own_ways(found: dict[str, Any], do: str) -> None:
    truth, swapped, shuffled = (found[kind] for kind in ("truth", "swapped", "shuffled"))
    own, other = ("effectiveness", "predictor", do), ("drift", SWAPPED[do], "predictor")
    assert mean(truth, do, *other) < 0.5
    assert mean(swapped, do, *own) > 5.0 and mean(swapped, do, *other) > 5.0
    assert mean(swapped, do, "realism", "fid_own") > 0.05
    assert mean(shuffled, do, *own) == pytest.approx(mean(truth, do, *own), abs=0.3), "the value is set"
    assert mean(shuffled, do, *other) > 5.0 and mean(shuffled, do, "truth", "l1") > 1.0, "on the wrong image"
    assert all(shuffled["composition"][key]["mean"] > 1.0 for key in ("1", "long"))
    assert truth["composition"]["1"]["mean"] == 0.0


def test_effects_have_the_right_size(found: dict[str, Any], task: Task) -> None:
    upper = task.values["light"] >= sum(task.ranges["light"]) / 2
    moved = pendulum.true_labels(task.labels[:, 0], task.values["light"])[:, 3] - task.labels[:, 3]
    expected = moved[upper].mean() - moved[~upper].mean()
    truth, nothing = (
        found[kind]["interventions"]["light"]["answers"]["model"]["effects"]["shadow_position"]
        for kind in ("truth", "nothing")
    )
    assert abs(expected) > 0.5
    assert truth["truth"]["mean"] == pytest.approx(expected, abs=1e-4)
    assert truth["truth"]["low"] < expected < truth["truth"]["high"]
    assert truth["model"]["mean"] == pytest.approx(expected, abs=0.3)
    assert nothing["error"]["mean"] == pytest.approx(-expected, abs=1e-4)


def test_images_with_non_finite_pixels_are_counted_and_excluded(found: dict[str, Any], task: Task) -> None:
    broken, count = found["broken"], len(task.chunks(SETTINGS.chunk))  # two pixels of the first image of each
    assert broken["broken"]["angle"] == broken["broken"]["null"] == {"images": count, "pixels": 2 * count}
    assert found["truth"]["broken"]["angle"] == {"images": 0, "pixels": 0}
    row = broken["interventions"]["angle"]["answers"]["model"]
    effectiveness = row["effectiveness"]
    figures = [row["truth"]["l1"], effectiveness["predictor"]["angle"], effectiveness["measured"]["light"]]
    figures += [row["drift"]["light"]["measured"], row["realism"]["fid_own"], broken["composition"]["1"]]
    assert {(figure["images"], figure["left_out"]) for figure in figures} == {(24 - count, count)}
    assert row["truth"]["l1"]["mean"] == 0.0
    assert broken["interventions"]["angle"]["answers"]["truth"]["truth"]["l1"]["images"] == 24


def test_values_depend_on_seed_and_index_only() -> None:
    values = draw_values(SPEC, LOW, HIGH, np.arange(10), 5)
    np.testing.assert_array_equal(draw_values(SPEC, LOW, HIGH, np.array([3, 7]), 5), values[[3, 7]])
    assert not np.array_equal(draw_values(SPEC, LOW, HIGH, np.arange(10), 6), values)
    many = draw_values(SPEC, LOW, HIGH, np.arange(2000), 0)
    assert (many >= LOW).all() and (many <= HIGH).all()
    np.testing.assert_allclose(many.mean(axis=0), (LOW + HIGH) / 2, rtol=0.05, atol=1.5)


def test_values_of_categorical_variables_are_categories() -> None:
    changes = {
        "kinds": ["categorical", "binary", "continuous", "continuous"],
        "categories": [["a", "b", "c"], [], [], []],
    }
    spec = DatasetSpec.from_dict(SPEC.to_dict() | changes)
    values = draw_values(spec, LOW, HIGH, np.arange(60), 0)
    assert set(values[:, 0]) == {0.0, 1.0, 2.0} and set(values[:, 1]) == {60.0, 147.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_images": 5}, "num_images: expected at most 4, the size of the test split, got 5"),
        ({"variables": ("colour",)}, "variables: expected one of angle, .*, got 'colour'"),
        ({"chunk": 0}, "chunk: expected 1 or more, got 0"),
        ({"cycle_images": -1}, "cycle_images: expected 0 or more, got -1"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_task(pendulums(4, 0), ProtocolSettings(**change))


def test_a_missing_label_leaves_the_ranges_of_all_variables_known() -> None:
    data = pendulums(8, 0)
    data.spec = replace(SPEC, name="folder")
    complete = make_task(data, ProtocolSettings())
    data.labels[3, 1] = np.nan
    found = make_task(data, ProtocolSettings())
    assert np.isfinite(list(found.ranges.values())).all() and found.ranges["angle"] == complete.ranges["angle"]
    data.labels[:, 1] = np.nan
    with pytest.raises(
        InputError, match="light: expected labels in the test split, got none; .* --variables angle,shadow"
    ):
        make_task(data, ProtocolSettings())


def test_an_image_without_a_label_is_left_out_of_the_reversibility_of_that_variable() -> None:
    data = squares(6)
    data.spec = replace(squares_spec(), name="folder")
    data.labels[2, 0] = np.nan
    settings = ProtocolSettings(chunk=6, cycles=2, cycle_images=6)
    outputs = TaskRunner(squares_engine("2"), make_task(data, settings), settings).run(np.arange(6))
    assert np.flatnonzero(np.isnan(outputs["reverse/size"])).tolist() == [2]
    assert not np.isnan(outputs["reverse/grey"]).any() and not np.isnan(outputs["composition_long"]).any()
    assert np.isfinite(outputs["reverse_long/size"]).sum() == 2, "one of three"


def test_latents_equal_to_the_labels_are_disentangled() -> None:
    labels = np.random.default_rng(0).normal(0, 1, (200, 2))
    latents = labels[:, :, None] + np.random.default_rng(1).normal(0, 0.05, (200, 2, 3))
    right, mixed = (
        score_latents(z[:120], labels[:120], z[120:], labels[120:], 3, 0) for z in (latents, latents[:, ::-1] + latents)
    )
    for name in ("boosting", "lasso"):
        block = right[name]["block_disentanglement"]["mean"]
        assert block > 0.9 and block > mixed[name]["block_disentanglement"]["mean"] + 0.3
        assert right[name]["informativeness"]["mean"] > 0.9
        assert right[name]["completeness"]["low"] <= right[name]["completeness"]["mean"]


@pytest.mark.parametrize(("resamples", "quantile"), [(10, 2.2622), (3, 4.3027)])
def test_dci_intervals_are_students_t_of_the_refits(
    monkeypatch: pytest.MonkeyPatch, resamples: int, quantile: float
) -> None:
    """Ten refits have 9 degrees of freedom: 2.26 standard deviations, not 1.96."""
    values = iter(np.linspace(0.3, 0.7, resamples + 1))

    def fit(*_: Any) -> dci.DciFit:
        return dci.DciFit(np.eye(2), np.full(2, next(values)))

    monkeypatch.setattr(dci, "REGRESSORS", {"boosting": fit})
    z, labels = np.zeros((20_000, 2, 1)), np.zeros((20_000, 2))
    found = score_latents(z, labels, z, labels, resamples, 0)["boosting"]["informativeness"]
    expected = quantile * np.std(np.linspace(0.3, 0.7, resamples + 1)[1:], ddof=1)
    assert found["high"] - found["mean"] == pytest.approx(expected, rel=1e-4)


def test_one_refit_has_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dci, "REGRESSORS", {"lasso": lambda *_: dci.DciFit(np.eye(2), np.full(2, 0.5))})
    z, labels = np.zeros((8, 2, 1)), np.zeros((8, 2))
    found = score_latents(z, labels, z, labels, 1, 0)["lasso"]["informativeness"]
    assert (found["mean"], found["low"], found["high"]) == (0.5, None, None)
    assert shown(found, interval=True) == "0.500"


@pytest.mark.parametrize("constant", ["both", "train", "test"])
def test_dci_leaves_out_labels_that_are_constant(constant: str) -> None:
    rng = np.random.default_rng(0)
    labels = rng.normal(0, 1, (200, 3))
    z = labels[:, :2, None] + rng.normal(0, 0.05, (200, 2, 2))
    train, test = labels[:120].copy(), labels[120:].copy()
    for part, name in ((train, "train"), (test, "test")):
        if constant in ("both", name):
            part[:, 2] = 2.0
    found = score_latents(z[:120], train, z[120:], test, 2, 0)
    alone = score_latents(z[:120], train[:, :2], z[120:], test[:, :2], 2, 0)
    for name, figures in found.items():
        assert figures["informativeness"] == alone[name]["informativeness"]
        if constant != "test":  # else the latents have importances for this label
            assert figures == alone[name]
    nothing = score_latents(z[:120], train[:, 2:] * 0, z[120:], test[:, 2:], 2, 0)
    assert {figure["mean"] for figures in nothing.values() for figure in figures.values()} == {None}


def squares_engine(steps: str, **options: Any) -> CounterfactualEngine:
    model, _ = create_model_and_diffusion(small_config(), squares_spec())
    diffusion = create_gaussian_diffusion(small_config().diffusion, steps)
    return CounterfactualEngine(randomise(model).eval(), diffusion, squares_spec(), **options)  # type: ignore[arg-type]


def test_one_value_per_image_equals_separate_interventions() -> None:
    engine, values = squares_engine("4"), np.array([2.0, 4.0, 6.0])
    abducted = engine.abduct(to_model_range(squares(3).images))
    each, *alone = engine.predict(abducted, [{"size": values}, *({"size": float(value)} for value in values)])
    for i, result in enumerate(alone):
        torch.testing.assert_close(each.labels[i], result.labels[i])
        torch.testing.assert_close(each.images[i], result.images[i])
    with pytest.raises(InputError, match="one per image"):
        engine.predict(abducted, [{"size": values[:2]}])


def test_infinite_pixels_become_nan() -> None:
    decoded = torch.tensor([torch.inf, -torch.inf, torch.nan, 7.0, 0.5, -0.5, 0.0, 1.0]).repeat(3, 1, 8, 1)
    codec = SimpleNamespace(encode=lambda images: images, decode=lambda codes: decoded)
    engine = squares_engine("2", codec=codec)
    images = engine.predict(engine.abduct(to_model_range(squares(3).images)), [{}])[0].images
    assert images[0, 0, 0].isnan().tolist() == [True, True, True, False, False, False, False, False]
    assert images[0, 0, 0, 3:].tolist() == [1.0, 0.5, -0.5, 0.0, 1.0]


CATEGORICAL = DatasetSpec(
    "folder",
    8,
    1,
    CausalGraph(("shape", "hat", "age"), (("shape", "hat"), ("shape", "age"))),
    shift=(1.0, 0.5, 50.0),
    scale=(1.0, 0.5, 20.0),
    low=(0.0, 0.0, 20.0),
    high=(2.0, 1.0, 80.0),
    kinds=("categorical", "binary", "continuous"),
    categories=(("disc", "square", "star"), (), ()),
)


def test_missing_labels_are_left_out_of_the_references_and_of_the_divergence() -> None:
    """The bins of CLD are those of the labelled training images; a factual label that is missing is in none of them."""
    rng, count = np.random.default_rng(0), 40
    labels = np.stack([rng.integers(0, 3, count), rng.integers(0, 2, count), rng.integers(20, 80, count)], axis=1)
    images = rng.integers(0, 255, (count, 1, 8, 8)).astype(np.uint8)
    data = ImageData(CATEGORICAL, "test", images, labels.astype(np.float32), None, [str(i) for i in range(count)])
    data.labels[:5] = np.nan
    data.labelled = np.isfinite(data.labels).all(axis=1)
    task = make_task(data, ProtocolSettings(variables=("age", "hat"), cycles=1))
    nan, none = np.full((count, 3), np.nan), np.zeros(count, np.int64)
    outputs = {"images": images, "broken": none, "composition": np.zeros(count), "composition_long": np.zeros(count)}
    outputs["measured"] = nan
    for name in task.variables:
        outputs |= {f"images/{name}": images[::-1], f"broken/{name}": none, f"measured/{name}": nan}
        outputs |= {f"reverse/{name}": nan[:, 0], f"reverse_long/{name}": nan[:, 0], f"labels/{name}": labels}
    scorer = Scorer(PixelPredictor(), data)  # type: ignore[arg-type]
    assert len(scorer.references()) == count - 5
    found = score(task, outputs, scorer)["interventions"]
    for name, edges in (("age", np.quantile(labels[5:, 2], [0.2, 0.4, 0.6, 0.8])), ("hat", np.array([0.5]))):
        own, drawn = (np.searchsorted(edges, x, side="right") for x in (task.labels[5:, data.spec.graph.index(name)],
                                                                        task.values[name][5:]))  # fmt: skip
        figure = found[name]["answers"]["model"]["cld"]
        assert figure["images"] == (own != drawn).sum() and figure["left_out"] == 40 - figure["images"]


def test_without_labels_of_the_test_images_there_is_no_dci() -> None:
    spec = squares_spec()
    model, diffusion = create_model_and_diffusion(small_config(), spec)
    train, test, settings = squares(40), squares(4), ProtocolSettings()
    task = make_task(test, settings)
    test.labels[:] = np.nan  # of the chosen images; others of the split have some
    task = replace(task, data=test)
    scorer = Scorer(PixelPredictor(), train)  # type: ignore[arg-type]
    engine = CounterfactualEngine(model, diffusion, spec)
    assert latent_scores(engine, task, scorer, settings, torch.device("cpu")) is None


class PixelPredictor(Geometry):
    """Reads the labels that the first pixels hold."""

    def read(self, images: np.ndarray) -> Readings:
        return Readings(images[:, 0, 0, :3].astype(np.float64), None, self.coarse(images).astype(np.float32))


def test_figures_of_categories_are_rates() -> None:
    rng, count = np.random.default_rng(0), 40
    labels = np.stack([rng.integers(0, 3, count), rng.integers(0, 2, count), rng.integers(20, 80, count)], axis=1)
    images = np.zeros((count, 1, 8, 8), np.uint8)
    images[:, 0, 0, :3] = labels
    data = ImageData(CATEGORICAL, "test", images, labels.astype(np.float32), None, [str(i) for i in range(count)])
    task = make_task(data, ProtocolSettings(variables=("shape",), cycles=1))
    drawn = images.copy()
    drawn[::4, 0, 0, 0] = (task.values["shape"][::4] + 1) % 3  # a wrong shape on every fourth image
    drawn[task.values["shape"] == 2, 0, 0, 1] = 1  # stars wear hats
    drawn[1::4, 0, 0, 0], drawn[2::4, 0, 0, 0] = task.values["shape"][1::4], task.values["shape"][2::4]
    drawn[3::4, 0, 0, 0] = task.values["shape"][3::4]
    nan, none = np.full((count, 3), np.nan), np.zeros(count, np.int64)
    outputs = {"images": images, "broken": none, "composition": np.zeros(count), "composition_long": np.zeros(count)}
    outputs |= {"images/shape": drawn, "broken/shape": none, "measured/shape": nan, "measured": nan}
    outputs |= {
        "reverse/shape": nan[:, 0],
        "reverse_long/shape": nan[:, 0],
        "labels/shape": labels + np.array([0.4, 0.0, 0.0]),
    }
    answers = score(task, outputs, Scorer(PixelPredictor(), data))["interventions"]["shape"]["answers"]  # type: ignore[arg-type]
    model = answers["model"]
    assert model["effectiveness"]["predictor"]["shape"]["mean"] == pytest.approx(0.25)
    wilson = binomtest(count // 4, count).proportion_ci(0.95, "wilson")
    assert model["effectiveness"]["predictor"]["shape"]["high"] == pytest.approx(wilson.high)
    changed = labels[:, 0] != task.values["shape"]
    response = model["response"]["predictor"]
    reached = np.mean(drawn[changed, 0, 0, 0] == task.values["shape"][changed])
    assert response["mean"] == pytest.approx(reached) and response["images"] == changed.sum() < count
    assert answers["do_nothing"]["drift"] == {}, "hat and age descend from shape"
    assert answers["do_nothing"]["effectiveness"]["predictor"]["shape"]["mean"] == pytest.approx(
        np.mean(labels[:, 0] != task.values["shape"])
    )
    own = np.mean(labels[:, 0] != task.values["shape"])
    assert model["effectiveness"]["own_labels"]["shape"]["mean"] == pytest.approx(own), "0.4 is still category 0"
    arms = [f" by shape={name}" for name in CATEGORICAL.categories[0]]
    assert list(model["effects"]) == [f"{name}{arm}" for name in ("hat", "age") for arm in arms]
    without_hat = np.mean(labels[task.values["shape"] == 2, 1] == 0)
    assert model["effects"]["hat by shape=star"]["model"]["mean"] == pytest.approx(without_hat)
    assert model["effects"]["age by shape=star"]["model"]["mean"] == 0.0
