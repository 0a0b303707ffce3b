"""`causaldiffae estimate` and `--dry_run`: what training needs, before there is a run."""

from pathlib import Path

import pytest
from folders import make_folder
from paths import REPO
from running import Outcome, assert_refused, run

FEW = ["--num_channels=32", "--channel_mult=1,1", "--attention_resolutions=", "--batch_size=4", "--encoder_channels=8"]


def estimate(*arguments: object) -> Outcome:
    return run(REPO / "scripts" / "command.py", "estimate", *arguments)


def test_own_images_need_no_run_and_no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_folder(tmp_path / "my_images")
    monkeypatch.setenv("SIZE", "mini")
    found = estimate("--data_dir", folder, *FEW)
    assert found.returncode == 0, found.stderr
    machine, header, row, fits, *_ = found.stdout.splitlines()
    assert machine.startswith("cpu") or machine.startswith("cuda")
    assert header.split()[:3] == ["size", "pixels", "parameters"] and row.split()[:2] == ["mini", "32"]
    assert fits.startswith("the largest that fits: mini, ")
    assert list(tmp_path.iterdir()) == [folder]


def test_sizes_and_sides_of_a_data_set(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- sizes -->\n<!-- end of sizes -->\n")
    found = estimate("--dataset=pendulum", "--size=mini", "--sides=16,32", f"--table={page}", *FEW)
    assert found.returncode == 0, found.stderr
    assert [line.split()[:2] for line in found.stdout.splitlines()[2:4]] == [["mini", "16"], ["mini", "32"]]
    assert page.read_text().count("| mini |") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "set --data_dir my_images for your own images, --dataset NAME or --config NAME"),
        (["--dataset=pendulum", "--size=huge"], "size: expected mini"),
        (["--data_dir=nowhere"], "data_dir: expected a folder with a table of labels, got nowhere"),
        (["--config=pendulum_causaldae_mini", "--size=mini"], "size: expected none together with --config"),
        (["--dataset=pendulum", "--sides=big"], "sides: expected positive integers"),
        (["--dataset=pendulum", "--sides"], "argument --sides: expected one argument"),
    ],
)
def test_what_is_missing_is_one_line(arguments: list[str], message: str) -> None:
    assert_refused(estimate(*arguments), message)


def test_a_dry_run_needs_no_value_and_no_run_directory() -> None:
    train, config = REPO / "scripts" / "image_train.py", REPO / "configs" / "pendulum_causaldae_mini.yaml"
    for flags in (["--dry_run"], ["--dry_run", "--lr=0.1"], ["--dry_run", "True"]):
        found = run(train, "--config", config, *FEW, *flags)
        assert found.returncode == 0 and "# memory: " in found.stdout, found.stderr
    assert_refused(run(train, "--dry_run"), "dataset: expected a value", "causaldiffae estimate --data_dir my_images")
