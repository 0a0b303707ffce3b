"""Text of unknown encoding, and tables of unknown separator."""

import pytest

from causaldiffae.errors import DataError
from causaldiffae.files.text import clean_name, decode_text, read_small_table, sniff_separator


@pytest.mark.parametrize(
    ("codec", "title"),
    [
        ("utf-8", "UTF-8"),
        ("utf-8-sig", "UTF-8"),
        ("cp1252", "Windows-1252"),
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("utf-32", "UTF-32"),
    ],
)
def test_the_encoding_is_found(codec: str, title: str) -> None:
    assert decode_text("file,Größe\n1.png,5\n".encode(codec), "t") == ("file,Größe\n1.png,5\n", title)


@pytest.mark.parametrize("content", [b"file\x81", b"a,b\0\0\0", b"\xff\xfea", bytes(9)])
def test_other_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="^t: expected UTF-8, UTF-16 or Windows-1252 text; save it as UTF-8$"):
        decode_text(content, "t")


@pytest.mark.parametrize(
    ("text", "separator"),
    [
        ("file,age\na.png,1\n", ","),
        ("file;age\na.png;51,8\nb.png;33,5\n", ";"),
        ('file;"weight, kg"\na.png;51,8\n', ";"),
        ("file\tage\na b.png\t1\n", "\t"),
        ("file|age\na.png|1\n", "|"),
        ("file\na.png\n", ","),
        ("file  age\na.png 1\n", " "),
        ("the name\na.png\n", ","),
        ('file,text\na.png,"x;y;z"\n', ","),
        ("", ","),
    ],
)
def test_the_separator_is_found(text: str, separator: str) -> None:
    assert sniff_separator(text, lambda name: name == "file") == separator


def test_names_are_compared_in_one_form() -> None:
    assert clean_name("  Gro\u0308\u00dfe \t (cm)\n") == "Gr\u00f6\u00dfe (cm)"


def test_small_tables_are_read() -> None:
    assert read_small_table("a; b\n;\n'x' ;2\n".encode("utf-16"), "t", 99) == [["a", "b"], ["'x'", "2"]]
    with pytest.raises(DataError, match="^t: expected at most 3 bytes, got 4"):
        read_small_table(b"a,b\n", "t", 3)
