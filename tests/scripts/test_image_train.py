"""A run directory in object storage: training whose service does not respond at the start ends with one line."""

import runpy
from pathlib import Path

import pytest
from fake_storage import FakeBlobfile, install_service
from folders import make_folder, table_rows
from paths import REPO
from running import Outcome, assert_refused, run

from causaldiffae.checkpoints.remote import run_folder
from causaldiffae.config import TrainConfig
from causaldiffae.datasets.registry import read_split

RUN = "gs://bucket/run"
NETWORK = ["--image_size=8", "--channel_mult=1", "--attention_resolutions=", "--encoder_channels=8", "--batch_size=4"]


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBlobfile:
    return install_service(tmp_path, monkeypatch)


def train(data: Path, total_steps: int, *more: str) -> Outcome:
    config = REPO / "configs" / "folder_causaldae_mini.yaml"
    return run(
        REPO / "scripts" / "image_train.py",
        *(f"--config={config}", *NETWORK, "--tensorboard=False"),
        *(f"--data_dir={data}", f"--run_dir={RUN}", f"--total_steps={total_steps}", *more),
    )


def test_a_service_that_fails_at_the_start_is_an_error_of_one_line(service: FakeBlobfile, tmp_path: Path) -> None:
    """Requests for the lease, for the list of steps and for the newest one; later the run resumes."""
    data = make_folder(tmp_path / "data")
    assert train(data, 1).returncode == 0
    for failing in ("BlobFile", "scandir", "isdir", "listdir", "exists", "copy"):
        service.fails = lambda number, name, address, failing=failing: name == failing  # type: ignore[misc]
        assert_refused(train(data, 2), RUN, "503 service")
    service.fails = lambda number, name, address: False
    resumed = train(data, 2)
    assert resumed.returncode == 0 and "resuming from step 1" in resumed.stderr
    assert (service.bucket / "run" / "step_0000002" / "manifest.json").exists()
    logs = [folder / "progress.csv" for folder in (run_folder(RUN), service.bucket / "run")]
    assert logs[0].read_text() == logs[1].read_text(), "the last row follows the last checkpoint"


def test_a_damaged_validation_image_is_reported(tmp_path: Path) -> None:
    """It is not replaced by the test images of a folder without validation images."""
    data, run_dir = make_folder(tmp_path / "data"), tmp_path / "run"
    damaged = data / str(next(row["file"] for row in table_rows() if row["split"] == "val"))
    damaged.write_bytes(damaged.read_bytes()[:40])
    assert_refused(train(data, 1, f"--run_dir={run_dir}"), damaged.name)


def test_test_images_never_choose_weights(tmp_path: Path) -> None:
    """Previews show validation images, else test images, or with `train_until` training images."""
    preview_images = runpy.run_path(str(REPO / "scripts" / "image_train.py"), run_name="train")["preview_images"]
    rows = [row | {"split": "train" if row["split"] == "val" else row["split"]} for row in table_rows()]
    for name, folder_rows, splits in (("val", table_rows(), ["val", "val"]), ("none", rows, ["test", "train"])):
        folder = str(make_folder(tmp_path / name, folder_rows))
        data = read_split("folder", folder, "train")
        shown = [
            preview_images(TrainConfig(dataset="folder", data_dir=folder, train_until=until), data)
            for until in (0.0, 0.8)
        ]
        names = {split: set(read_split("folder", folder, split).ids) for split in splits}
        assert all(set(images.ids) <= names[split] for images, split in zip(shown, splits, strict=True))
