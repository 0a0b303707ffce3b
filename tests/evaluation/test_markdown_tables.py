"""Tables of Markdown pages come from results files, and those of this repository are those of its results."""

import json
from pathlib import Path

import pytest
from paths import REPO
from running import assert_refused, run

from causaldiffae.errors import DataError, InputError
from causaldiffae.evaluation.markdown_tables import add_results, fill_tables, update_pages
from causaldiffae.evaluation.result_tables import KINDS, interventions_table

SCRIPT = REPO / "scripts" / "write_tables.py"
PAGES = [REPO / "README.md", *(REPO / "docs" / name for name in ("results.md", "performance.md", "training.md"))]
END = "<!-- end of table -->"


def demo_report(l1: float = 3.2715) -> dict[str, object]:
    """What scripts/demo.py writes."""
    row = {
        "variable": "thickness",
        "requested": 2.0,
        "measured": 2.062,
        "do_nothing_l1": 10.919,
        "counterfactual_l1": l1,
        "counterfactual_l1_interval": 0.609,
        "mean_error_of_measured_labels": {"thickness": 0.105, "intensity": 7.175},
    }
    entry = {"reconstruction_l1": 0.03, "steps_each_way": 25, "weights": "/home/me/weights/model"}
    return {"morphomnist": {**row, **entry, "also": {**row, "requested": 3.5}}}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A README with a demo table and its results."""
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "results" / "demo.json").write_text(json.dumps(demo_report()))
    (tmp_path / "README.md").write_text(f"before\n\n<!-- table: demo -->\nold figures\n{END}\n\nafter\n")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_figures_of_this_repository_are_those_of_its_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<!-- table: " in text
    assert fill_tables(text, REPO / "docs" / "results", page.name) == text, "run python scripts/write_tables.py"


def test_results_of_this_repository_are_shown_and_small() -> None:
    marked = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for path in (REPO / "docs" / "results").iterdir():
        assert path.stat().st_size < 80 << 10
        assert f" {path.stem} -->" in marked, f"no page shows {path.name}"


def test_a_table_is_rounded_and_the_rest_of_the_page_stays(clone: Path) -> None:
    assert update_pages(clone, {}) == [clone / "README.md"]
    text = (clone / "README.md").read_text()
    assert text.startswith("before\n\n<!-- table: demo -->\n\n| data |") and text.endswith(f"|\n\n{END}\n\nafter\n")
    assert "| morphomnist | do(thickness = 2) | 3.27 ± 0.61 | 10.92 | 2.06 | thickness 0.11, intensity 7.18 |" in text
    assert "do(thickness = 3.5)" in text and "old figures" not in text
    assert update_pages(clone, {}) == [], "nothing changes the second time"


def test_a_changed_figure_is_noticed(clone: Path) -> None:
    update_pages(clone, {})
    (clone / "docs" / "results" / "demo.json").write_text(json.dumps(demo_report(l1=3.4)))
    text = (clone / "README.md").read_text()
    assert fill_tables(text, clone / "docs" / "results", "README.md") != text


def test_added_results_lose_paths_and_digits_of_the_machine(clone: Path) -> None:
    report = clone / "report.json"
    report.write_text(json.dumps(demo_report(l1=3.123456789)))
    outcome = run(SCRIPT, "--root", clone, "--add", f"demo={report}")
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.splitlines() == [str(clone / "docs" / "results" / "demo.json"), str(clone / "README.md")]
    added = json.loads((clone / "docs" / "results" / "demo.json").read_text())["morphomnist"]
    assert added["counterfactual_l1"] == 3.12346 and added["weights"] == "model"
    assert "3.12 ± 0.61" in (clone / "README.md").read_text()


def test_a_table_may_come_from_a_csv_file(clone: Path) -> None:
    source = clone / "sweep.csv"
    source.write_text("solver,steps,null,null_low,null_high,truth:do(a=1),truth:do(a=1)_low,truth:do(a=1)_high\n"
                      "dpmpp2m,25,0.0267,0.0246,0.0290,11.679,11.0,12.3\n")  # fmt: skip
    add_results(clone / "docs" / "results", "mine", source)
    text = fill_tables(f"<!-- table: steps mine -->\n{END}\n", clone / "docs" / "results", "page")
    assert "| solver, evaluations each way | null intervention | do(a = 1) |" in text
    assert "| DPM-Solver++(2M), 25 | 0.027 ± 0.002 | 11.68 ± 0.65 |" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table: nothing -->", "page: table: expected demo, .*got 'nothing'"),
        ("<!-- table: demo -->\n", "page: expected <!-- end of table --> after table demo, got the end of the page"),
        (f"<!-- table: demo -->\n<!-- table: demo -->\n{END}", "got <!-- table: demo -->"),
        (END, "expected <!-- table: KIND --> before"),
    ],
)
def test_marks_without_their_pair_are_refused(clone: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fill_tables(text, clone / "docs" / "results", "page")


def test_missing_and_other_results_are_refused(clone: Path) -> None:
    folder = clone / "docs" / "results"
    with pytest.raises(DataError, match=r"expected the results .*absent\.json, got none; add them with --add absent="):
        fill_tables(f"<!-- table: demo absent -->\n{END}\n", folder, "page")
    with pytest.raises(DataError, match="page: table peers: expected results of this kind in .*demo, got others"):
        fill_tables(f"<!-- table: peers demo -->\n{END}\n", folder, "page")
    assert_refused(run(SCRIPT, "--root", clone, "--add", "demo"), "add: expected NAME=FILE, got 'demo'")
    assert_refused(run(SCRIPT, "--root", clone, "--add", "demo=gone.json"), "add: expected a file .json or .csv")
    named = f"../demo={folder / 'demo.json'}"
    assert_refused(run(SCRIPT, "--root", clone, "--add", named), "add: expected a name of letters")
    assert_refused(run(SCRIPT, "--root", folder), "root: expected a folder with README.md or docs/")


def test_a_gpu_check_shows_what_was_measured() -> None:
    """Skipped checks are left out, failed ones are named."""
    row = {"unit": "", "bound": None, "note": "", "verdict": "measured"}
    checks = [
        row | {"name": "memory", "value": 4941.2, "unit": "MiB", "bound": 79374.2, "verdict": "passed"},
        row | {"name": "loss", "value": 2.049e-07},
        row | {"name": "student", "value": None, "verdict": "skipped"},
        row | {"name": "mode", "value": None, "verdict": "failed", "note": "out of memory"},
    ]
    assert KINDS["gpu_check"]({"checks": checks}).splitlines()[2:] == [
        "| memory | 4,941 MiB | 79,374 | |",
        "| loss | 2.05e-07 | | |",
        "| mode | failed | | out of memory |",
    ]


def test_interventions_are_named_as_in_the_summary() -> None:
    rows = {"do(arm=0.9, green=0.8)": {"counterfactual_l1": 1.477, "do_nothing_l1": 7.957}, "do(red=0.2)": {}}
    lines = interventions_table({"results": rows}).splitlines()
    assert lines[-2] == "| do(arm = 0.9, green = 0.8) | 1.48 | 7.96 |" and lines[-1].startswith("| do(red = 0.2) | ")
