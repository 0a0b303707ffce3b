"""Which run and data a launcher takes, and what a dry run leaves undone."""

from pathlib import Path

import pytest
from launchers import dry_run, launch

NO_DATA = {"DATA_DIR": ""}


def make_run(clone: Path, name: str) -> str:
    folder = clone / "runs" / name
    (folder / "step_0000100").mkdir(parents=True)
    return str(folder)


def make_weights(clone: Path, name: str) -> str:
    folder = clone / "weights" / name
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    return str(folder)


def value(command: list[str], flag: str) -> str:
    """The last value of a flag, as the script reads it."""
    return command[len(command) - command[::-1].index(flag)]


# ---------------------------------------------------------------------- the run to test


@pytest.mark.parametrize("script", ["test_pendulum_causaldae.sh", "counterfactual.sh"])
def test_the_only_run_is_found_without_a_size(clone: Path, script: str) -> None:
    name = "pendulum" if script.startswith("test_") else "my data"
    run = make_run(clone, f"{name}_causaldae_mini")
    make_weights(clone, "pendulum_causaldae_mini")
    (clone / "runs" / f"{name}_causaldae_paper").mkdir()  # without a checkpoint
    result = launch(clone, script, DRY_RUN="1")
    assert f"using runs/{name}_causaldae_mini, the only run of this model" in result.stderr
    (command,) = dry_run(clone, script)
    assert (value(command, "--model_path"), value(command, "--out_dir")) == (run, f"{run}/test")


def test_several_runs_are_listed(clone: Path) -> None:
    make_run(clone, "pendulum_causaldae_mini")
    fast = make_run(clone, "pendulum_causaldae_fast")
    result = launch(clone, "test_pendulum_causaldae.sh")
    assert result.returncode == 2 and result.stderr.strip() == (
        "SIZE: expected one of the runs runs/pendulum_causaldae_fast runs/pendulum_causaldae_mini, got none; "
        "set SIZE=fast or RUN_DIR"
    )
    assert not (clone / ".venv").exists()
    assert value(dry_run(clone, "test_pendulum_causaldae.sh", SIZE="fast")[0], "--model_path") == fast


def test_a_missing_run_is_refused_before_the_set_up(clone: Path) -> None:
    make_run(clone, "pendulum_diffae_mini")
    make_run(clone, "pendulum_causaldae_mini")
    result = launch(clone, "test_pendulum_causaldae.sh", SIZE="paper")
    assert result.returncode == 2 and result.stderr.strip() == (
        "RUN_DIR: expected a run, found no runs/pendulum_causaldae_paper, but runs/pendulum_causaldae_mini "
        "runs/pendulum_diffae_mini; train one with scripts/train_pendulum_causaldae.sh, or set SIZE or RUN_DIR"
    )
    result = launch(clone, "counterfactual.sh")
    assert result.returncode == 2 and "runs/my data_causaldae_SIZE; train one with scripts/train.sh" in result.stderr
    assert not (clone / ".venv").exists()


def test_a_given_model_is_taken(clone: Path) -> None:
    make_run(clone, "pendulum_causaldae_mini")
    for arguments, variables in ((["--model_path", "gs://b/run"], {}), ([], {"RUN_DIR": "gs://b/run"})):
        (command,) = dry_run(clone, "test_pendulum_causaldae.sh", *arguments, **variables)
        assert value(command, "--model_path") == "gs://b/run" and value(command, "--out_dir") == "gs://b/run/test"


@pytest.mark.parametrize(
    ("dataset", "model", "data"),
    [
        ("mnist", "diffscm", "assets/mnist_share"),
        ("circuit", "causaldae", "assets/circuit_share"),
        ("morphomnist", "causaldae", "data/morphomnist_share"),
        ("pendulum", "causaldae", "data/pendulum"),
    ],
)
def test_shipped_weights_stand_in_for_a_run(clone: Path, dataset: str, model: str, data: str) -> None:
    """With a share of the data from the clone, so that nothing is downloaded and nothing takes long."""
    (clone / "assets" / f"{dataset}_share").mkdir(parents=True)
    (clone / "assets" / f"{dataset}_share" / "images").touch()
    name, script = f"{dataset}_{model}_mini", f"test_{dataset}_{model}.sh"
    weights = make_weights(clone, name)
    result = launch(clone, script, DRY_RUN="1", **NO_DATA)
    assert f"found no run; using the shipped weights weights/{name}" in result.stderr
    *make, command = dry_run(clone, script, **NO_DATA)
    assert value(command, "--model_path") == weights and value(command, "--out_dir") == str(clone / "out" / name)
    assert value(command, "--data_dir") == str(clone / data)
    assert [value(each, "--out") for each in make] == ([str(clone / data)] if data.startswith("data/") else [])
    assert not any("--download" in each for each in make)
    (command,) = dry_run(clone, script)  # DATA_DIR
    assert value(command, "--data_dir") == str(clone.parent / "my data")
    run = make_run(clone, name)
    *make, command = dry_run(clone, script, **NO_DATA)
    assert value(command, "--model_path") == run and value(command, "--data_dir") == str(clone / "data" / dataset)


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("flag", [["--dry_run", "True"], ["--dry_run=true"], ["--dry_run"]])
def test_a_dry_run_makes_no_data_and_no_predictor(clone: Path, flag: list[str]) -> None:
    (clone / "scripts" / "image_train.py").write_text("import sys; print('trained', *sys.argv[1:])")
    for script in ("train_morphomnist_causaldae.sh", "train_mnist_diffscm.sh", "train_circuit_diffae.sh"):
        result = launch(clone, script, *flag, **NO_DATA)
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith("trained ") and result.stdout.strip().endswith(" ".join(flag))
    assert not (clone / "data").exists() and not (clone / "runs").exists()
    (make, *_, train) = dry_run(clone, "train_morphomnist_causaldae.sh", "--dry_run", "False", **NO_DATA)
    assert "make_dataset.py" in make[1] and "image_train.py" in train[1]
    assert not (clone / "data").exists()


def test_data_dir_is_a_flag_too(clone: Path) -> None:
    folder = str(clone.parent / "my data")
    (train,) = dry_run(clone, "train_pendulum_causaldae.sh", "--data_dir", folder, **NO_DATA)
    assert train.count(folder) == 2


@pytest.mark.parametrize(("steps", "iterations"), [("20", ["--iterations", "20"]), ("999999", []), ("1e3", [])])
def test_few_steps_reach_the_predictor(clone: Path, steps: str, iterations: list[str]) -> None:
    """More steps than its configuration says are for the score network alone."""
    predictor, train = dry_run(clone, "train_mnist_diffscm.sh", "--total_steps", steps, SIZE="mini")
    given = predictor.index("--iterations") if "--iterations" in predictor else len(predictor)
    assert predictor[given : given + 2] == iterations
    assert train[-2:] == ["--total_steps", steps]


def test_a_predictor_of_fewer_steps_is_pointed_out(clone: Path) -> None:
    folder = clone / "runs" / "mnist_diffscm_mini" / "predictor"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"figures": {"training": {"iterations": 20}}}')
    message = f"{folder}: trained for 20 steps, now 3000 are requested; delete it to train it again"
    assert message in launch(clone, "train_mnist_diffscm.sh", SIZE="mini", DRY_RUN="1").stderr
    few = launch(clone, "train_mnist_diffscm.sh", "--total_steps=20", SIZE="mini", DRY_RUN="1")
    assert "delete it" not in few.stderr and few.stdout.count("image_train.py") == 1
