"""Fine-tuning by the command of the practical guide, on a few images for one step."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import REPO
from running import run

from causaldiffae.checkpoints.checkpoint import load_checkpoint
from causaldiffae.generators import pendulum


@pytest.mark.slow
def test_the_documented_command_starts_from_the_shipped_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (REPO / "docs" / "practical_guide.md").read_text(encoding="utf-8").replace("\\\n", "")
    (command,) = re.findall(r"^causaldiffae (.*--init_weights.*)$", text, re.MULTILINE)
    monkeypatch.setattr(pendulum, "grid", lambda: (np.repeat([0, 4], 3), np.tile([61, 90, 110], 2)))
    monkeypatch.setattr(sys, "argv", ["causaldiffae"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").symlink_to(REPO / "weights")
    pendulum.write_dataset("data/pendulum", workers=1, progress=False)
    few = ["--total_steps=1", "--batch_size=2", "--tensorboard=False"]
    process = run(REPO / "scripts" / "command.py", *shlex.split(command), *few)
    assert process.returncode == 0, process.stderr
    name = "encoder.fc_mu.weight"
    trained = load_checkpoint(tmp_path / "runs" / "fine_tuned").model_state[name]
    shipped = load_checkpoint(REPO / "weights" / "pendulum_causaldae_mini").model_state[name]
    assert 0 < (trained - shipped).norm() < 0.01 * shipped.norm()
