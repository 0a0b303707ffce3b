"""Fixtures of the launchers' tests."""

import shutil
import sys
from pathlib import Path

import pytest
from launchers import CONFIGS, SCRIPTS, STAND_IN, TOOLS, TRAINER
from paths import REPO


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of what launchers need, at a path with spaces, and a folder of data beside it."""
    copy = tmp_path / "a clone with spaces"
    for path in [*SCRIPTS, *CONFIGS, REPO / "setup.py", REPO / "causaldiffae" / "__init__.py"]:
        target = copy / path.relative_to(REPO)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    for folder in ("bin", "tools", "else where", "my data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "my data" / "something").touch()
    stand_in = tmp_path / "bin" / "python3"
    stand_in.write_text(STAND_IN.replace("PYTHON", sys.executable))
    stand_in.chmod(0o755)
    for name in TOOLS:  # no other Python may be found, or a test would install for real
        found = shutil.which(name)
        if found:
            (tmp_path / "tools" / name).symlink_to(found)
    return copy


@pytest.fixture
def crashing(clone: Path) -> Path:
    """A clone whose training ends as the words of `ENDINGS` say, one for each start."""
    (clone / "scripts" / "image_train.py").write_text(TRAINER)
    return clone
