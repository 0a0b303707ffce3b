"""The table of a run: means, new columns, resuming, and processes other than the main one."""

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
from causaldiffae.logger import Logger, progress_bar, read_progress


def table(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "progress.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def logger(tmp_path: Path) -> Logger:
    return Logger(tmp_path, use_tensorboard=False)


def test_means_between_dumps(logger: Logger) -> None:
    for value in (1.0, torch.tensor(2.0), np.float32(6.0)):
        logger.logkv_mean("loss", value)
    logger.logkvs({"lr": 0.1, "gamma": 1})
    logger.logkv("lr", 0.2)
    assert logger.dumpkvs(10) == {"loss": 3.0, "lr": 0.2, "gamma": 1.0}
    logger.logkv_mean("loss", 0.1)
    logger.dumpkvs(20)
    rows = [(row["step"], float(row["loss"]), row["lr"]) for row in table(logger.run_dir)]
    assert rows == [("10", 3.0, "0.2"), ("20", 0.1, "")]


def test_new_columns_are_added(logger: Logger) -> None:
    logger.logkv("a", 1)
    logger.dumpkvs(1)
    logger.logkvs({"b, with comma": 2, "a": float("nan")})
    logger.dumpkvs(2)
    assert table(logger.run_dir) == [
        {"step": "1", "a": "1.0", "b, with comma": ""},
        {"step": "2", "a": "nan", "b, with comma": "2.0"},
    ]
    assert [path.name for path in logger.run_dir.iterdir()] == ["progress.csv"]


def test_resuming_drops_later_rows_and_a_truncated_line(logger: Logger) -> None:
    for step in (10, 20, 30):
        logger.logkv("loss", step)
        logger.dumpkvs(step)
    with (logger.run_dir / "progress.csv").open("a") as file:
        file.write("40,0.")
    resumed = Logger(logger.run_dir, use_tensorboard=False, resume_step=20)
    assert [row["step"] for row in table(logger.run_dir)] == ["10", "20"]
    resumed.logkv("loss", 3)
    resumed.dumpkvs(30)
    Logger(logger.run_dir, use_tensorboard=False)  # without a step all rows are kept
    assert [row["step"] for row in table(logger.run_dir)] == ["10", "20", "30"]


@pytest.mark.parametrize("truncated", ["", "20,", "20,5.0\n"], ids=["nothing", "a part", "everything"])
def test_rows_are_written_after_a_failure(logger: Logger, monkeypatch: pytest.MonkeyPatch, truncated: str) -> None:
    """Whatever part of the failed line has arrived; also if a column is new, and if no row follows."""

    def full(*_: object, **__: object) -> None:
        with open(logger.run_dir / "progress.csv", "a") as file:  # noqa: PTH123 - Path.open fails
            file.write(truncated)
        raise OSError(28, "No space left on device")

    def dump(step: int, **values: float) -> None:
        logger.logkvs(values)
        logger.dumpkvs(step)

    dump(10, loss=7)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(Path, "open", full)
        dump(20, loss=5)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("causaldiffae.logger.replace_file", full)
        dump(30, loss=4, lr=1)
    logger.close()
    dump(40, lr=2)
    rows = [(row["step"], row["loss"], row["lr"]) for row in table(logger.run_dir)]
    assert rows == [("10", "7.0", ""), ("20", "5.0", ""), ("30", "4.0", "1.0"), ("40", "", "2.0")]


def test_tensorboard_goes_on_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
    from torch.utils.tensorboard import SummaryWriter

    logger = Logger(tmp_path)

    def dump(step: int) -> None:
        logger.logkv("loss", step)
        logger.dumpkvs(step)

    dump(1)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(SummaryWriter, "flush", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        dump(2)
    dump(3)
    logger.close()
    events = EventMultiplexer({str(path): str(path) for path in (tmp_path / "tensorboard").iterdir()}).Reload()
    steps = [event.step for run in events.Runs() for event in events.Scalars(run, "loss")]
    assert {1, 3} <= {*steps} and [row["step"] for row in table(tmp_path)] == ["1", "2", "3"]


def test_tensorboard_and_images(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = Logger(tmp_path)
    logger.logkv("loss/total", 0.5)
    logger.dumpkvs(7)
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    path = logger.log_image("../samples of x", image, 7)
    assert path == tmp_path / "images" / "_samples_of_x_0000007.png"
    np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
    assert logger.log_image("grey", image[:, :, :1], 7) is not None
    logger.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/total")] == [(7, 0.5)]
    assert set(events.Tags()["images"]) == {"../samples of x", "grey"}


def test_other_ranks_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dist_util, "rank", lambda: 1)
    logger = Logger(tmp_path / "run")
    logger.logkv_mean("loss", 1.0)
    assert logger.dumpkvs(1) == {"loss": 1.0}
    assert logger.log_image("x", np.zeros((2, 2, 3), np.uint8), 1) is None
    logger.info("not shown")
    logger.close()
    progress_bar(total=3).update(3)
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")


def test_console(logger: Logger, capsys: pytest.CaptureFixture[str]) -> None:
    logger.info("step 3 of 5")
    with progress_bar(total=2, desc="training") as bar:
        bar.update(2)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("step 3 of 5\n") and "training: 100%" in err


@pytest.mark.parametrize("value", ["x", None, torch.zeros(2), [1.0]])
def test_values_must_be_numbers(logger: Logger, value: object) -> None:
    with pytest.raises(InputError, match="logger: loss: expected a single number, got"):
        logger.logkv("loss", value)


def test_names_and_images_are_checked(logger: Logger) -> None:
    with pytest.raises(InputError, match="logger: expected a printable name other than `step`, got 'step'"):
        logger.logkv("step", 1)
    with pytest.raises(InputError, match=r"image 'x': expected an array \(H, W, 1, 3 or 4\) of uint8, got \(2, 2\)"):
        logger.log_image("x", np.zeros((2, 2), np.uint8), 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss\n1\n", "expected a header of unique column names including `step`"),
        ("step,a,a\n", "expected a header of unique column names"),
        ("step,a\n1,2,3\n", "line 2: expected 2 columns and an integer step, got 3 columns"),
        ("step,a\nx,2\n", "line 2: expected 2 columns and an integer step"),
        ('step,a\n"1,2\n', "expected a CSV table"),
    ],
)
def test_invalid_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
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
