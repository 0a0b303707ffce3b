"""Command line of the test scripts: interventions, lists of numbers and deprecated names."""

from pathlib import Path

import pytest
from tiny import squares_spec

from causaldiffae.errors import InputError
from causaldiffae.evaluation.settings import (
    RECIPES,
    default_interventions,
    parse_do,
    parse_names,
    parse_numbers,
)
from causaldiffae.evaluation.settings import TestConfig as Settings
from causaldiffae.script_util import parse_flags

GIVEN = ["--model_path=m", "--data_dir=d", "--out_dir=o"]


def test_interventions_are_parsed() -> None:
    assert parse_do("size=3, grey=90", squares_spec()) == {"size": 3.0, "grey": 90.0}
    assert default_interventions(squares_spec()) == [{"size": 5.5}, {"grey": 200.0}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size", "do: expected name=value, like thickness=4.5, got 'size'"),
        ("x" * 5000, "do: expected name=value"),
        ("size=1,size=2", "do: expected each variable once, got size twice"),
        ("size=" + "y" * 5000, "do: size: expected a finite number"),
        ("width=1", "do: expected one of .*, got 'width'"),
    ],
)
def test_other_interventions_are_refused_in_a_short_message(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_do(text, squares_spec())
    assert len(str(caught.value)) < 400


def test_lists_are_parsed() -> None:
    assert parse_numbers("w", "0, 0.5,") == [0.0, 0.5] and parse_numbers("w", "") == []
    assert parse_names("traverse", "grey, size", squares_spec()) == ["grey", "size"]
    with pytest.raises(InputError, match="w: expected finite numbers separated by commas, got '1,inf'"):
        parse_numbers("w", "1,inf")
    with pytest.raises(InputError, match="traverse: expected one of size, grey, got 'x'"):
        parse_names("traverse", "x", squares_spec())


def test_the_old_name_of_label_predictor_works_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("judge: there\n")
    for old in ("--judge=there", f"--config={tmp_path}/old.yaml"):
        with pytest.warns(UserWarning, match="judge: deprecated, use label_predictor"):
            assert parse_flags(Settings, [*GIVEN, old]).label_predictor == "there"


def test_recipes_are_inserted_at_their_position() -> None:
    assert parse_flags(Settings, [*GIVEN, "--recipe=reference"], recipes=RECIPES).abduction == "noise"
    later = parse_flags(Settings, [*GIVEN, "--recipe", "reference", "--abduction=none"], recipes=RECIPES)
    assert (later.abduction, later.timestep_respacing) == ("none", "250")


def test_invalid_settings_are_refused() -> None:
    for change, message in (
        ({"abduction": "magic"}, "abduction: expected one of ddim, noise, none, got 'magic'"),
        ({"batch_size": 0}, "batch_size: expected 1 or more, got 0"),
        ({"out_dir": ""}, "out_dir: expected a value"),
    ):
        with pytest.raises(InputError, match=message):
            Settings(**{"model_path": "m", "data_dir": "d", "out_dir": "o", **change})
