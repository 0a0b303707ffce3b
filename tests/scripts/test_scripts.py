"""The scripts as a user runs them: what they write, and one line with exit code 2 for what a user can mend."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import REPO
from PIL import Image
from running import Outcome, assert_refused, run

from causaldiffae.checkpoints.checkpoint import export_weights
from causaldiffae.config import Config, DiffusionConfig, ModelConfig
from causaldiffae.counterfactual import AbductionKind, CounterfactualEngine
from causaldiffae.datasets.registry import dataset_spec
from causaldiffae.evaluation.interventions import describe_do
from causaldiffae.generators import morphomnist, pendulum
from causaldiffae.guidance import Guidance
from causaldiffae.logger import Logger
from causaldiffae.metrics.truth import l1_errors
from causaldiffae.script_util import create_model_and_diffusion, describe_checkpoint
from causaldiffae.training.run_lock import lock_run_dir

TEST_SCRIPT, TRAIN_SCRIPT = (
    REPO / "scripts" / "image_causaldae_test.py",
    REPO / "scripts" / "image_train.py",
)
NETWORK = ["--num_channels=32", "--num_res_blocks=1", "--channel_mult=1,1", "--attention_resolutions=", "--rep_dim=4"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    morphomnist.write_dataset(
        REPO / "assets" / "mnist_share", folder, num_train=8, num_test=6, workers=1, progress=False
    )
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Config(
        model=ModelConfig(
            num_channels=32, num_res_blocks=1, channel_mult="1,1", attention_resolutions="", rep_dim=4, class_cond=True
        ),
        diffusion=DiffusionConfig(diffusion_steps=50),
    )
    torch.manual_seed(0)
    spec = dataset_spec("morphomnist")
    model, _ = create_model_and_diffusion(config, spec)
    folder = tmp_path_factory.mktemp("model") / "untrained"
    return export_weights(folder, model.state_dict(), describe_checkpoint(config, spec))


def ask(model: Path, data: Path, out: Path, *more: object) -> Outcome:
    paths = ["--model_path", model, "--data_dir", data, "--out_dir", out, "--timestep_respacing", "4"]
    return run(TEST_SCRIPT, *paths, *more)


def test_counterfactuals_are_written_for_every_image(model_folder: Path, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = ask(model_folder, digits, out, "--do", "thickness=4", "--do", "thickness=2,intensity=90")
    assert process.returncode == 0, process.stderr
    with (out / "counterfactuals.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * 2 * 2
    asked = [row for row in rows if row["do"] == "do(thickness=4)" and row["variable"] == "thickness"]
    assert {row["requested"] for row in asked} == {"4"} and {row["true"] for row in asked} == {"4"}
    followed = [row for row in rows if row["do"] == "do(thickness=4)" and row["variable"] == "intensity"]
    assert {row["requested"] for row in followed} == {""} and all(float(row["true"]) > 150 for row in followed)
    arrays = np.load(out / "counterfactuals.npz", allow_pickle=False)
    assert arrays["counterfactual_1"].shape == arrays["truth_1"].shape == (6, 1, 28, 28)
    assert not np.array_equal(arrays["truth_0"], arrays["truth_1"])
    figures = json.loads((out / "summary.json").read_text())["results"]["do(thickness=4)"]
    l1 = np.abs(arrays["counterfactual_0"].astype(float) - arrays["truth_0"]).mean()
    assert figures["counterfactual_l1"] == pytest.approx(l1)
    with Image.open(out / "counterfactuals.png") as picture:
        assert picture.size[0] > 300 and picture.size[1] > 300
    assert "do(thickness=4)" in process.stdout


def test_without_do_the_table_in_the_script_is_asked(model_folder: Path, digits: Path, tmp_path: Path) -> None:
    process = ask(model_folder, digits, tmp_path / "out", "--num_images", 2)
    assert process.returncode == 0, process.stderr
    assert "do(thickness=1.5)" in process.stdout and "do(thickness=4, intensity=120)" in process.stdout


def test_far_outside_the_range_is_done_with_a_warning(model_folder: Path, digits: Path, tmp_path: Path) -> None:
    process = ask(model_folder, digits, tmp_path / "out", "--do", "thickness=9", "--num_images", 2)
    assert process.returncode == 0, process.stderr
    assert re.search(r"^warning: .*thickness.*0\.875.*6\.256", process.stderr, re.MULTILINE), process.stderr


@pytest.mark.parametrize(
    ("do", "words"),
    [
        ("width=2", ("width", "thickness, intensity")),
        ("thickness=thick", ("do: thickness: expected a finite number, got 'thick'",)),
        ("thickness=nan", ("do: thickness: expected a finite number, got nan",)),
        ("thickness=inf", ("do: thickness: expected a finite number, got inf",)),
        ("thickness", ("name=value",)),
        ("thickness=1,thickness=2", ("set twice",)),
    ],
)
def test_bad_interventions(model_folder: Path, digits: Path, tmp_path: Path, do: str, words: tuple[str, ...]) -> None:
    assert_refused(ask(model_folder, digits, tmp_path / "out", "--do", do), *words)
    assert not (tmp_path / "out").exists()


def test_a_shell_sees_one_line_and_exit_code_2(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(TEST_SCRIPT),
        "--model_path",
        "nowhere",
        "--data_dir",
        "x",
        "--out_dir",
        str(tmp_path),
    ]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=REPO, check=False)
    assert process.returncode == 2 and process.stdout == ""
    assert len(process.stderr.splitlines()) == 1 and process.stderr.startswith("error: nowhere")


def test_bad_models_and_data(model_folder: Path, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert_refused(ask(tmp_path / "nowhere", digits, out), "nowhere")
    assert_refused(ask(digits, digits, out), "digits", "no checkpoint")
    other = tmp_path / "other"
    shutil.copytree(model_folder, other)
    described = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(described | {"model_type": "something"}))
    assert_refused(ask(other, digits, out), "something", "causaldae")
    described["config"]["model"]["rep_dim"] = 6
    (other / "config.json").write_text(json.dumps(described))
    assert_refused(ask(other, digits, out), "another model", "encoder.fc_mu.weight", "expected")
    (other / "config.json").write_text("{")
    assert_refused(ask(other, digits, out), "config.json")
    assert_refused(ask(model_folder, tmp_path / "nothing", out), "nothing")
    (tmp_path / "empty").mkdir()
    assert_refused(ask(model_folder, tmp_path / "empty", out), "empty")
    broken = tmp_path / "broken"
    shutil.copytree(digits, broken)
    (broken / "t10k-morpho.csv").write_text("index,thickness\n0,1.0\n")
    assert_refused(ask(model_folder, broken, out), "t10k-morpho.csv", "intensity")
    assert not out.exists()


def test_bad_flags(model_folder: Path, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert_refused(ask(model_folder, digits, out, "--abduction", "magic"), "magic", "ddim")
    assert_refused(ask(model_folder, digits, out, "--w", "nan"), '"w"', "nan")
    assert_refused(ask(model_folder, digits, out, "--w", "strong"), "w")
    assert_refused(ask(model_folder, digits, out, "--sweep_w", "0,x"), "sweep_w", "0,x", "finite numbers")
    assert_refused(ask(model_folder, digits, out, "--guidance_interval", "0.5"), "guidance_interval", "two numbers")
    assert_refused(ask(model_folder, digits, out, "--guidance_interval", "0.9,0.1"), "guidance_interval", "ascending")
    assert_refused(ask(model_folder, digits, out, "--traverse", "width"), "width", "thickness, intensity")
    assert_refused(ask(model_folder, digits, out, "--stop", 0), "stop", "(0, 1]")
    assert_refused(ask(model_folder, digits, out, "--recipe", "secret"), "recipe", "secret", "reference")
    assert_refused(ask(model_folder, digits, out, "--dataset", "pendulum"), "dataset", "morphomnist")
    assert_refused(ask(model_folder, digits, out, "--wieght", "1"), "wieght")
    assert_refused(run(TEST_SCRIPT, "--data_dir", digits), "model_path")
    assert not out.exists()


def test_sweeps_and_traversals(model_folder: Path, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ["--num_images", 3, "--do", "thickness=3", "--sweep_w", "0,0.5,1", "--traverse", "intensity"]
    process = ask(model_folder, digits, out, *flags, "--stop", 0.5, "--guidance_interval", "0.1,0.9")
    assert process.returncode == 0, process.stderr
    rows = list(csv.DictReader((out / "sweep_w.csv").open()))
    assert [row["w"] for row in rows] == ["0", "0.5", "1"] and "measured_thickness" in rows[0]
    plain = json.loads((out / "summary.json").read_text())
    assert plain["results"]["do(thickness=3)"]["counterfactual_l1"] == pytest.approx(
        plain["sweep_w"][2]["counterfactual_l1"]
    ), "w = 1 is no guidance"
    values = [float(row["intensity"]) for row in csv.DictReader((out / "traversal_intensity.csv").open())]
    assert len(values) == 6 and values == sorted(values) and 66 < values[0] < 90 and 230 < values[-1] < 255
    assert set(plain["traversal_intensity"]) == {"thickness", "intensity"}
    for name in ("sweep_w.png", "traversal_intensity.png"):
        with Image.open(out / name) as picture:
            assert picture.size[1] > 300
    for said in (
        "do(thickness=3) at guidance weights w",
        "do(intensity) over its range",
        "mean change of measured label",
    ):
        assert said in process.stdout


def test_recipes_and_guidance_weights_reach_the_engine(
    model_folder: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict] = []
    plain = CounterfactualEngine.__init__

    def watched(self: CounterfactualEngine, *args: object, **kwargs: object) -> None:
        seen.append(kwargs)
        plain(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(CounterfactualEngine, "__init__", watched)
    base = ["--model_path", model_folder, "--data_dir", digits, "--out_dir", tmp_path / "out", "--num_images", 1]
    flags = ["--recipe", "reference", "--timestep_respacing", "3", "--w", 2, "--w_affected", 3, "--stop", 0.7]
    assert run(TEST_SCRIPT, *base, *flags).returncode == 0
    assert seen[0]["abduction"] is AbductionKind.NOISE and seen[0]["stop"] == 0.7
    assert seen[0]["guidance"] == Guidance(2.0, w_affected=3.0)
    settings = json.loads((tmp_path / "out" / "summary.json").read_text())["settings"]
    assert settings["abduction"] == "noise" and settings["timestep_respacing"] == "3"


def test_every_script_is_for_its_own_model(digits: Path, tmp_path: Path) -> None:
    spec = dataset_spec("morphomnist")
    for name in ("conditional", "diffae", "causalvae"):
        network = ModelConfig(
            model_type=name,
            num_channels=32,
            num_res_blocks=1,
            channel_mult="1,1",
            attention_resolutions="",
            rep_dim=4,
            decoder_channels="8,8",
        )
        config = Config(model=network, diffusion=DiffusionConfig(diffusion_steps=50))
        model, _ = create_model_and_diffusion(config, spec)
        folder = export_weights(tmp_path / name, model.state_dict(), describe_checkpoint(config, spec))
        flags = ["--model_path", folder, "--data_dir", digits, "--num_images", 2, "--timestep_respacing", "3"]
        out = tmp_path / f"{name}_out"
        process = run(REPO / "scripts" / f"image_{name}_test.py", *flags, "--out_dir", out)
        assert process.returncode == 0, process.stderr
        assert "do(thickness=1.5)" in process.stdout and (out / "counterfactuals.png").is_file()
        refused = run(TEST_SCRIPT, *flags, "--out_dir", tmp_path / "no")
        assert_refused(refused, f"of type {name}", f"scripts/image_{name}_test.py")


def test_training_writes_a_model_that_the_test_script_opens(digits: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = ["--dataset=morphomnist", f"--data_dir={digits}", f"--run_dir={run_dir}", *NETWORK, "--batch_size=4"]
    arguments += [
        "--class_cond=True",
        "--total_steps=3",
        "--log_interval=1",
        "--sample_interval=3",
        "--tensorboard=False",
    ]
    process = run(TRAIN_SCRIPT, *arguments)
    assert process.returncode == 0, process.stderr
    assert (run_dir / "step_0000003" / "manifest.json").is_file() and (run_dir / "images").is_dir()
    assert len((run_dir / "progress.csv").read_text().splitlines()) == 4
    again = run(TRAIN_SCRIPT, *arguments, "--total_steps=4")
    assert again.returncode == 0 and (run_dir / "step_0000004").is_dir(), again.stderr
    assert len((run_dir / "progress.csv").read_text().splitlines()) == 5
    asked = ask(run_dir, digits, tmp_path / "out", "--num_images", 2, "--do", "intensity=90")
    assert asked.returncode == 0, asked.stderr
    assert_refused(run(TRAIN_SCRIPT, *arguments, "--total_steps=5", "--rep_dim=8"), "another configuration")


def test_training_refuses_what_it_cannot_do(digits: Path, tmp_path: Path) -> None:
    base = ["--dataset=morphomnist", f"--data_dir={digits}", f"--run_dir={tmp_path / 'run'}", *NETWORK]
    for flags, words in (
        (["--dataset=minst"], ("minst", "morphomnist")),
        (["--lr=nan"], ("lr", "nan")),
        (["--batch_size=0"], ("batch_size", "positive")),
        (["--mechanism=magic"], ("magic", "additive")),
        (["--channel_mult=1,x"], ("channel_mult",)),
        (["--rep_dim=5"], ("rep_dim", "2 variables")),
        (["--model_type=gan"], ("model_type", "gan", "diffae")),
        (["--masking=True", "--label_fraction=1.5"], ("label_fraction", "1.5", "between 0 and 1")),
        (["--label_fraction=0.1"], ("label_fraction", "--masking True")),
        (["--recipe=secret"], ("recipe", "secret", "reference")),
        (["--data_dir=/nowhere"], ("/nowhere",)),
    ):
        assert_refused(run(TRAIN_SCRIPT, *base, *flags), *words)
    config = tmp_path / "bad.yaml"
    config.write_text("dataset: morphomnist\nlearning_rate: 0.1\n")
    assert_refused(run(TRAIN_SCRIPT, "--config", config, *base), "learning_rate")
    assert not (tmp_path / "run").exists()


def test_weak_supervision_from_the_command_line(digits: Path, tmp_path: Path) -> None:
    copy = tmp_path / "digits"
    shutil.copytree(digits, copy)
    arguments = ["--dataset=morphomnist", f"--data_dir={copy}", f"--run_dir={tmp_path / 'run'}", *NETWORK]
    arguments += ["--batch_size=4", "--total_steps=2", "--sample_interval=9", "--tensorboard=False"]
    process = run(TRAIN_SCRIPT, *arguments, "--masking=True", "--label_fraction=0.25")
    assert process.returncode == 0, process.stderr
    listed = (copy / "labelled_train_8_fraction0.25_seed0.txt").read_text().split()
    described = json.loads((tmp_path / "run" / "step_0000002" / "config.json").read_text())
    assert len(listed) == described["labelled_images"] == 2
    again = run(TRAIN_SCRIPT, *arguments, "--masking=True", "--label_fraction=0.5", "--total_steps=3")
    assert_refused(again, "expected the labelled images of this checkpoint")


def test_the_reference_recipe_is_put_in_at_its_place(tmp_path: Path) -> None:
    base = [
        "--config",
        REPO / "configs" / "morphomnist_causaldae_mini.yaml",
        "--run_dir",
        tmp_path,
        "--dry_run=True",
    ]
    process = run(TRAIN_SCRIPT, *base, "--recipe=reference", "--lr=0.005")
    assert process.returncode == 0, process.stderr
    for line in ("mechanism: one_hop", "variance_factor: 0.001", "kl_anneal_steps: 50000", "predict_v: false"):
        assert line in process.stdout
    assert "lr: 0.005" in process.stdout, "what comes later wins"
    assert "kl_weight: 0.01" in run(TRAIN_SCRIPT, "--recipe=reference", *base).stdout


def test_dry_run_prints_the_resolved_configuration(tmp_path: Path) -> None:
    config = REPO / "configs" / "pendulum_causaldae_mini.yaml"
    process = run(TRAIN_SCRIPT, "--config", config, "--run_dir", tmp_path / "run", "--dry_run=True", "--lr=0.005")
    assert process.returncode == 0, process.stderr
    assert "lr: 0.005" in process.stdout and "parameters" in process.stdout
    assert not (tmp_path / "run").exists()


def test_readme_python_block(tmp_path: Path) -> None:
    """The README's Python runs as printed, on the examples and on a few pendulums."""
    folder = tmp_path / "data" / "pendulum" / "test"
    folder.mkdir(parents=True)
    for angle, light in ((-20, 80), (0, 90), (10, 120), (30, 140)):
        length, position = pendulum.file_labels(np.array([angle]), np.array([light]))[0, 2:]
        image = Image.fromarray(pendulum.render(angle, light))
        image.save(folder / f"a_{angle}_{light}_{int(length)}_{int(position)}.png")
    (tmp_path / "weights").symlink_to(REPO / "weights")
    blocks = re.findall(r"```python\n(.*?)```", (REPO / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2 and len(blocks[0].strip().splitlines()) <= 6
    code = [sys.executable, "-c", "\n".join(blocks)]
    process = subprocess.run(code, capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False)
    assert process.returncode == 0, process.stderr
    assert "torch.Size([4, 3, 32, 32])" in process.stdout


def test_pixel_l1_and_descriptions() -> None:
    a = np.zeros((2, 1, 2, 2), np.uint8)
    b = a.copy()
    b[1] = 200
    np.testing.assert_array_equal(l1_errors(a, b), [0.0, 200.0])
    np.testing.assert_array_equal(l1_errors(b, a), [0.0, 200.0])  # no wrap-around of unsigned bytes
    assert describe_do({"a": 4.5, "b": 90.0}) == "do(a=4.5, b=90)"


def test_a_second_trainer_and_a_time_limit(digits: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = ["--dataset=morphomnist", f"--data_dir={digits}", f"--run_dir={run_dir}", *NETWORK, "--batch_size=4"]
    arguments += ["--total_steps=3", "--tensorboard=False"]
    with lock_run_dir(run_dir):
        assert_refused(run(TRAIN_SCRIPT, *arguments), "run_dir:", "is in use by process")
    assert not (run_dir / "progress.csv").exists()
    stopped = run(TRAIN_SCRIPT, *arguments, "--max_hours=1e-9")
    assert stopped.returncode == 0 and [path.name for path in run_dir.glob("step_*")] == ["step_0000001"]
    assert "stopped after step 1: max_hours 1e-09 reached; run the same command to resume" in stopped.stderr
    assert run(TRAIN_SCRIPT, *arguments).returncode == 0 and (run_dir / "step_0000003").is_dir()


def test_a_disk_that_is_full_is_one_line(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    arguments = ["--dataset=morphomnist", f"--data_dir={digits}", f"--run_dir={tmp_path / 'run'}", *NETWORK]
    arguments += ["--batch_size=4", "--total_steps=2", "--log_interval=1", "--tensorboard=False"]
    monkeypatch.setattr(Logger, "dumpkvs", full)
    outcome = run(TRAIN_SCRIPT, *arguments)
    assert outcome.returncode == 2
    assert outcome.stderr.splitlines()[-1].endswith(
        "run: No space left on device; fix this and run the same command to resume"
    )
