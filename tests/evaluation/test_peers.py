"""The protocol of other counterfactual models, with engines of known errors."""

import json
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
from causaldiffae.datasets.registry import dataset_spec, read_split
from causaldiffae.errors import InputError
from causaldiffae.evaluation import peers_run
from causaldiffae.evaluation.peers import draw_interventions, evaluate_batch, make_task, peers_figures, peers_table
from causaldiffae.evaluation.peers_run import evaluate_as_peers, run_batch
from causaldiffae.evaluation.protocol import ProtocolSettings
from causaldiffae.evaluation.run import Job
from causaldiffae.generators import morphomnist
from causaldiffae.predictors.predictor import Readings
from causaldiffae.script_util import create_model_and_diffusion, describe_checkpoint

SHARE, WEIGHTS = REPO / "assets" / "mnist_share", REPO / "weights" / "morphomnist_causaldae_mini"
LEVELS = 4.0
"""Grey levels by which each null intervention of the engine darkens the image."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "digits"
    morphomnist.write_dataset(SHARE, out, num_train=2, num_test=12, workers=1, progress=False)
    return out


@pytest.fixture(scope="module")
def digits(folder: Path) -> ImageData:
    return read_split("morphomnist", folder, "test")


class Engine:
    """Predicts labels 1 and 10 above the requested or factual ones; its images are darkened factual ones."""

    def abduct(self, x_start: torch.Tensor, classes: Any, drawn: Any, labels: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(images=x_start, labels=labels)

    def predict(self, abducted: SimpleNamespace, dos: Sequence[Mapping[str, Any]]) -> list[Counterfactual]:
        labels = abducted.labels + torch.tensor([1.0, 10.0])
        return [Counterfactual(abducted.images - LEVELS / 127.5, labels, torch.zeros(0)) for _ in dos]


class Exact:
    """Reads the factual labels and classes, in the order of the data."""

    def __init__(self, data: ImageData) -> None:
        self.data = data

    def read(self, images: np.ndarray) -> Readings:
        darker = [np.maximum(image.astype(int) - LEVELS, 0) for image in self.data.images]
        rows = [int(np.argmin([np.abs(image - each).mean() for each in darker])) for image in images]
        assert self.data.classes is not None
        return Readings(self.data.labels[rows].astype(np.float64), self.data.classes[rows], np.zeros((len(rows), 1)))


def test_values_are_test_values_of_another_bin_and_classes_other_ones(digits: ImageData) -> None:
    drawn = draw_interventions(digits, seed=0)
    assert list(drawn) == ["thickness", "intensity", "digit"] and digits.classes is not None
    for i, name in enumerate(("thickness", "intensity")):
        labels = digits.labels[:, i].astype(np.float64)
        edges = np.linspace(labels.min(), labels.max(), 9)
        assert np.isin(drawn[name], labels).all()
        own, new = (np.clip(np.digitize(values, edges), 1, 8) for values in (labels, drawn[name]))
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
        def read(self, images: np.ndarray) -> Readings:
            return super().read(images)._replace(classes=None)

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
    table = peers_table({"abduction": {"true labels": found}, "class_name": "digit"})
    assert "do(digit)" in table and "composition, abduction from true labels: 3.0" in table
    heads = [line.split() for line in table.splitlines()[:2]]
    assert heads[0][-3:] == ["thickness", "intensity", "digit"] and heads[1][-3:] == ["error", "error", "accuracy"]


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
    assert "do(digit)" in outcome.stdout and "composition, abduction from the image:" in outcome.stdout
    assert not out.with_suffix(".parts").exists()
    again = run(REPO / "scripts" / "evaluate.py", *base, "--num_images=4", "--steps=2", "--cycle_images=2")
    assert again.returncode == 0 and again.stdout == outcome.stdout
    assert_refused(
        run(REPO / "scripts" / "evaluate.py", *base, "--num_images=4", "--steps=3"),
        "peers.json: expected results of this model, data and settings, got others; delete it",
    )
    assert_refused(
        run(REPO / "scripts" / "evaluate.py", *base, "--variables=thickness"),
        "variables: expected none with protocol melistas",
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
