"""`make_dataset.py check DIR`: everything that is wrong in one go, or a summary and a picture of the graph."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from folders import make_folder, paint, table_rows, write_table
from paths import REPO
from PIL import Image

from causaldiffae.datasets.folder.check import check_folder
from causaldiffae.datasets.folder.image_files import ImageRule
from causaldiffae.datasets.registry import read_split

IMAGE = "expected a JPEG, PNG, WebP, TIFF, BMP or GIF image"
SCRIPT = REPO / "scripts" / "make_dataset.py"

Run = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs the script in this process; returns the exit code and the lines on both streams."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    spec = importlib.util.spec_from_file_location("make_dataset", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make_dataset", module)
    spec.loader.exec_module(module)

    def run(*arguments: object) -> tuple[int, list[str], list[str]]:
        code = module.main(["check", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err.splitlines()

    return run


def test_a_sound_folder_is_summed_up(check: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table_rows()
    rows[1]["age"] = ""
    folder = make_folder(tmp_path / "set", rows)
    code, out, err = check(folder)
    assert code == 0 and err == []
    assert out == [
        f"{folder}/labels.csv: 20 images, read as 3x8x8 (crop)",
        "  train: 12 images, 91.67 % labelled",
        "  val: 4 images, 100 % labelled",
        "  test: 4 images, 100 % labelled",
        "graph: 3 variables, 1 edge",
        "  hat: categorical, cap 33.3 %, none 33.3 %, straw 33.3 %",
        "  age: continuous, 20..47.5, mean 34.77, standard deviation 8.288; 8.33 % missing",
        "  grey: binary, no 75 %, yes 25 %",
        f"graph written to {folder}/graph.png",
    ]
    with Image.open(folder / "graph.png") as picture:
        assert picture.mode == "RGB" and min(picture.size) > 100 and np.asarray(picture).std() > 10
    decoded: list[int] = []
    monkeypatch.setattr(ImageRule, "decode", lambda *_: decoded.append(1))
    assert len(read_split("folder", folder, "train")) == 12 and not decoded  # the check has filled the cache


def test_everything_that_is_wrong_is_said_at_once(check: Run, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set")
    rows = [{**row, "note": "x"} for row in table_rows()]
    rows[1]["file"] = "../1.png"
    rows[3]["file"] = "im/2.png"
    rows[5]["age"] = "old"
    rows[6]["age"] = "inf"
    rows[8]["split"] = "spare"
    rows[19]["hat"] = "helmet"
    write_table(folder, rows)
    with (folder / "labels.csv").open("a") as file:
        file.write("im/20.png,1\n")
    (folder / "im/9.png").unlink()
    (folder / "im/13.png").write_bytes(b"no picture")
    (folder / "graph.yaml").write_text("edges: [[age, grey], [hat, scarf]]\nimage_size: 8\n")
    code, out, err = check(folder)
    table = f"error: {folder}/labels.csv"
    assert code == 2 and out == []
    assert err == [
        f"{table}:22: expected 6 cells, got 2",
        f"{table}:3: expected a path inside the folder, got '../1.png'",
        f"{table}:5: expected unique paths, got 'im/2.png' as in line 4",
        f"{table}:10: split: expected one of train, val, test, got 'spare'",
        f"{table}: expected a column 'scarf' for the variable of the graph, got none",
        f"{table}: column 'note': expected a variable of the graph; to skip it, list it in `ignore`",
        f"{table}:7: age: expected a number, got 'old'",
        f"{table}:8: age: expected a finite 32-bit number, got 'inf'",
        f"{table}: hat: expected training labels 'helmet', got none (first in line 21)",
        f"{table}:11: im/9.png: file not found",
        f"error: {folder}/im/13.png: {IMAGE}, got another format or a damaged file",
        f"{folder}: 11 problems found",
    ]
    assert not (folder / "graph.png").exists()


def test_a_wrong_graph_does_not_hide_a_wrong_table(check: Run, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set")
    (folder / "im/3.png").write_bytes(b"")
    (tmp_path / "g.yaml").write_text("edges: [[a, b], [b, a]]")
    code, _, err = check(folder, "--graph", tmp_path / "g.yaml")
    assert code == 2 and err == [
        f"error: {tmp_path}/g.yaml: graph: expected no cycles, got a -> b -> a",
        f"error: {folder}/im/3.png: {IMAGE}, got an empty file",
        f"{folder}: 2 problems found",
    ]


def test_empty_random_splits_are_reported(check: Run, tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "split"} for row in table_rows()[:3]]
    rows[1]["age"] = 3
    folder = make_folder(tmp_path / "set", rows, "names: [age]\nedges: []\nignore: [grey, hat]\nimage_size: 8\n")
    code, _, err = check(folder)
    problem = "expected images in split test, got none; add a column `split` to assign images to it"
    assert code == 2 and err[0] == f"error: {folder}/labels.csv: {problem}"


def test_unknown_splits_are_reported_once(check: Run, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set", [{**row, "split": "A"} for row in table_rows()])
    code, _, err = check(folder)
    assert code == 2 and len(err) == 2 and "got 'A' (the same for all 20 rows)" in err[0]


def test_many_problems_are_counted(check: Run, tmp_path: Path) -> None:
    rows = [{"file": f"{i}.png", "age": i} for i in range(1500)]
    (tmp_path / "set").mkdir()
    write_table(tmp_path / "set", rows)
    (tmp_path / "set/graph.yaml").write_text("names: [age]\nedges: []\n")
    code, _, err = check(tmp_path / "set")
    one = "labels.csv:2: 0.png: file not found (the same for all 1500 rows); paths are relative to the folder"
    assert code == 2 and one in err[0] and err[-1].endswith("1 problem found")
    paint(0).save(tmp_path / "set/7.png")
    code, _, err = check(tmp_path / "set")
    assert code == 2 and len([line for line in err if line.startswith("error: ")]) == 1001
    assert err[-2:] == ["error: ... and 499 more", f"{tmp_path}/set: 1499 problems found"]


def test_hints_and_notes_are_printed(check: Run, tmp_path: Path) -> None:
    folder = make_folder(
        tmp_path / "set", [{**row, "age": row["age"] if i else -999} for i, row in enumerate(table_rows())]
    )
    text = (folder / "labels.csv").read_text().replace(",", ";")
    (folder / "labels.csv").write_bytes(text.encode("utf-16"))
    Image.new("L", (8, 8), 7).save(folder / "im/1.png")
    for i in range(2, 20):
        paint(i, 40, 10).save(folder / f"im/{i}.png")
    code, out, err = check(folder)
    assert code == 0 and out[:2] == [
        f"note: {folder}/labels.csv: read as UTF-16 text",
        f"note: {folder}/labels.csv: separated by semicolons",
    ]
    assert "-999 (1 row) far from the other values, 22.5..67.5" in err[0]
    assert err[1:] == [
        "warning: split train: 1 image is without contrast, such as im/1.png",
        f"warning: {folder}: the centre crop leaves out 68 % of the pixels on average, 75 % of im/2.png (40x10); "
        "`resize: pad` keeps them",
    ]


def test_the_table_is_written_without_broken_images(check: Run, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set", [{**row, "split": row["split"].title()} for row in table_rows()])
    text = (folder / "labels.csv").read_text().replace(",", ";")
    (folder / "labels.csv").write_text(text)
    (folder / "im/4.png").write_bytes((folder / "im/4.png").read_bytes()[:100])
    (folder / "im/7.png").unlink()
    assert check(folder)[0] == 2
    code, out, _ = check(folder, "--drop_broken")
    assert code == 0 and "written without 2 images that cannot be read; the previous table is labels.csv.orig" in out[0]
    assert (folder / "labels.csv.orig").read_text() == text
    rows = (folder / "labels.csv").read_text().splitlines()
    assert len(rows) == 19 and rows[0] == "file;age;grey;hat;split" and not any("im/4.png" in row for row in rows)
    assert check(folder, "--drop_broken")[0] == 0 and (folder / "labels.csv.orig").read_text() == text
    for i in range(20):
        (folder / f"im/{i}.png").unlink(missing_ok=True)
    assert "drop_broken: expected some images that can be read, got none" in check(folder, "--drop_broken")[2][0]


def test_links_are_followed_on_demand(check: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAUSALDIFFAE_FOLLOW_LINKS", "")
    folder = make_folder(tmp_path / "set")
    (folder / "im").rename(tmp_path / "elsewhere")
    (folder / "im").symlink_to(tmp_path / "elsewhere")
    code, _, err = check(folder)
    assert code == 2 and len(err) == 2 and err[0].endswith("set --follow_links (the same for all 20 rows)")
    assert check(folder, "--follow_links")[0] == 0


def test_requests_are_refused_in_one_line(check: Run, tmp_path: Path) -> None:
    assert check(tmp_path / "none") == (2, [], [f"error: {tmp_path}/none: folder not found"])
    folder = make_folder(tmp_path / "set")
    assert check(folder, "--channels", 2)[2] == ["error: channels: expected 1 or 3 or 4 (grey, RGB or RGBA), got 2"]
    assert "20 images, read as 1x16x16 (crop)" in check(folder, "--channels", 1, "--image_size", 16)[1][0]
    (folder / "graph.png").unlink()
    (folder / "graph.png").mkdir()
    assert "graph.png: cannot be written (Is a directory)" in check(folder)[2][0]


def test_a_graph_of_thirty_variables_is_checked(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"v{i}" for i in range(30)]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 : i + 3]]
    pairs += [("v0", "v10"), ("v1", "v11"), ("v2", "v12")]
    rows = [
        {"file": f"im/{i}.png", **{name: rng.normal() for name in names}, "split": ("train", "test")[i % 2]}
        for i in range(8)
    ]
    edges = ", ".join(f"[{a}, {b}]" for a, b in pairs)
    folder = make_folder(tmp_path / "set", rows, f"edges: [{edges}]\nimage_size: 8\n")
    report = check_folder(folder)
    assert report.count == 0 and "graph: 30 variables, 60 edges" in report.summary
