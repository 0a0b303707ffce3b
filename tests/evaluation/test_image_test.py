"""Outputs of the test scripts: tables, and files of variables with hostile names."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import REPO
from running import assert_refused, run
from tiny import small_config, squares, squares_spec
from tiny_models import tiny_model

from causaldiffae.checkpoints.checkpoint import export_weights
from causaldiffae.datasets.registry import example_images
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.evaluation import image_test, settings
from causaldiffae.evaluation.image_test import (
    PlannedTest,
    intervention_table,
    sweep_table,
    traversal_table,
    write_traversal,
)
from causaldiffae.evaluation.interventions import InterventionResult
from causaldiffae.guidance import Guidance
from causaldiffae.script_util import create_model_and_diffusion, describe_checkpoint, load_model


def test_a_variable_s_name_cannot_leave_the_output_folder(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    changes = {"name": "folder", "graph": {"names": ["../../x", "grey"]}}
    spec = DatasetSpec.from_dict({**squares_spec().to_dict(), **changes})
    images, labels = np.zeros((1, 1, 8, 8), np.uint8), np.zeros((1, 2))
    result = InterventionResult({"../../x": 1.0}, images, images, images, None, labels, labels, None, labels)
    write_traversal([result], "../../x", spec, out, 1)
    assert sorted(path.suffix for path in out.iterdir()) == [".csv", ".png"]
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.parent != out] == []


def test_batches_of_other_interventions_settings_weights_or_images_are_not_resumed() -> None:
    config = settings.TestConfig(model_path="a", data_dir="b", out_dir="c")
    loaded, data = tiny_model(), squares(6)
    test = PlannedTest(loaded, config, data, [{"size": 3.0}], [Guidance()], torch.device("cpu"), None, None)
    same = replace(config, model_path="moved", data_dir="moved", out_dir="moved", grid_images=2)
    assert replace(test, config=same).digest() == test.digest()
    others = [
        replace(test, dos=[{"size": 4.0}]),
        replace(test, config=replace(config, steps=9)),
        replace(test, config=replace(config, w=1.5)),
        replace(test, config=replace(config, batch_size=7)),
        replace(test, data=data.subset(range(5))),
    ]
    assert len({test.digest(), *(other.digest() for other in others)}) == 6
    before = test.digest()
    with torch.no_grad():
        next(loaded.model.parameters()).add_(1)
    assert test.digest() != before


def test_tables_explain_missing_figures() -> None:
    spec = squares_spec()
    row = {"w": 0.5, "reconstruction_l1": 1.0, "change_l1": 2.0, "measured_size": 3.0, "measured_grey": float("nan")}
    table = intervention_table({"do(size=3)": {**row, "measured_error_size": 0.25}}, spec)
    lines = table.splitlines()
    assert lines[0].split() == ["intervention", "reconstruction", "change", "size"], "no column without a value"
    assert lines[3].split() == ["do(size=3)", "1.000", "2.000", "0.250"]
    assert lines[4] == "left out, without a value in any row: grey error"
    reason = "reason: labels could not be measured in the images (--label_predictor DIR names a predictor); true"
    assert " ".join(part.strip() for part in lines[5:]) == f"{reason} counterfactuals are unknown"
    sweep = sweep_table([row, {**row, "measured_grey": 7.0}], "do(size=3)", spec).splitlines()
    assert sweep[0] == "do(size=3) at guidance weights w, means over images"
    assert sweep[4].split() == ["0.5", "2.000", "3.000", "-"] and sweep[6].startswith("- : labels could not be")
    nan = float("nan")
    effects = {
        "size": {"slope": 0.9, "error_rate": nan, "change": nan},
        "hat": {"slope": nan, "error_rate": 0.2, "change": nan},
        "grey": {"slope": nan, "error_rate": nan, "change": 0.1},
    }
    lines = traversal_table(effects, "size").splitlines()[3:]
    assert [(line.split()[1], line.split()[-1]) for line in lines] == [
        ("slope", "0.900"),
        ("error", "0.200"),
        ("mean", "0.100"),
    ]


def test_a_class_that_is_set_explains_unknown_true_images() -> None:
    spec = squares_spec(4)
    known = {"counterfactual_l1": 1.0, "do_nothing_l1": 2.0, "reconstruction_l1": 1.0, "change_l1": 2.0}
    other = {"reconstruction_l1": 1.0, "change_l1": 2.0, "reached_class": 0.5}
    table = intervention_table({"do(size=3)": known, "do(class=2)": other}, spec)
    assert "- : the true image of another class is unknown; `class reached` belongs to interventions on it" in table


def test_a_traversal_without_measured_labels_is_one_line() -> None:
    effects = {"size": dict.fromkeys(("slope", "error_rate", "change"), float("nan"))}
    text = traversal_table(effects, "size")
    assert text == "do(size) over its range: no label could be measured in the images; see --label_predictor"


def test_tables_show_error_rates_of_categories_or_the_fraction_reached() -> None:
    spec = replace(squares_spec(), kinds=("binary", "continuous"))
    row = {"reconstruction_l1": 1.0, "change_l1": 2.0, "reached_size": 0.75, "measured_error_grey": 3.0}
    reached = intervention_table({"do(size=7)": row}, spec).splitlines()
    assert reached[1].split() == ["L1", "L1", "reached", "error"] and reached[-1].split()[-2:] == ["0.750", "3.000"]
    known = intervention_table({"do(grey=7)": {**row, "measured_error_size": 0.125}}, spec).splitlines()
    assert known[1].split() == ["L1", "L1", "error", "error"] and known[2].split() == ["rate"]
    assert known[-1].split()[-2:] == ["0.125", "3.000"]


@pytest.mark.parametrize("flag", ["--sweep_w=1,0.5", "--w=0.5", "--w_affected=2"])
def test_a_null_token_that_was_not_trained_is_not_used(tmp_path: Path, flag: str) -> None:
    config = small_config(learned_null=True)
    model, _ = create_model_and_diffusion(config, squares_spec())
    described = describe_checkpoint(config, replace(squares_spec(), name="folder"))
    folder = export_weights(tmp_path / "model", model.state_dict(), described)
    arguments = (f"--model_path={folder}", f"--data_dir={tmp_path}", f"--out_dir={tmp_path / 'out'}", flag)
    refused = run(REPO / "scripts" / "image_causaldae_test.py", *arguments)
    assert_refused(refused, "w: expected 1 for a model whose null token was not trained (drop_prob 0), got")
    assert not (tmp_path / "out").exists()


def test_a_distilled_model_is_not_guided_by_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = REPO / "weights" / "morphomnist_causaldae_mini_4step"
    arguments = (f"--model_path={student}", f"--data_dir={tmp_path}", f"--out_dir={tmp_path}")
    script = REPO / "scripts" / "image_causaldae_test.py"
    refused = run(script, *arguments, "--sweep_w=0.5")
    assert_refused(refused, "w: expected 1 for a distilled model, whose guidance is that of its teacher")
    given = []

    class Stop(Exception):
        pass

    def planned(*args: object, **named: object) -> None:
        given.extend([*args, *named.values()])
        raise Stop

    monkeypatch.setattr(image_test, "PlannedTest", planned)
    monkeypatch.setattr(image_test, "read_test_images", lambda *_: example_images(load_model(str(student)).spec, 2))
    with pytest.raises(Stop):
        image_test.run_test([*arguments, "--do=digit=7"], "", {}, "causaldae")
    guidances = next(each for each in given if isinstance(each, tuple) and isinstance(each[0], Guidance))
    assert [guidance.w_class for guidance in guidances] == [1.0]
