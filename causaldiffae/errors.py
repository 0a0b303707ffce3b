"""Errors caused by user input.

Scripts report an `InputError` as one line on standard error with exit code 2 (`script_util.run_cli`). Any other
exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import os
import re
import unicodedata
from typing import Final

MAX_MESSAGE: Final = 2000
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)")
"""Also one that `Path` has left with a single slash; a letter alone is a drive of Windows."""


def one_line(message: object) -> str:
    """Returns a message as one line of at most `MAX_MESSAGE` characters, with its middle elided if necessary.

    Messages may quote untrusted text; control, formatting and surrogate characters are replaced by question marks.
    """
    text = str(message)
    if len(text) > MAX_MESSAGE:
        text = f"{text[: MAX_MESSAGE - 500]} ... {text[-490:]}"
    line = "".join(" " if character in "\n\r\t" else character for character in text)
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join("?" if unicodedata.category(character) in hidden else character for character in line)


class InputError(ValueError):
    """Invalid argument or configuration value; the message is a single line."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(message))


class DataError(InputError):
    """Missing, damaged or invalid file or folder."""


def check_given(settings: object, *names: str) -> None:
    """Raises `InputError` for the first empty setting; the names are also flags."""
    for name in names:
        if not getattr(settings, name):
            raise InputError(f"{name}: expected a value, got none; set --{name}")


def check_local(**outputs: str | os.PathLike[str] | None) -> None:
    """Raises `InputError` for the first output that is a URL; `Path` would make a local folder such as `gs:` of it."""
    for name, path in outputs.items():
        if found := _URL.fullmatch(str(path or "")):
            raise InputError(f"{name}: expected a local path, got {found[1]}://{found[2]}")


def check_least(settings: object, **minimum: int) -> None:
    """Raises `InputError` for the first setting below its minimum."""
    for name, value in minimum.items():
        if getattr(settings, name) < value:
            raise InputError(f"{name}: expected {value} or more, got {getattr(settings, name)}")
