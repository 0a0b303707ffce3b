"""The sweep over solvers and steps, with engines whose errors are known, and once with shipped weights."""

import csv
import json
from collections.abc import Mapping, Sequence
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
from causaldiffae.evaluation.step_sweep import (
    NULL,
    SAME_NOISE,
    Setting,
    SweepRow,
    draw,
    headings,
    parse_settings,
    recommend,
    sweep_steps,
    table,
    write_rows,
)
from causaldiffae.generators import morphomnist
from causaldiffae.solvers import SolverState

DOS = [{"angle": 30.0}, {"shadow_length": 6.0}]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep") / "digits"
    share = REPO / "assets" / "mnist_share"
    return morphomnist.write_dataset(share, folder, num_train=2, num_test=4, workers=1, progress=False)


class Drawer:
    """Draws the truth, off by so many grey levels: `own` after its own abduction, `other` after another's."""

    def __init__(self, data: ImageData, own: int, other: int = 0) -> None:
        self.data, self.own, self.other = data, own, other
        self.start = 0

    def abduct(self, x_start: torch.Tensor, classes: Any, labels: torch.Tensor) -> Abduction:
        places = [i for i in range(len(self.data)) if np.array_equal(self.data.labels[i], labels[0].numpy())]
        nothing = torch.zeros(len(x_start), 4, 1)
        nothing[:, 0] = places[0]
        return Abduction(nothing, nothing, SolverState(torch.full_like(x_start, float(self.own))), None, x_start)

    def predict(self, abducted: Abduction, dos: Sequence[Mapping[str, float]]) -> list[Counterfactual]:
        start, count = int(abducted.u[0, 0, 0]), len(abducted.u)
        part = self.data.subset(range(start, start + count))
        assert abducted.x_T is not None
        off = self.own if float(abducted.x_T.flatten()[0]) == self.own else self.other
        answers = []
        for do in dos:
            images = true_counterfactual(part, do)[1] if do else part.images
            moved = np.clip(images.astype(int) - off, 0, 255).astype(np.uint8)
            answers.append(Counterfactual(to_model_range(moved), abducted.z, abducted.z))
        return answers


def test_errors_that_are_known() -> None:
    data = pendulums(12, 0)
    engines = {Setting("ddim", 250): Drawer(data, 2), Setting("dpmpp2m", 25): Drawer(data, 6, other=3)}
    told: list[int] = []
    rows = sweep_steps(engines, data, DOS, batch_size=5, on_batch=told.append)  # type: ignore[arg-type]
    assert sum(told) == 2 * len(data) and [str(row.setting) for row in rows] == ["ddim:250", "dpmpp2m:25"]
    assert list(rows[0].values) == list(headings(DOS, data.spec))
    for row, off in zip(rows, (2, 6), strict=True):
        assert all(values.shape == (len(data),) for values in row.values.values())
        # dark pixels cannot get darker, so a little less than `off`
        assert 0.9 * off < row.values[NULL].mean() <= off
        assert 0.9 * off < row.values["truth:do(angle=30)"].mean() <= off
    assert not rows[0].values[SAME_NOISE].any(), "the reference against itself"
    assert 0.9 < rows[1].values[SAME_NOISE].mean() <= 1, "2 against 3 grey levels"
    reached = [name for name in rows[0].values if name.startswith("error:")]
    assert reached == [
        *(f"error:do(angle=30):{name}" for name in ("angle", "shadow_length", "shadow_position")),
        "error:do(shadow_length=6):shadow_length",
    ]
    assert rows[0].values["error:do(angle=30):angle"].mean() < 1.5, "as near as geometry measures the truth itself"


def row(name: str, l1: float, spread: float = 0.0) -> SweepRow:
    wave = spread * np.sin(np.arange(200))
    return SweepRow(parse_settings(f"{name},x:1")[0], {NULL: l1 + wave, SAME_NOISE: np.full(200, 9.0)})


def test_the_recommendation_is_the_fewest_steps_that_are_not_worse() -> None:
    reference = row("ddim:250", 1.0)
    best = recommend([reference, row("a:25", 0.9), row("a:15", 1.0, spread=0.3), row("a:10", 1.1)])
    assert best is not None and str(best.setting) == "a:15", "worse by chance is not worse"
    assert recommend([reference, row("a:10", 1.1)]) is None


def test_settings() -> None:
    assert parse_settings(" ddim:250, dpmpp2m:25,") == [Setting("ddim", 250), Setting("dpmpp2m", 25)]
    for text in ("ddim", "ddim:x,obelm:3", "ddim:-1,obelm:3", "ddim:²,obelm:3", "ddim:9999999,obelm:3"):
        with pytest.raises(InputError, match="settings: .* given, SOLVER:STEPS is needed"):
            parse_settings(text)
    for text in ("", "ddim:250", "ddim:5,ddim:5"):
        with pytest.raises(InputError, match="two or more different ones are needed"):
            parse_settings(text)


def test_what_is_written(tmp_path: Path) -> None:
    rows = [row("ddim:250", 1.0, 0.3), row("a:25", 0.5, 0.1), row("a:5", 2.0, 0.1)]
    write_rows(tmp_path / "steps.csv", rows)
    read = list(csv.DictReader((tmp_path / "steps.csv").open()))
    assert [(line["solver"], line["steps"]) for line in read] == [("ddim", "250"), ("a", "25"), ("a", "5")]
    assert float(read[1]["null_low"]) < float(read[1]["null"]) < float(read[1]["null_high"])
    heads = {NULL: "null", SAME_NOISE: "same"}
    picture = draw(rows, heads)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3 and len(np.unique(picture)) > 20
    assert "0.500 ± 0.0" in table(rows, heads)
    nothing = [SweepRow(each.setting, {**each.values, SAME_NOISE: np.full(200, np.nan)}) for each in rows]
    assert draw(nothing, heads).shape == picture.shape and table(nothing, heads).count(" -") == 3
    write_rows(tmp_path / "steps.csv", nothing)
    assert recommend(nothing) is not None


def test_the_script(digits: Path, tmp_path: Path) -> None:
    script, weights = REPO / "scripts" / "sweep_steps.py", REPO / "weights" / "morphomnist_causaldae_mini"
    base = [f"--model_path={weights}", f"--data_dir={digits}", f"--out_dir={tmp_path / 'out'}", "--num_images=3"]
    outcome = run(script, *base, "--settings=ddim:12,dpmpp2m:4,obelm:4", "--do=thickness=3")
    assert outcome.returncode == 0, outcome.stderr
    assert "worse than ddim:12" in outcome.stdout and "100%" in outcome.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"steps.csv", "steps.png", "steps.json"}
    report = json.loads((tmp_path / "out" / "steps.json").read_text())
    found = {name: row["null"]["mean"] for name, row in report["rows"].items()}
    assert found["obelm:4"] < 0.2 < found["ddim:12"], "O-BELM inverts itself, DDIM does not"
    assert_refused(run(script, *base, "--settings=ddim:5"), "settings: 'ddim:5' given, two or more")
    assert_refused(run(script, *base, "--settings=ddim:5,euler:5"), "solver: expected")
    assert_refused(run(script, *base, "--settings=ddim:5,obelm:1"), "steps: 1 given, at least 2")
