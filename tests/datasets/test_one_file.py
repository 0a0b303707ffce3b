"""A data set in a single new file is trained, intervened on, evaluated and explored."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny import small_config

from causaldiffae import CausalDiffAE
from causaldiffae.datasets.dataset import DATASETS
from causaldiffae.datasets.registry import dataset_spec, read_split
from causaldiffae.evaluation.protocol import ProtocolSettings
from causaldiffae.evaluation.run import Job, evaluate
from causaldiffae.explorer.registry import ModelRegistry, find_models
from causaldiffae.explorer.session import Request
from causaldiffae.logger import Logger
from causaldiffae.train_util import TrainLoop
from causaldiffae.training.predictor import run_training

FILE = '''
"""Squares: size -> grey, 16x16 pixels. The files hold one row "size noise" per image."""

import numpy as np

from causaldiffae.datasets.dataset import Dataset, PredictorDefaults, register
from causaldiffae.datasets.images import ImageData
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.graphs import CausalGraph

SPEC = DatasetSpec(
    name="toy_squares",
    image_size=16,
    channels=1,
    graph=CausalGraph(("size", "grey"), (("size", "grey"),)),
    shift=(8.0, 150.0),
    scale=(3.0, 50.0),
    low=(2.0, 50.0),
    high=(14.0, 250.0),
)


def draw(labels):
    size, grey = np.rint(labels).T
    row, column = np.indices((16, 16))
    inside = np.maximum(row, column)[None] < size[:, None, None]
    return np.uint8(inside * grey[:, None, None])[:, None]


def split_of(noise, spec, split):
    size, noise = noise.T
    labels = np.stack([size, 40 + 12 * size + noise], axis=1).astype(np.float32)
    return ImageData(spec, split, draw(labels), labels, None, [str(i) for i in range(len(labels))])


def read(spec, folder, split, limit):
    return split_of(np.loadtxt(folder / f"{split}.txt")[:limit], spec, split)


def counterfactual(data, do):
    labels = data.labels.astype(np.float64)
    if "size" in do:
        labels[:, 1] += 12 * (do["size"] - labels[:, 0])
        labels[:, 0] = do["size"]
    if "grey" in do:
        labels[:, 1] = do["grey"]
    return labels, draw(labels)


def measure(images):
    grey = images.max((1, 2, 3)).astype(float)
    return np.stack([(images[:, 0, 0] > 0).sum(1), grey], axis=1)


register(
    Dataset(
        name="toy_squares",
        spec=SPEC,
        read=read,
        source="drawn in a test.",
        counterfactual=counterfactual,
        has_truth=lambda data: True,
        measure=measure,
        examples=lambda spec, count: split_of(np.full((count, 2), 5.0), spec, "test"),
        predictor=PredictorDefaults(head_weights={"grey": 2.0}),
    )
)
'''


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Registers the data set, writes its files, and trains a model and a predictor on it."""
    root = tmp_path_factory.mktemp("toy")
    (root / "squares.py").write_text(FILE)
    module = importlib.util.spec_from_file_location("toy_squares", root / "squares.py")
    assert module is not None and module.loader is not None
    before = set(DATASETS)
    module.loader.exec_module(importlib.util.module_from_spec(module))
    assert set(DATASETS) - before == {"toy_squares"}
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        np.savetxt(root / f"{split}.txt", np.stack([rng.integers(3, 14, count), rng.normal(0, 5, count)], axis=1))
    config = small_config(
        dataset="toy_squares", total_steps=4, save_interval=4, sample_interval=4, attention_resolutions="8"
    )
    train, test = (read_split("toy_squares", root, split) for split in ("train", "test"))
    TrainLoop(config, train, Logger(root / "run", use_tensorboard=False), test).run()
    flags = [f"--data_dir={root}", f"--out={root / 'predictor'}", "--batch_size=4", "--steps=2", "--vae_steps=2"]
    assert "grey" in run_training(flags, "", "toy_squares", repeats=1)
    yield root / "run"
    del DATASETS["toy_squares"]


def test_training_writes_a_checkpoint_and_previews(run_dir: Path) -> None:
    assert (run_dir / "step_0000004").is_dir() and list(run_dir.rglob("*.png"))
    assert dataset_spec("toy_squares", 16, 1) == dataset_spec("toy_squares")


def test_counterfactuals_are_compared_with_the_truth(run_dir: Path) -> None:
    model = CausalDiffAE.from_pretrained(run_dir, steps=2)
    result = model.counterfactual(read_split("toy_squares", run_dir.parent, "test"), do={"size": 12})
    assert (result.labels["size"] == 12).all() and result.truth is not None
    assert (result.truth[:, 0, 0] > 0).sum() == 12 * 8
    assert model.examples(3).images.shape == (3, 1, 16, 16)


def test_the_benchmark_runs(run_dir: Path, tmp_path: Path) -> None:
    settings = ProtocolSettings(steps=2, cycles=2, cycle_images=2, chunk=4, dci_resamples=2)
    job = Job(
        str(run_dir), str(run_dir.parent), str(tmp_path / "out.json"), settings, str(run_dir.parent / "predictor")
    )
    interventions = evaluate(job)["results"]["interventions"]
    assert set(interventions) == {"size", "grey"} and set(interventions["size"]["answers"]) >= {"model", "truth"}


def test_the_explorer_opens_it(run_dir: Path) -> None:
    for data_dir in (str(run_dir.parent), ""):
        registry = ModelRegistry(find_models(run_dir), data_dir)
        images, note = registry.images(registry.titles[0])
        assert images and not note
        result = registry.session(registry.titles[0]).run(Request(images[0], {"size": 12.0}, steps=4))
        assert result.truth is not None
