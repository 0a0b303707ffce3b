"""The comparison at one budget: its plan, what counts as finished, resuming, its tables, a run from end to end."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from digits import write_digits
from paths import REPO
from running import Outcome, assert_refused, run

from causaldiffae.errors import InputError
from causaldiffae.evaluation.reproduction import ENTRIES, Plan, ReproductionSettings, Step
from causaldiffae.evaluation.reproduction_run import Runner, estimated_hours, shown_command
from causaldiffae.evaluation.reproduction_summary import over_seeds
from causaldiffae.evaluation.result_tables import reproduction_errors, reproduction_labels, reproduction_table

SCRIPT = REPO / "scripts" / "reproduce.py"
TINY = """
num_channels: 32
num_res_blocks: 1
channel_mult: "1,1"
attention_resolutions: ""
encoder_channels: "8,8,8,8"
decoder_channels: "8,8"
diffusion_steps: 50
batch_size: 4
log_interval: 1
save_interval: 2
sample_interval: 100
tensorboard: false
use_bf16: false
compile: false
"""


def plan(tmp_path: Path, dataset: str = "morphomnist", size: str = "mini", **settings: Any) -> Plan:
    folders = {"out": str(tmp_path / "out"), "data_dir": str(tmp_path / "data")}
    return Plan(dataset, size, ReproductionSettings(**folders | settings), REPO)


def step_named(steps: list[Step], name: str) -> Step:
    return next(step for step in steps if step.name == name)


# ------------------------------------------------------------------------------------------------ the plan


@pytest.mark.parametrize("dataset", ["morphomnist", "pendulum", "circuit"])
def test_every_model_is_trained_and_evaluated_with_every_seed(tmp_path: Path, dataset: str) -> None:
    steps = plan(tmp_path, dataset).steps()
    assert steps[0].name == f"data {dataset}"
    assert len({step.name for step in steps}) == len(steps)
    evaluated = [step.name for step in steps if step.kind == "evaluate"]
    assert evaluated == [f"evaluate {name}, seed {seed}" for seed in (0, 1) for name in ENTRIES]
    assert sum(step.kind == "train" for step in steps) == 2 * (len(ENTRIES) - 1), "Diff-SCM is trained once"
    for i, step in enumerate(steps):
        assert set(step.needs) <= {before.name for before in steps[:i]}
        assert Path(step.command[0]).is_file()


def test_models_differ_in_what_the_comparison_says(tmp_path: Path) -> None:
    steps = plan(tmp_path, total_steps=90).steps()
    configs = {
        name: step_named(steps, f"train {name}, seed 1").config() for name in ENTRIES if not ENTRIES[name].trained_as
    }
    types = {name: config.model.model_type for name, config in configs.items()}
    assert types["conditional"] == "conditional" and types["causalvae"] == "causalvae"
    assert types["diffscm_explicit"] == "diffscm" and types["labels_1"] == types["reference"] == "causaldae"
    assert configs["diffae_aligned"].model.aligned and not configs["diffae"].model.aligned
    assert configs["reference"].model.mechanism == "one_hop" and configs["reference"].diffusion.predict_v is False
    assert configs["labels_10"].loss.masking and configs["labels_10"].loss.label_fraction == 0.1
    trains = [config.train for config in configs.values()]
    assert {(train.total_steps, train.batch_size, train.seed) for train in trains} == {(90, 16, 1)}, "one budget"
    assert {train.lr_anneal_steps for train in trains} == {30}


def test_explicit_and_implicit_guidance_are_evaluated_on_one_run(tmp_path: Path) -> None:
    steps = plan(tmp_path).steps()
    explicit, implicit = (step_named(steps, f"evaluate diffscm_{kind}, seed 0") for kind in ("explicit", "implicit"))
    guide = step_named(steps, "noised predictor of diffscm_explicit, seed 0")
    assert explicit.command[2] == implicit.command[2] == str(guide.output.parent)
    assert "none" in implicit.command and "none" not in explicit.command


def test_models_are_compared_without_what_only_some_of_them_have(tmp_path: Path) -> None:
    for step in plan(tmp_path, "pendulum").steps():
        if step.kind == "evaluate":
            words = " ".join(step.command)
            assert "--label_corrections 0 --keep_unchanged 0 --keep_causes False" in words


def test_a_predictor_is_trained_where_none_is_shipped(tmp_path: Path) -> None:
    shipped, larger = plan(tmp_path, "pendulum").steps(), plan(tmp_path, "pendulum", "paper").steps()
    assert not [step for step in shipped if step.kind == "predictor"]
    predictor = next(step for step in larger if step.kind == "predictor")
    evaluation = step_named(larger, "evaluate causaldae, seed 0")
    assert predictor.name in evaluation.needs and str(predictor.output) in evaluation.command


def test_a_part_can_be_run(tmp_path: Path) -> None:
    steps = plan(tmp_path, only="causalvae,labels_1", seeds="3").steps()
    assert [step.name for step in steps[1:]] == [
        "train causalvae, seed 3", "evaluate causalvae, seed 3", "train labels_1, seed 3", "evaluate labels_1, seed 3",
    ]  # fmt: skip


def test_commands_can_be_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    step = step_named(plan(tmp_path / "a b", seeds="0").steps(), "train causaldae, seed 0")
    text = shown_command(step.command)
    assert text.startswith("python scripts/image_train.py --config configs/morphomnist_causaldae_mini.yaml ")
    assert f"'{tmp_path}/a b/data/morphomnist'" in text


def test_hours_are_estimated_for_what_is_left(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    tiny = plan(tmp_path, only="causalvae", seeds="0", extra_config=str(tmp_path / "tiny.yaml"), total_steps=1000)
    hours = estimated_hours(tiny)
    assert set(hours) == {"train causalvae, seed 0", "evaluate causalvae, seed 0"}
    assert all(value > 0 for value in hours.values())
    timed = plan(tmp_path, only="causalvae", seeds="0", extra_config=str(tmp_path / "tiny.yaml"), minutes=30.0)
    assert estimated_hours(timed)["train causalvae, seed 0"] == 0.5


# ------------------------------------------------------------------------------------------------ running


def script_step(folder: Path, name: str, body: str, needs: tuple[str, ...] = ()) -> Step:
    """A step that runs `body`, finished if it has put a file into `out`."""
    script, out = folder / f"{name}.py", folder / name
    script.write_text(f"import sys, time\nfrom pathlib import Path\nout = Path({str(out)!r})\n{body}\n")
    return Step(f"data {name}", (str(script),), out, needs)


WRITE = "out.mkdir(exist_ok=True); (out / 'file').write_text('x')"


def test_finished_steps_are_skipped_and_failures_end_only_what_needs_them(tmp_path: Path) -> None:
    lines: list[str] = []
    steps = [
        script_step(tmp_path, "first", WRITE),
        script_step(tmp_path, "bad", "sys.exit(3)"),
        script_step(tmp_path, "after_bad", WRITE, ("data bad",)),
        script_step(tmp_path, "last", WRITE, ("data first",)),
    ]
    runner = Runner(lines.append)
    runner.run(steps)
    assert runner.failed == {"data bad": "exit code 3", "data after_bad": "needs data bad"}
    assert [step.is_finished() for step in steps] == [True, False, False, True]
    lines.clear()
    Runner(lines.append).run([steps[0], steps[3]])
    assert lines == ["[1/2] data first: finished before", "[2/2] data last: finished before"]


def test_an_interrupted_step_ends_the_run_and_is_resumed(tmp_path: Path) -> None:
    """A training that a signal ends has exit code 0, but is not finished."""
    halfway = "(out.parent / 'state').write_text('x')"
    body = f"if (out.parent / 'state').exists():\n    {WRITE}\nelse:\n    {halfway}"
    steps = [script_step(tmp_path, "long", body), script_step(tmp_path, "next", WRITE)]
    with pytest.raises(KeyboardInterrupt, match="stopped in data long; run the same command to resume"):
        Runner(lambda _: None).run(steps)
    assert not steps[1].is_finished()
    Runner(lambda _: None).run(steps)
    assert all(step.is_finished() for step in steps)


def test_a_signal_is_passed_on(tmp_path: Path) -> None:
    kill = "import os, signal; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    steps = [script_step(tmp_path, "killed", kill), script_step(tmp_path, "next", WRITE)]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="stopped in data killed"):
        Runner(lambda _: None).run(steps)
    assert not steps[1].is_finished() and signal.getsignal(signal.SIGTERM) is before


def test_another_budget_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    plan(tmp_path, total_steps=100).claim()
    plan(tmp_path, total_steps=100, seeds="5", only="causaldae").claim()
    with pytest.raises(
        InputError, match="total_steps: expected 100, with which .* was started, got 200; set another --out"
    ):
        plan(tmp_path, total_steps=200).claim()


# ------------------------------------------------------------------------------------------------ tables


def summary() -> dict[str, Any]:
    """Two models, one of them with few labels."""

    def figure(*means: float) -> dict[str, Any]:
        return over_seeds([{"mean": mean, "low": mean - 0.5, "high": mean + 0.5} for mean in means]) or {}

    def row(title: str, l1: float, error: float, labels: float | None) -> dict[str, Any]:
        found = {"l1": figure(l1, l1 + 1), "errors": {"t": figure(error, error), "i": figure(error, error)}}
        return {"title": title, "labels": labels, "interventions": {"t": found}, "composition": figure(0.125)}

    models = {"a": row("Model A", 3, 0.5, 1.0), "b": row("Model B", 5, 0.75, None), "c": row("few", 9, 1.0, 0.1)}
    return {"models": models, "references": {"do_nothing": row("do nothing", 8, 2.0, None)}}


def test_tables_have_one_row_for_each_model() -> None:
    lines = reproduction_table(summary()).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| do nothing", "| Model A", "| Model B"]
    assert "| Model A | 3.50 ± 0.50 (3.00, 4.00) | 0.125 |" in lines[3]
    assert "| Model B | 0.750 ± 0.500 | 0.750 ± 0.500 |" in reproduction_errors(summary())


def test_weak_supervision_is_relative_to_all_labels() -> None:
    assert reproduction_labels(summary()).splitlines()[2:] == [
        "| 100% | 1.00 | 1.00 |",
        f"| 10% | {(cell := '2.00 ± 2.24')} | {cell} |",  # 2 sqrt((0.5 / 1)^2 + (0.5 / 0.5)^2)
    ]


# ------------------------------------------------------------------------------------------------ the script


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mnist"], "DATASET: expected morphomnist, pendulum, circuit or all, got 'mnist'"),
        (["morphomnist", "huge"], "SIZE: expected mini, fast, paper, got 'huge'"),
        (["morphomnist", "mini", "more"], "arguments: expected DATASET and SIZE before the flags"),
        (["morphomnist", "--only", "gan"], "only: expected causaldae, conditional"),
        (["morphomnist", "--seeds", "a"], "seeds: expected numbers separated by commas, got 'a'"),
        (["morphomnist", "--total_steps", "9", "--minutes", "9"], "total_steps, minutes: expected one of them"),
        (["morphomnist", "--update_docs", "gone"], "update_docs: expected a folder with README.md or docs/, got gone"),
    ],
)
def test_bad_input_is_refused(arguments: list[str], message: str) -> None:
    assert_refused(run(SCRIPT, *arguments), message)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_models_from_end_to_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every model at a tiny budget; the second call does nothing, and the tables hold every model."""
    write_digits(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)

    def reproduce(*more: object) -> Outcome:
        return run(SCRIPT, "morphomnist", "mini", "--data_dir", tmp_path, "--out", tmp_path / "out", "--seeds", "0",
                   "--total_steps", 3, "--extra_config", tmp_path / "tiny.yaml", "--num_images", 4, "--steps", 2,
                   *more)  # fmt: skip

    outcome = reproduce()
    assert outcome.returncode == 0, outcome.stderr + capfd.readouterr().err[-3000:]
    folder = tmp_path / "out" / "morphomnist_mini"
    found = json.loads((folder / "summary.json").read_text())
    assert set(found["models"]) == set(ENTRIES)
    assert all(row["training_steps"] == [3] for row in found["models"].values())
    results = {path.stem: json.loads(path.read_text()) for path in (folder / "results").glob("*.json")}
    explicit, implicit = (results[f"diffscm_{kind}_seed0"]["model"]["digest"] for kind in ("explicit", "implicit"))
    assert explicit != implicit, "the predictor belongs to the explicit one"
    for name in ("CausalDiffAE", "published recipe", "DiffAE, aligned", "do nothing"):
        assert f"| {name} |" in (folder / "table.md").read_text()
    assert "<h1>" in (folder / "report.html").read_text()
    (tmp_path / "README.md").write_text(
        "<!-- table: reproduction reproduce_morphomnist_mini -->\n<!-- end of table -->\n"
    )
    again = reproduce("--update_docs", tmp_path)
    assert again.returncode == 0 and again.stdout.count("finished before") == len(plan(tmp_path, seeds="0").steps())
    assert "| CausalDiffAE | " in (tmp_path / "README.md").read_text()
