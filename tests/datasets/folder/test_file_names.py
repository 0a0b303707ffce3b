"""Names in tables that differ from those of the files."""

from pathlib import Path

import pytest

from causaldiffae.datasets.folder.file_names import find_files
from causaldiffae.files.storage import LocalFolder


def found(folder: Path, *names: str) -> list[str]:
    """The file of each name, or the reason why there is none."""
    result = find_files(LocalFolder(folder), names)
    pairs = zip(result.names, result.stamps, strict=True)
    return [stamp if isinstance(stamp, str) else name for name, stamp in pairs]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in (
        "a.png",
        "im/00.png",
        "im/01.JPG",
        "x/07.png",
        "y/07.png",
        "notes/00.txt",
        "im/Gro\u0308\u00dfe.png",
        "scan.v2.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "actual"),
    [
        ("a.png", "a.png"),
        ("a", "a.png"),
        ("00", "im/00.png"),
        ("00.png", "im/00.png"),
        ("im/00", "im/00.png"),
        ("my_set/im/00.png", "im/00.png"),
        ("im/01.jpg", "im/01.JPG"),
        ("IM/00.PNG", "im/00.png"),
        ("Gr\u00f6\u00dfe.png", "im/Gro\u0308\u00dfe.png"),
        ("scan.v2", "scan.v2.png"),
        ("x/07", "x/07.png"),
        ("x/7", "x/07.png"),
        ("1", "im/01.JPG"),
        ("07", "expected one file of this name, got x/07.png, y/07.png"),
        ("z/07.png", "file not found"),
        ("none.png", "file not found"),
    ],
)
def test_a_name_stands_for_the_one_file_that_agrees_with_it(files: Path, name: str, actual: str) -> None:
    assert found(files, name) == [actual]


def test_a_file_has_one_name_only(files: Path) -> None:
    assert found(files, "im/00.png", "00") == ["im/00.png", "file not found"]


def test_links_are_found_where_they_are_followed(files: Path, tmp_path_factory: pytest.TempPathFactory,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("set")
    (folder / "linked").symlink_to(files)
    (files / "circle").symlink_to(folder)
    assert found(folder, "00") == ["file not found"]
    assert "a link to a file outside the folder; for your own folders" in found(folder, "linked/a.png")[0]
    monkeypatch.setenv("CAUSALDIFFAE_FOLLOW_LINKS", "1")
    assert found(folder, "00", "linked/a.png", str(files / "a.png")) == [
        "linked/im/00.png",
        "linked/a.png",
        str(files / "a.png"),
    ]
