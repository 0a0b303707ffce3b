"""Untrusted YAML of bounded size, without tags, anchors and repeated keys.

Tags construct objects, nested aliases ("billion laughs") expand to any size, and deep nesting exhausts the stack.
Graphs and configurations need none of these, so they are rejected before values are constructed. libyaml, included in
all wheels of PyYAML, is used if available and is ten times as fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from causaldiffae.errors import DataError, InputError
from causaldiffae.files.reading import read_file

MAX_DEPTH: Final = 20
MAX_CHARACTERS: Final = 1 << 17
MAX_CONFIG_BYTES: Final = 1 << 16
MAX_CONFIG_VALUES: Final = 2000

_Scanner: Any = yaml.CBaseLoader if yaml.__with_libyaml__ else yaml.BaseLoader


class _TextLoader(yaml.composer.Composer, _Scanner):  # type: ignore[misc]
    """A loader that leaves all scalars as strings."""

    def __init__(self, text: str) -> None:
        _Scanner.__init__(self, text)
        yaml.composer.Composer.__init__(self)
        self.depth = self.values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.YAMLError(f"anchors are not allowed, line {line}")
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError(f"tags are not allowed, line {line}")
        self.values += 1
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {MAX_DEPTH} deep, line {line}")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            raise yaml.YAMLError(f"repeated key in the mapping at line {node.start_mark.line + 1}")
        return mapping


def parse_yaml(text: str, where: str, max_values: int | None = None) -> Any:
    """Parses a YAML document; scalars remain strings.

    Args:
        text: the document.
        where: prefix of error messages.
        max_values: maximum number of scalars, lists and mappings; None for no limit.

    Raises:
        DataError: If the text is not YAML, too long or too deep, or has tags, anchors or repeated keys.
    """
    if len(text) > MAX_CHARACTERS:
        raise DataError(f"{where}: expected at most {MAX_CHARACTERS} characters, got {len(text)}")
    try:
        loader = _TextLoader(text)
        try:
            content = loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"{where}: expected YAML ({' '.join(str(error).split())[:200]})") from None
    if max_values is not None and loader.values > max_values:
        raise DataError(f"{where}: expected at most {max_values} values, got {loader.values}")
    return content


def check_config_file(path: str | Path) -> None:
    """Raises a `DataError` unless a configuration file is a small mapping without tags and anchors."""
    where = f"config: {str(path)[:500]}"
    try:
        text = read_file(Path(path), MAX_CONFIG_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{where}: expected UTF-8 text") from None
    except DataError as error:
        raise DataError(f"config: {error}") from None
    content = parse_yaml(text, where, MAX_CONFIG_VALUES)
    if content not in (None, "") and not isinstance(content, dict):
        raise DataError(f"{where}: expected a mapping from names to values, such as batch_size: 8")
    if isinstance(content, dict) and "config" in content:
        raise DataError(f"{where}: expected no key 'config'; give several files with several --config")


def expand_recipes(argv: Sequence[str], recipes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Replaces `--recipe NAME` by the flags of the recipe."""
    expanded: list[str] = []
    remaining = iter(argv)
    for argument in remaining:
        if argument != "--recipe" and not argument.startswith("--recipe="):
            expanded.append(argument)
            continue
        name = next(remaining, "") if argument == "--recipe" else argument.partition("=")[2]
        if name not in recipes:
            raise InputError(f"recipe: expected {', '.join(recipes)}, got {name!r}")
        expanded += [f"--{key}={value}" for key, value in recipes[name].items()]
    return expanded


def config_files(argv: Sequence[str]) -> list[str]:
    """Values of `--config` and of its abbreviations accepted by argparse, "--c" to "--confi"."""
    found: list[str] = []
    for argument, following in zip(argv, [*argv[1:], ""], strict=False):
        flag, equals, value = argument.partition("=")
        if len(flag) > 2 and "--config".startswith(flag):
            found.append(value if equals else following)
    return found
