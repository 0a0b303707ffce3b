"""`scripts/make_dataset.py`: one line and exit code 2 for what the user can mend, nothing half-written."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from paths import REPO

from causaldiffae.datasets.registry import DATASETS
from causaldiffae.files.idx import read_idx, write_idx
from causaldiffae.generators import pendulum

SCRIPT = REPO / "scripts" / "make_dataset.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_dataset", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_dataset"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    folder = tmp_path / "mnist"
    folder.mkdir()
    images = np.zeros((4, 28, 28), np.uint8)
    images[:, 6:22, 12:16] = 255
    for split in ("train", "t10k"):
        write_idx(folder / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte.gz", np.ones(4, np.uint8))
    return folder


def test_every_data_set_can_be_made(script: ModuleType) -> None:
    assert set(script.RECIPES) == set(DATASETS) - {"folder"}


def test_pendulum(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pendulum, "grid", lambda: (np.repeat([0, 4], 3), np.tile([61, 90, 110], 2)))
    assert script.main(["pendulum", "--out", str(tmp_path / "set"), "--workers", "1"]) == 0
    output = capsys.readouterr()
    assert output.out.strip() == str(tmp_path / "set") and "pendulum" in output.err  # the progress bar
    assert len(list((tmp_path / "set/train").glob("*.png"))) == 5


def test_morphomnist_with_two_processes(mnist: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "morphomnist", "--mnist", str(mnist), "--out", str(tmp_path / "a/set")]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    done = subprocess.run(
        [*command, "--num_train", "3", "--num_test", "0", "--workers", "2", "--quiet"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert read_idx(tmp_path / "a/set/train-images-idx3-ubyte.gz").shape == (3, 28, 28)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["set"]


def test_a_refusal_is_one_line_and_writes_nothing(
    script: ModuleType, mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set"
    for arguments, message in (
        (["--mnist", str(tmp_path / "none")], f"error: {tmp_path}/none: folder not found"),
        (["--mnist", str(mnist), "--num_train", "9"], "error: num_train: expected 0..4, got 9"),
        (["--mnist", str(mnist), "--workers", "0"], "error: workers: expected 1 or more, got 0"),
        ([], "error: --mnist: expected the folder with MNIST's four IDX files, or --download"),
    ):
        assert script.main(["morphomnist", "--out", str(out), *arguments]) == 2
        output = capsys.readouterr()
        assert output.err.strip() == message and not output.out
        assert [path.name for path in tmp_path.iterdir()] == ["mnist"]


def test_a_url_is_no_output(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert script.main(["mnist", "--out", "gs://bucket/set", "--source", "none"]) == 2
    assert capsys.readouterr().err == "error: out: expected a local path, got gs://bucket/set\n"
    assert not list(tmp_path.iterdir())


def test_a_failed_download_is_one_line(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no\nnetwork")

    monkeypatch.setattr("torchvision.datasets.MNIST", fail)
    assert script.main(["morphomnist", "--out", str(tmp_path / "set"), "--download"]) == 2
    assert (
        capsys.readouterr().err == f"error: --download: MNIST could not be fetched into {tmp_path}/mnist (no network)\n"
    )
    assert not (tmp_path / "set").exists()


def test_an_interrupt_is_one_line_and_leaves_nothing(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pendulum, "render", interrupt)
    assert script.main(["pendulum", "--out", str(tmp_path / "set"), "--workers", "1", "--quiet"]) == 130
    assert capsys.readouterr().err == "interrupted; nothing was written\n"
    assert not list(tmp_path.iterdir())
