"""tools/step_parts.py: the parts of a training step."""

import subprocess
import sys

import pytest
from paths import REPO


def test_the_shares_of_all_parts_are_printed() -> None:
    command = [sys.executable, str(REPO / "tools" / "step_parts.py"), "--size=mini", "--batch_size=2", "--steps=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    rows = [line for line in done.stdout.splitlines() if line.endswith("%")]
    names = [row[:20].strip() for row in rows]
    assert names == ["forward", "backward", "norm and clipping", "AdamW", "moving average"]
    assert sum(float(row.split()[-2]) for row in rows) == pytest.approx(100, abs=0.3)
