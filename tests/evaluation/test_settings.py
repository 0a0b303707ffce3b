"""Command line of the test scripts: interventions, lists of numbers and deprecated names."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from paths import REPO
from tiny import squares_spec

from causaldiffae.errors import InputError
from causaldiffae.evaluation import image_test, run
from causaldiffae.evaluation.interventions import traversal_values
from causaldiffae.evaluation.protocol import ProtocolSettings
from causaldiffae.evaluation.settings import (
    RECIPES,
    default_interventions,
    parse_names,
    parse_numbers,
)
from causaldiffae.evaluation.settings import TestConfig as Settings
from causaldiffae.explorer.session import first_intervention
from causaldiffae.graphs import CausalGraph
from causaldiffae.script_util import load_model, parse_flags

GIVEN = ["--model_path=m", "--data_dir=d", "--out_dir=o"]


def test_by_default_every_variable_is_set_to_a_high_value() -> None:
    assert default_interventions(squares_spec()) == [{"size": 5.5}, {"grey": 200.0}]


def test_lists_are_parsed() -> None:
    assert parse_numbers("w", "0, 0.5,") == [0.0, 0.5] and parse_numbers("w", "") == []
    assert parse_names("traverse", "grey, size", squares_spec()) == ["grey", "size"]
    spec = replace(squares_spec(), graph=CausalGraph(("weight, kg", "height=cm")))
    assert parse_names("traverse", 'weight, kg, "height=cm",', spec) == ["weight, kg", "height=cm"]
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


def test_tests_and_evaluations_pass_on_whether_causes_are_kept() -> None:
    loaded = load_model(str(REPO / "weights" / "pendulum_causaldae_mini"))
    for keep, expected in ((None, 2), (False, 0), (True, 4)):
        config = Settings(model_path="m", data_dir="d", out_dir="o", keep_causes=keep)
        for engine in (
            image_test.make_engine(loaded, config),
            run.make_engine(loaded, ProtocolSettings(keep_causes=keep)),
        ):
            assert len(engine.keep_causes) == expected


def test_default_values_lie_in_narrow_ranges_of_large_numbers() -> None:
    spec = replace(squares_spec(), low=(2001.0, 101000.0), high=(2009.0, 101500.0))
    assert default_interventions(spec) == [{"size": 2007.0}, {"grey": 101375.0}]
    years, grey = (traversal_values(spec, name) for name in spec.graph.names)
    assert len(set(years)) == len(set(grey)) == 6 and 2001 <= years[0] < years[-1] <= 2009
    assert 2001 <= float(first_intervention(spec, np.array([2002.0, 101100.0]))["size"]) <= 2009
