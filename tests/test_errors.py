"""Messages are one short line, whatever text they quote."""

import pickle
import warnings
from types import SimpleNamespace

import pytest

from causaldiffae.errors import MAX_MESSAGE, DataError, InputError, check_given
from causaldiffae.script_util import run_cli


def test_a_message_is_one_short_line() -> None:
    assert str(InputError("Größe ✓: 'a  b' is wrong")) == "Größe ✓: 'a  b' is wrong"
    assert str(DataError("a\nb\r\tc\x07\u2028\ud800")) == "a b  c???"
    long = str(DataError("x" * 10**6 + ", got 3"))
    assert len(long) <= MAX_MESSAGE and long.startswith("xxx") and long.endswith("xxx, got 3")
    assert str(InputError()) == "" and str(pickle.loads(pickle.dumps(DataError("a")))) == "a"


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> None:
        warnings.warn("w\x1b]0;x\x07", UserWarning, stacklevel=1)
        raise DataError("a\x1b[2J\n\u202eb")

    with pytest.raises(SystemExit), warnings.catch_warnings():
        warnings.simplefilter("always")
        run_cli(main, [])
    assert capsys.readouterr().err == "warning: w?]0;x?\nerror: a?[2J ?b\n"


def test_outputs_are_local() -> None:
    """`Path("gs://bucket/out")` is a folder `gs:` in the working directory."""
    remote = SimpleNamespace(data_dir="gs://bucket/data", out_dir="out", out="gs://bucket/out")
    check_given(remote, "data_dir", "out_dir")
    with pytest.raises(InputError, match="^out: expected a local path, got gs://bucket/out$"):
        check_given(remote, "data_dir", "out")
