"""Test scripts and training as a user runs them: their output, and one line with exit code 2 for bad input."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import REPO
from PIL import Image
from running import Outcome, assert_refused, run

from causaldiffae.checkpoints.checkpoint import export_weights
from causaldiffae.config import Config, DiffusionConfig, ModelConfig
from causaldiffae.counterfactual import AbductionKind, CounterfactualEngine
from causaldiffae.datasets import reference
from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.evaluation import image_test
from causaldiffae.generators import morphomnist
from causaldiffae.guidance import Guidance
from causaldiffae.logger import Logger
from causaldiffae.script_util import create_model_and_diffusion, describe_checkpoint
from causaldiffae.training.run_lock import lock_run_dir

TEST_SCRIPT, TRAIN_SCRIPT = REPO / "scripts" / "image_causaldae_test.py", REPO / "scripts" / "image_train.py"
NETWORK = {"num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,1", "attention_resolutions": "", "rep_dim": 4}
FEW_STEPS = ["--timestep_respacing", "4"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, source = tmp_path_factory.mktemp("data") / "digits", REPO / "assets" / "mnist_share"
    morphomnist.write_dataset(source, folder, num_train=8, num_test=6, workers=1, progress=False)
    return folder


def write_model(folder: Path, **changes: Any) -> Path:
    """An untrained model of the digits."""
    config = Config(model=ModelConfig(**NETWORK, **changes), diffusion=DiffusionConfig(diffusion_steps=50))
    spec = dataset_spec("morphomnist")
    torch.manual_seed(0)
    model, _ = create_model_and_diffusion(config, spec)
    return export_weights(folder, model.state_dict(), describe_checkpoint(config, spec))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "untrained", class_cond=True)


def run_test(model: Path, data: Path, out: Path, *more: object, script: Path = TEST_SCRIPT) -> Outcome:
    return run(script, "--model_path", model, "--data_dir", data, "--out_dir", out, *FEW_STEPS, *more)


def train(data: Path, run_dir: Path, *more: object) -> Outcome:
    values = {"dataset": "morphomnist", "data_dir": data, "run_dir": run_dir, **NETWORK, "batch_size": 4}
    values |= {"total_steps": 3, "log_interval": 1, "sample_interval": 3, "tensorboard": False}
    return run(TRAIN_SCRIPT, *(f"--{name}={value}" for name, value in values.items()), *more)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------------- counterfactuals


def test_counterfactuals_are_written_for_every_image(model_folder: Path, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dos = ("--do", "thickness=4", "--do", "thickness=2,intensity=90")
    process = run_test(model_folder, digits, out, *dos, "--samples", 2)
    assert process.returncode == 0, process.stderr
    rows = read_csv(out / "counterfactuals.csv")
    assert len(rows) == 6 * 2 * 2
    thickness, intensity = (
        [row for row in rows if row["do"] == "do(thickness=4)" and row["variable"] == name]
        for name in ("thickness", "intensity")
    )
    assert {(row["requested"], row["true"]) for row in thickness} == {("4", "4")}
    assert {row["requested"] for row in intensity} == {""} and all(float(row["true"]) > 150 for row in intensity)
    arrays = np.load(out / "counterfactuals.npz", allow_pickle=False)
    assert arrays["counterfactual_1"].shape == arrays["truth_1"].shape == (6, 1, 28, 28)
    assert not np.array_equal(arrays["truth_0"], arrays["truth_1"])
    figures = json.loads((out / "summary.json").read_text())["results"]["do(thickness=4)"]
    l1 = np.abs(arrays["counterfactual_0"].astype(float) - arrays["truth_0"]).mean()
    assert figures["counterfactual_l1"] == pytest.approx(l1)
    with Image.open(out / "counterfactuals.png") as grid:
        assert min(grid.size) > 300
    assert "do(thickness=4)" in process.stdout
    assert arrays["pixel_std_1"].shape == (6, 1, 28, 28) and not arrays["label_std_1"].any(), "both labels are set"
    assert arrays["label_std_0"][:, 1].all() and figures["pixel_std"] == pytest.approx(arrays["pixel_std_0"].mean())
    text = (out / "summary.json").read_text()
    report = json.loads(text)
    assert "NaN" not in text
    assert "\n".join(report["verdict"]) in process.stdout and "spread over 2 abductions" in process.stdout
    assert report["verdict"][0] == "response to interventions, 6 images, labels measured:"
    assert set(report["responses"]["do(thickness=2, intensity=90)"]) == {"thickness", "intensity"}


def test_an_interrupted_test_is_resumed_by_the_same_command(
    model_folder: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--do", "thickness=4", "--batch_size", 2, "--abduction", "noise"]
    whole, out, abduct, batches = tmp_path / "whole", tmp_path / "out", CounterfactualEngine.abduct, list[int]()
    assert run_test(model_folder, digits, whole, *flags).returncode == 0

    def interrupted(self: CounterfactualEngine, x_start: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append(len(x_start))
        return abduct(self, x_start, *args, **kwargs)

    monkeypatch.setattr(CounterfactualEngine, "abduct", interrupted)
    monkeypatch.setattr(image_test, "TRIAL_IMAGES", 100)  # no estimate
    process = run_test(model_folder, digits, out, *flags)
    assert process.returncode == 130
    assert process.stderr.splitlines()[-1] == "interrupted after 4 of 6 images; run the same command to resume"
    assert len(read_csv(out / "counterfactuals.csv")) == 4 * 2 and not (out / "summary.json").exists()
    batches.clear()
    process = run_test(model_folder, digits, out, *flags)
    assert process.returncode == 0 and batches == [2], process.stderr
    names = {path.name for path in whole.iterdir()}
    assert {path.name for path in out.iterdir()} == names and "unfinished" not in names
    assert (out / "counterfactuals.csv").read_bytes() == (whole / "counterfactuals.csv").read_bytes()
    figures = [json.loads((folder / "summary.json").read_text())["results"] for folder in (out, whole)]
    assert figures[0] == figures[1]


def test_the_time_is_estimated_first(
    model_folder: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_test, "TRIAL_IMAGES", 2)
    process = run_test(model_folder, digits, tmp_path / "out", "--num_images", 5)
    described = "5 test images (--num_images all for all), 4 interventions: less than a minute on cpu"
    assert described in process.stderr and process.returncode == 0
    assert "6 test images, 4 interv" in run_test(model_folder, digits, tmp_path / "a", "--num_images", "all").stderr
    assert "6 test images, 4 interv" in run_test(model_folder, digits, tmp_path / "0", "--num_images", 0).stderr


def test_the_default_is_the_table_in_the_script(model_folder: Path, digits: Path, tmp_path: Path) -> None:
    process = run_test(model_folder, digits, tmp_path / "out", "--num_images", 2)
    assert process.returncode == 0, process.stderr
    assert "do(thickness=1.5)" in process.stdout and "do(thickness=4, intensity=120)" in process.stdout


def test_values_far_outside_the_range_get_a_warning(model_folder: Path, digits: Path, tmp_path: Path) -> None:
    process = run_test(model_folder, digits, tmp_path / "out", "--do", "thickness=9", "--num_images", 2)
    assert process.returncode == 0, process.stderr
    assert re.search(r"^warning: .*thickness.*0\.875.*6\.256", process.stderr, re.MULTILINE), process.stderr


def test_sweeps_and_traversals(model_folder: Path, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ["--num_images", 3, "--do", "thickness=3", "--sweep_w", "0,0.5,1", "--traverse", "intensity"]
    process = run_test(model_folder, digits, out, *flags, "--stop", 0.5, "--guidance_interval", "0.1,0.9")
    assert process.returncode == 0, process.stderr
    rows = read_csv(out / "sweep_w.csv")
    assert [row["w"] for row in rows] == ["0", "0.5", "1"] and "measured_thickness" in rows[0]
    summary = json.loads((out / "summary.json").read_text())
    unguided = summary["sweep_w"][2]["counterfactual_l1"]
    assert summary["results"]["do(thickness=3)"]["counterfactual_l1"] == pytest.approx(unguided)
    values = [float(row["intensity"]) for row in read_csv(out / "traversal_intensity.csv")]
    assert len(values) == 6 and values == sorted(values) and 66 < values[0] < 90 and 230 < values[-1] < 255
    assert set(summary["traversal_intensity"]) == {"thickness", "intensity"}
    for name in ("sweep_w.png", "traversal_intensity.png"):
        with Image.open(out / name) as grid:
            assert grid.size[1] > 300
    assert "do(thickness=3)" in process.stdout and "do(intensity)" in process.stdout


def test_recipes_and_weights_reach_the_engine(
    model_folder: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: list[dict[str, Any]] = []
    plain = CounterfactualEngine.__init__

    def watched(self: CounterfactualEngine, *args: Any, **kwargs: Any) -> None:
        options.append(kwargs)
        plain(self, *args, **kwargs)

    monkeypatch.setattr(CounterfactualEngine, "__init__", watched)
    flags = ["--recipe", "reference", *FEW_STEPS, "--w", 2, "--w_affected", 3, "--stop", 0.7, "--num_images", 1]
    base = ["--model_path", model_folder, "--data_dir", digits, "--out_dir", tmp_path / "out"]
    assert run(TEST_SCRIPT, *base, *flags).returncode == 0
    assert options[0]["abduction"] is AbductionKind.NOISE and options[0]["stop"] == 0.7
    assert options[0]["guidance"] == Guidance(2.0, w_affected=3.0, w_class=1.0)
    assert options[0]["correction"] is None and options[0]["keep_unchanged"] == 0.0
    settings = json.loads((tmp_path / "out" / "summary.json").read_text())["settings"]
    assert settings["abduction"] == "noise" and settings["timestep_respacing"] == "4"


@pytest.mark.parametrize("name", ["conditional", "diffae", "causalvae"])
def test_every_type_of_model_has_its_script(name: str, digits: Path, tmp_path: Path) -> None:
    folder = write_model(tmp_path / name, model_type=name, decoder_channels="8,8")
    script = REPO / "scripts" / f"image_{name}_test.py"
    process = run_test(folder, digits, tmp_path / "out", "--num_images", 2, script=script)
    assert process.returncode == 0, process.stderr
    assert "do(thickness=1.5)" in process.stdout and (tmp_path / "out" / "counterfactuals.png").is_file()
    assert_refused(run_test(folder, digits, tmp_path / "no"), name, f"scripts/image_{name}_test.py")


def test_inputs_unlike_the_training_data_are_named(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training writes the reference, the export copies it, or writes it for an older model, and a test uses it."""
    monkeypatch.setattr(reference, "MIN_IMAGES", 8)
    monkeypatch.setattr(reference, "MIN_ROWS", 8)
    run_dir, exported, old = tmp_path / "run", tmp_path / "exported", write_model(tmp_path / "old", class_cond=True)
    assert train(digits, run_dir, "--class_cond=True").returncode == 0
    export = REPO / "scripts" / "export_weights.py"
    assert run(export, "--model_path", run_dir, "--out", exported).returncode == 0
    written = run(export, "--model_path", old, "--data_dir", digits)
    assert f"{old / reference.FILE}: from 8 training images of {digits}" in written.stdout, written.stderr
    assert (exported / reference.FILE).read_bytes() == (run_dir / reference.FILE).read_bytes()
    assert (old / reference.FILE).read_bytes() == (run_dir / reference.FILE).read_bytes()
    assert_refused(run(export, "--model_path", old), "out")
    out, dark = tmp_path / "out", "thickness=5,intensity=70"
    tested = run_test(old, digits, out, "--num_images", 2, "--do", dark, "--do", "thickness=2.5")
    assert "do(thickness=5, intensity=70): labels of 2 of 2 counterfactuals: no training image is like" in tested.stdout
    shares = json.loads((out / "summary.json").read_text())["compared_with_training"]
    assert shares["do(thickness=5, intensity=70)"]["labels_far"] == 1.0
    rows = read_csv(out / "counterfactuals.csv")
    assert all(float(row["label_distance"]) > 1 for row in rows if row["do"] == "do(thickness=5, intensity=70)")
    assert all(float(row["image_distance"]) > 0 for row in rows)


# ---------------------------------------------------------------------- what the test scripts refuse


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--do", "width=2"], ("width", "thickness, intensity")),
        (["--do", "thickness=thick"], ("thickness", "thick")),
        (["--do", "thickness=nan"], ("thickness", "nan", "finite number")),
        (["--do", "thickness=inf"], ("thickness", "inf")),
        (["--do", "thickness"], ("name=value",)),
        (["--do", "thickness=1,thickness=2"], ("thickness", "twice")),
        (["--abduction", "magic"], ("magic", "ddim")),
        (["--w", "nan"], ("w", "nan")),
        (["--w", "strong"], ("w", "strong")),
        (["--sweep_w", "0,x"], ("sweep_w", "0,x", "finite numbers")),
        (["--guidance_interval", "0.5"], ("guidance_interval", "two")),
        (["--guidance_interval", "0.9,0.1"], ("guidance_interval",)),
        (["--traverse", "width"], ("width", "thickness, intensity")),
        (["--stop", 0], ("stop",)),
        (["--num_images", "many"], ("num_images", "many")),
        (["--num_images", "-1"], ("num_images", "-1")),
        (["--recipe", "secret"], ("recipe", "secret", "reference")),
        (["--dataset", "pendulum"], ("dataset", "morphomnist")),
        (["--wieght", "1"], ("wieght",)),
        (["--model_path", "nowhere"], ("nowhere",)),
        (["--data_dir", "nothing"], ("nothing",)),
    ],
)
def test_bad_flags_are_refused(
    model_folder: Path, digits: Path, tmp_path: Path, flags: list[object], words: tuple[str, ...]
) -> None:
    assert_refused(run_test(model_folder, digits, tmp_path / "out", *flags), *words)
    assert not (tmp_path / "out").exists()


def test_bad_models_and_data_are_refused(model_folder: Path, digits: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    assert_refused(run(TEST_SCRIPT, "--data_dir", digits), "model_path")
    assert_refused(run_test(digits, digits, out), "digits")  # a folder without a checkpoint
    shutil.copytree(model_folder, other)
    described = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(described | {"model_type": "something"}))
    assert_refused(run_test(other, digits, out), "something", "causaldae")
    described["config"]["model"]["rep_dim"] = 6
    (other / "config.json").write_text(json.dumps(described))
    assert_refused(run_test(other, digits, out), "encoder.fc_mu.weight")
    (other / "config.json").write_text("{")
    assert_refused(run_test(other, digits, out), "config.json")
    (tmp_path / "empty").mkdir()
    assert_refused(run_test(model_folder, tmp_path / "empty", out), "empty")
    broken = tmp_path / "broken"
    shutil.copytree(digits, broken)
    (broken / "t10k-morpho.csv").write_text("index,thickness\n0,1.0\n")
    assert_refused(run_test(model_folder, broken, out), "t10k-morpho.csv", "intensity")
    assert not out.exists()


def test_a_shell_sees_one_line_and_exit_code_2(tmp_path: Path) -> None:
    paths = ["--model_path", "nowhere", "--data_dir", "x", "--out_dir", str(tmp_path)]
    command = [sys.executable, str(TEST_SCRIPT), *paths]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=REPO, check=False)
    assert process.returncode == 2 and process.stdout == ""
    assert len(process.stderr.splitlines()) == 1 and process.stderr.startswith("error: nowhere")


# ---------------------------------------------------------------------- training


def test_training_writes_a_model_that_the_test_script_opens(digits: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = train(digits, run_dir, "--class_cond=True")
    assert process.returncode == 0, process.stderr
    assert (run_dir / "step_0000003" / "manifest.json").is_file() and (run_dir / "images").is_dir()
    assert len(read_csv(run_dir / "progress.csv")) == 3
    again = train(digits, run_dir, "--class_cond=True", "--total_steps=4")
    assert again.returncode == 0 and (run_dir / "step_0000004").is_dir(), again.stderr
    assert len(read_csv(run_dir / "progress.csv")) == 4
    tested = run_test(run_dir, digits, tmp_path / "out", "--num_images", 2, "--do", "intensity=90")
    assert tested.returncode == 0, tested.stderr
    assert_refused(train(digits, run_dir, "--class_cond=True", "--total_steps=5", "--rep_dim=8"), str(run_dir))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dataset=minst"], ("minst", "morphomnist")),
        (["--lr=nan"], ("lr", "nan")),
        (["--batch_size=0"], ("batch_size", "0")),
        (["--mechanism=magic"], ("magic", "additive")),
        (["--channel_mult=1,x"], ("channel_mult",)),
        (["--rep_dim=5"], ("rep_dim",)),
        (["--model_type=gan"], ("model_type", "gan", "diffae")),
        (["--masking=True", "--label_fraction=1.5"], ("label_fraction", "1.5")),
        (["--label_fraction=0.1"], ("label_fraction", "masking")),
        (["--recipe=secret"], ("recipe", "secret", "reference")),
        (["--data_dir=/nowhere"], ("/nowhere",)),
        (["--run_dir="], ("run_dir: expected a value, got none; set --run_dir",)),
    ],
)
def test_training_refuses_bad_flags(digits: Path, tmp_path: Path, flags: list[str], words: tuple[str, ...]) -> None:
    assert_refused(train(digits, tmp_path / "run", *flags), *words)
    assert not (tmp_path / "run").exists()


def test_training_refuses_unknown_keys_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("dataset: morphomnist\nlearning_rate: 0.1\n")
    assert_refused(run(TRAIN_SCRIPT, "--config", tmp_path / "bad.yaml"), "learning_rate")


def test_weak_supervision(digits: Path, tmp_path: Path) -> None:
    copy, run_dir = tmp_path / "digits", tmp_path / "run"
    shutil.copytree(digits, copy)
    process = train(copy, run_dir, "--masking=True", "--label_fraction=0.25")
    assert process.returncode == 0, process.stderr
    listed = (copy / "labelled_train_8_fraction0.25_seed0.txt").read_text().split()
    described = json.loads((run_dir / "step_0000003" / "config.json").read_text())
    assert len(listed) == described["labelled_images"] == 2
    again = train(copy, run_dir, "--masking=True", "--label_fraction=0.5", "--total_steps=4")
    assert_refused(again, "label")


def test_later_flags_override_earlier_ones(tmp_path: Path) -> None:
    config = REPO / "configs" / "morphomnist_causaldae_mini.yaml"
    base = ["--config", config, "--run_dir", tmp_path / "run", "--dry_run=True"]
    process = run(TRAIN_SCRIPT, *base, "--recipe=reference", "--lr=0.005")
    assert process.returncode == 0, process.stderr
    lines = ("mechanism: one_hop", "variance_factor: 0.001", "kl_anneal_steps: 50000", "predict_v: false", "lr: 0.005")
    assert all(line in process.stdout for line in (*lines, "parameters"))
    assert "kl_weight: 0.01" in run(TRAIN_SCRIPT, "--recipe=reference", *base).stdout
    assert not (tmp_path / "run").exists()


def test_a_locked_run_and_a_time_limit(digits: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with lock_run_dir(run_dir):
        assert_refused(train(digits, run_dir), "run_dir")
    assert not (run_dir / "progress.csv").exists()
    stopped = train(digits, run_dir, "--max_hours=1e-9")
    assert stopped.returncode == 0 and [path.name for path in run_dir.glob("step_*")] == ["step_0000001"]
    assert "stopped after step 1" in stopped.stderr and "run the same command to resume" in stopped.stderr
    assert train(digits, run_dir).returncode == 0 and (run_dir / "step_0000003").is_dir()


def test_a_full_disk_is_one_line(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Logger, "dumpkvs", full)
    outcome = train(digits, tmp_path / "run", "--storage_patience=0")
    expected = "run: No space left on device; fix this and run the same command to resume"
    assert outcome.returncode == 2 and outcome.stderr.splitlines()[-1].endswith(expected)


def test_the_readmes_python_runs(tmp_path: Path) -> None:
    (tmp_path / "weights").symlink_to(REPO / "weights")
    blocks = re.findall(r"```python\n(.*?)```", (REPO / "README.md").read_text(), re.DOTALL)
    assert blocks
    code = [sys.executable, "-c", "\n".join(blocks)]
    process = subprocess.run(code, capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False)
    assert process.returncode == 0, process.stderr
