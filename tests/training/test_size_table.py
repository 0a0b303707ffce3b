"""The table of sizes: which configurations it has, what it says of one that does not fit, where it is written."""

from pathlib import Path
from typing import Any

import pytest
import torch
from paths import REPO

from causaldiffae.errors import DataError, InputError
from causaldiffae.training import size_table
from causaldiffae.training.estimate import Estimate
from causaldiffae.training.size_table import as_markdown, as_text, conclusion, config_files, make_rows, write_table

CPU = torch.device("cpu")
CONFIGS = REPO / "configs"
FITS: dict[str, Any] = {"parameters": 1_500_000, "memory_mib": 2048.0, "free_mib": 4096.0, "fitting_images": 64}
FITS |= {"step_seconds": 0.25, "images_per_second": 128.0, "hours": 3.5, "images": 32, "trial_images": 16}
FITS |= {"state_mib": 30.0, "activation_mib": 1.0, "data_mib": 0.0, "compiled": False}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured: images of more than 64 pixels do not fit, and more than 128 pixels are refused."""

    def fake(config: Any, spec: Any, device: torch.device) -> Estimate:
        if spec.image_size > 128:
            raise InputError("channel_mult: expected fewer levels")
        large = {"memory_mib": 8192.0, "fitting_images": 4} if spec.image_size > 64 else {}
        return Estimate(**FITS | large)

    monkeypatch.setattr(size_table, "estimate", fake)


def test_all_sizes_of_a_data_set_are_found_smallest_first() -> None:
    found = config_files(CONFIGS, "pendulum", "causaldae", [])
    assert list(found)[:3] == ["mini", "fast", "paper"]
    assert found["mini"] == [CONFIGS / "pendulum_causaldae_mini.yaml"]
    assert config_files(CONFIGS, "pendulum", "diffae", ["fast"]) == {
        "fast": [CONFIGS / "pendulum_causaldae_fast.yaml", CONFIGS / "baselines" / "diffae.yaml"]
    }
    with pytest.raises(InputError, match="size: expected mini, fast, paper.* for pendulum, got 'huge'"):
        config_files(CONFIGS, "pendulum", "causaldae", ["huge"])
    with pytest.raises(InputError, match="dataset, model: expected a configuration configs/pendulums_causaldae_SIZE"):
        config_files(CONFIGS, "pendulums", "causaldae", [])


def test_rows_say_what_fits_and_why_not(measured: None) -> None:
    files = config_files(CONFIGS, "pendulum", "causaldae", ["mini"])
    rows = make_rows(files, ["--batch_size=64"], [32, 128, 256], CPU)
    small, large, refused = (row.cells() for row in rows)
    assert small == ["mini", "32", "1.5 M", "64 (32 at a time)", "2.0", "yes", "4.2 min", "460,800", "3.5"]
    assert large[4:6] == ["8.0", "--microbatch 4"]
    assert refused[:3] == ["mini", "256", "channel_mult: expected fewer levels"]
    assert conclusion(rows) == "the largest that fits: mini at 32 pixels, 3.5 hours for the whole run"
    assert conclusion(rows[1:]).startswith("no size fits")
    assert len(as_text(rows).splitlines()) == 4 and as_markdown(rows).count("\n| mini |") == 3


def test_the_table_replaces_that_of_a_document(measured: None, tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    rows = make_rows(config_files(CONFIGS, "pendulum", "causaldae", ["mini"]), [], [32], CPU)
    with pytest.raises(DataError, match="page.md: expected a Markdown file"):
        write_table(path, rows, [], CPU)
    path.write_text("before\n")
    with pytest.raises(DataError, match="expected the lines <!-- sizes -->"):
        write_table(path, rows, [], CPU)
    path.write_text("before\n<!-- sizes -->\nold\n<!-- end of sizes -->\nafter\n")
    for _ in range(2):
        write_table(path, rows, ["causaldiffae", "estimate", "--data_dir", "my images"], CPU)
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert text.count("| mini | 32 |") == 1 and "causaldiffae estimate --data_dir 'my images'" in text
