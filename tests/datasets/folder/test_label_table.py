"""The label table: columns, paths, splits and groups."""

from pathlib import Path

import numpy as np
import pytest

from causaldiffae.datasets.folder.label_table import assign_splits, check_columns, check_group, parse_table
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.errors import DataError


@pytest.mark.parametrize(
    "name", ["file", "filename", "File", "file_name", "image_id", "Image Index", "path", "image", "FileName"]
)
def test_usual_names_of_the_column_of_files(name: str) -> None:
    table = parse_table(f"{name},age\na.png,1\n".encode(), "t.csv", problems := Problems())
    assert table.files == ["a.png"] and list(table.cells) == ["age"] and not problems.count


def test_file_takes_precedence_over_other_names() -> None:
    assert list(parse_table(b"path,file\n1,a.png\n", "t", Problems()).cells) == ["path"]
    with pytest.raises(DataError, match="expected one column `file` with the paths of the images, got image, path"):
        parse_table(b"image,path\na,b\n", "t", Problems())


def test_columns_without_a_name() -> None:
    table = parse_table(b",file,age,,\n0,a.png,1,,\n1,b.png,2,,\n,,,,\n", "t", problems := Problems())
    assert list(table.cells) == ["age"] and not problems.count
    assert problems.notes == ["t: column 1 without a name holds row numbers and is left out"]
    table = parse_table(b"Unnamed: 0,file,Unnamed: 2\n5,a.png,\n9,b.png,\n", "t", Problems())
    assert not table.cells
    parse_table(b",file\nx,a.png\ny,b.png\n", "t", problems := Problems())
    assert problems.lines == ["t: column 1: expected a name, got none"]


def test_names_are_in_composed_form() -> None:
    assert list(parse_table("file,Gro\u0308\u00dfe  (cm)\na,1\n".encode(), "t", Problems()).cells) == [
        "Gr\u00f6\u00dfe (cm)"
    ]


def test_backslashes_are_slashes() -> None:
    table = parse_table(b"file\nim\\00.png\n.\\a\\01.png\n", "t", problems := Problems())
    assert table.files == ["im/00.png", "a/01.png"] and problems.notes == [
        "t: backslashes in paths are read as slashes"
    ]


def test_one_cause_for_all_paths_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parse_table(b"file\n/a/0.png\n/a/1.png\n/a/2.png\n", "t", problems := Problems())
    assert problems.count == 1 and "(the same for all 3 rows); for your own images elsewhere" in problems.lines[0]
    monkeypatch.setenv("CAUSALDIFFAE_FOLLOW_LINKS", "1")
    assert parse_table(b"file\n/a/0.png\n../1.png\n", "t", Problems()).files == ["/a/0.png", "../1.png"]


@pytest.mark.parametrize(
    "words",
    [("Train", "valid", "TEST"), ("training", "validation", "testing"), ("0", "1", "2"), ("0.0", "1.0", "2.0"),
     ("trn", "dev", "holdout")],
)  # fmt: skip
def test_synonyms_of_splits(words: tuple[str, str, str]) -> None:
    text = "file,Split\n" + "".join(f"{i}.png,{word}\n" for i, word in enumerate(words))
    table = parse_table(text.encode(), "t", problems := Problems())
    assert table.splits == ["train", "val", "test"] and not problems.count
    assert f"{words[0]} as train" in problems.notes[0]


def test_other_words_are_refused() -> None:
    parse_table(b"file,split\na,train\nb,3\nc,1\n", "t", problems := Problems())
    expected = "split: expected one of train, val, test, got"
    assert problems.lines == [f"t:3: {expected} '3'", f"t:4: {expected} '1'"]


def test_a_group_is_never_divided() -> None:
    text = "file,patient\n" + "".join(f"{i}.png,p{i // 10}\n" for i in range(600))
    table = parse_table(text.encode(), "t", Problems())
    splits = assign_splits(table, 0, (0.8, 0.1, 0.1), "patient").reshape(60, 10)
    assert (splits == splits[:, :1]).all() and 40 < (splits[:, 0] == "train").sum() < 56
    check_group(table, splits.reshape(-1), "patient", problems := Problems())
    assert not problems.count
    assert (assign_splits(table, 0, (0.8, 0.1, 0.1)).reshape(60, 10) != splits).any()


def test_a_divided_group_in_the_split_column_is_refused() -> None:
    table = parse_table(b"file,scene,split\na,s,train\nb,s,test\nc,t,train\nd,,test\ne,,train\n", "t", Problems())
    assert table.splits is not None
    check_group(table, np.array(table.splits), "scene", problems := Problems())
    check_group(table, np.array(table.splits), "patient", problems)
    assert problems.lines == [
        "t: split: expected each scene in one split, got 's' in train and test",
        "t: group: expected a column 'patient', got none",
    ]


def test_other_columns_are_ignored_by_name_or_pattern() -> None:
    table = parse_table(b"file,age,note_a,note [b],hat,x,y,z\na,1,2,3,4,5,6,7\n", "t", Problems())

    def problems(*ignore: str) -> list[str]:
        check_columns(table, ["age"], ignore, "", found := Problems())
        return found.lines

    assert problems("*") == problems("note_a", "note [b]", "hat", "x", "y", "z") == problems("note*", "*") == []
    assert problems("note*", "hat", "x", "y") == [
        "t: column 'z': expected a variable of the graph; to skip it, list it in `ignore`"
    ]
    (line,) = problems()
    assert line.startswith("t: columns note_a, note [b], hat, x, y and 1 more: expected variables of the graph")
    assert line.endswith('; to skip them, list them in `ignore`, or ["*"] for all others')


def test_a_graph_without_keys_is_to_be_written_as_yaml() -> None:
    few, many = (
        parse_table(b"file,age," + names, "t", Problems())
        for names in (b"smile\na,1,2\n", b"a,b,c,d,e,f\n" + b",1" * 8)
    )
    check_columns(few, ["age"], (), "", problems := Problems(), has_keys=False)
    check_columns(many, ["age"], (), "", problems, has_keys=False)
    assert problems.lines[0] == (
        "t: column 'smile': expected a variable of the graph; write the graph as graph.yaml, with `ignore: "
        '["smile"]` to skip it, or with `variables: {"smile": {}}` for a variable without edges'
    )
    assert 'graph.yaml, with `ignore: ["*"]` to skip it' in problems.lines[1]


def test_the_nearest_column_is_named_for_a_variable_without_one() -> None:
    table = parse_table(b"file,Age,grey_hair,x\na,1,2,3\n", "t", Problems())
    check_columns(table, ["age", "grey hair", "y", "x"], ("*",), "", problems := Problems())
    start = "t: expected a column"
    assert problems.lines == [
        f"{start} 'age' for the variable of the graph, got none; did you mean 'Age'?",
        f"{start} 'grey hair' for the variable of the graph, got none; did you mean 'grey_hair'?",
        f"{start} 'y' for the variable of the graph, got none",
    ]


def test_absolute_paths_inside_the_folder_of_the_table_are_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = f"file\n{tmp_path}/set/im/0.png\nim/1.png\n{tmp_path}/set/../other/2.png\n{tmp_path}/3.png\n".encode()
    for where in (f"{tmp_path}/set/t.csv", "set/t.csv"):
        table = parse_table(text, where, problems := Problems())
        assert table.files == ["im/0.png", "im/1.png", "", ""]
        assert problems.lines == [
            f"{where}:{line}: expected a path inside the folder, got '{tmp_path}/{path}'"
            for line, path in ((4, "set/../other/2.png"), (5, "3.png"))
        ]
    assert parse_table(b"file\ngs://b/set/im/0.png\n", "gs://b/set/t.csv", Problems()).files == ["im/0.png"]


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("name,age\na.png,1\nb.JPG,2\n", "got name, age; rename 'name', which holds names of images, to `file`"),
        ("a.png,1\nb.png,2\n", "got a.png, 1; the first row must hold the names of the columns"),
        ("name,age\na,1\nb.png,2\n", "got name, age"),
    ],
)
def test_a_table_without_a_column_of_files_is_refused_with_advice(text: str, advice: str) -> None:
    with pytest.raises(DataError, match=f"with the paths of the images, {advice}$"):
        parse_table(text.encode(), "t", Problems())
