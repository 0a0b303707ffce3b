"""YAML without tags, anchors and repeated keys, flat and small."""

import os
from pathlib import Path

import pytest

from causaldiffae.errors import DataError, InputError
from causaldiffae.files.yaml import parse_yaml
from causaldiffae.script_util import parse_config

LAUGHS = "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [{'*a, ' * 9}*a]\n" for i in range(3)) + "run_dir: *b2\n"


def test_depth_length_and_values_are_bounded() -> None:
    assert parse_yaml("a: " + "[" * 19 + "]" * 19, "g")
    for text, values, message in (
        ("a: " + "[" * 30, None, "g: expected YAML .nested more than 20 deep, line 1"),
        ("a: " + "x" * (1 << 17), None, "g: expected at most 131072 characters, got 131075"),
        ("a: [1, 2]", 4, "g: expected at most 4 values, got 5"),
    ):
        with pytest.raises(DataError, match=message):
            parse_yaml(text, "g", values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "anchors are not allowed, line 1"),
        ("run_dir: !!python/object/apply:os.system [ls]\n", "tags are not allowed, line 1"),
        ("run_dir: " + "[" * 50 + "\n", "nested more than 20 deep"),
        ("lr: 1\nlr: 2\n", "repeated key in the mapping at line 1"),
        ("config: other.yaml\n", "expected no key 'config'; give several files with several --config"),
        ("x: " + "y" * 70000 + "\n", "expected at most 65536 bytes, got 70004"),
        ("".join(f"k{i}: 1\n" for i in range(2000)), "expected at most 2000 values, got 4001"),
        ("- a\n", "expected a mapping from names to values"),
        ("\udcff", "expected UTF-8 text"),
    ],
)
@pytest.mark.parametrize("flag", ["--config {}", "--config={}", "--conf={}"])
def test_a_configuration_is_checked_before_it_is_parsed(tmp_path: Path, text: str, message: str, flag: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=message) as caught:
        parse_config(flag.format(path).split())
    assert str(caught.value).startswith("config: ") and len(str(caught.value)) < 1000


def test_a_null_value_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("ema_rate: ~\n")
    with pytest.raises(InputError, match="ema_rate: .*null"):
        parse_config(["--config", str(tmp_path / "c.yaml")])


def test_a_configuration_is_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", tmp_path / "pipe", "{batch_size: 9}", "\0"):
        with pytest.raises(InputError, match="^config: .*: file not found, or not a regular file"):
            parse_config(["--config", str(path)])
