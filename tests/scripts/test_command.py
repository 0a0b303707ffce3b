"""The command `causaldiffae`: subcommands are the programs of `scripts/`, configurations those of `configs/`."""

import sys
from pathlib import Path

import pytest
from folders import make_folder
from paths import REPO
from running import Outcome, assert_refused, run
from tiny_models import write_diffscm

NAMES = ("train", "test", "check", "make-dataset", "evaluate", "explore", "plot", "estimate", "export")
COMMON = ["--dataset=morphomnist", "--run_dir=unused"]


@pytest.fixture(autouse=True)
def program_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets the name that usage texts show."""
    monkeypatch.setattr(sys, "argv", ["causaldiffae"])


def command(*arguments: object) -> Outcome:
    return run(REPO / "scripts" / "command.py", *arguments)


def test_help_lists_the_subcommands() -> None:
    process = command("--help")
    assert process.returncode == 0
    assert {line.split()[0] for line in process.stdout.splitlines() if line.startswith("  ")} >= set(NAMES)
    assert command() == process


@pytest.mark.parametrize("name", NAMES)
def test_a_subcommand_has_the_help_of_its_program(name: str) -> None:
    process = command(name, "--help")
    usage = " ".join(process.stdout.split())
    assert process.returncode == 0 and f"usage: causaldiffae {name} " in usage and len(usage) > 300


def test_another_subcommand_is_refused() -> None:
    assert_refused(command("traim", "--help"), "subcommand: expected check, make-dataset,", "got 'traim'")


def test_errors_and_exit_codes_are_those_of_the_program(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "my_images")
    assert command("check", folder).returncode == 0
    (folder / "im" / "3.png").write_bytes(b"no image")
    process = command("check", folder)
    assert process.returncode == 2 and f"{folder}/im/3.png" in process.stderr
    assert_refused(command("make-dataset", "morphomnist", "--out", tmp_path / "set"), "--mnist: expected")
    assert_refused(command("train", *COMMON), "data_dir: expected a value")
    assert_refused(command("test"), "model_path: expected")


@pytest.mark.parametrize(
    "name", ["baselines/causalvae", "configs/baselines/causalvae.yaml", "baselines/causalvae.yaml"]
)
@pytest.mark.parametrize("form", ["--config={}", "--config {}"])
def test_configurations_have_names(name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = ["--config", "morphomnist_causaldae_mini", *form.format(name).split(), *COMMON]
    process = command("estimate", *base)
    assert process.returncode == 0, process.stderr
    assert "model_type: causalvae" in process.stdout and "# memory: " in process.stdout
    assert not list(tmp_path.iterdir())


def test_an_existing_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pendulum_causaldae_mini").write_text("dataset: morphomnist\nlr: 0.00321\n")
    process = command("estimate", "--config", "pendulum_causaldae_mini", "--config=morphomnist_causaldae_mini",
                      "--lr=0.00321", *COMMON)  # fmt: skip
    assert process.returncode == 0 and "dataset: morphomnist" in process.stdout, process.stderr
    assert_refused(command("estimate", "--config", "nothing_mini", *COMMON), "nothing_mini")


def test_the_model_chooses_the_test_script(tmp_path: Path) -> None:
    folder = write_diffscm(tmp_path / "model")
    arguments = [f"--model_path={folder}", "--data_dir", REPO / "assets" / "mnist_share", "--out_dir", tmp_path / "out"]
    few = ["--num_images=2", "--steps=2", "--do", "digit=3"]
    process = command("test", *arguments, *few)
    assert process.returncode == 0, process.stderr
    assert "do(digit=3)" in process.stdout and (tmp_path / "out" / "counterfactuals.png").is_file()
    assert_refused(command("test", "--model_path", tmp_path / "none", *arguments[1:]), "none")
