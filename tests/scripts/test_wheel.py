"""The wheel runs without the clone, in a new environment that takes its libraries from the present one."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from folders import make_folder
from paths import REPO

FEW = ["--total_steps=2", "--batch_size=4", "--num_channels=32", "--channel_mult=1,1", "--attention_resolutions=",
       "--encoder_channels=8,8", "--diffusion_steps=50", "--sample_interval=2", "--tensorboard=False"]  # fmt: skip
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*command: object, folder: Path) -> str:
    """Output of a command that succeeds, without the clone's variables."""
    variables = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    process = subprocess.run(
        [str(word) for word in command],
        env={"PATH": os.defpath, "OMP_NUM_THREADS": "1", **variables},
        cwd=folder, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no `build/` of the clone ends in it."""
    folder = tmp_path_factory.mktemp("wheel")
    kept = ("causaldiffae", "scripts", "classifiers", "configs")
    for name in kept:
        shutil.copytree(REPO / name, folder / "copy" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, folder / "copy" / name)
    build = ["-m", "build", "--wheel", "--no-isolation", "--outdir", folder, folder / "copy"]
    run(sys.executable, *build, folder=folder)
    (found,) = folder.glob("*.whl")
    return found


def make_environment(folder: Path, *package: object) -> Path:
    """The folder of the programs of a new environment with this package."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder.parent)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ["-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed"]
    run(folder / "bin" / "python", *install, *package, folder=folder.parent)
    return folder / "bin"


@pytest.fixture(scope="module")
def environment(wheel: Path) -> Path:
    return make_environment(wheel.parent / "env", wheel)


def test_every_configuration_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    configs = {f"causaldiffae/{path.relative_to(REPO)}" for path in REPO.glob("configs/**/*.yaml")}
    assert len(configs) > 20 and configs <= names
    assert not [name for name in names if name.startswith(("scripts/", "tests/", "weights/"))]


def test_a_model_of_your_own_images_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    command, images, run_dir = environment / "causaldiffae", tmp_path / "my_images", tmp_path / "run"
    make_folder(images)
    place = run(environment / "python", "-c", "import causaldiffae; print(causaldiffae.__file__)", folder=tmp_path)
    assert Path(place).is_relative_to(environment.parent)
    assert "make-dataset" in run(command, "--help", folder=tmp_path)
    assert "20" in run(command, "check", images, folder=tmp_path)
    run(command, "train", "--config", "folder_causaldae_mini", "--data_dir", images, "--run_dir", run_dir, *FEW,
        folder=tmp_path)  # fmt: skip
    assert json.loads((run_dir / "step_0000002" / "config.json").read_text())["config"]["train"]["total_steps"] == 2
    out = tmp_path / "out"
    run(command, "test", "--model_path", run_dir, "--data_dir", images, "--out_dir", out, "--steps=2", folder=tmp_path)
    assert (out / "counterfactuals.png").is_file()
    run(command, "plot", run_dir, "--out", tmp_path / "plots", folder=tmp_path)
    assert (tmp_path / "plots" / "run.html").is_file()


def test_an_editable_install_has_the_command(wheel: Path, tmp_path: Path) -> None:
    programs = make_environment(wheel.parent / "editable", "-e", wheel.parent / "copy")
    flags = ["--config", "pendulum_causaldae_mini", "--run_dir=unused"]
    assert "# memory: " in run(programs / "causaldiffae", "estimate", *flags, folder=tmp_path)
