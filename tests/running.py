"""Runs scripts in this process, where torch is already imported."""

import contextlib
import importlib.util
import io
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest

from causaldiffae.script_util import run_cli


class Outcome(NamedTuple):
    """What a script left behind."""

    returncode: int
    stdout: str
    stderr: str


def run(script: Path, *arguments: object) -> Outcome:
    """Runs a script's main in this process, where torch is already imported; exit codes as the shell would see them."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[script.stem] = module
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(script.parent))  # as Python does for a script
        spec.loader.exec_module(module)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("default")
        try:
            run_cli(module.main, [str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


def assert_refused(process: Outcome, *words: str) -> None:
    """Exit code 2, one line on standard error that names what is wrong, no traceback."""
    lines = [line for line in process.stderr.splitlines() if line and not line.startswith("warning: ")]
    assert process.returncode == 2, process.stderr
    assert len(lines) == 1 and lines[0].startswith("error: "), process.stderr
    for word in words:
        assert word in lines[0]
