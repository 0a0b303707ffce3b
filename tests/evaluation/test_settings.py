"""Command line of the test scripts: interventions, lists of numbers and deprecated names."""

from pathlib import Path
from typing import Any

import pytest
from tiny import squares_spec

from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError
from causaldiffae.evaluation.settings import (
    RECIPES,
    default_interventions,
    parse_do,
    parse_names,
    parse_numbers,
)
from causaldiffae.evaluation.settings import TestConfig as Settings
from causaldiffae.graphs import CausalGraph
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


def spec_with_names(*names: str, categories: tuple[tuple[str, ...], ...] = ()) -> DatasetSpec:
    n = len(names)
    kinds = tuple("categorical" if each else "continuous" for each in categories)
    numbers: dict[str, Any] = {"shift": (0.0,) * n, "scale": (1.0,) * n, "low": (0.0,) * n, "high": (99.0,) * n}
    return DatasetSpec("folder", 8, 1, CausalGraph(names), kinds=kinds, categories=categories, **numbers)


@pytest.mark.parametrize(
    ("text", "do"),
    [
        ("weight, kg=60", {"weight, kg": 60.0}),
        ('"weight, kg"=60, height=cm=7', {"weight, kg": 60.0, "height=cm": 7.0}),
        ("'height=cm' = 7,hat=felt, wide", {"height=cm": 7.0, "hat": 1.0}),
        ('hat="a=b",weight=3', {"hat": 0.0, "weight": 3.0}),
        ("Gro\u0308\u00dfe=5", {"Gr\u00f6\u00dfe": 5.0}),
    ],
)
def test_names_and_categories_may_contain_commas_and_equals_signs(text: str, do: dict[str, float]) -> None:
    names = ("weight, kg", "height=cm", "hat", "weight", "Gr\u00f6\u00dfe")
    spec = spec_with_names(*names, categories=((), (), ("a=b", "felt, wide"), (), ()))
    assert parse_do(text, spec) == do
    assert parse_names("traverse", 'weight, kg, "height=cm",hat,', spec) == ["weight, kg", "height=cm", "hat"]


def test_text_after_a_quoted_value_is_refused() -> None:
    with pytest.raises(InputError, match="do: hat: expected a comma after 'a', got 'b'"):
        parse_do('hat="a"b', spec_with_names("hat", categories=(("a", "b"),)))


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
