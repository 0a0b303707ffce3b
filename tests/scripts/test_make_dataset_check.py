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

from causaldiffae.config import TrainConfig
from causaldiffae.datasets.folder.check import check_folder
from causaldiffae.datasets.folder.image_files import ImageRule
from causaldiffae.datasets.registry import read_split
from causaldiffae.training.preflight import training_warnings

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
        f"{folder}/labels.csv: 20 images",
        "size in training: 8x8 pixels, RGB (crop: centre square, resized)",
        "  some configurations set another: folder_causaldae_mini 32x32, folder_causaldae_fast 64x64, "
        "folder_causaldae_latent 128x128, folder_causaldae_paper 128x128; "
        "--config NAME checks the folder for one of them",
        "  train: 12 images; labels: age 91.7 %, others 100 %; all: 91.7 %",
        "  val: 4 images, all labelled",
        "  test: 4 images, all labelled",
        "graph: 3 variables, 1 edge",
        "  hat: categorical, cap 33.3 %, none 33.3 %, straw 33.3 %",
        "  age: continuous, 20..47.5, mean 34.77, standard deviation 8.288; 8.33 % missing",
        "  grey: binary, no 75 %, yes 25 %",
        "graph: labels are not tested against it: too few rows, large separating sets, or variables that others "
        "determine",
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
        f"error: {folder}/labels.csv: expected a column 'a' for the variable of the graph, got none",
        f"error: {folder}/labels.csv: expected a column 'b' for the variable of the graph, got none",
        *(
            f"error: {folder}/labels.csv: column {name!r}: expected a variable of the graph; to skip it, list it in "
            "`ignore`"
            for name in ("age", "grey", "hat")
        ),
        f"error: {folder}/im/3.png: {IMAGE}, got an empty file",
        f"{folder}: 7 problems found",
    ]


def test_all_that_is_wrong_in_a_graph_file_is_said_at_once(check: Run, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set")
    write_table(folder, [{**row, "age": "old" if i == 2 else row["age"]} for i, row in enumerate(table_rows())])
    (folder / "graph.yaml").write_text(
        "names: [age, grey, hat]\nedges: [[age, grey], [grey, hat], [hat, age], [hat, hat], [hat, shoe], [age, grey]]\n"
        "variables: {age: {kind: old}, shoe: {}, hat: {scale: -1}}\nimage_size: 9999\nresize: none\nsize: 8\n"
    )
    code, _, err = check(folder)
    graph, table = f"error: {folder}/graph.yaml", f"error: {folder}/labels.csv"
    assert code == 2 and [line.split(", got")[0].split("; ")[0] for line in err] == [
        f"{graph}: graph: expected no self-loops",
        f"{graph}: graph: edge hat -> shoe: expected variables among age, grey, hat",
        f"{graph}: graph: expected unique edges",
        f"{graph}: graph: expected no cycles",
        f"{graph}: variables: age: kind: expected one of continuous, binary, categorical",
        f"{graph}: variables: expected names among age, grey, hat",
        f"{graph}: variables: hat: scale: expected a positive number",
        f"{graph}: resize: expected one of crop, area, pad",
        f"{graph}: unknown key 'size', expected one of names, edges, adjacency, variables, name, image_size, channels, "
        "resize, split_seed, split_shares, ignore, missing, group, value_range",
        f"{graph}: image_size: expected an integer in 8..512",
        f"{table}:4: age: expected a number",
        f"{folder}: 11 problems found",
    ]


def test_empty_random_splits_are_reported(check: Run, tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "split"} for row in table_rows()[:3]]
    rows[1]["age"] = 3
    folder = make_folder(tmp_path / "set", rows, "names: [age]\nedges: []\nignore: [grey, hat]\nimage_size: 8\n")
    code, _, err = check(folder)
    problem = "expected images in split test, got none; add a column `split` to assign images to it"
    assert code == 2 and err[0] == f"error: {folder}/labels.csv: {problem}"


def test_random_splits_of_refused_paths_are_not_reported(check: Run, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set")
    rows = [{key: value for key, value in row.items() if key != "split"} for row in table_rows()]
    write_table(folder, [{**row, "file": f"/photos/{row['file']}"} for row in rows])
    code, _, err = check(folder)
    assert code == 2 and len(err) == 2 and "expected a path inside the folder, got '/photos/im/0.png' (the" in err[0]


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
    assert code == 0 and "written without 2 images that cannot be read; the original table is labels.csv.orig" in out[0]
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
    assert "training: 16x16 pixels, grey (crop" in check(folder, "--channels", 1, "--image_size", 16)[1][1]
    (folder / "graph.png").unlink()
    (folder / "graph.png").mkdir()
    assert "graph.png: cannot be written (Is a directory)" in check(folder)[2][0]


def test_the_size_is_that_of_the_configuration(check: Run, tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text("image_size: 16\nchannels: 1\nblock_size: 2\n")
    folder = make_folder(tmp_path / "set", graph="edges: [[age, grey]]\nvariables: {hat: {}}\nresize: pad\n")
    code, out, err = check(folder, "--config", config)
    assert code == 0
    assert out[1] == "size in training: 16x16 pixels, grey (pad: whole image, padded with black), with small"
    needed = "hat: 3 categories need as many latents per variable, got 2 in small; train with --block_size 3"
    assert err == [f"warning: {needed}"]
    assert "training: 32x32 pixels, grey" in check(folder, "--config", config, "--image_size", 32)[1][1]
    assert "with folder_causaldae_mini" in check(folder, "--config", "folder_causaldae_mini")[1][1]
    config.write_text("image_size: large\n")
    assert "small.yaml: expected integers as image_size" in check(folder, "--config", config)[2][0]


def test_more_categories_than_latents_are_reported(check: Run, tmp_path: Path) -> None:
    rows = [{**row, "hat": f"h{i % 10}"} for i, row in enumerate(table_rows())]
    _, _, err = check(make_folder(tmp_path / "set", rows))
    found = "8 in folder_causaldae_mini, 8 in folder_causaldae_latent"
    needed = f"10 categories need as many latents per variable, got {found}; train with --block_size 10"
    assert err == [f"warning: hat: {needed}"]


def test_mixed_columns_are_reported(check: Run, tmp_path: Path) -> None:
    rows = [{**row, "grey": "2" if i % 4 else "x"} for i, row in enumerate(table_rows())]
    rows[1]["hat"] = rows[4]["hat"] = "7"
    code, _, err = check(make_folder(tmp_path / "set", rows))
    texts = ["numbers ('7' in 2 rows) and other text ('cap', 'none', 'straw' in 18 rows)"]
    texts.append("numbers ('2' in 15 rows) and other text ('x' in 5 rows)")
    assert code == 0 and len(err) == 2
    for name, text, line in zip(("hat", "grey"), texts, err, strict=True):
        assert f"labels.csv: {name}: mixed: {text} are read as categories; in the graph file, list marks" in line


def test_labels_outside_a_declared_range_are_reported_but_none_of_a_computed_one(check: Run, tmp_path: Path) -> None:
    rows = table_rows()
    rows[0] |= {"age": 1234.5678, "grey": ""}  # the extreme label is in a row that lacks another
    rows[3] |= {"age": 1100.1234, "hat": ""}
    folder = make_folder(tmp_path / "set", rows, "edges: [[hat, age], [age, grey]]\nimage_size: 8\n")
    _, _, err = check(folder)
    assert not any("range" in line for line in err), err
    data = read_split("folder", folder, "train")
    assert not [line for line in training_warnings(TrainConfig(), data) if "expected labels in" in line]
    (folder / "graph.yaml").write_text(
        "edges: [[hat, age], [age, grey]]\nimage_size: 8\nvariables: {age: {low: 21, high: 2000}}\n"
    )
    rows[0]["age"] = 20.5
    write_table(folder, rows)
    expected = "expected a label in the declared range 21..2000, got 20.5 (1 of 12 training images)"
    assert f"warning: {folder}/labels.csv:2: age: {expected}" in check(folder)[2]


def confounded(count: int, group: int = 1) -> list[dict[str, object]]:
    """Rows in which a hidden common cause relates size and hue; each `group` rows are the same."""
    rng, rows = np.random.default_rng(0), []
    for i in range(0, count, group):
        shape, hidden = int(rng.integers(3)), rng.normal()
        labels = {"size": round(shape + hidden + rng.normal(), 3), "hue": round(hidden - shape + rng.normal(), 3)}
        row = {"shape": ("disc", "square", "star")[shape], **labels, "patient": f"p{i // group}"}
        rows += [{"file": f"im/{i + j}.png", **row} for j in range(group)]
    return rows


def test_labels_that_contradict_the_graph_are_reported(check: Run, tmp_path: Path) -> None:
    edges = "edges: [[shape, size], [shape, hue]]\nimage_size: 8\ngroup: patient\n"
    folder = make_folder(tmp_path / "set", confounded(200), edges)
    code, out, err = check(folder)
    assert code == 0 and "graph: 1 pair without an edge tested on the labels: 1 contradicts it" in out
    (line,) = err
    assert line.startswith(
        "warning: labels contradict the graph: size and hue depend on each other given shape (partial correlation 0."
    )
    assert line.endswith("; an edge or a hidden common cause may be missing")
    (folder / "graph.yaml").write_text(edges.replace("]]", "], [size, hue]]"))
    assert check(folder)[2] == [], "an edge is not tested"
    assert "graph: it implies no independence that labels could contradict" in check(folder)[1]


def test_images_of_one_group_are_one_row_of_the_test(check: Run, tmp_path: Path) -> None:
    """Copies of rows are no further evidence."""
    edges = "edges: [[shape, size], [shape, hue]]\nimage_size: 8\ngroup: patient\n"
    code, out, err = check(make_folder(tmp_path / "set", confounded(240, group=6), edges))
    assert code == 0 and err == [] and any("too few rows" in line for line in out)


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
