"""What launchers would run (DRY_RUN=1), and how the set-up behaves, with a small stand-in for Python and pip."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from paths import REPO

SCRIPTS = sorted([*REPO.glob("scripts/*.sh"), REPO / ".ci" / "run"])
CONFIGS = sorted(REPO.glob("configs/*.yaml"))
LAUNCHERS = [p.name for p in SCRIPTS if p.name.startswith(("train_", "test_"))] + ["train.sh", "counterfactual.sh"]

# Plays an environment's python: everything that would install or check libraries is written to a record instead.
STAND_IN = """\
#!/bin/sh
case "$*" in
*"-m pip install"*)
    echo "$*" >>"$RECORD"
    case "$*" in *"$FAIL_ON"*) [ -z "$FAIL_ON" ] || { echo "no space left"; exit 1; } ;; esac
    exit 0 ;;
"-m pip --version") exit 0 ;;
*torchvision.ops.nms*) echo checked >>"$RECORD"; exit 0 ;;
*"import ensurepip, venv"*) exit ${NO_ENSUREPIP:-0} ;;
"-m virtualenv"*) exit 1 ;;
"-m venv"*)
    echo "venv" >>"$RECORD"
    for last; do :; done
    mkdir -p "$last/bin" && cp "$0" "$last/bin/python"
    exit 0 ;;
esac
exec 'PYTHON' -S "$@"
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the parts that launchers need, at a path with spaces."""
    copy = tmp_path / "a clone with spaces"
    for path in [*SCRIPTS, *CONFIGS, REPO / "setup.py", REPO / "causaldiffae" / "__init__.py"]:
        target = copy / path.relative_to(REPO)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    stand_in = tmp_path / "bin" / "python3"
    stand_in.parent.mkdir()
    stand_in.write_text(STAND_IN.replace("PYTHON", sys.executable))
    stand_in.chmod(0o755)
    return copy


TOOLS = ["bash", "cat", "cp", "cut", "dirname", "flock", "grep", "ls", "mkdir", "mv", "rm", "sleep", "tail"]


def search_path(clone: Path) -> str:
    """A shell's tools and the stand-in: no other Python may be found, or a test would install for real."""
    tools = clone.parent / "tools"
    tools.mkdir(exist_ok=True)
    for name in TOOLS:
        found = shutil.which(name)
        if found and not (tools / name).exists():
            (tools / name).symlink_to(found)
    return f"{clone.parent / 'bin'}:{tools}"


def launch(clone: Path, script: str, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if name in ("HOME", "LANG", "TMPDIR")}
    environment = {
        "PATH": search_path(clone),
        "RECORD": str(clone.parent / "record"),
        "FAIL_ON": "",
        **kept,
        **variables,
    }
    command = ["bash", str(clone / "scripts" / script), *arguments]
    elsewhere = clone.parent / "else where"
    elsewhere.mkdir(exist_ok=True)
    return subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=60)


def commands(result: "subprocess.CompletedProcess[str]") -> list[list[str]]:
    """The command lines of a dry run, split as the shell would."""
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines()]


def record(clone: Path) -> list[str]:
    path = clone.parent / "record"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_valid_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-x", "-P", "SCRIPTDIR", str(script)], check=True)


@pytest.mark.parametrize("script", [*LAUNCHERS, "demo.sh", "explore.sh", "test.sh"])
def test_launchers_are_short_executable_and_share_the_set_up(script: str) -> None:
    path = REPO / "scripts" / script
    assert os.access(path, os.X_OK)
    lines = path.read_text().splitlines()
    assert 5 <= len(lines) <= 16
    assert any(line.startswith(". ") and ("setup_env.sh" in line or "launch.sh" in line) for line in lines)


def test_train_defaults(clone: Path) -> None:
    python = str(clone / ".venv" / "bin" / "python")
    make, train = commands(launch(clone, "train_pendulum_causaldae.sh", "--lr", "1e-3", "--x", "a b", DRY_RUN="1"))
    data = str(clone / "data" / "pendulum")
    assert make == [python, str(clone / "scripts" / "make_dataset.py"), "pendulum", "--out", data]
    assert train == [
        *[python, str(clone / "scripts" / "image_train.py")],
        *["--config", str(clone / "configs" / "pendulum_causaldae_paper.yaml"), "--data_dir", data],
        *["--run_dir", str(clone / "runs" / "pendulum_causaldae_paper"), "--lr", "1e-3", "--x", "a b"],
    ]


def test_variables(clone: Path) -> None:
    data = clone.parent / "my data"
    data.mkdir()
    given = {"SIZE": "mini", "DATA_DIR": str(data), "RUN_DIR": "my run", "MNIST": "raw idx", "DRY_RUN": "1"}
    make, train = commands(launch(clone, "train_morphomnist_causaldae.sh", **given))
    assert make[2:] == ["morphomnist", "--mnist", "raw idx", "--out", str(data)]
    assert train[2:] == [
        *["--config", str(clone / "configs" / "morphomnist_causaldae_mini.yaml")],
        *["--data_dir", str(data), "--run_dir", "my run"],
    ]
    (data / "something").touch()  # the set is there
    (test,) = commands(launch(clone, "test_morphomnist_causaldae.sh", "--do", "thickness=4.5", **given))
    assert test[1:] == [
        *[str(clone / "scripts" / "image_causaldae_test.py"), "--model_path", "my run", "--data_dir", str(data)],
        *["--out_dir", "my run/test", "--do", "thickness=4.5"],
    ]
    (data / "something").unlink()
    del given["MNIST"]
    assert "--download" in commands(launch(clone, "train_morphomnist_causaldae.sh", **given))[0]


@pytest.mark.parametrize("dataset", ["morphomnist", "pendulum", "circuit"])
@pytest.mark.parametrize("model", ["conditional", "diffae", "causalvae"])
def test_models_of_comparison(clone: Path, dataset: str, model: str) -> None:
    """CausalDiffAE's configuration with the model's own over it, and a test script of its own."""
    data = clone.parent / "data"
    data.mkdir()
    (data / "something").touch()
    given = {"SIZE": "mini", "DATA_DIR": str(data), "DRY_RUN": "1"}
    (train,) = commands(launch(clone, f"train_{dataset}_{model}.sh", "--lr", "1e-3", **given))
    run_dir = str(clone / "runs" / f"{dataset}_{model}_mini")
    assert train[2:] == [
        *["--config", str(clone / "configs" / f"{dataset}_causaldae_mini.yaml")],
        *["--config", str(clone / "configs" / "baselines" / f"{model}.yaml")],
        *["--data_dir", str(data), "--run_dir", run_dir, "--lr", "1e-3"],
    ]
    assert (REPO / "configs" / "baselines" / f"{model}.yaml").is_file()
    (test,) = commands(launch(clone, f"test_{dataset}_{model}.sh", **given))
    assert test[1:4] == [str(clone / "scripts" / f"image_{model}_test.py"), "--model_path", run_dir]
    assert (REPO / "scripts" / f"image_{model}_test.py").is_file()


def test_your_own_folder(clone: Path) -> None:
    folder = str(clone.parent / "my images")
    given = {"SIZE": "mini", "DRY_RUN": "1"}
    (train,) = commands(launch(clone, "train.sh", "--data_dir", folder, "--graph", "g.yaml", **given))
    run_dir = str(clone / "runs" / "my images_causaldae_mini")
    assert train[2:] == [
        *["--config", str(clone / "configs" / "folder_causaldae_mini.yaml"), "--data_dir", folder],
        *["--run_dir", run_dir, "--data_dir", folder, "--graph", "g.yaml"],
    ]
    (asked,) = commands(launch(clone, "counterfactual.sh", f"--data_dir={folder}", "--do", "age=60", **given))
    assert asked[1:7] == [
        *[str(clone / "scripts" / "image_causaldae_test.py"), "--model_path", run_dir],
        *["--data_dir", folder, "--out_dir"],
    ]
    (other,) = commands(launch(clone, "train.sh", DATA_DIR=folder, MODEL="diffae", **given))
    assert str(clone / "configs" / "baselines" / "diffae.yaml") in other
    refused = launch(clone, "train.sh", **given)
    assert refused.returncode == 2
    assert refused.stderr.strip() == "data_dir: it is not given; --data_dir must name the folder of your images"


def test_many_processes(clone: Path) -> None:
    dry = {"DRY_RUN": "1", "NPROC": "5"}
    with_starter = commands(launch(clone, "train_pendulum_causaldae.sh", MPIEXEC="srun --mpi=pmix", **dry))[-1]
    assert with_starter[:5] == ["srun", "--mpi=pmix", "-n", "5", str(clone / ".venv" / "bin" / "python")]
    assert not any("mpi]" in line for line in record(clone))
    mpiexec = clone / ".venv" / "bin" / "mpiexec"
    mpiexec.write_text("#!/bin/sh\n")
    mpiexec.chmod(0o755)
    command = commands(launch(clone, "train_pendulum_causaldae.sh", **dry))[-1]
    assert command[:4] == [str(mpiexec), "-n", "5", str(clone / ".venv" / "bin" / "python")]
    assert any(line.endswith(f"install -e {clone}[mpi]") for line in record(clone))


@pytest.mark.parametrize(
    ("variables", "message"),
    [({"SIZE": "huge"}, "SIZE: huge is unknown, allowed are paper, fast, mini"), ({"NPROC": "0"}, "NPROC: 0 is no")],
)
def test_wrong_variables_are_refused_before_anything_is_made(clone: Path, variables: dict, message: str) -> None:
    result = launch(clone, "train_pendulum_causaldae.sh", **variables)
    assert result.returncode == 2
    assert message in result.stderr
    assert not (clone / ".venv").exists()


def test_set_up_once_and_again_when_something_changed(clone: Path) -> None:
    def dry(script: str = "train_pendulum_causaldae.sh", **variables: str) -> list[str]:
        assert commands(launch(clone, script, DRY_RUN="1", **variables))
        return record(clone)

    first = dry()
    assert first[0] == "venv"
    assert first[1].endswith("install torch>=2.11 torchvision")  # one command for both
    assert first[2].endswith(f"install -e {clone}")
    assert first[3:] == ["checked"]
    assert (clone / ".venv" / "setup.log").exists()
    assert dry() == []
    assert dry(EXTRAS="dev")[-2].endswith(f"install -e {clone}[dev]")
    assert dry() == []  # more than enough is there
    assert dry(EXTRAS="mpi")[-2].endswith("[dev,mpi]")
    named = dry(CAUSALDIFFAE_TORCH="torch==2.12.0 torchvision==0.27.0 --index-url https://host/cpu")
    assert named[0].endswith("install torch==2.12.0 torchvision==0.27.0 --index-url https://host/cpu")
    assert dry() == []  # the build that was asked for stays
    (clone / "setup.py").write_text((clone / "setup.py").read_text() + "# changed\n")
    assert len(dry()) == 3
    moved = clone.with_name("moved clone")
    clone.rename(moved)
    clone = moved
    assert dry()[0] == "venv"  # an environment points to where it was made


def test_a_failed_set_up_says_why_and_is_tried_again(clone: Path) -> None:
    result = launch(clone, "train_pendulum_causaldae.sh", DRY_RUN="1", FAIL_ON="install -e")
    assert result.returncode == 1
    assert result.stdout == ""
    assert "no space left" in result.stderr
    assert "[setup] error: the requirements could not be installed" in result.stderr
    assert "Traceback" not in result.stderr
    record(clone)
    assert commands(launch(clone, "train_pendulum_causaldae.sh", DRY_RUN="1"))
    assert len(record(clone)) == 3  # the environment stayed, the installation ran again


def test_no_usable_python_is_said(clone: Path) -> None:
    result = launch(clone, "demo.sh", NO_ENSUREPIP="1")
    assert result.returncode == 1
    assert "python3 cannot make an environment: its modules venv and ensurepip are missing" in result.stderr
    (clone.parent / "bin" / "python3").unlink()
    result = launch(clone, "demo.sh")
    assert result.returncode == 1
    assert "Python 3.10 or newer is needed" in result.stderr
    assert not (clone / ".venv").exists()


def test_another_environment_is_used_or_refused(clone: Path) -> None:
    other = clone.parent / "other env"
    (command,) = commands(launch(clone, "test_pendulum_causaldae.sh", DRY_RUN="1", CAUSALDIFFAE_VENV=str(other)))[1:]
    assert command[0] == str(other / "bin" / "python")
    assert not (clone / ".venv").exists()
    assert len(record(clone)) == 4
    full = clone.parent / "full"
    full.mkdir()
    (full / "thesis.tex").touch()
    result = launch(clone, "test_pendulum_causaldae.sh", CAUSALDIFFAE_VENV=str(full))
    assert result.returncode == 1
    assert "is no environment with Python 3.10 or newer" in result.stderr
    assert [path.name for path in full.iterdir()] == ["thesis.tex"]


def test_a_package_from_elsewhere_is_not_taken(clone: Path) -> None:
    foreign = clone.parent / "foreign"
    (foreign / "causaldiffae").mkdir(parents=True)
    (foreign / "causaldiffae" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    probe = clone / "scripts" / "image_causaldae_test.py"
    probe.write_text("import causaldiffae, os; print(causaldiffae.__file__, os.environ['PYTHONNOUSERSITE'])")
    data = clone.parent / "data"
    data.mkdir()
    (data / "x").touch()
    result = launch(clone, "test_pendulum_causaldae.sh", PYTHONPATH=str(foreign), DATA_DIR=str(data))
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"{clone / 'causaldiffae' / '__init__.py'} 1"


def test_two_launchers_at_once_install_once(clone: Path) -> None:
    if shutil.which("flock") is None:
        pytest.skip("there is no flock")
    script = clone.parent / "both.sh"
    script.write_text(
        textwrap.dedent("""\
        set -e
        "$1/scripts/test_pendulum_causaldae.sh" & first=$!
        "$1/scripts/train_pendulum_causaldae.sh" & second=$!
        wait $first
        wait $second
        """)
    )
    environment = {"PATH": search_path(clone), "RECORD": str(clone.parent / "record")}
    subprocess.run(
        ["bash", str(script), str(clone)],
        env=environment | {"DRY_RUN": "1", "FAIL_ON": ""},
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert len(record(clone)) == 4


def test_circuit_brings_its_extra(clone: Path) -> None:
    make, train = commands(launch(clone, "train_circuit_causaldae.sh", DRY_RUN="1", SIZE="fast", EXTRAS="dev"))
    assert make[2:] == ["circuit", "--image_size", "128", "--out", str(clone / "data" / "circuit")]
    assert train[2:4] == ["--config", str(clone / "configs" / "circuit_causaldae_fast.yaml")]
    assert any(line.endswith(f"install -e {clone}[dev,circuit]") for line in record(clone))
    test = commands(launch(clone, "test_circuit_causaldae.sh", "--do", "arm=0.5", DRY_RUN="1"))[-1]
    assert test[1] == str(clone / "scripts" / "image_causaldae_test.py") and test[-2:] == ["--do", "arm=0.5"]


def test_imagenet_brings_its_extra(clone: Path) -> None:
    script, *rest = commands(launch(clone, "test_imagenet_diffscm.sh", "--do", "tiger", DRY_RUN="1"))[-1][1:]
    assert script == str(clone / "scripts" / "imagenet_diffscm_test.py")
    assert rest == ["--out_dir", str(clone / "out" / "imagenet"), "--do", "tiger"]
    assert any(line.endswith(f"install -e {clone}[imagenet]") for line in record(clone))
    rest = commands(launch(clone, "test_imagenet_diffscm.sh", DRY_RUN="1", OUT_DIR="/elsewhere"))[-1]
    assert rest[-2:] == ["--out_dir", "/elsewhere"]


TRAINER = """\
import os, pathlib, signal, sys, time
run_dir = pathlib.Path(sys.argv[sys.argv.index("--run_dir") + 1])
run_dir.mkdir(parents=True, exist_ok=True)
lives = run_dir / "lives"
life = len(lives.read_text()) + 1 if lives.exists() else 1
lives.write_text("x" * life)
ending = os.environ["ENDINGS"].split()[life - 1]
if ending != "early":
    (run_dir / f"step_{life:07d}").mkdir()
if ending in ("killed", "early"):
    os.kill(os.getpid(), signal.SIGKILL)
if ending == "wait":
    def stop(number, _):
        os.write(1, f"stopped by {signal.Signals(number).name}\\n".encode())
        os._exit(0)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGUSR1, stop)
    os.write(1, b"waiting\\n")
    time.sleep(60)
    sys.exit(1)
sys.exit(int(ending))
"""


@pytest.fixture
def crashing(clone: Path) -> Path:
    """A clone whose training ends as `ENDINGS` says, one word for each time it is started."""
    (clone / "scripts" / "image_train.py").write_text(TRAINER)
    data = clone.parent / "data"
    data.mkdir()
    (data / "something").touch()
    return clone


@pytest.mark.parametrize(
    ("endings", "restarts", "code", "lives"),
    [
        ("0", "3", 0, 1),
        ("killed 1 0", "3", 0, 3),
        ("killed killed killed", "1", 137, 2),
        ("killed", "0", 137, 1),
        ("early", "3", 137, 1),  # without a checkpoint since the start the next life would end alike
        ("killed early", "3", 137, 2),
        ("2", "3", 2, 1),  # for the user to mend
    ],
)
def test_after_a_crash_training_goes_on(crashing: Path, endings: str, restarts: str, code: int, lives: int) -> None:
    run_dir = crashing.parent / "my run"
    given = {"DATA_DIR": str(crashing.parent / "data"), "RUN_DIR": str(run_dir), "RESTARTS": restarts}
    result = launch(crashing, "train_pendulum_causaldae.sh", ENDINGS=endings, **given)
    assert result.returncode == code, result.stderr
    assert len((run_dir / "lives").read_text()) == lives
    assert result.stderr.count("it goes on from its newest checkpoint") == lives - 1


@pytest.mark.parametrize(("number", "name"), [("TERM", "SIGTERM"), ("USR1", "SIGUSR1"), ("INT", "SIGTERM")])
def test_signals_reach_the_training(crashing: Path, number: str, name: str) -> None:
    assert launch(crashing, "train_pendulum_causaldae.sh", DRY_RUN="1").returncode == 0  # the environment is there
    environment = {"PATH": search_path(crashing), "RECORD": str(crashing.parent / "record"), "FAIL_ON": ""}
    environment |= {"ENDINGS": "wait", "RUN_DIR": str(crashing.parent / "run")}
    environment |= {"DATA_DIR": str(crashing.parent / "data")}
    command = ["bash", str(crashing / "scripts" / "train_pendulum_causaldae.sh")]

    def attend() -> None:  # tests that run in the background ignore Ctrl-C, and a shell could not undo that
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=attend) as launcher:
        assert launcher.stdout is not None and launcher.stdout.readline() == "waiting\n"
        launcher.send_signal(getattr(signal, f"SIG{number}"))
        out, _ = launcher.communicate(timeout=30)
    assert (launcher.returncode, out) == (0, f"stopped by {name}\n")


def test_restarts_must_be_a_number(clone: Path) -> None:
    result = launch(clone, "train_pendulum_causaldae.sh", RESTARTS="many")
    assert result.returncode == 2
    assert "RESTARTS: many is no number of restarts" in result.stderr
