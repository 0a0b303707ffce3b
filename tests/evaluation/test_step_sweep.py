"""The sweep over solvers and steps, with engines of known error, and once with shipped weights."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import REPO
from running import assert_refused, run
from test_scores import pendulums

from causaldiffae.counterfactual import Abduction, Counterfactual
from causaldiffae.datasets.images import ImageData, to_model_range
from causaldiffae.datasets.registry import true_counterfactual
from causaldiffae.errors import InputError
from causaldiffae.evaluation.result_tables import steps_table
from causaldiffae.evaluation.step_sweep import (
    NULL,
    SAME_NOISE,
    Setting,
    SweepRow,
    create_engine,
    describe_exceeded,
    draw,
    exceeded,
    headings,
    parse_settings,
    recommend,
    sweep_steps,
    table,
    write_rows,
)
from causaldiffae.generators import morphomnist
from causaldiffae.script_util import load_model
from causaldiffae.solvers import SolverState

DOS = [{"angle": 30.0}, {"shadow_length": 6.0}]


class Engine:
    """Returns the truth darkened by `own` grey levels after its own abduction, by `other` after another engine's."""

    def __init__(self, data: ImageData, own: int, other: int = 0) -> None:
        self.data, self.own, self.other = data, own, other

    def abduct(self, x_start: torch.Tensor, classes: Any, labels: torch.Tensor) -> Abduction:
        u = torch.zeros(len(x_start), 4, 1)
        u[:, 0] = next(i for i in range(len(self.data)) if np.array_equal(self.data.labels[i], labels[0].numpy()))
        return Abduction(u, u, SolverState(torch.full_like(x_start, float(self.own))), None, x_start)

    def predict(self, abducted: Abduction, dos: Sequence[Mapping[str, float]]) -> list[Counterfactual]:
        start, count = int(abducted.u[0, 0, 0]), len(abducted.u)
        part = self.data.subset(range(start, start + count))
        assert abducted.x_T is not None
        error = self.own if float(abducted.x_T.flatten()[0]) == self.own else self.other
        results = []
        for do in dos:
            images = true_counterfactual(part, do)[1] if do else part.images
            darker = np.clip(images.astype(int) - error, 0, 255).astype(np.uint8)
            results.append(Counterfactual(to_model_range(darker), abducted.z, abducted.z))
        return results


def test_known_errors_are_measured() -> None:
    data = pendulums(12, 0)
    engines = {Setting("ddim", 250): Engine(data, 2), Setting("dpmpp2m", 25): Engine(data, 6, other=3)}
    batches: list[int] = []
    rows = sweep_steps(engines, data, DOS, batch_size=5, on_batch=batches.append)  # type: ignore[arg-type]
    assert sum(batches) == 2 * len(data) and [str(row.setting) for row in rows] == ["ddim:250", "dpmpp2m:25"]
    assert list(rows[0].values) == list(headings(DOS, data.spec))
    for row, error in zip(rows, (2, 6), strict=True):
        assert all(values.shape == (len(data),) for values in row.values.values())
        for name in (NULL, "truth:do(angle=30)"):
            assert 0.9 * error < row.values[name].mean() <= error, "black pixels cannot get darker"
    assert not rows[0].values[SAME_NOISE].any(), "the reference against itself"
    assert 0.9 < rows[1].values[SAME_NOISE].mean() <= 1, "2 against 3 grey levels"
    assert [name for name in rows[0].values if name.startswith("error:")] == [
        *(f"error:do(angle=30):{name}" for name in ("angle", "shadow_length", "shadow_position")),
        "error:do(shadow_length=6):shadow_length",
    ]
    assert rows[0].values["error:do(angle=30):angle"].mean() < 1.5, "the precision of the measurement"


def test_errors_of_categories_are_rates() -> None:
    """An angle read as the third category instead of the first is one error, not two."""
    data = pendulums(6, 0)
    kinds = {"kinds": ("categorical", *("continuous",) * 3), "categories": (("a", "b", "c"), (), (), ())}
    data.spec = replace(data.spec, **kinds)
    data.labels[:, 0] = 0
    engines = {Setting("ddim", 250): Engine(data, 2), Setting("dpmpp2m", 25): Engine(data, 2)}
    rows = sweep_steps(engines, data, [{"angle": "a"}], measurement=lambda images: np.full((len(images), 4), 2.0))  # type: ignore[arg-type, dict-item]
    assert headings([{"angle": 0.0}], data.spec)["error:do(angle=a):angle"] == "do(angle=a), angle error rate"
    assert (rows[0].values["error:do(angle=a):angle"] == 1.0).all()
    figure = rows[0].figures()["error:do(angle=a):angle"]
    assert figure.low is not None and figure.low < 0.7 and figure.high == pytest.approx(1.0), "Wilson's interval"
    assert rows[0].rates == {"error:do(angle=a):angle"}, "its effects are continuous"


def row(setting: str, l1: float, spread: float = 0.0) -> SweepRow:
    wave = spread * np.sin(np.arange(200))
    return SweepRow(parse_settings(f"{setting},x:1")[0], {NULL: l1 + wave, SAME_NOISE: np.full(200, 9.0)})


def measured(setting: str, error: float, spread: float = 0.0, count: int = 200) -> SweepRow:
    base, noise = 10.0 + np.sin(np.arange(count)), spread * np.cos(3 * np.arange(count))
    return SweepRow(parse_settings(f"{setting},x:1")[0], {"truth:do(a=1)": base + error + noise})


def test_the_fewest_steps_that_are_shown_to_be_as_good_are_recommended() -> None:
    reference = measured("ddim:250", 0.0)
    best = recommend([reference, measured("a:25", -0.5), measured("a:15", 0.3, spread=1.0), measured("a:10", 0.6)])
    assert best is not None and str(best.setting) == "a:15", "0.3 + 0.1 is below 5 % of 10"
    assert recommend([reference, measured("a:10", 0.6)]) is None
    assert recommend([reference, measured("a:10", 0.6)], margin=0.1) is not None
    (difference,) = exceeded(measured("a:10", 0.6), reference).values()
    assert difference.mean == pytest.approx(0.6) and difference.high == pytest.approx(0.6)


def test_differences_are_described_also_without_an_interval() -> None:
    (many,) = describe_exceeded([measured("ddim:250", 0.0), measured("a:10", 0.6)], {"truth:do(a=1)": "L1"})
    assert many.startswith("a:10: L1: 0.600 [0.6")
    (one,) = describe_exceeded(
        [measured("ddim:250", 0.0, count=1), measured("a:10", 0.6, count=1)], {"truth:do(a=1)": "L1"}
    )
    assert one == "a:10: L1: 0.600", "one image has no interval"


def test_fewer_images_accept_less() -> None:
    few, many = (
        recommend([measured("ddim:250", 0.0, count=count), measured("a:10", 0.2, spread=3.0, count=count)])
        for count in (20, 2000)
    )
    assert few is None and many is not None


def rates(setting: str, wrong: int, count: int) -> SweepRow:
    values = {"error:do(a=1):a": (np.arange(count) < wrong).astype(float)}
    return SweepRow(parse_settings(f"{setting},x:1")[0], values, frozenset(values))


def test_few_images_without_differences_do_not_accept_a_rate() -> None:
    """The difference of ten pairs without an event may be 0.28, of 2,000 pairs 0.002."""
    (difference,) = exceeded(rates("a:10", 1, 10), rates("ddim:250", 1, 10)).values()
    assert difference.mean == 0.0 and difference.high == pytest.approx(0.27753, rel=1e-4)
    assert recommend([rates("ddim:250", 0, 10), rates("a:10", 0, 10)]) is None
    assert recommend([rates("ddim:250", 200, 2000), rates("a:10", 200, 2000)]) is not None


def test_label_corrections_count_as_evaluations() -> None:
    rows = [measured("ddim:250", 0.0), measured("a:8+2", 0.0), measured("a:12", 0.0)]  # 32 and 24 evaluations
    best = recommend(rows)
    assert best is not None and str(best.setting) == "a:12"


def test_the_null_intervention_has_a_margin_in_grey_levels() -> None:
    assert recommend([row("ddim:250", 0.01), row("a:10", 0.4)]) is not None
    assert recommend([row("ddim:250", 0.01), row("a:10", 0.6)]) is None


def test_engines_of_a_sweep_keep_neither_pixels_nor_causes() -> None:
    loaded = load_model(str(REPO / "weights" / "pendulum_causaldae_mini"))
    usual, engine = loaded.engine(), create_engine(loaded, Setting("exact_ddim", 3))
    assert usual.keep_fraction > 0 and usual.keep_causes == {"shadow_length", "shadow_position"}
    assert engine.keep_fraction == 0 and not engine.keep_causes


def test_a_distilled_model_has_no_other_solver_or_number_of_steps() -> None:
    loaded = load_model(str(REPO / "weights" / "morphomnist_causaldae_mini_2step"))
    assert create_engine(loaded, Setting("few_step", 2, 1)).solver.steps == 2  # type: ignore[union-attr]
    for setting in (Setting("exact_ddim", 25), Setting("few_step", 7)):
        with pytest.raises(InputError, match=f"settings: expected few_step:2 for .*, got {setting}"):
            create_engine(loaded, setting)


def test_settings_are_parsed() -> None:
    assert parse_settings(" ddim:250, dpmpp2m:25,") == [Setting("ddim", 250), Setting("dpmpp2m", 25)]
    corrected = Setting("exact_ddim", 4, 2)
    assert parse_settings("ddim:250,exact_ddim:4+2") == [Setting("ddim", 250), corrected]
    assert str(corrected) == "exact_ddim:4+2" and str(Setting("ddim", 250)) == "ddim:250"


@pytest.mark.parametrize(
    "text",
    [
        "ddim",
        "ddim:x,obelm:3",
        "ddim:-1,obelm:3",
        "ddim:²,obelm:3",
        "ddim:9999999,obelm:3",
        "ddim:5+x,obelm:3",
        "ddim:5+12,obelm:3",
    ],
)
def test_malformed_settings_are_refused(text: str) -> None:
    with pytest.raises(
        InputError, match="settings: expected SOLVER:STEPS or SOLVER:STEPS.CORRECTIONS, like dpmpp2m:25, got"
    ):
        parse_settings(text)


@pytest.mark.parametrize("text", ["", "ddim:250", "ddim:5,ddim:5"])
def test_a_single_setting_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="settings: expected two or more distinct settings"):
        parse_settings(text)


def test_table_csv_and_plot(tmp_path: Path) -> None:
    rows = [row("ddim:250", 1.0, 0.3), row("a:25", 0.5, 0.1), row("a:5", 2.0, 0.1), row("a:5+2", 1.5, 0.1)]
    write_rows(tmp_path / "steps.csv", rows)
    read = list(csv.DictReader((tmp_path / "steps.csv").open()))
    found = [tuple(line[name] for name in ("solver", "steps", "corrections")) for line in read]
    assert found == [("ddim", "250", "0"), ("a", "25", "0"), ("a", "5", "0"), ("a", "5", "2")]
    assert steps_table([{**line, "solver": "few_step"} for line in read]).count("student, 5, 2 corrections |") == 1
    assert float(read[1]["null_low"]) < float(read[1]["null"]) < float(read[1]["null_high"])
    heads = {NULL: "null", SAME_NOISE: "same"}
    image = draw(rows, heads)
    assert image.dtype == np.uint8 and image.shape[2] == 3 and len(np.unique(image)) > 20
    assert "0.500 ± 0.0" in table(rows, heads) and "5+2" in table(rows, heads)
    unmeasured = [SweepRow(each.setting, {**each.values, SAME_NOISE: np.full(200, np.nan)}) for each in rows]
    write_rows(tmp_path / "steps.csv", unmeasured)
    assert draw(unmeasured, heads).shape == image.shape and recommend(unmeasured) is not None
    assert "left out, without a value in any row: (" in table(unmeasured, heads)
    assert "not available" in table(unmeasured, heads)


def test_the_script(tmp_path: Path) -> None:
    script, weights = REPO / "scripts" / "sweep_steps.py", REPO / "weights" / "morphomnist_causaldae_mini"
    share, digits = REPO / "assets" / "mnist_share", tmp_path / "digits"
    morphomnist.write_dataset(share, digits, num_train=2, num_test=4, workers=1, progress=False)
    base = [f"--model_path={weights}", f"--data_dir={digits}", f"--out_dir={tmp_path / 'out'}", "--num_images=3"]
    student = f"--student={weights}_4step"
    settings = "--settings=ddim:12,dpmpp2m:4,obelm:4,exact_ddim:2+1,few_step:4"
    outcome = run(script, *base, settings, student, "--do=thickness=3")
    assert outcome.returncode == 0, outcome.stderr
    assert "ddim:12" in outcome.stdout and "100%" in outcome.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"steps.csv", "steps.png", "steps.json"}
    report = json.loads((tmp_path / "out" / "steps.json").read_text())
    null = {name: row["null"]["mean"] for name, row in report["rows"].items()}
    assert null["exact_ddim:2+1"] == null["few_step:4"] == 0
    assert null["obelm:4"] < 0.2 < null["ddim:12"], "O-BELM is its own inverse, DDIM is not"
    for settings, words in (
        ("ddim:5", ("settings: expected two or more", "'ddim:5'")),
        ("ddim:5,euler:5", ("solver", "euler")),
        ("ddim:5,obelm:1", ("steps", "2")),
    ):
        assert_refused(run(script, *base, f"--settings={settings}"), *words)
    assert_refused(run(script, *base, "--settings=ddim:5,few_step:3", student), "settings", "few_step:4")
    assert_refused(run(script, *base, "--settings=ddim:5,dpmpp2m:3", student), "student", "got only one of them")
    other = f"--student={REPO / 'weights' / 'pendulum_causaldae_mini'}"
    assert_refused(run(script, *base, "--settings=ddim:5,few_step:4", other), "student", "got another model")
