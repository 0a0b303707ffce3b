"""Commands of the launchers (DRY_RUN=1), the set-up of the environment with a stand-in for Python and pip, restarts."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from launchers import SCRIPTS, dry_run, environment, launch, record
from paths import REPO

OTHERS = ["train.sh", "counterfactual.sh", "demo.sh", "explore.sh", "test.sh"]
LAUNCHERS = [p.name for p in SCRIPTS if p.name.startswith(("train_", "test_", "distill_"))] + OTHERS
# ---------------------------------------------------------------------- the scripts' text


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_valid_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-x", "-P", "SCRIPTDIR", str(script)], check=True)


@pytest.mark.parametrize("script", LAUNCHERS)
def test_launchers_are_short_executable_and_share_the_set_up(script: str) -> None:
    path = REPO / "scripts" / script
    lines = path.read_text().splitlines()
    assert os.access(path, os.X_OK) and 5 <= len(lines) <= 16
    assert any(line.startswith(". ") and ("setup_env.sh" in line or "launch.sh" in line) for line in lines)


# ---------------------------------------------------------------------- commands


def test_defaults(clone: Path) -> None:
    python, data, run = (
        str(clone / path) for path in (".venv/bin/python", "data/pendulum", "runs/pendulum_causaldae_paper")
    )
    arguments = ["--lr", "1e-3", "--x", "a b"]
    make, train = dry_run(clone, "train_pendulum_causaldae.sh", *arguments, DATA_DIR="")
    assert make == [python, str(clone / "scripts" / "make_dataset.py"), "pendulum", "--out", data]
    config = str(clone / "configs" / "pendulum_causaldae_paper.yaml")
    script = str(clone / "scripts" / "image_train.py")
    assert train == [python, script, "--config", config, "--data_dir", data, "--run_dir", run, *arguments]


def test_variables_override_defaults(clone: Path) -> None:
    data, given = clone.parent / "my data", {"SIZE": "mini", "RUN_DIR": "my run"}
    (test,) = dry_run(clone, "test_morphomnist_causaldae.sh", "--do", "thickness=4.5", **given)
    script = str(clone / "scripts" / "image_causaldae_test.py")
    paths = ["--model_path", "my run", "--data_dir", str(data), "--out_dir", "my run/test"]
    assert test[1:] == [script, *paths, "--do", "thickness=4.5"]
    (data / "something").unlink()  # an empty folder is filled
    make, train = dry_run(clone, "train_morphomnist_causaldae.sh", MNIST="raw idx", **given)
    assert make[2:] == ["morphomnist", "--mnist", "raw idx", "--out", str(data)]
    config = str(clone / "configs" / "morphomnist_causaldae_mini.yaml")
    assert train[2:] == ["--config", config, "--data_dir", str(data), "--run_dir", "my run"]
    assert "--download" in dry_run(clone, "train_morphomnist_causaldae.sh", **given)[0]


def test_distillation_takes_the_only_run_and_trains_a_student_beside_it(clone: Path) -> None:
    given = ["--few_steps", "2", "--minutes=30"]
    teacher = clone / "runs" / "pendulum_causaldae_fast" / "step_0000001"
    teacher.mkdir(parents=True)
    command = dry_run(clone, "distill_pendulum.sh", *given)[-1]
    run_dir = str(clone / "runs" / "pendulum_causaldae_fast_2step")
    assert command[1:4] == [str(clone / "scripts" / "distill.py"), "--model_path", str(teacher.parent)]
    assert command[6:] == ["--run_dir", run_dir, *given]
    named = dry_run(clone, "distill_pendulum.sh", "--model_path", "runs/mine/")[-1]
    assert named[named.index("--run_dir") + 1].endswith("/runs/mine_4step"), "also with the slash of a completion"
    chosen = dry_run(clone, "distill_pendulum.sh", "--model_path", "mine", RUN_DIR="my run")[-1]
    assert chosen[2:4] == ["--model_path", "mine"] and chosen[6:8] == ["--run_dir", "my run"]
    assert dry_run(clone, "distill_circuit.sh", NPROC="3", MPIEXEC="srun")[-1][:3] == ["srun", "-n", "3"]
    (alone,) = dry_run(clone, "distill_pendulum.sh", "--dry_run", "True", DATA_DIR="")
    assert alone[-2:] == ["--dry_run", "True"], "no data set is made"


@pytest.mark.parametrize("dataset", ["morphomnist", "pendulum", "circuit"])
@pytest.mark.parametrize("model", ["conditional", "diffae", "causalvae"])
def test_baselines_are_overrides_of_causaldiffae(clone: Path, dataset: str, model: str) -> None:
    (train,) = dry_run(clone, f"train_{dataset}_{model}.sh", "--lr", "1e-3", SIZE="mini")
    base, override = (f"configs/{name}.yaml" for name in (f"{dataset}_causaldae_mini", f"baselines/{model}"))
    run_dir = str(clone / "runs" / f"{dataset}_{model}_mini")
    assert train[2:6] == ["--config", str(clone / base), "--config", str(clone / override)]
    assert train[8:] == ["--run_dir", run_dir, "--lr", "1e-3"]
    (test,) = dry_run(clone, f"test_{dataset}_{model}.sh", SIZE="mini")
    script = f"scripts/image_{model}_test.py"
    assert test[1:4] == [str(clone / script), "--model_path", run_dir]
    assert all((REPO / path).is_file() for path in (base, override, script))


def test_diff_scm_trains_its_predictor_first(clone: Path) -> None:
    predictor, train = dry_run(clone, "train_mnist_diffscm.sh", SIZE="mini")
    configs = [str(clone / "configs" / f"{name}_mini.yaml") for name in ("noised", "mnist_diffscm")]
    run_dir = clone / "runs" / "mnist_diffscm_mini"
    assert predictor[1:6] == [
        str(clone / "classifiers/noised_classifier.py"),
        "--config",
        configs[0],
        "--score_config",
        configs[1],
    ]
    assert predictor[-2:] == ["--out", str(run_dir / "predictor")] and train[-2:] == ["--run_dir", str(run_dir)]
    (run_dir / "predictor").mkdir(parents=True)
    (run_dir / "predictor" / "config.json").touch()
    assert dry_run(clone, "train_mnist_diffscm.sh", SIZE="mini") == [train]


RECORDER = """\
import os, sys
with open(os.environ["RECORD"], "a") as record:
    record.write(" ".join([os.path.basename(sys.argv[0]), *sys.argv[-2:]]) + "\\n")
sys.exit(2 if "--lrr" in sys.argv else 0)
"""


def test_options_are_checked_before_data_and_predictor_are_made(clone: Path) -> None:
    (clone / "classifiers").mkdir()
    for name in ("scripts/image_train.py", "scripts/make_dataset.py", "classifiers/noised_classifier.py"):
        (clone / name).write_text(RECORDER)
    data, run_dir = clone.parent / "made", clone / "runs" / "mnist_diffscm_mini"
    where = {"SIZE": "mini", "DATA_DIR": str(data)}

    def trained(*arguments: str) -> tuple[int, list[str]]:
        code = launch(clone, "train_mnist_diffscm.sh", *arguments, **where).returncode
        return code, [line for line in record(clone) if ".py" in line and "site-packages" not in line]

    check, train = "image_train.py --dry_run True", "image_train.py --lr 1e-3"
    assert trained("--lrr", "3") == (2, [check])
    made = [f"make_dataset.py --out {data}", f"noised_classifier.py --out {run_dir / 'predictor'}"]
    assert trained("--lr", "1e-3") == (0, [check, *made, train])
    for path in (data / "images", run_dir / "predictor" / "config.json"):
        path.parent.mkdir(parents=True)
        path.touch()
    assert trained("--lr", "1e-3") == (0, [train])
    refused = launch(clone, "train.sh", "--data_dir", str(data), SIZE="latent", MODEL="causalvae", DRY_RUN="1")
    assert refused.returncode == 2 and "SIZE: expected paper, fast or mini with causalvae" in refused.stderr


def test_the_labels_of_a_run_are_those_of_its_predictor(clone: Path) -> None:
    given = ["--masking", "True", "--lr", "1e-3", "--label_fraction=0.1", "--num_images", "500", "--config", "my.yaml"]
    given += ["--config=more.yaml", "--graph", "g.yaml"]
    predictor, train = dry_run(clone, "train_mnist_diffscm.sh", *given, SIZE="mini")
    selected = ["--score_config", "my.yaml", "--score_config=more.yaml"]
    selected += ["--masking", "True", "--label_fraction=0.1", "--num_images", "500", "--graph", "g.yaml"]
    assert predictor[-4 - len(selected) : -4] == selected and predictor[-4] == "--data_dir"
    assert train[-len(given) :] == given


def test_your_own_folder(clone: Path) -> None:
    folder, given = str(clone.parent / "my images"), {"SIZE": "mini", "DATA_DIR": ""}
    (train,) = dry_run(clone, "train.sh", "--data_dir", folder, "--graph", "g.yaml", **given)
    run_dir = str(clone / "runs" / "my images_causaldae_mini")
    config = str(clone / "configs" / "folder_causaldae_mini.yaml")
    own = ["--data_dir", folder, "--graph", "g.yaml"]
    assert train[2:] == ["--config", config, "--data_dir", folder, "--run_dir", run_dir, *own]
    (test,) = dry_run(clone, "counterfactual.sh", f"--data_dir={folder}", "--do", "age=60", **given)
    script = str(clone / "scripts" / "image_causaldae_test.py")
    assert test[1:6] == [script, "--model_path", run_dir, "--data_dir", folder]
    (other,) = dry_run(clone, "train.sh", **given | {"DATA_DIR": folder}, MODEL="diffae")
    assert str(clone / "configs" / "baselines" / "diffae.yaml") in other


def test_larger_images_get_an_autoencoder_first(clone: Path) -> None:
    folder = str(clone.parent / "my images")
    given = ["--data_dir", folder, "--image_size=256", "--lr", "1e-3", "--graph", "g.yaml"]
    encoder, train = dry_run(clone, "train.sh", *given, SIZE="latent", DATA_DIR="")
    run_dir = clone / "runs" / "my images_causaldae_latent"
    own = ["--dataset", "folder", "--data_dir", folder, "--image_size", "128", "--image_size=256", "--graph", "g.yaml"]
    assert encoder[1:] == [str(clone / "scripts/train_autoencoder.py"), *own, "--out", str(run_dir / "autoencoder")]
    config = str(clone / "configs" / "folder_causaldae_latent.yaml")
    paths = ["--data_dir", folder, "--run_dir", str(run_dir), "--vae_path", str(run_dir / "autoencoder")]
    assert train[2:] == ["--config", config, *paths, *given]
    (run_dir / "autoencoder").mkdir(parents=True)
    (run_dir / "autoencoder" / "config.json").touch()
    assert dry_run(clone, "train.sh", *given, SIZE="latent", DATA_DIR="") == [train]
    mine = clone.parent / "mine.yaml"
    mine.write_text('image_size: 64  # small\nlr: 1.0e-3\ngraph: "h.yaml"\n')
    for form in (["--config", str(mine)], [f"--config={mine}"]):
        where = {"SIZE": "latent", "DATA_DIR": "", "RUN_DIR": str(clone.parent / "new")}
        encoder, _ = dry_run(clone, "train.sh", "--data_dir", folder, *form, **where)
        assert encoder[6:-2] == ["--image_size", "128", "--image_size", "64", "--graph", "h.yaml"]
    chosen = ["--data_dir", folder, "--vae_path", "sd-vae"]
    (other,) = dry_run(clone, "train.sh", *chosen, SIZE="latent", MODEL="diffscm", DATA_DIR="")
    assert other[-4:] == chosen and "noised_classifier.py" not in str(other)
    (other,) = dry_run(clone, "train.sh", *chosen, SIZE="fast", MODEL="diffscm", DATA_DIR="")
    assert other[-4:] == chosen, "a predictor of pixels does not guide a model of codes"
    refused = launch(clone, "train.sh", "--data_dir", folder, SIZE="latent", RUN_DIR="gs://bucket/run", DRY_RUN="1")
    assert refused.returncode == 2 and "RUN_DIR: expected a local folder" in refused.stderr


def test_several_processes(clone: Path) -> None:
    python = str(clone / ".venv" / "bin" / "python")
    command = dry_run(clone, "train_pendulum_causaldae.sh", MPIEXEC="srun --mpi=pmix", NPROC="5")[-1]
    assert command[:5] == ["srun", "--mpi=pmix", "-n", "5", python]
    assert not any("mpi]" in line for line in record(clone))
    mpiexec = clone / ".venv" / "bin" / "mpiexec"
    mpiexec.write_text("#!/bin/sh\n")
    mpiexec.chmod(0o755)
    command = dry_run(clone, "train_pendulum_causaldae.sh", NPROC="5")[-1]
    assert command[:4] == [str(mpiexec), "-n", "5", python]
    assert record(clone)[-2].endswith(f"install -e {clone}[mpi]")


@pytest.mark.parametrize(
    ("script", "arguments", "end", "extras"),
    [
        ("train_circuit_causaldae.sh", [], [], "[dev,circuit]"),
        ("test_circuit_causaldae.sh", ["--do", "arm=0.5"], ["--do", "arm=0.5"], "[dev,circuit]"),
        ("test_imagenet_diffscm.sh", ["--do", "tiger"], ["--do", "tiger"], "[dev,imagenet]"),
    ],
)
def test_launchers_install_their_extras(
    clone: Path, script: str, arguments: list[str], end: list[str], extras: str
) -> None:
    commands = dry_run(clone, script, *arguments, DATA_DIR="", EXTRAS="dev", OUT_DIR="out")
    assert commands[-1][-len(end) :] == end or not end
    assert record(clone)[-2].endswith(f"install -e {clone}{extras}")
    if script.startswith("train"):
        assert commands[0][2:] == ["circuit", "--image_size", "128", "--out", str(clone / "data" / "circuit")]
    if "imagenet" in script:
        assert commands[0][1:4] == [str(clone / "scripts" / "imagenet_diffscm_test.py"), "--out_dir", "out"]


@pytest.mark.parametrize(
    ("script", "variables", "message"),
    [
        ("train_pendulum_causaldae.sh", {"SIZE": "huge"}, "SIZE: expected paper, fast, mini or latent, got huge"),
        ("train_pendulum_causaldae.sh", {"NPROC": "0"}, "NPROC: expected a positive number, got 0"),
        ("train_pendulum_causaldae.sh", {"RESTARTS": "many"}, "RESTARTS: expected a number, got many"),
        ("train.sh", {"DATA_DIR": ""}, "data_dir: expected the folder of your images, got none; set --data_dir"),
    ],
)
def test_wrong_variables_are_refused_first(clone: Path, script: str, variables: dict[str, str], message: str) -> None:
    result = launch(clone, script, **variables)
    assert (result.returncode, result.stderr.strip()) == (2, message)
    assert not (clone / ".venv").exists()


# ---------------------------------------------------------------------- set-up


def test_the_set_up_runs_once_and_again_after_a_change(clone: Path) -> None:
    def installed(**variables: str) -> list[str]:
        assert dry_run(clone, "train_pendulum_causaldae.sh", **variables)
        return record(clone)

    first = installed()
    assert first[0] == "venv"
    assert first[1].endswith("install torch>=2.11 torchvision")  # one command for both
    assert first[2].endswith(f"install -e {clone}")
    assert first[3:] == ["checked"]
    assert (clone / ".venv" / "setup.log").exists()
    assert installed() == []
    assert installed(EXTRAS="dev")[-2].endswith(f"install -e {clone}[dev]")
    assert installed() == []  # fewer extras are needed than installed
    assert installed(EXTRAS="mpi")[-2].endswith("[dev,mpi]")
    build = "torch==2.12.0 torchvision==0.27.0 --index-url https://host/cpu"
    removed, other = installed(CAUSALDIFFAE_TORCH=build)[:2]  # pip would keep an installed build of that version
    assert removed.endswith("uninstall -y torch torchvision") and other.endswith(f"install {build}")
    assert installed() == []  # the requested build is kept
    (clone / "setup.py").write_text((clone / "setup.py").read_text() + "# changed\n")
    assert len(installed()) == 3
    clone = clone.rename(clone.with_name("moved clone"))
    assert installed()[0] == "venv"  # an environment contains its path


def test_a_failed_set_up_is_reported_and_repeated(clone: Path) -> None:
    result = launch(clone, "train_pendulum_causaldae.sh", DRY_RUN="1", FAIL_ON="install -e")
    assert (result.returncode, result.stdout) == (1, "")
    assert "no space left" in result.stderr and "[setup] error: installing this clone: failed" in result.stderr
    assert "Traceback" not in result.stderr
    record(clone)
    assert dry_run(clone, "train_pendulum_causaldae.sh")
    assert len(record(clone)) == 3  # the environment is kept, the installation repeated


def test_a_missing_python_is_reported(clone: Path) -> None:
    result = launch(clone, "demo.sh", NO_ENSUREPIP="1")
    assert result.returncode == 1 and "python3: expected the modules venv and ensurepip" in result.stderr
    (clone.parent / "bin" / "python3").unlink()
    result = launch(clone, "demo.sh")
    assert result.returncode == 1 and "expected Python 3.10 or newer" in result.stderr
    assert not (clone / ".venv").exists()


def test_another_environment_is_set_up_or_refused(clone: Path) -> None:
    other, full = clone.parent / "other env", clone.parent / "full"
    (command,) = dry_run(clone, "test_pendulum_causaldae.sh", CAUSALDIFFAE_VENV=str(other))
    assert command[0] == str(other / "bin" / "python") and not (clone / ".venv").exists()
    assert len(record(clone)) == 4
    full.mkdir()
    (full / "thesis.tex").touch()
    result = launch(clone, "test_pendulum_causaldae.sh", CAUSALDIFFAE_VENV=str(full), RUN_DIR="run")
    assert result.returncode == 1 and "CAUSALDIFFAE_VENV: expected an environment" in result.stderr
    assert [path.name for path in full.iterdir()] == ["thesis.tex"]


def test_an_environment_of_two_clones_names_the_one_it_leaves(clone: Path) -> None:
    other = shutil.copytree(clone, clone.parent / "another clone")
    shared = {"CAUSALDIFFAE_VENV": str(clone.parent / "shared env"), "DRY_RUN": "1", "RUN_DIR": "run"}
    assert "note:" not in launch(clone, "test_pendulum_causaldae.sh", **shared).stderr
    assert "note:" not in launch(clone, "test_pendulum_causaldae.sh", **shared, EXTRAS="dev").stderr
    taken = launch(other, "test_pendulum_causaldae.sh", **shared)
    env = clone.parent / "shared env"
    assert f"{env} was set up for the clone {clone}; its package and command now come from {other}" in taken.stderr


def test_another_clone_on_the_path_is_ignored(clone: Path) -> None:
    foreign = clone.parent / "foreign" / "causaldiffae"
    foreign.mkdir(parents=True)
    (foreign / "__init__.py").write_text("raise SystemExit('the wrong package')")
    probe = clone / "scripts" / "image_causaldae_test.py"
    probe.write_text("import causaldiffae, os; print(causaldiffae.__file__, os.environ['PYTHONNOUSERSITE'])")
    result = launch(clone, "test_pendulum_causaldae.sh", PYTHONPATH=str(foreign.parent), RUN_DIR="run")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"{clone / 'causaldiffae' / '__init__.py'} 1"


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is not installed")
def test_two_launchers_at_once_install_once(clone: Path) -> None:
    env = environment(clone, DRY_RUN="1")
    commands = [["bash", str(clone / "scripts" / f"{task}_pendulum_causaldae.sh")] for task in ("test", "train")]
    running = [subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) for command in commands]
    assert [process.wait(60) for process in running] == [0, 0]
    assert len(record(clone)) == 4


# ---------------------------------------------------------------------- restarts and signals


@pytest.mark.parametrize(
    ("endings", "restarts", "code", "lives"),
    [
        ("0", "3", 0, 1),
        ("killed 1 0", "3", 0, 3),
        ("killed killed killed", "1", 137, 2),
        ("killed", "0", 137, 1),
        ("early", "3", 137, 1),  # without a new checkpoint the next start would end alike
        ("killed early", "3", 137, 2),
        ("2", "3", 2, 1),  # an error in the input
        ("killed stopped", "3", 137, 2),  # a crash after the launcher has received SIGTERM
    ],
)
def test_training_resumes_after_a_crash(crashing: Path, endings: str, restarts: str, code: int, lives: int) -> None:
    run_dir = crashing.parent / "my run"
    given = {"ENDINGS": endings, "RESTARTS": restarts, "RUN_DIR": str(run_dir)}
    result = launch(crashing, "train_pendulum_causaldae.sh", **given)
    assert result.returncode == code, result.stderr
    assert len((run_dir / "lives").read_text()) == lives
    assert result.stderr.count("resuming from its newest checkpoint") == lives - 1


@pytest.mark.parametrize(("number", "name"), [("TERM", "SIGTERM"), ("USR1", "SIGUSR1"), ("INT", "SIGTERM")])
def test_signals_reach_the_training(crashing: Path, number: str, name: str) -> None:
    assert dry_run(crashing, "train_pendulum_causaldae.sh")  # makes the environment
    env = environment(crashing, ENDINGS="wait", RUN_DIR=str(crashing.parent / "run"))
    command = ["bash", str(crashing / "scripts" / "train_pendulum_causaldae.sh")]

    def restore_interrupts() -> None:  # a background process ignores Ctrl-C, and a shell cannot undo that
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, text=True, preexec_fn=restore_interrupts
    ) as launcher:
        assert launcher.stdout is not None and launcher.stdout.readline() == "waiting\n"
        launcher.send_signal(getattr(signal, f"SIG{number}"))
        out, _ = launcher.communicate(timeout=30)
    assert (launcher.returncode, out) == (0, f"stopped by {name}\n")
