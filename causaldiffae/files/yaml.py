"""YAML that may come from strangers: no tags, no anchors, no repeated keys, flat and small.

A tag asks for objects to be made, an alias of an alias ("billion laughs") unfolds to any size, and deep nesting costs
a reader in Python its stack. None of them has a use in a graph or a configuration, so each is refused by name before a
value is built. Where libyaml is there (all wheels of PyYAML have it) it does the scanning, ten times as fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from causaldiffae.errors import DataError, InputError

MAX_DEPTH: Final = 20
MAX_CHARACTERS: Final = 1 << 17
MAX_CONFIG_BYTES: Final = 1 << 16
MAX_CONFIG_VALUES: Final = 2000

_Scanner: Any = yaml.CBaseLoader if yaml.__with_libyaml__ else yaml.BaseLoader


class _TextLoader(yaml.composer.Composer, _Scanner):  # type: ignore[misc]
    """All scalars are text."""

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
            raise yaml.YAMLError(f"it is nested more than {MAX_DEPTH} deep, line {line}")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            raise yaml.YAMLError(f"a key is given twice in the mapping at line {node.start_mark.line + 1}")
        return mapping


def parse_yaml(text: str, where: str, max_values: int | None = None) -> Any:
    """The one document in a text; all its scalars are text.

    Args:
        where: the file's name, which errors begin with.
        max_values: scalars, lists and mappings that are allowed.

    Raises:
        DataError: if it is no YAML, too long or too deep, or has tags, anchors or a key twice.
    """
    if len(text) > MAX_CHARACTERS:
        raise DataError(f"{where}: it has {len(text)} characters, {MAX_CHARACTERS} are allowed")
    try:
        loader = _TextLoader(text)
        try:
            content = loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"{where}: it is no YAML ({' '.join(str(error).split())[:200]})") from None
    if max_values is not None and loader.values > max_values:
        raise DataError(f"{where}: it holds {loader.values} values, {max_values} are allowed")
    return content


def check_config_file(path: str | Path) -> None:
    """Refuses a configuration file that the command line's parser must not see.

    That parser types and merges the values; what it is given here is small, flat, and has neither tags nor anchors.

    Raises:
        InputError: naming the file, if it is missing or no regular file, or not as described; a `DataError` for its
            content.
    """
    path, where = Path(path), f"config: {str(path)[:500]}"
    try:
        if not path.is_file():
            raise InputError(f"{where}: it is missing or no regular file")
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise DataError(f"{where}: it has {path.stat().st_size} bytes, {MAX_CONFIG_BYTES} are allowed")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{where}: it is no UTF-8 text") from None
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: it cannot be read ({getattr(error, 'strerror', None) or error})") from None
    content = parse_yaml(text, where, MAX_CONFIG_VALUES)
    if content not in (None, "") and not isinstance(content, dict):
        raise DataError(f"{where}: a mapping from names to values is needed, like batch_size: 8")
    if isinstance(content, dict) and "config" in content:
        raise DataError(f"{where}: it names another configuration file; give both with --config")
