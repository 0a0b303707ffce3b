"""The protocol of other counterfactual models, with engines of known errors."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from paths import REPO
from running import assert_refused, run

from causaldiffae.checkpoints.checkpoint import export_weights
from causaldiffae.config import Config, ModelConfig, TrainConfig
from causaldiffae.counterfactual import Counterfactual
from causaldiffae.datasets.images import ImageData
from causaldiffae.datasets.registry import dataset_spec, read_split, true_counterfactual
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.evaluation import peers_run
from causaldiffae.evaluation.peers import (
    bin_edges,
    draw_interventions,
    evaluate_batch,
    floor_figures,
    floors_of_batch,
    make_task,
    peers_figures,
    peers_table,
)
from causaldiffae.evaluation.peers_run import evaluate_as_peers, run_batch
from causaldiffae.evaluation.protocol import ProtocolSettings
from causaldiffae.evaluation.result_tables import KINDS
from causaldiffae.evaluation.run import Job
from causaldiffae.generators import morphomnist
from causaldiffae.predictors.predictor import Readings
from causaldiffae.script_util import create_model_and_diffusion, describe_checkpoint

SHARE, WEIGHTS = REPO / "assets" / "mnist_share", REPO / "weights" / "morphomnist_causaldae_mini"
LEVELS = 4.0
"""Grey levels by which each null intervention of the engine darkens the image."""
OFF = np.array([0.5, 2.0])
"""Error of the predictor's labels with batch statistics."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "digits"
    morphomnist.write_dataset(SHARE, out, num_train=2, num_test=12, workers=1, progress=False)
    return out


@pytest.fixture(scope="module")
def digits(folder: Path) -> ImageData:
    return read_split("morphomnist", folder, "test")


FIGURES = [
    each for name in ("thickness error", "intensity error", "digit accuracy") for each in (name, "by batch statistics")
]


class Engine:
    """Predicts labels 1 and 10 above the requested or factual ones; its images are darkened factual ones."""

    def abduct(self, x_start: torch.Tensor, classes: Any, drawn: Any, labels: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(images=x_start, labels=labels)

    def predict(self, abducted: SimpleNamespace, dos: Sequence[Mapping[str, Any]]) -> list[Counterfactual]:
        labels = abducted.labels + torch.tensor([1.0, 10.0])
        return [Counterfactual(abducted.images - LEVELS / 127.5, labels, torch.zeros(0)) for _ in dos]


class Exact:
    """Reads the factual labels and classes of a darkened image; with batch statistics, `OFF` more and no class.

    Attributes:
        sizes: number of images in every reading with batch statistics.
    """

    def __init__(self, data: ImageData) -> None:
        self.data = data
        self.sizes: list[int] = []

    def read(self, images: np.ndarray, batch_statistics: bool = False) -> Readings:
        darker = [np.maximum(image.astype(int) - LEVELS, 0) for image in self.data.images]
        rows = [int(np.argmin([np.abs(image - each).mean() for each in darker])) for image in images]
        assert self.data.classes is not None
        labels, classes = self.data.labels[rows].astype(np.float64), self.data.classes[rows]
        if batch_statistics:
            self.sizes.append(len(images))
            labels, classes = labels + OFF, (classes + 1) % 10
        return Readings(labels, classes, np.zeros((len(rows), 1)))


def published_edges(labels: np.ndarray, low: float, high: float) -> list[float]:
    """The published computation: labels scaled to [-1, 1], and the mean of those in each of nine bins of this range."""
    scaled = 2 * (labels - low) / (high - low) - 1
    numbers = np.digitize(scaled, np.linspace(-1, 1, 10))
    means = [scaled[numbers == number].mean() for number in range(1, 10) if (numbers == number).any()]
    return [(mean + 1) / 2 * (high - low) + low for mean in means]


def test_edges_are_the_means_of_nine_bins_of_equal_width() -> None:
    labels = 0.875 + 5.381 * np.random.default_rng(0).beta(2.0, 4.0, 10_000)
    found = bin_edges(labels, 0.875, 6.256)
    assert len(found) == 9 and (np.diff(found) > 0).all()
    np.testing.assert_allclose(found, published_edges(labels, 0.875, 6.256), rtol=1e-12)
    assert np.abs(np.diff(found, 2)).max() > 0.01, "not of equal width"
    np.testing.assert_allclose(bin_edges(np.array([0.0, 1.0, 2.0, 8.9, 9.0, 9.5, -1.0]), 0.0, 9.0), [0, 1, 2, 8.95])


def test_every_other_category_is_another_bin(digits: ImageData) -> None:
    described = digits.spec.to_dict() | {"kinds": ["binary", "continuous"], "categories": [[], []]}
    labels = digits.labels.copy()
    labels[:, 0] = np.resize([digits.spec.low[0], digits.spec.high[0]], len(digits))
    drawn = draw_interventions(replace(digits, spec=DatasetSpec.from_dict(described), labels=labels), 0)
    np.testing.assert_allclose(drawn["thickness"], np.roll(labels[:, 0], 1), rtol=1e-6)


def test_values_are_test_values_of_another_bin_and_classes_other_ones(digits: ImageData) -> None:
    drawn = draw_interventions(digits, seed=0)
    assert list(drawn) == ["thickness", "intensity", "digit"] and digits.classes is not None
    for i, name in enumerate(("thickness", "intensity")):
        labels = digits.labels[:, i].astype(np.float64)
        edges = published_edges(labels, digits.spec.low[i], digits.spec.high[i])
        assert np.isin(drawn[name], labels).all()
        own, new = (np.digitize(values, edges) for values in (labels, drawn[name]))
        assert (own != new).all()
    assert (drawn["digit"] != digits.classes).all() and drawn["digit"].max() < 10
    again, other = draw_interventions(digits, seed=0), draw_interventions(digits, seed=1)
    np.testing.assert_array_equal(drawn["thickness"], again["thickness"])
    assert (drawn["thickness"] != other["thickness"]).any()
    with pytest.raises(InputError, match="thickness: expected labels of all test images, got 1 without"):
        labels = digits.labels.copy()
        labels[0, 0] = np.nan
        draw_interventions(replace(digits, labels=labels), 0)


def test_a_part_of_the_split_has_the_interventions_of_the_whole(digits: ImageData) -> None:
    whole, part = make_task(digits), make_task(digits, num_images=4)
    rows = [digits.ids.index(each) for each in part.data.ids]
    assert len(rows) == 4 and rows[-1] > 4, "spread over the split"
    for name in ("thickness", "intensity", "digit"):
        np.testing.assert_array_equal(part.values[name], whole.values[name][rows])
    assert "digit" not in make_task(digits, sets_class=False).values
    with pytest.raises(InputError, match="num_images: expected at most 12, the size of the test split, got 13"):
        make_task(digits, num_images=13)


def test_a_predictor_without_classes_leaves_them_out(digits: ImageData) -> None:
    class Labels(Exact):
        def read(self, images: np.ndarray, batch_statistics: bool = False) -> Readings:
            return super().read(images, batch_statistics)._replace(classes=None)

    task = make_task(digits, batch_size=12)
    found = peers_figures([evaluate_batch(Engine(), task, 0, Labels(digits))], digits.spec)  # type: ignore[arg-type]
    assert list(found["interventions"]["thickness"]["own"]) == ["thickness", "intensity"]


def test_figures_of_a_known_model(digits: ImageData) -> None:
    task = make_task(digits, batch_size=5, cycle_images=4)
    outputs = [evaluate_batch(Engine(), task, number, Exact(digits)) for number in range(3)]  # type: ignore[arg-type]
    found = peers_figures(outputs, digits.spec)
    assert found["images"] == 12
    drawn = draw_interventions(digits, 0)
    for name in drawn:
        own = found["interventions"][name]["own"]
        assert own["thickness"]["mean"] == pytest.approx(1.0) and own["intensity"]["mean"] == pytest.approx(
            10.0, rel=1e-5
        )
    true = found["interventions"]["thickness"]["true"]
    assert true["thickness"]["mean"] == pytest.approx(np.abs(drawn["thickness"] - digits.labels[:, 0]).mean(), rel=1e-5)
    assert true["digit"]["mean"] == 1.0, "the class is kept"
    changed = found["interventions"]["digit"]
    assert changed["own"]["digit"]["mean"] == 0.0 and changed["true"]["thickness"]["mean"] == 0.0
    one, ten = (found["composition"][cycle] for cycle in ("1", "10"))
    assert one["mean"] == pytest.approx(LEVELS * 28**2 / 32**2, rel=1e-4) and one["images"] == 12
    assert ten["mean"] == pytest.approx(10 * one["mean"], rel=1e-4) and ten["images"] >= 4
    by_batch = found["batch_statistics"]
    assert by_batch["digit"]["own"]["thickness"]["mean"] == pytest.approx(0.5)
    assert by_batch["thickness"]["own"]["intensity"]["mean"] == pytest.approx(8.0, rel=1e-5)
    assert by_batch["digit"]["true"]["intensity"]["mean"] == pytest.approx(2.0)
    assert by_batch["thickness"]["true"]["digit"]["mean"] == 0.0
    table = peers_table({"abduction": {"true labels": found}, "class_name": "digit"})
    assert "do(digit)" in table and "composition, abduction from true labels: 3.0" in table
    heads = [line.split() for line in table.splitlines()[:2]]
    assert heads[0][-3:] == ["thickness", "intensity", "digit"] and heads[1][-3:] == ["error", "error", "accuracy"]


def test_the_floors_are_errors_on_true_images(digits: ImageData) -> None:
    """The predictor reads the true image of an intervention as the nearest factual image."""
    task = make_task(digits, batch_size=5)
    exact = Exact(digits)
    outputs = [floors_of_batch(task, number, exact) for number in range(3)]  # type: ignore[arg-type]
    found = floor_figures(outputs, digits.spec)
    assert list(found["running"]) == list(found["batch"]) == ["factual", "do(thickness)", "do(intensity)"]
    means = {name: {key: each["mean"] for key, each in row["factual"].items()} for name, row in found.items()}
    assert means["running"] == {"thickness": 0.0, "intensity": 0.0, "digit": 1.0}
    assert means["batch"] == pytest.approx({"thickness": 0.5, "intensity": 2.0, "digit": 0.0})
    labels, images = true_counterfactual(task.data, {"thickness": task.values["thickness"]})
    errors = np.abs(exact.read(images).labels - labels).mean(axis=0)
    assert found["running"]["do(thickness)"]["thickness"]["mean"] == pytest.approx(errors[0])
    assert found["running"]["do(thickness)"]["intensity"]["mean"] == pytest.approx(errors[1])
    assert set(exact.sizes) == {5, 2}, "batch statistics are those of a batch of the task"


def test_published_files_have_true_labels_but_no_floor_of_counterfactual_images(
    digits: ImageData, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "published", ignore=shutil.ignore_patterns("*base*"))
    published = read_split("morphomnist", tmp_path / "published", "test")
    figures = []
    for data in (published, digits):
        task = make_task(data, batch_size=12)
        figures.append(peers_figures([evaluate_batch(Engine(), task, 0, Exact(data))], data.spec))  # type: ignore[arg-type]
    assert figures[0] == figures[1] and all(
        list(row) == ["own", "true"] for row in figures[0]["interventions"].values()
    )
    task = make_task(published, batch_size=12)
    floors = floor_figures([floors_of_batch(task, 0, Exact(published))], published.spec)  # type: ignore[arg-type]
    assert list(floors["running"]) == ["factual"]


@pytest.mark.parametrize(
    ("options", "abductions"),
    [
        ({"model_type": "diffae"}, ["the image"]),
        ({"model_type": "conditional"}, ["true labels"]),
        ({"model_type": "causaldae"}, ["true labels", "the image"]),
    ],
)
def test_each_model_is_abducted_from_what_it_can_use_and_set_as_it_can(
    options: dict[str, str], abductions: list[str], folder: Path, tmp_path: Path
) -> None:
    spec = dataset_spec("morphomnist")
    sizes = {"num_channels": 32, "num_res_blocks": 1, "channel_mult": "1", "attention_resolutions": ""}
    model = ModelConfig(**sizes, rep_dim=8, **options)  # type: ignore[arg-type]
    config = Config(model=model, train=TrainConfig(dataset="morphomnist"))
    network = create_model_and_diffusion(config, spec)[0]
    export_weights(tmp_path / "model", network.state_dict(), describe_checkpoint(config, spec))
    settings = ProtocolSettings(num_images=2, steps=2, chunk=2, cycle_images=2)
    found = evaluate_as_peers(Job(str(tmp_path / "model"), str(folder), str(tmp_path / "out.json"), settings))
    assert list(found["abduction"]) == abductions
    assert all(list(each["interventions"]) == ["thickness", "intensity"] for each in found["abduction"].values())


def test_the_script(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "peers.json"
    base = [f"--model_path={WEIGHTS}", f"--data_dir={folder}", f"--out={out}", "--protocol=melistas"]
    outcome = run(REPO / "scripts" / "evaluate.py", *base, "--num_images=4", "--steps=2", "--cycle_images=2")
    assert outcome.returncode == 0, outcome.stderr
    found = json.loads(out.read_text())
    assert list(found["abduction"]) == ["true labels", "the image"] and found["protocol"]["name"] == "melistas"
    given, read = (found["abduction"][name]["interventions"]["intensity"]["own"] for name in found["abduction"])
    assert given["thickness"]["mean"] != read["thickness"]["mean"]
    for figures in found["abduction"].values():
        both = figures["interventions"], figures["batch_statistics"]
        own, by_batch = (each["thickness"]["own"]["intensity"]["mean"] for each in both)
        assert own != by_batch
    assert list(found["floors"]["batch"]) == ["factual", "do(thickness)", "do(intensity)"]
    assert "do(digit)" in outcome.stdout and "composition, abduction from the image:" in outcome.stdout
    assert not out.with_suffix(".parts").exists()
    again = run(REPO / "scripts" / "evaluate.py", *base, "--num_images=4", "--steps=2", "--cycle_images=2")
    assert again.returncode == 0 and again.stdout == outcome.stdout
    markdown = KINDS["peers"](found).splitlines()
    assert [row.split("|")[2].strip() for row in markdown[2:]] == FIGURES * 3
    assert [row.split("|")[1].strip() for row in markdown[2::6]] == ["true labels", "the image", "(true images)"]
    assert markdown[-1].endswith("| - |"), "the true image of another digit is unknown"
    summary = " ".join(KINDS["peers_summary"](found).split())
    assert "Against the true labels of the data, the errors by batch statistics are" in summary
    assert "On the factual images, by running and by batch statistics, they are" in summary
    assert_refused(
        run(REPO / "scripts" / "evaluate.py", *base, "--num_images=4", "--steps=3"),
        "peers.json: expected results of this model, data and settings, got others; delete it",
    )
    assert_refused(
        run(REPO / "scripts" / "evaluate.py", *base, "--variables=thickness"),
        "variables: expected none with protocol melistas",
    )
    assert_refused(
        run(REPO / "scripts" / "evaluate.py", *base, "--use_labels=True"),
        "use_labels: expected none with protocol melistas",
    )
    report = run(REPO / "scripts" / "evaluate.py", f"--out={out.parent}", f"--report={tmp_path / 'r.html'}")
    assert_refused(report, f"report: expected results in {out.parent}, got none")
    assert_refused(
        run(REPO / "scripts" / "evaluate.py", "--protocol=melistas", "--all=weights", "--data_dir=x", f"--out={out}"),
        "protocol: expected --model_path with melistas, got none",
    )


def test_an_interrupted_run_is_resumed_and_processes_do_not_change_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ProtocolSettings(num_images=6, steps=2, chunk=2, cycle_images=2)
    job = Job(str(WEIGHTS), str(folder), str(tmp_path / "two.json"), settings, workers=2)
    whole = evaluate_as_peers(job)
    done: list[tuple[str, int]] = []

    def interrupted(job: Job, abduction: str, number: int) -> dict[str, np.ndarray]:
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append((abduction, number))
        return run_batch(job, abduction, number)

    one = replace(job, out=str(tmp_path / "one.json"), workers=1)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(peers_run, "run_batch", interrupted)
        evaluate_as_peers(one)
    assert list(json.loads(Path(one.out).read_text())["abduction"]) == ["true labels"]
    with pytest.raises(InputError, match="got others; delete it"):
        evaluate_as_peers(replace(one, settings=replace(settings, seed=1)))
    calls: list[tuple[str, int]] = []
    monkeypatch.setattr(peers_run, "run_batch", lambda *args: calls.append(args[1:]) or run_batch(*args))
    assert evaluate_as_peers(one) == whole
    assert calls == [("the image", 1), ("the image", 2)]
    assert done == [("true labels", 0), ("true labels", 1), ("true labels", 2), ("the image", 0)]
    assert not Path(one.out).with_suffix(".parts").exists()
    calls.clear()
    assert evaluate_as_peers(one) == whole and calls == []
