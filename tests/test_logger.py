"""The table of a run: means, growing columns, resuming, and what other ranks do not write."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from causaldiffae import dist_util
from causaldiffae.errors import DataError, InputError
from causaldiffae.logger import Logger, progress_bar, read_progress, write_line


def table(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "progress.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_means_between_dumps(tmp_path: Path) -> None:
    logger = Logger(tmp_path, use_tensorboard=False)
    for value in (1.0, torch.tensor(2.0), np.float32(6.0)):
        logger.logkv_mean("loss", value)
    logger.logkv_mean("mse", 1.0, count=3)
    logger.logkv_mean("mse", 5.0)
    logger.logkvs({"lr": 0.1, "gamma": 1})
    logger.logkv("lr", 0.2)
    assert logger.dumpkvs(10) == {"loss": 3.0, "mse": 2.0, "lr": 0.2, "gamma": 1.0}
    logger.logkv_mean("loss", 0.1)
    logger.dumpkvs(20)
    assert [(row["step"], float(row["loss"]), row["lr"]) for row in table(tmp_path)] == [
        ("10", 3.0, "0.2"),
        ("20", 0.1, ""),
    ]


def test_columns_grow(tmp_path: Path) -> None:
    logger = Logger(tmp_path, use_tensorboard=False)
    logger.logkv("a", 1)
    logger.dumpkvs(1)
    logger.logkvs({"b, with comma": 2, "a": float("nan")})
    logger.dumpkvs(2)
    assert table(tmp_path) == [
        {"step": "1", "a": "1.0", "b, with comma": ""},
        {"step": "2", "a": "nan", "b, with comma": "2.0"},
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["progress.csv"]


def test_resume_drops_later_rows_and_a_torn_line(tmp_path: Path) -> None:
    logger = Logger(tmp_path, use_tensorboard=False)
    for step in (10, 20, 30):
        logger.logkv("loss", step)
        logger.dumpkvs(step)
    with (tmp_path / "progress.csv").open("a") as file:
        file.write("40,0.")  # killed in the middle of a line
    logger = Logger(tmp_path, use_tensorboard=False, resume_step=20)
    assert [row["step"] for row in table(tmp_path)] == ["10", "20"]
    logger.logkv("loss", 3)
    logger.dumpkvs(30)
    assert [row["step"] for row in table(tmp_path)] == ["10", "20", "30"]
    Logger(tmp_path, use_tensorboard=False)  # without a step everything stays
    assert len(table(tmp_path)) == 3


def test_tensorboard_and_images(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = Logger(tmp_path)
    logger.logkv("loss/total", 0.5)
    logger.dumpkvs(7)
    picture = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    path = logger.log_image("../samples of x", picture, 7)
    assert path == tmp_path / "images" / "_samples_of_x_0000007.png"
    np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)
    assert logger.log_image("grey", picture[:, :, :1], 7) is not None
    logger.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/total")] == [(7, 0.5)]
    assert set(events.Tags()["images"]) == {"../samples of x", "grey"}


def test_other_ranks_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(dist_util, "rank", lambda: 1)
    logger = Logger(tmp_path / "run")
    logger.logkv_mean("loss", 1.0)
    assert logger.dumpkvs(1) == {"loss": 1.0}
    assert logger.log_image("x", np.zeros((2, 2, 3), np.uint8), 1) is None
    logger.info("nobody hears this")
    logger.close()
    assert list(progress_bar(range(3))) == [0, 1, 2]
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")


def test_console(capsys: pytest.CaptureFixture) -> None:
    write_line("step 3 of 5")
    with progress_bar(range(2), desc="training") as bar:
        assert list(bar) == [0, 1]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("step 3 of 5\n")
    assert "training: 100%" in err


@pytest.mark.parametrize("value", ["x", None, torch.zeros(2), [1.0]])
def test_what_is_no_number_is_named(tmp_path: Path, value: object) -> None:
    with pytest.raises(InputError, match="logger: loss needs a single number, got"):
        Logger(tmp_path, use_tensorboard=False).logkv("loss", value)


def test_messages(tmp_path: Path) -> None:
    logger = Logger(tmp_path, use_tensorboard=False)
    with pytest.raises(InputError, match="'step' is no name for a value"):
        logger.logkv("step", 1)
    with pytest.raises(InputError, match=r"image 'x': an array \(H, W, 1, 3 or 4\) of uint8 is needed, got \(2, 2\)"):
        logger.log_image("x", np.zeros((2, 2), np.uint8), 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss\n1\n", "must name each column once, `step` among them"),
        ("step,a,a\n", "must name each column once"),
        ("step,a\n1,2,3\n", "line 2 has 3 of 2 columns"),
        ("step,a\nx,2\n", "no whole number as step"),
        ('step,a\n"1,2\n', "is no CSV table"),
    ],
)
def test_a_file_that_is_no_progress_table(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "progress.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        Logger(tmp_path, use_tensorboard=False)
    assert (tmp_path / "progress.csv").read_text() == text


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.text(alphabet='step,12"\n\r\0', max_size=40).map(str.encode))
def test_any_bytes_are_a_table_or_a_data_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.csv"
    path.write_bytes(content)
    try:
        columns, rows = read_progress(path)
    except DataError:
        return
    assert "step" in columns
    assert all(set(row) == set(columns) for row in rows)
