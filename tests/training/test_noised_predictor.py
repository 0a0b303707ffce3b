"""Training of the predictor on noised images, and its script."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import make_folder, table_rows
from paths import REPO
from running import assert_refused, run
from tiny import squares, squares_spec

from causaldiffae.config import DiffusionConfig
from causaldiffae.datasets.images import to_model_range
from causaldiffae.datasets.registry import dataset_spec, read_split
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.graphs import CausalGraph
from causaldiffae.losses import Observed
from causaldiffae.predictors.noised_predictor import (
    NoisedPredictor,
    NoisedPredictorConfig,
    label_heads,
    load_noised_predictor,
)
from causaldiffae.script_util import create_gaussian_diffusion
from causaldiffae.training.noised_predictor import (
    NoisedTraining,
    figures_by_level,
    levels_table,
    negative_log_likelihood,
    train_noised_predictor,
    validation_loss,
)

SHARE = REPO / "assets" / "mnist_share"
SCRIPT = REPO / "classifiers" / "noised_classifier.py"
TINY = NoisedPredictorConfig(classifier_width=32, channel_mult="1,1", patch_size=2, num_head_channels=32)


def test_training_lowers_the_loss_and_is_reproducible() -> None:
    train, test = (read_split("mnist", SHARE, split) for split in ("train", "test"))
    diffusion = create_gaussian_diffusion(DiffusionConfig(diffusion_steps=100))
    config = NoisedTraining("mnist", "here", "there", iterations=120, batch_size=32, lr=4e-3)
    untrained, _ = train_noised_predictor(replace(config, iterations=1, lr=1e-9), TINY, diffusion, train, test)
    net, best = train_noised_predictor(config, TINY, diffusion, train, test)
    assert best == pytest.approx(validation_loss(net, diffusion, test)), "the best weights are kept"
    assert best < 0.9 * validation_loss(untrained, diffusion, test)
    clean, noisy = figures_by_level(net, diffusion, test, (0.0, 1.0))
    assert clean["digit_accuracy"] > 0.5 > 0.3 > noisy["digit_accuracy"]
    assert clean["log_prob"] > noisy["log_prob"] and noisy["level"] == 1.0
    assert "digit_accuracy" in levels_table([clean, noisy], train.spec)
    again, _ = train_noised_predictor(config, TINY, diffusion, train, test)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))


def test_images_without_labels_change_nothing() -> None:
    """Their label rows hold zeros, a valid digit: training, validation and figures must not use them."""
    whole = read_split("mnist", SHARE, "train", limit=128)
    labelled = np.arange(128) % 3 == 0
    wrong = replace(whole, labels=np.where(labelled[:, None], whole.labels, 0).astype(np.float32), labelled=labelled)
    alone = whole.subset(np.flatnonzero(labelled))
    diffusion = create_gaussian_diffusion(DiffusionConfig(diffusion_steps=100))
    config = NoisedTraining("mnist", "here", "there", iterations=4, batch_size=16)
    found = [train_noised_predictor(config, TINY, diffusion, data, data) for data in (wrong, alone)]
    (net, best), (expected, expected_best) = found
    assert best == expected_best
    for a, b in zip(net.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert figures_by_level(net, diffusion, wrong, (0.0,)) == figures_by_level(net, diffusion, alone, (0.0,))
    with pytest.raises(InputError, match="expected labelled images in split train, got none"):
        validation_loss(net, diffusion, replace(whole, labelled=np.zeros(128, bool)))


def test_missing_labels_have_no_term_and_no_figure() -> None:
    """Their values are not used, and every variable has the mean of its own labels."""
    data = squares(16)
    wrong = replace(data, labelled=np.stack([np.arange(16) % 2 == 0, np.arange(16) % 4 != 0], axis=1))
    missing = replace(data, labels=np.where(wrong.observed, data.labels, np.nan).astype(np.float32))
    diffusion = create_gaussian_diffusion(DiffusionConfig(diffusion_steps=100))
    config = NoisedTraining("squares", "here", "there", iterations=4, batch_size=8)
    tiny = replace(TINY, channel_mult="1", patch_size=1)
    (net, best), (other, again) = (train_noised_predictor(config, tiny, diffusion, d, d) for d in (wrong, missing))
    assert best == again and np.isfinite(best)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))
    (row,) = figures_by_level(net, diffusion, missing, (0.0,))
    assert (row["size_images"], row["grey_images"]) == (8.0, 12.0) and np.isfinite(list(row.values())).all()
    for name, kept in (("size", np.arange(16) % 2 == 0), ("grey", np.arange(16) % 4 != 0)):
        (alone,) = figures_by_level(net, diffusion, data.subset(np.flatnonzero(kept)), (0.0,))
        assert row[f"{name}_error"] == pytest.approx(alone[f"{name}_error"], rel=0.02), "the noise at level 0 is small"


def test_the_loss_is_a_mean_over_the_observed_labels_of_each_variable() -> None:
    data, diffusion = squares(6), create_gaussian_diffusion(DiffusionConfig(diffusion_steps=100))
    torch.manual_seed(0)
    net = NoisedPredictor(data.spec, replace(TINY, channel_mult="1", patch_size=1)).eval()
    images, labels = to_model_range(data.images), data.spec.normalise(torch.from_numpy(data.labels))
    t, noise = torch.arange(6) * 10, torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    labelled = torch.tensor([[1, 0], [1, 1], [0, 0], [0, 1], [0, 1], [1, 1]], dtype=torch.bool)
    with torch.no_grad():
        log_prob = net.log_prob(net(diffusion.q_sample(images, t, noise), diffusion.model_timesteps(t)), labels)
        wrong = torch.where(labelled, labels, torch.tensor(9.0))
        loss = negative_log_likelihood(net, diffusion, images, wrong, t, noise, Observed.of(labelled))
    expected = -log_prob[labelled[:, 0], 0].mean() - log_prob[labelled[:, 1], 1].mean()
    torch.testing.assert_close(loss, expected)


class Scripted(torch.nn.Module):
    """The heads of a predictor of one binary variable; it reads the categories `read` (N,) of all images."""

    def __init__(self, spec: DatasetSpec, read: np.ndarray) -> None:
        super().__init__()
        self.heads, self.unused = label_heads(spec), torch.nn.Parameter(torch.zeros(1))
        self.outputs = torch.from_numpy(np.eye(2, dtype=np.float32)[read])

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.outputs

    def log_prob(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(labels)

    read = NoisedPredictor.read


@pytest.mark.parametrize("values", [(0.0, 1.0), (1e-4, 5e-4), (0.1, 0.9), (12345.6, 98765.4)])
def test_accuracies_compare_categories_whatever_their_values(values: tuple[float, float]) -> None:
    category = np.arange(40) % 3 % 2
    labels = np.array(values, np.float32)[category][:, None]
    (low, high), graph, shift, scale = (
        values,
        CausalGraph(("on",)),
        (float(labels.mean(dtype=np.float64)),),
        (float(labels.std()),),
    )
    form = {"kinds": ("binary",), "categories": (), "units": (), "low": (low,), "high": (high,)}
    spec = replace(squares_spec(), graph=graph, shift=shift, scale=scale, **form)
    data = replace(squares(40), spec=spec, labels=labels)
    diffusion = create_gaussian_diffusion(DiffusionConfig(diffusion_steps=100))
    for read, accuracy in ((category, 1.0), (1 - category, 0.0)):
        (row,) = figures_by_level(Scripted(spec, read), diffusion, data, (0.0,))  # type: ignore[arg-type]
        assert row["on_accuracy"] == accuracy


class Reader(torch.nn.Module):
    """log p(y | x_t) = y for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x_t

    def log_prob(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return labels


def test_every_validation_image_counts_once() -> None:
    """Two batches hold 300 images; the second one is not filled up with the first images again."""
    data = read_split("mnist", SHARE, "train", limit=300)
    diffusion = create_gaussian_diffusion(DiffusionConfig(diffusion_steps=100))
    expected = -data.spec.normalise(data.labels.astype(np.float64)).mean()
    assert validation_loss(Reader(), diffusion, data) == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]


def test_weak_supervision_of_the_run_is_that_of_the_predictor(tmp_path: Path) -> None:
    score = tmp_path / "score.yaml"
    text = "dataset: mnist\nmasking: true\nlabel_fraction: 0.25\nlabel_seed: 3\nnum_images: 80\ndiffusion_steps: 50\n"
    score.write_text(text)
    shutil.copytree(SHARE, tmp_path / "data")
    small = ["--classifier_width=32", "--channel_mult=1,1", "--iterations=1", "--batch_size=8", "--num_test=8"]
    outcome = run(
        SCRIPT, f"--score_config={score}", f"--data_dir={tmp_path / 'data'}", f"--out={tmp_path / 'p'}", *small
    )
    assert outcome.returncode == 0, outcome.stderr
    listed = (tmp_path / "data" / "labelled_train_80_fraction0.25_seed3.txt").read_text().split()
    assert len(listed) == 20
    training = json.loads((tmp_path / "p" / "config.json").read_text())["figures"]["training"]
    assert (training["masking"], training["label_fraction"], training["num_images"]) == (True, 0.25, 80)


def test_the_script_takes_data_and_schedule_of_the_score_network(tmp_path: Path) -> None:
    score = tmp_path / "score.yaml"
    score.write_text("dataset: pendulum\nimage_size: 16\nchannels: 3\ndiffusion_steps: 50\nnoise_schedule: cosine\n")
    outcome = run(
        SCRIPT, f"--score_config={score}", "--dataset=mnist", "--channels=1", f"--data_dir={SHARE}",
        f"--out={tmp_path / 'p'}", "--iterations=2", "--batch_size=4", "--channel_mult=1,1",
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    spec = dataset_spec("mnist", 16)
    config = DiffusionConfig(diffusion_steps=50, noise_schedule="cosine")
    assert load_noised_predictor(tmp_path / "p", spec, config).spec == spec
    assert "digit_accuracy" in outcome.stdout and "100%" in outcome.stderr
    figures = json.loads((tmp_path / "p" / "config.json").read_text())["figures"]
    assert len(figures["by_level"]) == 10 and np.isfinite(figures["validation_loss"])


@pytest.mark.parametrize("name", ["configs/folder_causaldae_latent.yaml", "run.yaml"])
def test_a_score_network_in_latent_space_has_no_noised_predictor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """`load_model` would refuse it after training."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("dataset: mnist\nimage_size: 28\nvae_path: autoencoder\n")
    score = name if name == "run.yaml" else REPO / name
    tiny = ("--dataset=mnist", "--channel_mult=1,1", "--iterations=1", "--batch_size=4", "--num_test=8")
    outcome = run(SCRIPT, f"--score_config={score}", *tiny, "--image_size=28", f"--data_dir={SHARE}", "--out=p")
    assert_refused(outcome, "score_config: expected a score network of pixels, got one in latent space")
    assert not (tmp_path / "p").exists()


def test_the_graph_of_the_score_network_is_that_of_the_predictor(tmp_path: Path) -> None:
    make_folder(tmp_path / "data")
    other, score = tmp_path / "other.yaml", tmp_path / "score.yaml"
    (tmp_path / "data" / "graph.yaml").rename(other)
    score.write_text(f"dataset: folder\ngraph: {other}\nimage_size: 16\ndiffusion_steps: 50\n")
    small = ["--channel_mult=1,1", "--iterations=1", "--batch_size=4", f"--out={tmp_path / 'p'}"]
    outcome = run(SCRIPT, f"--score_config={score}", f"--data_dir={tmp_path / 'data'}", *small)
    assert outcome.returncode == 0, outcome.stderr
    spec = dataset_spec("folder", 16, data_dir=tmp_path / "data", graph=other)
    assert load_noised_predictor(tmp_path / "p", spec, DiffusionConfig(diffusion_steps=50)).spec == spec


def test_test_images_without_labels_do_not_lose_the_predictor(tmp_path: Path) -> None:
    unlabelled = {"age": "", "grey": "", "hat": ""}
    make_folder(tmp_path / "data", [row | (unlabelled if row["split"] == "test" else {}) for row in table_rows()])
    small = ["--dataset=folder", "--channel_mult=1,1", "--image_size=16", "--iterations=1", "--batch_size=4"]
    outcome = run(SCRIPT, *small, f"--data_dir={tmp_path / 'data'}", f"--out={tmp_path / 'p'}")
    assert outcome.returncode == 0 and "validation images evaluate the predictor" in outcome.stderr, outcome.stderr
    assert (tmp_path / "p" / "config.json").is_file()


def test_a_variable_without_test_labels_does_not_lose_the_predictor(tmp_path: Path) -> None:
    make_folder(tmp_path / "data", [row | ({"hat": ""} if row["split"] == "test" else {}) for row in table_rows()])
    small = ["--dataset=folder", "--channel_mult=1,1", "--image_size=16", "--iterations=1", "--batch_size=4"]
    outcome = run(SCRIPT, *small, f"--data_dir={tmp_path / 'data'}", f"--out={tmp_path / 'p'}")
    assert outcome.returncode == 0, outcome.stderr
    (row, *_) = json.loads((tmp_path / "p" / "config.json").read_text())["figures"]["by_level"]
    assert set(row) == {"level", "log_prob", "age_error", "grey_accuracy"}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--data_dir=", "data_dir: expected a value, got none"),
        ("--iterations=0", "iterations: expected 1 or more, got 0"),
        ("--pool=mean", "pool: expected"),
        ("--min_std=0", "min_std: expected a number in (0, 10), got 0.0"),
        ("--out=gs://bucket/p", "out: expected a local path, got gs://bucket/p"),
        ("--noise_schedule=square", "noise_schedule: expected"),
        ("--patch_size=5", "patch_size: expected a divisor of the image size 28, got 5"),
    ],
)
def test_invalid_settings_are_refused(tmp_path: Path, flag: str, message: str) -> None:
    base = ["--dataset=mnist", f"--data_dir={SHARE}", f"--out={tmp_path / 'p'}"]
    assert_refused(run(SCRIPT, *base, flag), message)


def test_an_output_folder_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    """A run in place of its subfolder `predictor`, and the model folder of a score network, which would be replaced."""
    (tmp_path / "run" / "step_0000001").mkdir(parents=True)
    (tmp_path / "file").touch()
    model = shutil.copytree(REPO / "weights" / "mnist_dit_mini", tmp_path / "model")
    before = (model / "model.safetensors").read_bytes()
    for name, message in (
        ("run", "run: expected a folder without checkpoints"),
        ("file", "out: expected a folder, got the file"),
        ("model", "out: expected a new folder or a model of type 'noised_predictor', got 'diffscm' in"),
    ):
        tiny = ("--channel_mult=1,1", "--patch_size=4", "--iterations=1", "--batch_size=4", "--num_test=8")
        outcome = run(SCRIPT, "--dataset=mnist", f"--data_dir={SHARE}", f"--out={tmp_path / name}", *tiny)
        assert_refused(outcome, message)
    assert (model / "model.safetensors").read_bytes() == before
